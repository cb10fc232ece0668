"""Triton kernels of the packed encoder, and the functions that launch them.

Attention is Dao's online softmax (2205.14135) over a flat tile of rows instead of one sequence. Each row has the range
of keys that it may see. Short sequences can therefore share a tile, nothing is padded, and the launch depends neither
on the number of sequences nor on their lengths. LayerNorm is two-pass in float32. All row offsets are 64-bit.

There is no autotuning: a graph may be captured at a shape's second use, and tuning would run inside it. Row counts are
not specialised, so a kernel is compiled once per model and dtype, not once per batch size.

Importing this module imports Triton.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

# Rows and keys per tile, and the warps that share it. Compiled for sm_90 (Triton 3.7.1, heads of 64), bfloat16 needs
# 128 registers and float32 109, both without spilling. float32 tiles of 64 keys spill thousands of bytes.
ROWS_PER_TILE = 64
KEYS_PER_TILE = 64
WIDE_KEYS_PER_TILE = 32
# [CLS] rows are a sequence apart. A tile with few of them spans fewer keys that most of its rows may not see.
FIRST_ROWS_PER_TILE = 16
ACTIVATION_COLUMNS = 1024
# Rows per program of the row-wise kernels. On a GPU, one row fills four warps. The interpreter's cost is per program.
ROWS_PER_PROGRAM = 1
INTERPRETED_ROWS_PER_PROGRAM = 64

# From transformers' name of an activation to the kernel's.
ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "tanh": "tanh",
}


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    num_heads: int,
    rows_per_tile: int = ROWS_PER_TILE,
) -> torch.Tensor:
    """Softmax attention of each query row over its own range of keys: [queries, hidden], contiguous.

    Rows of one tile should have neighbouring ranges: every key between a tile's least start and largest end is read.

    Args:
        query: [queries, hidden]. Rows may be strided, columns may not.
        key: [tokens, hidden], as `query` and of its dtype.
        value: As `key`. Rows in which something is no number become 0 in place, and what sees them becomes NaN.
        starts: int32 [queries]. Row i sees the keys ``starts[i] <= k < ends[i]``; a row without keys gives zeros.
        ends: int32 [queries].
        num_heads: Heads in a row of `hidden` values.
        rows_per_tile: Query rows that one program computes.
    """
    queries, hidden = query.shape
    head_size = hidden // num_heads
    out = torch.empty((queries, hidden), dtype=query.dtype, device=query.device)
    assert query.stride(1) == key.stride(1) == value.stride(1) == 1
    assert key.stride(0) == value.stride(0)
    wide = query.dtype == torch.float32
    spoilt = _keep_numbers_(value)
    _attention[(num_heads * triton.cdiv(queries, rows_per_tile),)](
        query,
        key,
        value,
        out,
        starts,
        ends,
        spoilt,
        queries,
        query.stride(0),
        key.stride(0),
        hidden,
        math.log2(math.e) / math.sqrt(head_size),
        HEADS=num_heads,
        HEAD=head_size,
        BLOCK_D=max(16, triton.next_power_of_2(head_size)),
        BLOCK_M=rows_per_tile,
        BLOCK_N=WIDE_KEYS_PER_TILE if wide else KEYS_PER_TILE,
        # The interpreter multiplies the bits of bfloat16 operands as integers. Widened, the products are the same.
        WIDEN=_interpreted() and query.dtype == torch.bfloat16,
        num_warps=8 if wide and rows_per_tile >= ROWS_PER_TILE else 4,
        num_stages=2,
    )
    return out


def _keep_numbers_(value: torch.Tensor) -> torch.Tensor:
    """Sets rows of `value` to 0 that hold a NaN or an infinity.

    A tile multiplies the values of all its keys, also those that a row may not see, by 0; and 0 times NaN is NaN.

    Returns:
        int32 [rows + 1]: the number of these rows before each row.
    """
    rows, width = value.shape
    spoilt = torch.zeros(rows + 1, dtype=torch.int32, device=value.device)
    program = _rows_per_program()
    _keep_numbers[(triton.cdiv(rows, program),)](
        value, spoilt, rows, value.stride(0), width, ROWS=program, BLOCK=triton.next_power_of_2(width), num_warps=4
    )
    return spoilt.cumsum(0, dtype=torch.int32)


def add_norm(
    residual: torch.Tensor,
    update: torch.Tensor,
    bias: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    rows_per_program: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """LayerNorm(residual + update + bias), once in the residual's dtype and once in the update's.

    Sums are float32. Where both dtypes are the same, both results are the same tensor.

    Args:
        residual: Contiguous [rows, width].
        update: Contiguous [rows, width].
        bias: [width].
        weight: [width], of the norm.
        shift: [width], of the norm.
        eps: Added to the variance.
        rows_per_program: Rows that one program computes.
    """
    rows, width = update.shape
    assert residual.is_contiguous()
    assert update.is_contiguous()
    out = torch.empty_like(residual)
    low = out if update.dtype == residual.dtype else torch.empty_like(update)
    block = triton.next_power_of_2(width)
    program = rows_per_program or _rows_per_program()
    _add_norm[(triton.cdiv(rows, program),)](
        residual,
        update,
        bias,
        weight,
        shift,
        out,
        low,
        rows,
        width,
        eps,
        ROWS=program,
        BLOCK=block,
        WRITE_LOW=low is not out,
        num_warps=4 if block <= 2048 else 8,
    )
    return out, low


def bias_activation_(
    x: torch.Tensor, bias: torch.Tensor, activation: str, rows_per_program: int | None = None
) -> torch.Tensor:
    """x = activation(x + bias) in place, computed in float32.

    x is contiguous [rows, width], bias [width]. `activation` is one of the values of `ACTIVATIONS`.
    """
    rows, width = x.shape
    assert x.is_contiguous()
    block = min(ACTIVATION_COLUMNS, triton.next_power_of_2(width))
    program = rows_per_program or _rows_per_program()
    _bias_activation[(triton.cdiv(rows, program), triton.cdiv(width, block))](
        x, bias, rows, width, ROWS=program, BLOCK=block, ACTIVATION=activation, num_warps=4
    )
    return x


def _rows_per_program() -> int:
    return INTERPRETED_ROWS_PER_PROGRAM if _interpreted() else ROWS_PER_PROGRAM


def _interpreted() -> bool:
    """Whether the kernels below were built for Triton's interpreter, which is decided at import."""
    return not isinstance(_attention, triton.runtime.JITFunction)


