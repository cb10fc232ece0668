"""Triton's kernels against plain float64 arithmetic: on a GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(scope="module")
def kernels(triton_device: torch.device) -> ModuleType:
    from isotrain.kernels.cuda import triton_kernels

    return triton_kernels


def values(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device=device, dtype=dtype)


def assert_near(ours: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    # Relative to 1 or the value, whichever is larger: the result's own rounding and those of the sums inside.
    torch.testing.assert_close(ours.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def exact_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ranges: list[tuple[int, int]], heads: int
) -> torch.Tensor:
    """Float64, one row and head at a time; a row that sees no key gives zeros."""
    q, k, v = (part.double() for part in (q, k, v))
    width = q.shape[1] // heads
    out = torch.zeros_like(q)
    for (row, (start, end)), head in itertools.product(enumerate(ranges), range(heads)):
        columns = slice(head * width, (head + 1) * width)
        if end > start:
            scores = k[start:end, columns] @ q[row, columns] / math.sqrt(width)
            out[row, columns] = torch.softmax(scores, dim=0) @ v[start:end, columns]
    return out


def own_ranges(lengths: list[int]) -> list[tuple[int, int]]:
    """Each token's range of keys: its own sequence."""
    ranges, start = [], 0
    for length in lengths:
        ranges += [(start, start + length)] * length
        start += length
    return ranges


