"""A device's part of one's own training loop: the calls of a step, in the order that every device needs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ... import UserError
from ..types import CastPolicy
from .gradients import total_norm
from .loss_scale import loss_scale

T = TypeVar("T")
Loss = Callable[[nn.Module, Any], "torch.Tensor | tuple[torch.Tensor, Mapping[str, Any]]"]
FORMAT = "isotrain-session/1"


class Session:
    """Trains a module on a device: place, accumulate, clip, update, fence, save, load. `Backend.session` makes it.

    ``step`` is all of one optimizer step. ``accumulate``, ``clip`` and ``update`` are its parts, for a loop that needs
    something between them.

    Attributes:
        model: The module on the device, with parameters in the policy's accumulate dtype.
        optimizer: It holds the module's parameters on the device.
        policy: What the dtype means there.
        steps: Optimizer steps so far.
    """

    def __init__(self, backend: Any, model: nn.Module, optimizer: Any, dtype: str = "float32") -> None:
        """Places the module and gives the optimizer its parameters there.

        Args:
            backend: The Backend.
            optimizer: A torch optimizer of the module's parameters that has made no step, or what makes one of them:
                ``functools.partial(torch.optim.AdamW, lr=1e-3)``. A learning-rate scheduler may be attached to it.
            dtype: Products are computed in it, as in isotrain's own whole-model training.

        Raises:
            UserError: The device lacks the dtype, the module has no trained parameter, or the optimizer has others or
                has made steps.
        """
        # Of type Any, since `Backend` imports this folder.
        self.backend = backend
        self.policy: CastPolicy = backend.whole_model_policy(backend.cast_policy(dtype))
        given = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not given:
            raise UserError(f"{type(model).__name__} has no parameter that requires a gradient; give one to train")
        wide = getattr(torch, self.policy.accumulate)
        self.model = backend.place(model.to(wide))
        placed = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer: torch.optim.Optimizer
        if isinstance(optimizer, torch.optim.Optimizer):
            self.optimizer = _moved(optimizer, dict(zip(given, placed, strict=True)))
        else:
            self.optimizer = optimizer(placed)
        if isinstance(self.optimizer, torch.optim.Adam | torch.optim.AdamW):
            for group in self.optimizer.param_groups:
                group.update(backend.adam_options())
        backend.prepare_optimizer(self.optimizer)
        self._scale = loss_scale(backend, self.policy)
        self.steps = 0

    def place(self, batch: T) -> T:
        """A host batch on the device: a tensor, a dataclass with `to`, or a list, tuple or dict of them."""
        return self.backend.place(batch)

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches on the device, copied ahead of their use where it can do that."""
        return self.backend.prefetch(batches)

    def step(self, loss: Loss, *batches: Any, clip: float | None = None) -> torch.Tensor:
        """One optimizer step over the mean loss of `batches`, the micro-batches of the step.

        Args:
            loss: ``loss(model, batch)`` returns a scalar, alone or first in a tuple.
            batches: Placed batches, or host batches.
            clip: The largest norm of the gradient.

        Returns:
            The mean loss, a scalar on the device. Reading it waits for the device.
        """
        if not batches:
            raise UserError("step got no batch; give it one, or several to accumulate")
        parts = [self.accumulate(loss, batch, len(batches)) for batch in batches]
        if clip is not None:
            self.clip(clip)
        self.update()
        return sum(parts[1:], start=parts[0])

    def accumulate(self, loss: Loss, batch: Any, parts: int = 1) -> torch.Tensor:
        """Adds the gradient of ``loss(model, batch) / parts`` to that of the step, and returns this share of the loss.

        Raises:
            UserError: The loss is no scalar, or it depends on no trained parameter.
        """
        batch = self.place(batch)
        with self.backend.autocast(self.policy):
            value = loss(self.model, batch)
        if isinstance(value, tuple):
            value = value[0]
        if not isinstance(value, torch.Tensor) or value.dim() != 0:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(type(value))
            raise UserError(f"the loss is {found}; return a scalar tensor, as loss.mean() is")
        if not value.requires_grad:
            raise UserError("the loss depends on no trained parameter; compute it from model(batch), with gradients on")
        share = value / self.backend.scalar(float(parts))
        self._scale.scaled(share).backward()
        return share.detach()

    def clip(self, norm: float) -> torch.Tensor:
        """Scales the step's gradient down to `norm`, and returns the norm that it had, on the device."""
        self._scale.unscale(self.optimizer)
        return total_norm(self.model.parameters(), norm)

    def update(self) -> None:
        """Updates the parameters at the optimizer's present learning rates, and clears the gradient."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        # In the form that the device needs, so that a new rate compiles nothing.
        self.backend.set_learning_rate(self.optimizer, *map(float, rates))
        self._scale.step(self.optimizer)
        # A scheduler computes the next rate from the number that it set.
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.backend.step_boundary()
        self.steps += 1

    def fence(self) -> None:
        """Returns when the device has updated the parameters, for a clock or before other work."""
        self.backend.synchronize(*self.model.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, on the host: model, optimizer, generators, loss scale, steps."""
        return {
            "format": FORMAT,
            "model": _on_host(self.model.state_dict()),
            "optimizer": _on_host(self.optimizer.state_dict()),
            "generators": self.backend.rng_state(),
            "scaler": self._scale.state(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, so that the following steps are those of an uninterrupted run.

        Raises:
            UserError: It belongs to another module, optimizer or device.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._scale.restore(state["scaler"])
            self.steps = state["steps"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the saved state doesn't fit this session ({reason}); load the one it saved") from error
        self.backend.set_rng_state(state["generators"])
        self.backend.step_boundary()

    def save(self, path: str | Path) -> None:
        """Writes `state_dict` to a file, whole or not at all.

        Raises:
            UserError: The file can't be written.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                torch.save(self.state_dict(), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"{str(path)!r} can't be written ({error.strerror}); name a file in a folder") from error
        finally:
            with suppress(OSError):
                temporary.unlink()

    def load(self, path: str | Path) -> None:
        """Restores what `save` wrote.

        Raises:
            UserError: The file is missing, damaged, or belongs to another module, optimizer or device.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{str(path)!r} can't be read ({error.strerror}); name a file that save wrote") from error
        except (EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{str(path)!r} is damaged or not written by Session.save; name another file") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise UserError(f"{str(path)!r} was not written by Session.save; name another file")
        self.load_state_dict(state)


def _moved(optimizer: torch.optim.Optimizer, places: dict[nn.Parameter, nn.Parameter]) -> torch.optim.Optimizer:
    """`optimizer` with the placed parameters, which are other objects on some devices."""
    if optimizer.state:
        raise UserError("the optimizer has made steps already; make the session before the first one")
    for group in optimizer.param_groups:
        foreign = [parameter for parameter in group["params"] if parameter not in places]
        if foreign:
            raise UserError(
                f"the optimizer has {len(foreign)} parameters that aren't trained parameters of the module; make it of "
                "model.parameters()"
            )
        group["params"] = [places[parameter] for parameter in group["params"]]
    return optimizer


def _on_host(value: Any) -> Any:
    """A copy of nested dicts and lists whose tensors lie on the host."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_host(item) for item in value)
    return value
