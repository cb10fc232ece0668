"""What is wrong with a workload, told in one line that names the user's file and line."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from ... import RunError, UserError
from ...backends import Backend
from ..terminal.text import quoted, reason_of
from .batches import digest, digest_all, digest_tensor, first
from .load import LoadedWorkload, WorkloadError, described, line_of

# Sums of several threads may differ by as much.
REPEATED = 1e-5


@dataclass(frozen=True)
class HostModule:
    """A workload's module on the host, with its initial weights.

    sha256: of the names and values of all parameters and buffers (hex).
    """

    module: nn.Module
    sha256: str


@dataclass(frozen=True)
class HostBatches:
    """Batches on the host. sha256: of their contents (hex)."""

    batches: list[Any]
    sha256: str


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Gives the global generators of Python, NumPy and torch's host a seed, and restores them after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def make_model(loaded: LoadedWorkload, seed: int) -> HostModule:
    """Makes the module twice, so that a module that isn't deterministic is found.

    Raises:
        UserError: It isn't a module on the host with trained parameters, or has other weights the second time.
    """
    place = loaded.place_of("model")
    module, weights = _model_once(loaded, seed)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(f"{place}: no parameter of model({seed}) requires a gradient; nothing can be trained")
    # The first module is given up before the second is made: one of them may fill the memory.
    del module
    module, again = _model_once(loaded, seed)
    if again != weights:
        other = next((name for name in weights if again.get(name) != weights[name]), next(iter(again), "?"))
        raise UserError(
            f"{place}: model({seed}) isn't deterministic: {other!r} differs between two calls; take every random "
            "number from the seed"
        )
    return HostModule(module, digest_all([f"{name} {value}" for name, value in weights.items()]))


def _model_once(loaded: LoadedWorkload, seed: int) -> tuple[nn.Module, dict[str, str]]:
    with seeded(seed), loaded.blamed("model"):
        module = loaded.workload.model(seed)
    place = loaded.place_of("model")
    if not isinstance(module, nn.Module):
        raise UserError(f"{place}: model({seed}) returned a {type(module).__name__}; return a torch.nn.Module")
    state = module.state_dict(keep_vars=True)
    shapeless = [name for name, tensor in state.items() if is_lazy(tensor)]
    if shapeless:
        raise UserError(
            f"{place}: {shapeless[0]!r} of model({seed}) has no shape yet; run the module on a batch before you return "
            "it"
        )
    elsewhere = [name for name, tensor in state.items() if isinstance(tensor, torch.Tensor) and not tensor.is_cpu]
    if elsewhere:
        raise UserError(f"{place}: {elsewhere[0]!r} of model({seed}) is not on the host; make the module there")
    return module, {name: digest_tensor(tensor) for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def make_batches(loaded: LoadedWorkload, seed: int, limit: int | None = None) -> HostBatches:
    """The first `limit` batches (all if it is None), read twice.

    Raises:
        UserError: There is none, or the second iteration gives others.
    """
    place = loaded.place_of("batches")
    with seeded(seed), loaded.blamed("batches"):
        iterable = loaded.workload.batches(seed)
        kept = first(iterable, limit)
        digests = [digest(batch) for batch in kept]
        again = [digest(batch) for batch in first(iterable, limit)]
    if not kept:
        raise UserError(f"{place}: batches({seed}) has no batch; return at least one")
    if len(again) < len(digests):
        raise UserError(
            f"{place}: batches({seed}) gave {len(digests)} batches, and {len(again)} when iterated again; return a list"
            " or an object with __iter__, instead of a generator"
        )
    if again != digests:
        number = next(number for number, pair in enumerate(zip(digests, again, strict=True)) if pair[0] != pair[1])
        raise UserError(
            f"{place}: batch {number} of batches({seed}) differs between two iterations; take every random number from "
            "the seed, anew in each iteration"
        )
    return HostBatches(kept, digest_all(digests))


def checked_loss(loaded: LoadedWorkload, module: nn.Module, batch: Any) -> torch.Tensor:
    """The loss of a batch on the host.

    Raises:
        UserError: It isn't a finite scalar that depends on the weights, its figures are no numbers, or the batch was
            changed.
    """
    place, before = loaded.place_of("loss"), digest(batch)
    with loaded.blamed("loss"):
        found = loaded.workload.loss(module, batch)
    if isinstance(found, tuple) and len(found) != 2:
        raise UserError(f"{place}: loss returned a tuple of {len(found)}; return the loss, or the loss and figures")
    loss, figures = split_loss(found)
    if not isinstance(loss, torch.Tensor):
        raise UserError(f"{place}: loss returned a {type(loss).__name__}; return the tensor, without item()")
    if loss.dim():
        raise UserError(f"{place}: loss returned a tensor of shape {tuple(loss.shape)}, not a scalar; return its mean")
    if not bool(torch.isfinite(loss)):
        raise UserError(
            f"{place}: the loss of the initial weights is {loss.item()}; correct the loss, the batches or the weights"
        )
    numbers_of(loaded, "loss", figures)
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise UserError(f"{place}: the loss depends on no trained parameter; return it without detach()")
    if digest(batch) != before:
        raise UserError(f"{place}: loss changed its batch, which later steps read again; work on a copy")
    return loss


def checked_gradients(loaded: LoadedWorkload, module: nn.Module, batch: Any) -> None:
    """Computes a loss on the host, as `checked_loss` does, and its gradients.

    Raises:
        UserError: Also if a gradient can't be used.
    """
    loss, place = checked_loss(loaded, module, batch), loaded.place_of("loss")
    with loaded.blamed("loss"):
        loss.backward()
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        if gradient is not None and gradient.layout != torch.strided:
            raise UserError(f"{place}: the gradient of {name!r} is sparse, which can't be trained here; make it dense")
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise UserError(
                f"{place}: the loss is finite and its gradient for {name!r} is not; look for a root, a logarithm or a "
                "quotient at 0"
            )


def check_repeats(loaded: LoadedWorkload, module: nn.Module, batch: Any, seed: int) -> None:
    """Computes a loss twice on the host, from the same weights and random numbers.

    Raises:
        UserError: The two differ by more than rounding.
    """
    found = []
    for _ in range(2):
        with trial(module, seed, training=True), torch.no_grad(), loaded.blamed("loss"):
            found.append(float(split_loss(loaded.workload.loss(module, batch))[0]))
    if not math.isclose(*found, rel_tol=REPEATED, abs_tol=REPEATED):
        raise UserError(
            f"{loaded.place_of('loss')}: the loss isn't deterministic: {found[0]:g}, then {found[1]:g} of the same "
            "weights and batch; take random numbers from the global generators, which have the seed, and keep state in "
            "buffers"
        )


def numbers_of(loaded: LoadedWorkload, method: str, figures: Any) -> dict[str, float]:
    """What a method of the workload returned as figures, as numbers.

    Raises:
        WorkloadError: They are something else than numbers by name.
    """
    place = loaded.place_of(method)
    if not isinstance(figures, Mapping):
        raise WorkloadError(f"{place}: {method} returned a {type(figures).__name__}; return figures by name")
    found = {}
    for name, figure in figures.items():
        try:
            found[str(name)] = float(figure)
        except (TypeError, ValueError, RuntimeError) as error:
            raise WorkloadError(
                f"{place}: {method} returned {quoted(str(name))}, which is no number ({reason_of(error)}); return a "
                "number or a tensor of one element"
            ) from error
    return found


def own_optimizer(loaded: LoadedWorkload, model: nn.Module) -> torch.optim.Optimizer | None:
    """The workload's own optimizer, of a model's trained parameters; None if it has none.

    Raises:
        WorkloadError: It is no optimizer, has none of the parameters, or calls the loss itself.
    """
    own = loaded.optional("optimizer")
    if own is None:
        return None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with loaded.blamed("optimizer"):
        optimizer: Any = own(trained)
    place, kind = loaded.place_of("optimizer"), type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise WorkloadError(f"{place}: optimizer returned a {kind}; return a torch.optim.Optimizer")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(map(id, trained)):
        raise WorkloadError(
            f"{place}: the optimizer {kind} has none of the parameters that it was given; pass them to it"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise WorkloadError(f"{place}: {kind} computes the loss itself, several times a step; return another optimizer")
    return optimizer


def split_loss(found: Any) -> tuple[Any, Mapping[str, Any]]:
    """The loss and the figures of what a workload's `loss` returned."""
    return found if isinstance(found, tuple) else (found, {})


