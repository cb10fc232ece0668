"""`Backend.session`: the calls of one's own loop, on every backend that runs here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from isotrain import Session, UserError, get_backend
from torch import nn

BACKENDS = ["cpu", "tt-emulated", "ideal"]
ADAMW = partial(torch.optim.AdamW, lr=1e-2)


def module() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 3))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(4, 8, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(count)
    ]


@pytest.mark.parametrize("name", ["cpu", "ideal"])
def test_steps_are_those_of_a_plain_loop(name: str) -> None:
    torch.manual_seed(1)
    session = get_backend(name).session(module().eval(), ADAMW)
    losses = [float(session.step(loss, batch, clip=0.5)) for batch in session.batches(batches(6))]
    plain = module().eval()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    expected = []
    for batch in batches(6):
        value = loss(plain, batch)
        value.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(value.item())
    assert losses == pytest.approx(expected, rel=1e-6)
    assert session.steps == 6


def test_micro_batches_add_up_to_the_batch() -> None:
    (inputs, labels), (more, others) = batches(2)
    whole = get_backend("cpu").session(module().eval(), ADAMW)
    split = get_backend("cpu").session(module().eval(), ADAMW)
    mean = whole.step(loss, (torch.cat([inputs, more]), torch.cat([labels, others])))
    parts = split.step(loss, (inputs, labels), (more, others))
    assert float(parts) == pytest.approx(float(mean), rel=1e-6)
    for one, other in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_session_goes_on_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    def trained(session: Session, data: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
        return [float(session.step(loss, batch)) for batch in data]

    torch.manual_seed(2)
    data = batches(8)
    first = get_backend(name).session(module(), ADAMW, dtype)
    trained(first, data[:4])
    first.save(tmp_path / "state.pt")
    expected = trained(first, data[4:])

    torch.manual_seed(77)
    second = get_backend(name).session(module(), ADAMW, dtype)
    second.load(tmp_path / "state.pt")
    assert trained(second, data[4:]) == expected
    assert second.steps == 8
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_scheduler_sets_the_rate_of_the_next_step() -> None:
    session = get_backend("cpu").session(module().eval(), partial(torch.optim.SGD, lr=1.0))
    schedule = torch.optim.lr_scheduler.LambdaLR(session.optimizer, lambda step: 0.0 if step else 1.0)
    data = batches(2)
    session.step(loss, data[0])
    schedule.step()
    before = [parameter.clone() for parameter in session.model.parameters()]
    session.step(loss, data[1])
    assert all(map(torch.equal, before, session.model.parameters()))


def test_groups_keep_rates_of_their_own() -> None:
    model = module().eval()
    first, last = model[0], model[2]
    groups = [{"params": first.parameters(), "lr": 0.0}, {"params": last.parameters(), "lr": 0.1}]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    session = get_backend("cpu").session(model, torch.optim.SGD(groups, lr=1.0))
    session.step(loss, batches(1)[0])
    unchanged = [torch.equal(old, new) for old, new in zip(before, session.model.parameters(), strict=True)]
    assert unchanged == [True, True, False, False]
    assert [group["lr"] for group in session.optimizer.param_groups] == [0.0, 0.1]


def test_what_cannot_be_trained_is_one_line(tmp_path: Path) -> None:
    backend = get_backend("cpu")
    session = backend.session(module(), ADAMW)
    inputs, labels = batch = batches(1)[0]
    foreign, stepped = (torch.optim.SGD(module().parameters(), lr=0.1, momentum=0.9) for _ in range(2))
    for parameter in stepped.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    stepped.step()
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 not all of it")
    other = backend.session(nn.Linear(2, 2), ADAMW)
    other.save(tmp_path / "other.pt")
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    for what, words in (
        (lambda: session.step(lambda model, one: model(one[0]), batch), "the loss is a tensor of shape (4, 3)"),
        (lambda: session.step(lambda *_: 1.0, batch), "the loss is <class 'float'>"),
        (lambda: session.step(lambda *_: inputs.mean(), batch), "depends on no trained parameter"),
        (lambda: session.step(loss), "step got no batch"),
        (lambda: backend.session(nn.ReLU(), ADAMW), "ReLU has no parameter"),
        (lambda: backend.session(module(), foreign), "the optimizer has 4 parameters that aren't trained"),
        (lambda: backend.session(module(), stepped), "the optimizer has made steps already"),
        (lambda: backend.session(module(), ADAMW, "float19"), "float19"),
        (lambda: session.load(tmp_path / "absent.pt"), "absent.pt"),
        (lambda: session.load(tmp_path / "cut.pt"), "is damaged"),
        (lambda: session.load(tmp_path / "foreign.pt"), "was not written by Session.save"),
        (lambda: session.load(tmp_path / "other.pt"), "doesn't fit this session"),
        (lambda: session.save(tmp_path / "no" / "state.pt"), "can't be written"),
    ):
        with pytest.raises(UserError) as caught:
            what()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert labels.shape == (4,)
