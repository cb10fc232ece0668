"""What stands in for a CUDA graph where there is no GPU.

A graph holds operators with their addresses, and nothing of the Python around them. So does this: it records aten's
operators and Triton's launches (under the interpreter), and a replay runs only those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from isotrain.kernels.cuda import CaptureError
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

Run = Callable[[], torch.Tensor]

# What waits for the device, or copies from the host's pageable memory: by operator, and by function where the CPU has
# no operator for it.
OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
FUNCTIONS = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.tensor}


class HostReadError(RuntimeError):
    """A capture would fail here."""


class RecordedGraph:
    """A `Capture`: records without a lasting effect, and replays without running Python.

    Attributes:
        events: "warm up", "capture" and "replay", in the order of the calls.
        fails: Whether a capture fails, after all its Python has run.
    """

    def __init__(self, fails: bool = False) -> None:
        self.events: list[str] = []
        self.fails = fails

    def warm_up(self, run: Run) -> torch.Tensor:
        self.events.append("warm up")
        return run()

    def capture(self, run: Run) -> Run:
        self.events.append("capture")
        recorder = _Recorder()
        drawn = torch.get_rng_state()
        try:
            with recorder, _Functions(), _launches(recorder):
                result = run()
        finally:
            torch.set_rng_state(drawn)
            recorder.undo()
        if self.fails:
            raise CaptureError("operation not permitted when stream is capturing")

        def replay() -> torch.Tensor:
            self.events.append("replay")
            with torch.no_grad():
                for repeat in recorder.operations:
                    repeat()
            return result

        return replay


class _Recorder(TorchDispatchMode):
    """Records each operator, and what the tensors from outside held before the first write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], object]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in OPERATORS:
            raise HostReadError(f"{func} is not permitted when a stream is capturing")
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(args[place] if place < len(args) else kwargs.get(argument.name))
        out = func(*args, **kwargs)
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        results = _tensors(out)
        self._own |= {_address(tensor) for tensor in results} - given

        def repeat() -> None:
            for old, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                if _address(old) != _address(new):
                    old.detach().copy_(new)

        self.operations.append(repeat)
        return out

    def keep(self, written: Any) -> None:
        """Remembers what is about to be written, unless it was made in the capture."""
        for tensor in _tensors(written):
            storage, address = tensor.untyped_storage(), _address(tensor)
            if address not in self._own:
                self._before.setdefault(address, (storage, storage.clone()))

    def undo(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FUNCTIONS:
            raise HostReadError(f"{func} is not permitted when a stream is capturing")
        return func(*args, **(kwargs or {}))


@contextmanager
def _launches(recorder: _Recorder) -> Iterator[None]:
    """Records the launches of Triton's interpreter, whose own operators are none of the graph's."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        yield
        return
    launch = GridExecutor.__call__

    def record(grid: Any, *args: Any, **kwargs: Any) -> None:
        def repeat() -> None:
            launch(grid, *args, **kwargs)

        with _disable_current_modes(), torch._C.DisableTorchFunction():
            recorder.keep((args, kwargs))
            repeat()
        recorder.operations.append(repeat)

    GridExecutor.__call__ = record
    try:
        yield
    finally:
        GridExecutor.__call__ = launch


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
