"""CUDA graphs: work recorded once and repeated with one launch.

This file keeps the rules of torch's notes on CUDA graph semantics. What is captured has run once before, on the same
side stream, so that libraries are initialised and kernels compiled. A capture executes nothing. Every tensor that a
graph reads is kept alive and in place. A graph's next replay overwrites its results, so callers get copies. Graphs that
share a memory pool are replayed on one stream, one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ...kernels.cuda.buckets import Capture, CaptureError, Repeated, Thunk
from ...kernels.words import first_line

log = logging.getLogger("isotrain")

Step = Callable[..., torch.Tensor]

# Batches of further shapes run without a graph. Texts of up to 256 tokens, padded to multiples of 8, have no more.
MOST_STEP_SHAPES = 32

OFF_SWITCH = "ISOTRAIN_CUDA_GRAPHS"


class GraphCapture:
    """Records CUDA work of one device into `count` graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.count = 0
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Thunk) -> torch.Tensor:
        """Executes `run` on the capturing stream, in order with the work on the caller's stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = run()
        current.wait_stream(self._stream)
        # It was allocated on the side stream, and must not be reused there while the caller still reads it.
        result.record_stream(current)
        return result

    def capture(self, run: Thunk) -> Thunk:
        """Records `run`.

        Returns:
            A function that replays the graph on the current stream and returns the result tensor of `run`.

        Raises:
            CaptureError: Something in `run` can't be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = run()
        except RuntimeError as error:
            raise CaptureError(f"none could be captured ({first_line(error)})") from error
        self.count += 1

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


@dataclass(frozen=True)
class _Shape:
    """The input buffers for steps of one shape."""

    inputs: tuple[torch.Tensor, ...]
    repeated: Repeated


class CapturedStep:
    """An optimizer step as a graph, one `Repeated` for each shape of its inputs. After a failed one, steps run eagerly.

    `step(*inputs)` does forward, backward, update and `zero_grad(set_to_none=True)`, and returns one tensor. All its
    work must be on the device and depend only on the inputs, the parameters and the optimizer's state. No step is made
    twice: the warm-up is the first step, and a capture executes nothing before its replay.

    The learning rate is read from the optimizer's groups at each call. It stays a float there, for checkpoints; the
    graph reads a copy on the device.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.Optimizer, capture: Capture, most_shapes: int = MOST_STEP_SHAPES
    ) -> None:
        self._step, self._optimizer, self._capture, self._most_shapes = step, optimizer, capture, most_shapes
        first = next(parameter for group in optimizer.param_groups for parameter in group["params"])
        self._rates = [torch.zeros((), device=first.device) for _ in optimizer.param_groups]
        self._shapes: dict[tuple[tuple[torch.Size, torch.dtype], ...], _Shape] = {}

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Makes one step and returns its result as the caller's own tensor."""
        key = tuple((part.shape, part.dtype) for part in inputs)
        shape = self._shapes.get(key)
        if shape is None and len(self._shapes) >= self._most_shapes:
            with self._device_rates():
                return self._step(*inputs)
        if shape is None:
            buffers = tuple(torch.empty_like(part) for part in inputs)
            shape = self._shapes[key] = _Shape(buffers, Repeated(lambda: self._step(*buffers)))
        for buffer, part in zip(shape.inputs, inputs, strict=True):
            buffer.copy_(part)
        try:
            with self._device_rates(capturing=shape.repeated.captures_next):
                # A copy, because the next replay writes to the same memory.
                return shape.repeated(self._capture).clone()
        except CaptureError as error:
            log.warning("the optimizer's steps run without CUDA graphs: %s", error)
            # Until it failed, the step's Python ran, and left gradients that were never computed.
            self._optimizer.zero_grad(set_to_none=True)
            self._shapes, self._most_shapes = {}, 0
            return self(*inputs)

    @contextmanager
    def _device_rates(self, capturing: bool = False) -> Iterator[None]:
        """Holds the groups' learning rates on the device.

        The groups are marked as capturable only during a capture, since torch warns about steps of capturable
        optimizers outside of one.
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
    """Why an optimizer's step can't be captured, or an empty string."""
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return f"{type(optimizer).__name__} keeps its learning rate on the host"
    if not all(group.get("fused") for group in optimizer.param_groups):
        return "only the fused optimizer keeps its step count and learning rate on the device"
    return ""
