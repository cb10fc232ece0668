"""Attention within the sequences of a packed batch, against its formula on one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from isotrain.backends import get_backend
from isotrain.kernels.cuda import VarlenAttention, varlen
from isotrain.kernels.packed import PackedBatch
from isotrain.kernels.packed.attention import (
    LONGEST_UNFUSED,
    GroupedAttention,
    fused_attention,
    spans_of,
    unfused_attention,
)
from torch.nn import functional

LENGTHS = np.array([1, 3, 3, 3, 9, 40])
HEADS, WIDTH = 2, 8


def tensors(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Query, key and value [1, heads, T, width] as a module's views of [1, T, heads, width]."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, int(LENGTHS.sum()), HEADS, WIDTH)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2) for _ in range(3)]


def by_formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    parts = zip(*(tensor[0].split(LENGTHS.tolist(), dim=1) for tensor in (query, key, value)), strict=True)
    attended = [torch.softmax(q @ k.transpose(1, 2) / WIDTH**0.5, dim=-1) @ v for q, k, v in parts]
    return torch.cat(attended, dim=1).transpose(0, 1)[None]


def test_spans_are_runs_of_equal_length() -> None:
    assert spans_of(LENGTHS) == [(1, 1), (3, 3), (1, 9), (1, 40)]
    assert spans_of(np.array([4, 4, 2, 4])) == [(2, 4), (1, 2), (1, 4)]


def assert_same(
    got: torch.Tensor, wanted: torch.Tensor, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]
) -> None:
    """Both results are equal, and so are their gradients by the inputs."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12)


def test_attention_and_its_gradients_are_the_formulas() -> None:
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in tensors()] for _ in range(2))
    got, wanted = GroupedAttention(LENGTHS)(*ours), by_formula(*theirs)
    assert_same(got, wanted, ours, theirs)


@pytest.mark.parametrize(("length", "plain"), [(40, True), (LONGEST_UNFUSED + 1, False)])
def test_the_host_attends_in_bfloat16_without_the_fused_operator_up_to_a_length(
    length: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients with padded keys, as near to float64's as those of torch's operator."""
    generator = torch.Generator().manual_seed(2)
    given = [torch.randn(3, HEADS, length, WIDTH, generator=generator, dtype=torch.float64) for _ in range(4)]
    mask = (torch.arange(length) < torch.tensor([length, 7, 1])[:, None])[:, None, None]
    attention = get_backend("cpu").attention()

    def all_of(attend: Any, dtype: torch.dtype) -> torch.Tensor:
        parts = [tensor.to(dtype).requires_grad_() for tensor in given[:3]]
        attended = attend(*parts, mask)
        gradients = torch.autograd.grad(attended, parts, given[3].to(dtype))
        return torch.stack([attended, *gradients]).double()

    exact = all_of(fused_attention, torch.float64)
    near = (all_of(fused_attention, torch.bfloat16) - exact).norm()
    torch.testing.assert_close(all_of(attention, torch.float64), exact, rtol=0, atol=0)
    got = all_of(attention, torch.bfloat16)
    assert (got - exact).norm() <= 1.5 * near
    monkeypatch.setattr(functional, "scaled_dot_product_attention", None)
    if plain:
        assert torch.equal(all_of(attention, torch.bfloat16), got)
    else:
        with pytest.raises(TypeError):
            all_of(attention, torch.bfloat16)


@pytest.mark.parametrize("attention", [fused_attention, unfused_attention])
def test_dropout_drops_its_share_and_scales_the_others(attention: Any) -> None:
    """Values that are unit vectors show each sequence's probabilities."""
    length, rate = 64, 0.3
    lengths = np.array([length] * 4)
    query, key = torch.randn(2, 1, HEADS, 4 * length, length, generator=torch.Generator().manual_seed(0)).unbind()
    value = torch.eye(length).repeat(4, 1).expand(1, HEADS, -1, -1)
    attend = GroupedAttention(lengths, attention)
    exact = attend(query, key, value)
    torch.manual_seed(5)
    dropped = attend(query, key, value, dropout=rate)
    kept = dropped != 0
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=0.01)
    torch.testing.assert_close(dropped[kept], exact[kept] / (1 - rate), rtol=1e-5, atol=0)
    torch.manual_seed(5)
    assert torch.equal(attend(query, key, value, dropout=rate), dropped)
    before = torch.get_rng_state()
    attend(query, key, value)
    assert torch.equal(torch.get_rng_state(), before), "without dropout no random number is drawn"


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls of the GPU's kernel, which the formula stands in for."""
    calls: list[tuple[Any, ...]] = []

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *bounds: Any) -> torch.Tensor:
        calls.append((q.shape, *bounds))
        wide = (tensor.double().transpose(0, 1)[None] for tensor in (q, k, v))
        return by_formula(*wide)[0].to(q.dtype)

    monkeypatch.setattr(varlen, "flash_attention", stand_in)
    return calls


