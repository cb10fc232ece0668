"""The CUDA backend with the host in the GPU's place, and batches for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from isotrain.backends import Backend
from isotrain.backends.cuda.device import CudaBackend
from isotrain.backends.host.choices import Choice, Chooser
from isotrain.kernels.packed import PackedBatch

from .recorded_graph import RecordedGraph


def batch_of(lengths: list[int], seed: int = 0) -> PackedBatch:
    rng = np.random.default_rng(seed)
    return PackedBatch.from_lists([rng.integers(5, 100, length).tolist() for length in lengths])


def plain_flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_bounds: Any, k_bounds: Any, longest_q: int, longest_k: int
) -> torch.Tensor:
    """What stands in for `flash_attention`, which only GPUs have: plain arithmetic, with its arguments and shapes."""
    assert q_bounds.dtype == k_bounds.dtype == torch.int32
    out = torch.full_like(q, torch.nan)
    edges = zip(q_bounds.tolist(), q_bounds[1:].tolist(), k_bounds.tolist(), k_bounds[1:].tolist(), strict=False)
    for q_start, q_stop, k_start, k_stop in edges:
        assert q_stop - q_start <= longest_q
        assert k_stop - k_start <= longest_k
        if k_start == k_stop:
            out[q_start:q_stop] = 0
            continue
        parts = (q[q_start:q_stop], k[k_start:k_stop], v[k_start:k_stop])
        query, key, value = (part.float().transpose(0, 1) for part in parts)
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        out[q_start:q_stop] = attended.transpose(0, 1).to(q.dtype)
    return out


class Told:
    """A timer that is told the seconds of each way, or why it can't run. It runs each way once, as a real one does.

    Attributes:
        seconds: By way. One that isn't named takes a second.
        timed: The ways that were timed, in order.
    """

    def __init__(self, **seconds: float | str) -> None:
        self.seconds = seconds
        self.timed: list[list[str]] = []

    def __call__(self, ways: Mapping[str, Any]) -> dict[str, float | str]:
        for run in ways.values():
            run()
        self.timed.append(list(ways))
        return {name: self.seconds.get(name, 1.0) for name in ways}


class HostedCuda(CudaBackend):
    """The backend's choices with the host in the GPU's place. Without a timer, it takes the first of several ways."""

    def __init__(self, timer: Callable[[Mapping[str, Any]], Mapping[str, float | str]] | None = None) -> None:
        self.index, self._captures = None, []
        self.timer = timer

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def synchronize(self, *tensors: torch.Tensor) -> None:
        del tensors

    @contextmanager
    def named_range(self, name: str) -> Iterator[None]:
        del name  # A build of torch without CUDA has no NVTX.
        yield

    def choose(self, choice: Choice) -> str:
        return Backend.choose(self, choice) if self.timer is None else super().choose(choice)

    @cached_property
    def _chooser(self) -> Chooser:
        return Chooser({"name": "a GPU"}, self.timer or Told())

    def _forget_peak(self) -> None:
        """The host counts no peak that could be forgotten."""

    def _new_capture(self) -> Any:
        return RecordedGraph()
