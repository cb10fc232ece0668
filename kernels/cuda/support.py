"""What the GPU encoder can run, and reasons why not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn import functional

from ..packed.portable import ACTIVATIONS
from ..weights import EncoderConfig
from ..words import first_line

# Wider ones would not fit into a tile's or a row's registers.
LARGEST_HEAD = 256
LARGEST_HIDDEN = 16384

FLASH_DTYPES = (torch.bfloat16, torch.float16)
_COMPUTE = (torch.float32, torch.bfloat16, torch.float16)
# Largest difference from torch on values of about 1, by dtype: a few roundings of the result.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class Operators:
    """The implementation of each part. The GPU benchmark compares them.

    Attributes:
        attention: ``triton`` (ours; short sequences share a tile) or ``flash`` (torch's variable-length attention).
        flash_from: With ``triton``, chunks whose sequences have at least so many tokens on average take ``flash``.
        norm: ``triton`` (bias, residual and LayerNorm in one pass) or ``torch``.
        activation: ``triton`` (bias and GELU in one pass), ``torch``, or ``epilogue`` (cuBLASLt's tanh-GELU behind the
            product; other activations use triton).
        residual: ``float32`` or ``compute``: the dtype of the residual stream between the layers.
    """

    attention: str = "triton"
    flash_from: int | None = None
    norm: str = "triton"
    activation: str = "triton"
    residual: str = "float32"

    @property
    def flash(self) -> bool:
        """Whether flash attention is used at all."""
        return self.attention == "flash" or self.flash_from is not None

    def differences(self) -> list[str]:
        """What isn't the default, in words, beside the operator of attention."""
        said = [] if self.flash_from is None else [f"flash from {self.flash_from} tokens"]
        for part in ("norm", "activation", "residual"):
            if (chosen := getattr(self, part)) != getattr(Operators, part):
                said.append(f"{part} {chosen}")
        return said


def code_sha256() -> str:
    """Of this package's sources. What was measured of other kernels says nothing about these."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def why_no_triton() -> str:
    """Why Triton can't be used at all, or "" if it is installed."""
    return "" if find_spec("triton") else "triton is not installed"


def why_not(config: EncoderConfig, compute: torch.dtype, accumulate: torch.dtype) -> str:
    """Why an encoder of `config` can't run in these dtypes with these kernels, or "" if it can."""
    if reason := why_no_triton():
        return reason
    if compute not in _COMPUTE or accumulate != torch.float32:
        return f"the Triton kernels compute in float32, bfloat16 or float16 with float32 sums, not in {compute}"
    if config.activation not in ACTIVATIONS:
        return f"activation {config.activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
    if config.head_size > LARGEST_HEAD:
        return f"heads of {config.head_size} are wider than {LARGEST_HEAD}"
    if config.hidden_size > LARGEST_HIDDEN:
        return f"hidden_size {config.hidden_size} is larger than {LARGEST_HIDDEN}"
    return ""


def why_no_flash(config: EncoderConfig, compute: torch.dtype) -> str:
    """Why torch's variable-length attention can't be used, or "" if it can (on a GPU of sm_80 or newer)."""
    if compute not in FLASH_DTYPES:
        return f"flash attention computes in bfloat16 or float16, not in {compute}"
    return why_no_flash_heads(config.head_size)


def why_no_flash_heads(width: int) -> str:
    """Why torch's variable-length attention doesn't support heads of `width`, or "" if it does."""
    if width % 8 or width > LARGEST_HEAD:
        return f"flash attention takes heads of a multiple of 8 up to {LARGEST_HEAD}, not of {width}"
    return ""


def smoke_test(device: torch.device, compute: torch.dtype, config: EncoderConfig) -> str:
    """Runs each Triton kernel on a few rows of `config`'s widths and compares it with torch. Returns the error or "".

    This also compiles them, so a missing C compiler, an unsupported GPU or too large a tile is found here.
    """
    from . import triton_kernels

    generator = torch.Generator().manual_seed(0)
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_heads

    def values(*shape: int, dtype: torch.dtype = compute) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)

    def differs(ours: torch.Tensor, wanted: torch.Tensor) -> bool:
        # Negated, so that NaN is a difference.
        return not bool((ours.float() - wanted.float()).abs().max() <= _TOLERANCE[compute])

    wrong = []
    try:
        x, bias = values(5, inner), values(inner)
        wanted = ACTIVATIONS[config.activation](x.float() + bias.float())
        if differs(triton_kernels.bias_activation_(x, bias, triton_kernels.ACTIVATIONS[config.activation]), wanted):
            wrong.append("bias and activation")

        x, bias = values(5, hidden), values(hidden)
        residual, weight, shift = (values(*shape, dtype=torch.float32) for shape in ((5, hidden), (hidden,), (hidden,)))
        ours = triton_kernels.add_norm(residual, x, bias, weight, shift, config.layer_norm_eps)[0]
        summed = residual + x.float() + bias.float()
        if differs(ours, functional.layer_norm(summed, (hidden,), weight, shift, config.layer_norm_eps)):
            wrong.append("residual and LayerNorm")

        starts, ends = (
            torch.tensor(rows, dtype=torch.int32, device=device) for rows in ([0, 0, 2, 2, 2], [2, 2, 5, 5, 5])
        )
        parts = x.float().view(5, heads, -1).transpose(0, 1)
        allowed = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).to(device).bool()
        wanted = functional.scaled_dot_product_attention(parts, parts, parts, attn_mask=allowed)
        for tile in (triton_kernels.ROWS_PER_TILE, triton_kernels.FIRST_ROWS_PER_TILE):
            ours = triton_kernels.attention(x, x, x, starts, ends, heads, tile)
            if differs(ours, wanted.transpose(0, 1).reshape(5, hidden)):
                wrong.append(f"attention, {tile} rows a tile")
    except Exception as error:  # noqa: BLE001 (Triton's compiler and launcher raise what they like)
        return f"the Triton kernels don't run here ({type(error).__name__}: {first_line(error)[:200]})"
    return f"the Triton kernels give wrong results here ({', '.join(wrong)})" if wrong else ""
