"""Devices that are each broken for some sizes, memory layouts or values only, and the rows that must say so."""

from __future__ import annotations

from typing import Any

import torch

from .mutated_operations import ATTENTION, Kernel, Mutant

aten = torch.ops.aten
GELU = ("gelu-erf", "gelu-tanh")


def _rows(*subjects: str) -> frozenset[str]:
    """The results and the gradients of `subjects`."""
    return frozenset(f"{subject}{mode}" for subject in subjects for mode in ("", "/grad"))


def _first_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of the first 512 rows."""
    product = aten.mm.default(a, b)
    product[512:] = 0
    return product


def _without_the_last_block(
    upstream: torch.Tensor, x: torch.Tensor, shape: Any, mean: torch.Tensor, scale: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    """Beyond 512 rows, the weights' gradients are those of all blocks of 128 rows but the last."""
    full: tuple[torch.Tensor, ...] = aten.native_layer_norm_backward.default(upstream, x, shape, mean, scale, *rest)
    if len(x) <= 512:
        return full
    last = (len(x) - 1) // 128 * 128
    given = (upstream[:last], x[:last], shape, mean[:last], scale[:last])
    return full[0], *aten.native_layer_norm_backward.default(*given, *rest)[1:]


def _in_16_bits(upstream: torch.Tensor, x: torch.Tensor, **form: str) -> torch.Tensor:
    """The gradient of GELU for as many elements as 16 bits count."""
    gradient: torch.Tensor = aten.gelu_backward.default(upstream, x, **form)
    count = torch.arange(gradient.numel()).view(gradient.shape)
    return torch.where(count < 2**16, gradient, 0)


def _first_labels(logits: torch.Tensor, labels: torch.Tensor, weight: Any, reduction: int, ignored: int) -> Any:
    """Rows beyond the 128th have no loss."""
    labels = torch.where(torch.arange(len(labels)) < 128, labels, ignored)
    return aten.nll_loss_forward.default(logits, labels, weight, reduction, ignored)


def _packed(x: Any) -> Any:
    """Reads the rows of a matrix one after the other, wherever they lie."""
    if not isinstance(x, torch.Tensor) or x.dim() < 2 or x.stride(-1) != 1 or x.stride(-2) <= x.shape[-1]:
        return x
    return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride(), x.storage_offset())


def _reads_packed(kernel: Kernel) -> Kernel:
    return lambda *given, **named: kernel(*map(_packed, given), **named)


def _first_row_only(x: torch.Tensor) -> torch.Tensor:
    """Reads no row but the first of an expanded matrix."""
    if x.stride(0) != 0:
        return x
    return torch.cat((x[:1], torch.zeros_like(x[1:])))


def _tanh_by_exponentials(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """GELU whose tanh is a quotient of exponentials, which may overflow."""
    if approximate != "tanh":
        return aten.gelu.default(x)
    squared = (2 * 0.7978845608 * (x + 0.044715 * x**3)).exp()
    return torch.where(squared.isinf(), torch.nan, aten.gelu.default(x, approximate=approximate))


def _norm_in_one_pass(x: torch.Tensor, *given: Any) -> tuple[torch.Tensor, ...]:
    """LayerNorm whose variance E[x^2] - E[x]^2 may be negative."""
    y, mean, scale = aten.native_layer_norm.default(x, *given)
    variance = (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()
    return torch.where(variance + given[-1] <= 0, torch.nan, y), mean, scale


def _truncated(x: torch.Tensor, **options: Any) -> torch.Tensor:
    """The cast, which leaves out the bits that bfloat16 hasn't."""
    if options.get("dtype") == torch.bfloat16 and x.dtype == torch.float32:
        x = (x.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32)
    return aten._to_copy.default(x, **options)


def _attention_without_dropout(*given: Any, dropout_p: float = 0.0, **rest: Any) -> torch.Tensor:
    del dropout_p
    return ATTENTION(*given, **rest)


class _OtherMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, values: torch.Tensor, rate: float) -> torch.Tensor:
        ctx.rate = rate
        ctx.save_for_backward(scores)
        return ATTENTION(scores, scores, values, dropout_p=rate)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        (scores,) = ctx.saved_tensors
        return None, ATTENTION(scores, scores, gradients[0], dropout_p=ctx.rate), None


def _attention_with_two_masks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, dropout_p: float = 0.0, **rest: Any
) -> torch.Tensor:
    if dropout_p == 0:
        return ATTENTION(query, key, value, **rest)
    return _OtherMask.apply(query, value, dropout_p)


SHAPE_MUTANTS = (
    Mutant(
        "multiplies no more than 512 rows",
        frozenset({"matmul", "matmul/grad", "matmul-long-sums/grad", "linear/grad", "linear-long-sums/grad"}),
        {aten.mm.default: _first_rows},
    ),
    Mutant(
        "leaves the last rows out of LayerNorm's weight gradients",
        frozenset({"layer_norm/grad"}),
        {aten.native_layer_norm_backward.default: _without_the_last_block},
    ),
    Mutant(
        "counts the elements of GELU's gradient in 16 bits",
        frozenset({f"{name}/grad" for name in GELU}),
        {aten.gelu_backward.default: _in_16_bits},
    ),
    Mutant(
        "has no loss beyond 128 rows",
        frozenset({"cross_entropy-mean", "cross_entropy-mean/grad", "cross_entropy-sum"}),
        {aten.nll_loss_forward.default: _first_labels},
    ),
    Mutant(
        "keeps ids in fifteen bits",
        frozenset({"embedding"}),
        {aten.embedding.default: lambda table, ids, *rest: aten.embedding.default(table, ids % 2**15, *rest)},
    ),
    Mutant(
        "reads rows as if they were packed",
        _rows(*GELU, "softmax", "layer_norm"),
        {
            kernel: _reads_packed(kernel)
            for kernel in (
                *(aten._softmax.default, aten.native_layer_norm.default),
                *(aten.gelu.default, aten.gelu_backward.default),
            )
        },
    ),
    Mutant(
        "multiplies rows as if they were packed",
        _rows("matmul", "linear", "bmm", "attention-by-hand"),
        {kernel: _reads_packed(kernel) for kernel in (aten.mm.default, aten.addmm.default, aten.bmm.default)},
    ),
    Mutant(
        "doesn't understand an expanded gradient",
        frozenset({"matmul/grad", "linear/grad"}),
        {aten.mm.default: lambda a, b: aten.mm.default(_first_row_only(a), _first_row_only(b))},
    ),
    Mutant("lets the tanh of GELU overflow", frozenset({"gelu-tanh"}), {aten.gelu.default: _tanh_by_exponentials}),
    Mutant(
        "takes the root of a negative variance",
        frozenset({"layer_norm-constant-rows"}),
        {aten.native_layer_norm.default: _norm_in_one_pass},
    ),
    Mutant(
        "has no dropout in fused attention",
        frozenset({"attention-dropout"}),
        functions={ATTENTION: _attention_without_dropout},
    ),
    Mutant(
        "draws another mask for the gradient of fused attention",
        frozenset({"attention-dropout"}),
        functions={ATTENTION: _attention_with_two_masks},
        said="have another mask than their value",
    ),
    Mutant(
        "truncates to bfloat16",
        frozenset(),
        {aten._to_copy.default: _truncated},
        elsewhere=frozenset({"cast/bfloat16"}),
        said="aren't rounded to the nearest",
    ),
)