@triton.jit(do_not_specialize=["queries"])
def _attention(
    query,
    key,
    value,
    out,
    starts,
    ends,
    spoilt,
    queries,
    query_stride,
    key_stride,
    out_stride,
    scale,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # Programs that run at the same time are the heads of a few tiles, so that they read whole rows of memory.
    tile = tl.program_id(0) // HEADS
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real_row = row < queries
    start = tl.load(starts + row, mask=real_row, other=2147483647)
    end = tl.load(ends + row, mask=real_row, other=0)
    low = tl.min(start, 0)
    high = tl.max(end, 0)

    column = tl.arange(0, BLOCK_D)
    in_head = column < HEAD
    # The head's columns begin here in every row, one head after the other.
    first_column = tl.program_id(0) % HEADS * HEAD
    # 64-bit offsets to the tile, 32-bit ones within it: a tile of 64-bit offsets would fill the registers.
    first_row = (tile * BLOCK_M).to(tl.int64)
    local_row = tl.arange(0, BLOCK_M)
    q = tl.load(
        query + first_row * query_stride + first_column + (local_row[:, None] * query_stride + column[None, :]),
        mask=real_row[:, None] & in_head[None, :],
        other=0.0,
    )
    if WIDEN:
        q = q.to(tl.float32)

    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    weighted = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    local_key = tl.arange(0, BLOCK_N)
    to_tile = low.to(tl.int64) * key_stride + first_column
    for block in range(low, high, BLOCK_N):
        position = block + local_key
        real_key = position < high
        k = tl.load(
            key + to_tile + (local_key[None, :] * key_stride + column[:, None]),
            mask=real_key[None, :] & in_head[:, None],
            other=0.0,
        )
        v = tl.load(
            value + to_tile + (local_key[:, None] * key_stride + column[None, :]),
            mask=real_key[:, None] & in_head[None, :],
            other=0.0,
        )
        to_tile += BLOCK_N * key_stride
        if WIDEN:
            k = k.to(tl.float32)
        # Scores in units of log2, for exp2.
        scores = tl.dot(q, k, input_precision="ieee") * scale
        allowed = (position[None, :] >= start[:, None]) & (position[None, :] < end[:, None])
        scores = tl.where(allowed, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        # For a row that has seen no key yet, -inf minus -inf would be NaN.
        reference = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        decay = tl.exp2(largest - reference)
        p = tl.exp2(scores - reference[:, None])
        total = total * decay + tl.sum(p, 1)
        p = p.to(v.dtype)
        if WIDEN:
            p = p.to(tl.float32)
            v = v.to(tl.float32)
        weighted = weighted * decay[:, None] + tl.dot(p, v, input_precision="ieee")
        largest = new_largest

    result = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    before = tl.load(spoilt + start, mask=real_row, other=0)
    seen = tl.load(spoilt + end, mask=real_row, other=0) - before
    result = tl.where((seen > 0)[:, None], float("nan"), result)
    tl.store(
        out + first_row * out_stride + first_column + (local_row[:, None] * out_stride + column[None, :]),
        result.to(out.dtype.element_ty),
        mask=real_row[:, None] & in_head[None, :],
    )


@triton.jit(do_not_specialize=["rows"])
def _keep_numbers(value, spoilt, rows, stride, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = value + row.to(tl.int64)[:, None] * stride + column[None, :]
    found = tl.load(place, mask=inside, other=0.0)
    wide = found.to(tl.float32)
    # The sum is NaN unless all of them are numbers.
    bad = tl.sum(wide - wide, 1) != 0.0
    tl.store(spoilt + 1 + row, bad.to(tl.int32), mask=row < rows)
    tl.store(place, tl.zeros_like(found), mask=inside & bad[:, None])


@triton.jit(do_not_specialize=["rows"])
def _add_norm(
    residual,
    update,
    bias,
    weight,
    shift,
    out,
    low,
    rows,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WRITE_LOW: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    in_row = column < width
    inside = (row < rows)[:, None] & in_row[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=in_row, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(value, 1) / width
    centred = tl.where(in_row[None, :], value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / width
    gain = tl.load(weight + column, mask=in_row, other=0.0).to(tl.float32)[None, :]
    offset = tl.load(shift + column, mask=in_row, other=0.0).to(tl.float32)[None, :]
    result = centred * (1.0 / tl.sqrt_rn(variance + eps))[:, None] * gain + offset
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
    if WRITE_LOW:
        tl.store(low + place, result.to(low.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _bias_activation(x, bias, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_row = column < width
    inside = (row < rows)[:, None] & in_row[None, :]
    place = x + row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=in_row, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "gelu_erf":
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 * (1 + tanh(u)) is the sigmoid of 2 u.
        value = value * tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    elif ACTIVATION == "relu":
        # Not maximum(): it would turn NaN into 0.
        value = tl.where(value < 0.0, 0.0, value)
    elif ACTIVATION == "silu":
        value = value * tl.sigmoid(value)
    else:
        tl.static_assert(ACTIVATION == "tanh", "unknown activation")
        value = 2.0 * tl.sigmoid(2.0 * value) - 1.0
    tl.store(place, value.to(x.dtype.element_ty), mask=inside)