@contextmanager
def trial(module: nn.Module, seed: int, training: bool) -> Iterator[None]:
    """A block that runs a module and leaves no trace: buffers, gradients and generators stay as they were.

    Args:
        module: On the host.
        seed: Of dropout inside the block.
        training: Whether the module is in training mode, with gradients.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    module.train(training)
    with seeded(seed), torch.set_grad_enabled(training):
        yield
    module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


class _Watch(TorchDispatchMode):
    """Remembers the operation that raised an error."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.operation = ""
        self.error: Exception | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:  # It is raised again: an operation may raise anything.
            self.operation, self.error = str(func).removesuffix(".default"), error
            raise


@contextmanager
def operations_named(loaded: LoadedWorkload, backend: Backend, retry: Callable[[], object]) -> Iterator[None]:
    """Reports an error of the user's module on a device, with the operation that the device lacks.

    Args:
        loaded: Its `loss` is what the block runs.
        backend: The device.
        retry: Runs the failed step once more, uncompiled, while its operations are watched.

    Raises:
        WorkloadError: An operation failed, another line of the user's, or torch. Other errors pass.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except (Exception, SystemExit) as error:  # What a device or a user's code raises is not known.
        watch = _Watch()
        again: BaseException | None = None
        try:
            with watch:
                retry()
        except (Exception, SystemExit) as found:  # noqa: BLE001 (an operation may raise anything)
            again = found
        place = line_of(again or error, loaded.file)
        if watch.error is not None and again is watch.error:
            raise WorkloadError(
                f"{place or loaded.place_of('loss')}: operation {watch.operation} can't run on backend {backend.name} "
                f"({reason_of(watch.error)}); replace it, or use another backend or dtype"
            ) from error
        if not place and not _of_torch(error):
            raise
        what = "loss" if place else "a step with it"
        raise WorkloadError(
            f"{place or loaded.place_of('loss')}: on backend {backend.name}, {what} raised {described(again or error)}"
        ) from error


def _of_torch(error: BaseException) -> bool:
    """Whether torch raised an error, for example in a backward pass or an optimizer."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    source = Path(trace.tb_frame.f_code.co_filename) if trace is not None else Path()
    return source.is_relative_to(Path(torch.__file__).parent)