def as_tensors(ranges: list[tuple[int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = torch.tensor(ranges, dtype=torch.int32, device=device)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "heads", "width"),
    [([3, 1, 17, 64, 2], 2, 16), ([65], 3, 24), ([1], 1, 8), ([130, 1, 63], 1, 64), ([1] * 70, 2, 5)],
)
def test_attention_sees_its_own_sequence(
    lengths: list[int], heads: int, width: int, dtype: torch.dtype, kernels: ModuleType, triton_device: torch.device
) -> None:
    # Q, K and V are columns of one product, so their rows are strided.
    qkv = values(sum(lengths), 3 * heads * width, dtype=dtype, device=triton_device)
    q, k, v = qkv.split(heads * width, dim=1)
    ranges = own_ranges(lengths)
    ours = kernels.attention(q, k, v, *as_tensors(ranges, triton_device), heads)
    assert ours.dtype == dtype
    assert_near(ours, exact_attention(q, k, v, ranges, heads), dtype)


def test_attention_of_one_row_a_sequence(kernels: ModuleType, triton_device: torch.device) -> None:
    lengths = [30, 1, 7, 100, 2] * 5
    ranges = list(dict.fromkeys(own_ranges(lengths)))
    k, v = (values(sum(lengths), 32, dtype=torch.float32, device=triton_device, seed=seed) for seed in (1, 2))
    q = values(len(lengths), 32, dtype=torch.float32, device=triton_device)
    starts, ends = as_tensors(ranges, triton_device)
    ours = kernels.attention(q, k, v, starts, ends, 2, kernels.FIRST_ROWS_PER_TILE)
    assert_near(ours, exact_attention(q, k, v, ranges, 2), torch.float32)


def test_rows_without_keys_give_zeros_and_disturb_nobody(kernels: ModuleType, triton_device: torch.device) -> None:
    ranges = [*own_ranges([5, 9]), *[(14, 14)] * 60]
    q, k, v = (values(74, 32, dtype=torch.float32, device=triton_device, seed=seed) for seed in range(3))
    # Padding rows hold whatever an earlier batch left, also what is no number.
    for part in (q, k, v):
        part[14:] = torch.nan
    ours = kernels.attention(q, k, v, *as_tensors(ranges, triton_device), 2)
    assert_near(ours[:14], exact_attention(q[:14], k[:14], v[:14], ranges[:14], 2), torch.float32)
    assert torch.equal(ours[14:], torch.zeros_like(ours[14:]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spoilt", [0, 1, 2], ids=["query", "key", "value"])
def test_what_is_no_number_stays_in_its_own_sequence(
    spoilt: int, value: float, dtype: torch.dtype, kernels: ModuleType, triton_device: torch.device
) -> None:
    ranges = own_ranges([5, 9, 60])
    parts = [values(74, 32, dtype=dtype, device=triton_device, seed=seed) for seed in range(3)]
    bounds = as_tensors(ranges, triton_device)
    healthy = kernels.attention(*parts, *bounds, 2)
    parts[spoilt][7, 3] = value
    ours = kernels.attention(*parts, *bounds, 2)
    if math.isnan(value):
        assert torch.isnan(ours[7, :16]).all()
    if spoilt == 2:
        assert torch.isnan(ours[5:14]).all(), "the rows that see it"
    others = [*range(5), *range(14, 74)]
    assert torch.equal(ours[others], healthy[others])


def test_attention_survives_scores_far_from_zero(kernels: ModuleType, triton_device: torch.device) -> None:
    q, k, v = (values(70, 16, dtype=torch.float32, device=triton_device, seed=seed) for seed in range(3))
    ranges = own_ranges([70])
    ours = kernels.attention(100 * q, 100 * k, v, *as_tensors(ranges, triton_device), 1)
    expected = exact_attention(100 * q, 100 * k, v, ranges, 1)
    assert torch.isfinite(ours).all()
    # Scores of 1e4 have an absolute rounding of 1e-3 in float32, and the softmax is that far off.
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("width", [1, 48, 768, 1000])
def test_add_norm(width: int, rows: int, dtype: torch.dtype, kernels: ModuleType, triton_device: torch.device) -> None:
    residual = 3.0 + values(5, width, dtype=torch.float32, device=triton_device)
    update, bias = (values(*shape, dtype=dtype, device=triton_device, seed=1) for shape in ((5, width), (width,)))
    weight, shift = (values(width, dtype=torch.float32, device=triton_device, seed=seed) for seed in (2, 3))
    out, low = kernels.add_norm(residual, update, bias, weight, shift, 1e-5, rows)
    summed = residual.double() + update.double() + bias.double()
    exact = functional.layer_norm(summed, (width,), weight.double(), shift.double(), 1e-5)
    assert out.dtype == torch.float32
    assert_near(out, exact, torch.float32)
    assert low.dtype == dtype
    assert (low is out) == (dtype == torch.float32)
    # Not equal to the rounded float32: the interpreter cuts bfloat16 off instead of rounding it.
    assert_near(low, exact, dtype)


def test_add_norm_of_equal_values_is_the_shift(kernels: ModuleType, triton_device: torch.device) -> None:
    ones = torch.ones(2, 24, device=triton_device)
    shift = values(24, dtype=torch.float32, device=triton_device)
    out, _ = kernels.add_norm(ones, ones, ones[0], ones[0], shift, 1e-12)
    assert torch.equal(out, shift.expand(2, -1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
def test_bias_activation(
    name: str, rows: int, dtype: torch.dtype, kernels: ModuleType, triton_device: torch.device
) -> None:
    from isotrain.kernels import reference

    x = torch.linspace(-12, 12, 3 * 1100).reshape(3, 1100).to(triton_device, dtype)
    bias = values(1100, dtype=dtype, device=triton_device)
    exact = reference.activation(name)(x.double() + bias.double())
    ours = kernels.bias_activation_(x, bias, kernels.ACTIVATIONS[name], rows)
    assert ours is x
    assert_near(ours, exact, dtype)


@pytest.mark.parametrize("name", ["gelu_erf", "gelu_tanh", "relu", "silu", "tanh"])
def test_activations_keep_nan_and_large_values(name: str, kernels: ModuleType, triton_device: torch.device) -> None:
    x = torch.tensor([[torch.nan, 1e30, -1e30, 0.0]], device=triton_device)
    ours = kernels.bias_activation_(x, torch.zeros(4, device=triton_device), name)[0].tolist()
    assert math.isnan(ours[0])
    assert ours[1] == pytest.approx(1.0 if name == "tanh" else 1e30)
    assert ours[2] == (-1.0 if name == "tanh" else 0.0)
    assert ours[3] == 0.0


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from isotrain.kernels.cuda import triton_kernels as kernels

target = {target}
def build(kernel, types, constants, **options):
    names = kernel.arg_names
    signature = dict(zip(names, types.split(), strict=False)) | {{name: "constexpr" for name in constants}}
    values = {{(names.index(name),): value for name, value in constants.items()}}
    source = ASTSource(kernel, signature, constexprs=values)
    assert len(triton.compile(source, target=target, options=options).asm["{code}"]) > 1000

for t in ("bf16", "fp16", "fp32"):
    keys = kernels.WIDE_KEYS_PER_TILE if t == "fp32" else kernels.KEYS_PER_TILE
    for rows, warps in ((kernels.ROWS_PER_TILE, 8 if t == "fp32" else 4), (kernels.FIRST_ROWS_PER_TILE, 4)):
        build(kernels._attention, f"*{{t}} *{{t}} *{{t}} *{{t}} *i32 *i32 *i32 i32 i32 i32 i32 fp32",
              dict(HEADS=12, HEAD=64, BLOCK_D=64, BLOCK_M=rows, BLOCK_N=keys, WIDEN=False),
              num_warps=warps, num_stages=2)
    build(kernels._keep_numbers, f"*{{t}} *i32 i32 i32 i32", dict(ROWS=1, BLOCK=1024))
    build(kernels._add_norm, f"*fp32 *{{t}} *{{t}} *fp32 *fp32 *fp32 *{{t}} i32 i32 fp32",
          dict(ROWS=1, BLOCK=1024, WRITE_LOW=t != "fp32"))
    for activation in set(kernels.ACTIVATIONS.values()):
        build(kernels._bias_activation, f"*{{t}} *{{t}} i32 i32", dict(ROWS=1, BLOCK=1024, ACTIVATION=activation))
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("GPUTarget('cuda', 80, 32)", "cubin"),
        ("GPUTarget('cuda', 90, 32)", "cubin"),
        ("GPUTarget('hip', 'gfx942', 64)", "hsaco"),
        ("GPUTarget('hip', 'gfx950', 64)", "hsaco"),
    ],
)
def test_the_kernels_compile_for_gpus(target: str, code: str, triton_device: torch.device) -> None:
    """To machine code, which needs no GPU: what the interpreter accepts, the compiler may not."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = COMPILE.format(target=target, code=code)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "compiled", result.stderr
