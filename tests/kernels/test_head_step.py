"""The fused head step, judged by autograd and torch's optimizers in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.kernels.cpu.head import HeadStep, head_step_unsupported
from isotrain.kernels.cpu.library import multiply_add_rate, native, vectors
from torch.nn import functional

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)

Optimizer = Callable[..., torch.optim.Optimizer]


def autograd_step(head: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any, samples: int) -> Any:
    logits = head(x.to(next(head.parameters()).dtype))
    loss = functional.cross_entropy(logits, y, reduction="sum")
    (loss / samples).backward()
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack((loss.detach().double(), (logits.argmax(dim=1) == y).sum().double()))


def distance(head: torch.nn.Module, exact: torch.nn.Module) -> float:
    """Root mean square distance of all parameters."""
    squares = [
        (p.detach().double() - q.detach()).square() for p, q in zip(head.parameters(), exact.parameters(), strict=True)
    ]
    return float(torch.cat([square.flatten() for square in squares]).mean().sqrt())


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.0}),
        (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 0.05}),
    ],
)
@pytest.mark.parametrize(
    ("features", "hidden", "labels", "batch"), [(768, 256, 77, 8), (64, 16, 6, 1), (37, 21, 3, 19), (16, 5, 2, 8)]
)
def test_as_near_to_float64_as_autograd(
    make: Optimizer, settings: dict[str, Any], features: int, hidden: int, labels: int, batch: int
) -> None:
    generator = torch.Generator().manual_seed(5)
    fused = ClassificationHead(features, hidden, labels, seed=2)
    plain, exact = copy.deepcopy(fused), copy.deepcopy(fused).double()
    optimizers = [make(head.parameters(), **settings) for head in (fused, plain, exact)]
    step = HeadStep(list(fused.parameters()), optimizers[0])
    errors = []
    for index in range(40):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = settings["lr"] * (1.0 - index / 50)
        x = torch.randn(batch, features, generator=generator)
        y = torch.randint(0, labels, (batch,), generator=generator)
        losses = [step(x, y, batch + 3)] + [
            autograd_step(head, optimizer, x, y, batch + 3)
            for head, optimizer in zip((plain, exact), optimizers[1:], strict=True)
        ]
        errors.append([abs(float(loss[0] - losses[2][0])) / batch for loss in losses[:2]])
        assert losses[0][1] == losses[2][1], "as many right answers"
    worst = [max(column) for column in zip(*errors, strict=True)]
    assert worst[0] <= 2 * worst[1] + 1e-6
    assert distance(exact, ClassificationHead(features, hidden, labels, seed=2).double()) > 1e-3, "nothing was learned"
    # eps 1e-8 against gradients that happen to be tiny makes single weights chaotic in any float32 arithmetic.
    assert distance(fused, exact) <= 3 * distance(plain, exact) + 1e-7
    for parameter in fused.parameters():
        assert optimizers[0].state[parameter]["step"] == 40


def test_torch_goes_on_where_it_stopped() -> None:
    generator = torch.Generator().manual_seed(5)
    batches = [(torch.randn(8, 32, generator=generator), torch.randint(0, 4, (8,), generator=generator))] * 12
    mixed = ClassificationHead(32, 16, 4)
    plain = copy.deepcopy(mixed)
    ours, theirs = (torch.optim.AdamW(head.parameters(), 1e-2) for head in (mixed, plain))
    step = HeadStep(list(mixed.parameters()), ours)
    for index, (x, y) in enumerate(batches):
        step(x, y, 8) if index % 3 else autograd_step(mixed, ours, x, y, 8)
        autograd_step(plain, theirs, x, y, 8)
        if index == 6:
            # What a checkpoint does: new state tensors in the place of the old ones.
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert distance(mixed, copy.deepcopy(plain).double()) < 1e-5


def test_one_step_over_a_window_is_one_step_of_its_mean() -> None:
    x, y = torch.randn(20, 32), torch.randint(0, 4, (20,))
    whole, parts = (ClassificationHead(32, 16, 4) for _ in range(2))
    optimizers = [torch.optim.AdamW(head.parameters(), 1e-2) for head in (whole, parts)]
    HeadStep(list(whole.parameters()), optimizers[0])(x, y, 20)
    for part in (slice(0, 8), slice(8, 16), slice(16, 20)):
        (functional.cross_entropy(parts(x[part]), y[part], reduction="sum") / 20).backward()
    optimizers[1].step()
    assert distance(whole, copy.deepcopy(parts).double()) < 1e-6


def test_a_label_outside_changes_nothing() -> None:
    head = ClassificationHead(32, 16, 4)
    before = copy.deepcopy(head.state_dict())
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    step = HeadStep(list(head.parameters()), optimizer)
    for label in (4, -1):
        with pytest.raises(UserError, match=f"label {label} .* outside the head's 0 to 3"):
            step(torch.randn(2, 32), torch.tensor([0, label]), 2)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    with pytest.raises(UserError, match="don't fit a head of 32 features"):
        step(torch.randn(2, 31), torch.tensor([0, 1]), 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(value: float) -> None:
    head = ClassificationHead(32, 16, 4)
    step = HeadStep(list(head.parameters()), torch.optim.AdamW(head.parameters(), 1e-2))
    x = torch.randn(8, 32)
    x[3, 5] = value
    assert not torch.isfinite(step(x, torch.zeros(8, dtype=torch.int64), 8)[0])


def test_strided_and_half_precision_features() -> None:
    x, y = torch.randn(32, 8).T, torch.randint(0, 4, (8,))
    results = []
    for features in (x, x.contiguous(), x.contiguous().double()):
        head = ClassificationHead(32, 16, 4)
        results.append(HeadStep(list(head.parameters()), torch.optim.AdamW(head.parameters()))(features, y, 8))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_what_it_leaves_to_autograd() -> None:
    head = ClassificationHead(32, 16, 4)
    parameters = list(head.parameters())
    assert head_step_unsupported(parameters, torch.optim.AdamW(parameters)) is None
    assert "SGD" in (head_step_unsupported(parameters, torch.optim.SGD(parameters, 0.1)) or "")
    assert "amsgrad" in (head_step_unsupported(parameters, torch.optim.AdamW(parameters, amsgrad=True)) or "")
    halves = [p.detach().to(torch.bfloat16) for p in parameters]
    with pytest.raises(UserError, match="not float32"):
        HeadStep(halves, torch.optim.AdamW(halves))


def test_the_rate_of_multiply_adds_is_one_that_a_core_can_have() -> None:
    """Nothing reads their sums, so that a compiler may leave them out."""
    least, most = (1e9, 1e12) if vectors() else (0.0, 0.0)
    assert least <= multiply_add_rate(seconds=0.02) <= most
