"""One's own loop on a lazy device: a new rate compiles nothing, and a loaded session goes on bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch), batch.sum(1, keepdim=True))


def test_a_session_compiles_its_step_once_and_goes_on_bit_for_bit(backend: Any, tmp_path: Path) -> None:
    batches = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(1))

    def trained(part: torch.Tensor, load: bool) -> tuple[list[float], int]:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 1))
        session = backend.session(model, partial(torch.optim.AdamW, lr=1e-2))
        schedule = torch.optim.lr_scheduler.ExponentialLR(session.optimizer, 0.9)
        if load:
            session.load(tmp_path / "state.pt")
            schedule.last_epoch = session.steps
        losses, counts = [], []
        for batch in part:
            losses.append(float(session.step(loss, batch, clip=1.0)))
            counts.append(backend.compile_count())
            schedule.step()
            if session.steps == 4:
                session.save(tmp_path / "state.pt")
        return losses, counts[-1] - counts[1]

    straight, compiled = trained(batches, load=False)
    assert compiled == 0
    assert trained(batches[4:], load=True)[0] == straight[4:]