def batch() -> PackedBatch:
    return PackedBatch.from_lists([[1] * length for length in LENGTHS])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_variable_length_kernel_takes_all_sequences_at_once(
    flash: list[tuple[Any, ...]], dtype: torch.dtype
) -> None:
    inputs = tensors(dtype)
    got = VarlenAttention(batch())(*inputs)
    ((shape, *bounds),) = flash
    assert shape == (LENGTHS.sum(), HEADS, WIDTH)
    assert all(torch.equal(given, batch().cu_seqlens) for given in bounds[:2])
    assert bounds[2:] == [40, 40]
    assert got.dtype == dtype
    expected = by_formula(*(tensor.double() for tensor in inputs))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-2)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the queries that torch's attention gets."""
    found: list[torch.Size] = []
    attend = functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        found.append(query.shape)
        return attend(query, *others, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    return found


@pytest.mark.parametrize("case", ["float64", "heads"])
def test_what_the_kernel_cannot_do_is_one_padded_launch(
    flash: list[tuple[Any, ...]], launches: list[torch.Size], case: str
) -> None:
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in tensors()] for _ in range(2))
    if case == "heads":
        ours, theirs = ([tensor[..., :7] for tensor in inputs] for inputs in (ours, theirs))
        for tensor in (*ours, *theirs):
            tensor.retain_grad()
    got = VarlenAttention(batch())(*ours)
    assert flash == []
    assert launches == [(len(LENGTHS), HEADS, 40, 7 if case == "heads" else WIDTH)]
    wanted = GroupedAttention(LENGTHS)(*theirs)
    assert_same(got, wanted, ours, theirs)


def test_dropout_is_one_padded_launch(flash: list[tuple[Any, ...]], launches: list[torch.Size]) -> None:
    """Values that are unit vectors show each sequence's probabilities."""
    length, rate = 64, 0.3
    same = PackedBatch.from_lists([[1] * length, [1] * 9, [1] * length])
    query, key = torch.randn(2, 1, HEADS, 2 * length + 9, length, generator=torch.Generator().manual_seed(0)).unbind()
    eye = torch.eye(length)
    value = torch.cat((eye, eye[:9], eye)).expand(1, HEADS, -1, -1)
    attend = VarlenAttention(same)
    exact = attend(query, key, value)
    torch.manual_seed(5)
    dropped = attend(query, key, value, rate)
    assert len(launches) == 2
    assert flash == []
    seen = exact != 0
    kept = dropped != 0
    assert not kept[~seen].any(), "what another sequence or padding holds"
    assert float(kept[seen].double().mean()) == pytest.approx(1 - rate, abs=0.01)
    torch.testing.assert_close(dropped[kept], exact[kept] / (1 - rate), rtol=1e-5, atol=0)
    torch.manual_seed(5)
    assert torch.equal(attend(query, key, value, rate), dropped)
