"""The CUDA backend with the host in the GPU's place, and batches for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from isotrain.backends.cuda.device import CudaBackend
from isotrain.kernels.packed import PackedBatch

from .recorded_graph import RecordedGraph


def batch_of(lengths: list[int], seed: int = 0) -> PackedBatch:
    rng = np.random.default_rng(seed)
    return PackedBatch.from_lists([rng.integers(5, 100, length).tolist() for length in lengths])


class HostedCuda(CudaBackend):
    """The backend's choices with the host in the GPU's place."""

    def __init__(self) -> None:
        self.index, self._captures = None, []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def _new_capture(self) -> Any:
        return RecordedGraph()
