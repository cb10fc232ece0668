"""The parts of the native training step that are the trickiest alone: random masks, and attention's gradients."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from isotrain.kernels.cpu.library import best_isa, native, why_not
from support.native_kernel import factors, isas

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

LENGTHS = (1, 2, 3, 15, 16, 17, 31, 33, 64, 95, 96, 97, 130, 200)


class AttentionProbe(ctypes.Structure):
    """`struct AttentionProbe` of native/common.h."""

    _fields_ = (
        ("size", ctypes.c_int32),
        ("length", ctypes.c_int32),
        ("key", ctypes.c_uint64),
        ("rate", ctypes.c_float),
        *((name, ctypes.c_uint32) for name in ("site", "first", "step")),
        *((name, ctypes.c_void_p) for name in ("qkv", "out_gradient", "out", "log_sums", "qkv_gradient")),
    )


def test_philox_gives_the_numbers_of_its_authors() -> None:
    """The known answers that come with Random123 for philox4x32-10: counter, key, random bits."""
    known = [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    library: Any = native().library
    draw = library.isotrain_cpu_probe_philox
    draw.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p)
    for lane, (counter, (low, high), wanted) in enumerate(known):
        counters, bits = np.zeros((4, 16), np.uint32), np.zeros((4, 16), np.uint32)
        counters[:, lane] = counter
        assert draw((best_isa() or "").encode(), counters.ctypes.data, high << 32 | low, bits.ctypes.data)
        assert tuple(bits[:, lane].tolist()) == wanted


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1 / 65536])
def test_the_share_that_is_dropped_is_the_rate_and_the_mean_stays(rate: float) -> None:
    drawn = torch.stack([factors(7, rate, 3, row, 2048) for row in range(256)]).double()
    assert len(drawn.unique()) == 2
    assert drawn.min() == 0
    deviation = (rate * (1 - rate) / drawn.numel()) ** 0.5
    assert abs(float((drawn == 0).double().mean()) - rate) < 4 * deviation + 2**-17
    # Not biased by the rounding of the rate: the mean of the two factors by their exact shares is 1.
    dropped = round(rate * 65536) / 65536
    assert float(drawn.max()) * (1 - dropped) == pytest.approx(1.0, rel=1e-6)
    # Neither columns nor rows know of each other.
    centred = drawn / drawn.max() - (1 - dropped)
    for shift in ((0, 1), (0, 16), (0, 128), (1, 0)):
        with_others = (centred * centred.roll(shift, (0, 1))).mean() / centred.square().mean()
        assert abs(float(with_others)) < 5 * drawn.numel() ** -0.5


def test_a_mask_depends_on_the_key_and_the_place_only() -> None:
    one = factors(2**63 + 5, 0.5, 1, 2, 256)
    assert torch.equal(one, factors(2**63 + 5, 0.5, 1, 2, 256))
    assert torch.equal(one[:100], factors(2**63 + 5, 0.5, 1, 2, 100))
    others = [(5, 1, 2), (2**63 + 6, 1, 2), (2**63 + 5, 2, 1), (2**63 + 5, 1, 3), (2**63 + 5, 0, 2)]
    drawn = [one, *(factors(key, 0.5, site, row, 256) for key, site, row in others)]
    assert len({tuple(mask.tolist()) for mask in drawn}) == len(drawn)


def test_rates_at_both_ends() -> None:
    assert torch.equal(factors(1, 0.0, 0, 0, 64), torch.ones(64))
    assert not factors(1, 1.0, 0, 0, 64).any()


@dataclass
class Found:
    """What the probe computed, in float64."""

    out: torch.Tensor
    log_sums: torch.Tensor
    gradients: tuple[torch.Tensor, ...]


def attention(isa: str, qkv: torch.Tensor, gradient: torch.Tensor, rate: float = 0.0) -> Found:
    """qkv, gradient: bfloat16 [length, 3 size] and [length, size]."""
    length, size = gradient.shape
    # What an instruction set reads after the last row must not matter.
    qkv, gradient = (torch.cat((rows, torch.full((32, rows.shape[1]), torch.nan).to(rows))) for rows in (qkv, gradient))
    out, slopes = torch.zeros(length, size).bfloat16(), torch.zeros(length, 3 * size).bfloat16()
    log_sums = torch.zeros(length)
    tensors = (qkv, gradient, out, log_sums, slopes)
    probe = AttentionProbe(size, length, 11, rate, 5, 100, 3, *(tensor.data_ptr() for tensor in tensors))
    library: Any = native().library
    assert library.isotrain_cpu_probe_attention(isa.encode(), ctypes.byref(probe))
    return Found(out.double(), log_sums.double(), tuple(part.double() for part in slopes.split(size, dim=1)))


def exact(qkv: torch.Tensor, gradient: torch.Tensor, rate: float = 0.0) -> Found:
    """The same in float64 by autograd, with the same mask."""
    length, size = gradient.shape
    parts = tuple(part.double().requires_grad_() for part in qkv.split(size, dim=1))
    scores = parts[0] @ parts[1].T / size**0.5
    mask = torch.stack([factors(11, rate, 5, 100 + 3 * row, length) for row in range(length)]).double()
    out = (torch.softmax(scores, dim=-1) * mask) @ parts[2]
    log_sums = torch.logsumexp(scores, dim=-1) / np.log(2.0)
    return Found(out.detach(), log_sums.detach(), torch.autograd.grad(out, parts, gradient.double()))


def inputs(length: int, size: int, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    qkv = (torch.randn(length, 3 * size, generator=generator) * spread).bfloat16()
    return qkv, torch.randn(length, size, generator=generator).bfloat16()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The root mean square error as a share of the values'."""
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt().clamp(min=1e-9))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("size", [16, 32, 48, 64])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_and_its_gradients_are_those_of_float64(isa: str, size: int, rate: float) -> None:
    for length in LENGTHS:
        case = inputs(length, size)
        found, wanted = attention(isa, *case, rate), exact(*case, rate)
        torch.testing.assert_close(found.log_sums, wanted.log_sums, rtol=1e-5, atol=1e-5)
        # A rounding to bfloat16 is an error of up to 2^-9; probabilities, slopes and results are each rounded.
        assert error(found.out, wanted.out) < 0.004, length
        for name, got, right in zip(("query", "key", "value"), found.gradients, wanted.gradients, strict=True):
            # One token attends to itself: the gradients of its query and key are 0.
            if length > 1 or name == "value":
                assert error(got, right) < 0.006, (length, name)
            else:
                assert got.abs().max() < 1e-5


@pytest.mark.parametrize("isa", isas())
def test_large_scores_neither_overflow_nor_lose_their_gradients(isa: str) -> None:
    case = inputs(40, 32, spread=12.0)
    found, wanted = attention(isa, *case), exact(*case)
    assert error(found.out, wanted.out) < 0.004
    assert all(error(got, right) < 0.01 for got, right in zip(found.gradients, wanted.gradients, strict=True))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_masked(isa: str, bad: float) -> None:
    qkv, gradient = inputs(20, 32)
    for column in (3, 35, 67):
        broken = qkv.clone()
        broken[4, column] = bad
        found = attention(isa, broken, gradient)
        assert not found.out.isfinite().all()
    slope = gradient.clone()
    slope[4, 3] = bad
    found = attention(isa, qkv, slope)
    assert found.out.isfinite().all()
    assert all(not part.isfinite().all() for part in found.gradients)
