"""One's own loop on any device: python own_loop.py [BACKEND]."""

import sys
from functools import partial

import torch
from isotrain import get_backend
from torch import nn


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)


def main(backend_name: str = "cpu") -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1))
    backend = get_backend(backend_name)
    session = backend.session(model, partial(torch.optim.AdamW, lr=1e-2), dtype="bfloat16")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(session.optimizer, T_max=50)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 32, 16, generator=generator)
    for step, batch in enumerate(session.batches((part, part.sum(1, keepdim=True)) for part in inputs), start=1):
        mean_loss = session.step(loss, batch, clip=1.0)
        schedule.step()
        if step % 10 == 0:
            print(f"step {step}: loss {float(mean_loss):.4f}{backend.on_caveat}")
    session.fence()
    session.save("own_loop.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
