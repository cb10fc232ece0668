"""Sequences of many lengths: every batch has the length of its longest one."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


@dataclass
class Batch:
    values: torch.Tensor  # float32 [rows, length, 1], padded with 0
    mask: torch.Tensor  # float32 [rows, length], 1 where there is a value
    above: torch.Tensor  # float32 [rows], 1 where the mean is above 0


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.whole = nn.Linear(16, 1)

    def forward(self, values, mask):
        weights = mask / mask.sum(1, keepdim=True)
        return self.whole((self.each(values) * weights.unsqueeze(2)).sum(1)).squeeze(1)


class DynamicShapes:
    def model(self, seed):
        torch.manual_seed(seed)
        return Pooled()

    def batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(8):
            lengths = torch.randint(2, 24, (6,), generator=generator)
            longest = int(lengths.max())
            mask = (torch.arange(longest) < lengths.unsqueeze(1)).float()
            values = torch.randn(6, longest, generator=generator) * mask
            found.append(Batch(values.unsqueeze(2), mask, (values.sum(1) > 0).float()))
        return found

    def loss(self, model, batch):
        return binary_cross_entropy_with_logits(model(batch.values, batch.mask), batch.above)

    def samples(self, batch):
        return len(batch.above)

    def tokens(self, batch):
        return int(batch.mask.sum()), batch.mask.numel()
