"""Workloads as a user writes them: a decoder, a convolution, one with dropout, and one whose batches vary in shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

VOCABULARY, WIDTH, HEADS, LENGTH = 32, 16, 2, 12


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.drop = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rows, length, _ = states.shape
        parts = self.qkv(self.before(states)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        states = states + self.drop(self.out(mixed.transpose(1, 2).reshape(rows, length, WIDTH)))
        return states + self.drop(self.inner(self.after(states)))


class Decoder(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            states = block(states)
        return self.head(states)


class TinyGPT:
    """A decoder that learns to repeat its input."""

    dropout = 0.0
    lengths = (LENGTH, LENGTH, LENGTH)

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Decoder(self.dropout)

    def batches(self, seed: int) -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [{"ids": torch.randint(VOCABULARY, (4, length), generator=generator)} for length in self.lengths]

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, wanted = model(batch["ids"])[:, :-1], batch["ids"][:, 1:]
        right = (logits.argmax(-1) == wanted).float().mean()
        return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()), {"accuracy": right}

    def layers(self, model: Decoder) -> list[nn.Module]:
        return list(model.blocks)


class Dropped(TinyGPT):
    dropout = 0.2


class Ragged(TinyGPT):
    """Batches of several lengths, with padding that is told."""

    lengths = (5, 7, 12)

    def tokens(self, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
        return batch["ids"].numel() // 2, batch["ids"].numel()


@dataclass(frozen=True)
class Images:
    pixels: torch.Tensor
    labels: torch.Tensor


class Convolution:
    """A classifier of images, with running statistics and an optimizer of its own."""

    def model(self, seed: int) -> nn.Module:
        del seed  # The caller gives it to torch's generator.
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
        )

    def batches(self, seed: int) -> list[Images]:
        generator = torch.Generator().manual_seed(seed)
        return [
            Images(torch.randn(4, 3, 8, 8, generator=generator), torch.randint(5, (4,), generator=generator))
            for _ in range(3)
        ]

    def loss(self, model: nn.Module, batch: Images) -> torch.Tensor:
        return functional.cross_entropy(model(batch.pixels), batch.labels)

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
