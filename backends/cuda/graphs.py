"""CUDA graphs: work recorded once and repeated with one launch. A part of the CUDA backend.

The rules that this file keeps, from torch's notes on CUDA graph semantics: what is captured has run once before, on the
same side stream, so that libraries are initialised and kernels compiled; a capture executes nothing; every tensor that
a graph reads is kept alive and in place; a graph's results are overwritten by its next replay, so that callers get
copies; graphs that share a memory pool are replayed on one stream, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ...kernels.cuda.buckets import Capture, Thunk

Step = Callable[..., torch.Tensor]

# Batches of other shapes (the last of an epoch is one) run without a graph.
MOST_STEP_SHAPES = 8

OFF_SWITCH = "ISOTRAIN_CUDA_GRAPHS"


class GraphCapture:
    """Records CUDA work of one device into graphs that share one memory pool. `count` is how many there are."""

    def __init__(self, device: torch.device) -> None:
        self.count = 0
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Thunk) -> torch.Tensor:
        """Runs it for real on the stream that captures, between what the caller's stream holds before and after."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = run()
        current.wait_stream(self._stream)
        # Allocated on the side stream: not to be handed out there again while the caller still reads it.
        result.record_stream(current)
        return result

    def capture(self, run: Thunk) -> Thunk:
        """Records `run`; what it returns replays it on the current stream and gives its one result tensor.

        Raises RuntimeError, with the way out, where something in `run` can't be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = run()
        except RuntimeError as error:
            raise RuntimeError(
                f"a CUDA graph could not be captured ({str(error).splitlines()[0]}); set {OFF_SWITCH}=0 to run without"
            ) from error
        self.count += 1

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


@dataclass
class _Shape:
    """The buffers that steps on inputs of one shape read, and what has been done for it."""

    inputs: tuple[torch.Tensor, ...]
    warm: bool = False
    replay: Thunk | None = None


class CapturedStep:
    """An optimizer step as a graph: for each shape of its inputs the first call runs plainly, the second captures.

    `step(*inputs)` does forward, backward, update and `zero_grad(set_to_none=True)` and returns one tensor. All its
    work must be on the device and depend on the inputs, the parameters and the optimizer's state alone. No step is made
    twice: the warm-up is the first step itself, and a capture executes nothing before it is replayed.

    The learning rate is read from the optimizer's groups at every call, where it stays a float (for checkpoints); the
    graph reads it from the device.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.Optimizer, capture: Capture, most_shapes: int = MOST_STEP_SHAPES
    ) -> None:
        self._step, self._optimizer, self._capture, self._most_shapes = step, optimizer, capture, most_shapes
        first = next(parameter for group in optimizer.param_groups for parameter in group["params"])
        self._rates = [torch.zeros((), device=first.device) for _ in optimizer.param_groups]
        self._shapes: dict[tuple[tuple[torch.Size, torch.dtype], ...], _Shape] = {}

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Makes one step; its result, the caller's own tensor."""
        key = tuple((part.shape, part.dtype) for part in inputs)
        shape = self._shapes.get(key)
        with self._device_rates(capturing=shape is not None and shape.warm and shape.replay is None):
            if shape is None and len(self._shapes) >= self._most_shapes:
                return self._step(*inputs)
            if shape is None:
                shape = self._shapes[key] = _Shape(tuple(torch.empty_like(part) for part in inputs))
            for buffer, part in zip(shape.inputs, inputs, strict=True):
                buffer.copy_(part)
            fixed = shape.inputs
            if not shape.warm:
                loss = self._capture.warm_up(lambda: self._step(*fixed))
                shape.warm = True
            else:
                if shape.replay is None:
                    shape.replay = self._capture.capture(lambda: self._step(*fixed))
                loss = shape.replay()
        # A copy: the next replay writes the same memory.
        return loss.clone()

    @contextmanager
    def _device_rates(self, capturing: bool) -> Iterator[None]:
        """The groups with their learning rates on the device, and marked as capturable while they are captured.

        Not marked otherwise: torch warns about steps of capturable optimizers outside of a capture.
        """
        groups = self._optimizer.param_groups
        for rate, group in zip(self._rates, groups, strict=True):
            rate.fill_(group["lr"])
        before = [(group["lr"], group["capturable"]) for group in groups]
        try:
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate
                group["capturable"] = capturing
            yield
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = rate, capturable


def why_not_captured(optimizer: torch.optim.Optimizer) -> str:
    """Why an optimizer's step can't be captured; empty where it can."""
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return f"{type(optimizer).__name__} keeps its learning rate on the host"
    if not all(group.get("fused") for group in optimizer.param_groups):
        return "only the fused optimizer keeps its step count and learning rate on the device"
    return ""
