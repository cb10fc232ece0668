"""One's own module, measured on any devices: python own_module.py [BACKEND ...]."""

import sys

import isotrain
import torch
from torch import nn


class Tiny:
    def model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 1))

    def batches(self, seed):
        return list(torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(seed)))

    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch), batch.sum(1, keepdim=True))


if __name__ == "__main__":
    print(isotrain.bench(f"{__file__}:Tiny", backend=sys.argv[1:] or "cpu", dtype="float32", quick=True))
