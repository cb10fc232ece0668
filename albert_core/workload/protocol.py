"""What a user writes to have a module of their own measured, compared and trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

# The methods that every workload has, as messages show them.
REQUIRED = ("model(seed)", "batches(seed)", "loss(model, batch)")


class Workload(Protocol):
    """A module, its batches and its loss. A class has this form without inheriting from anything.

    The caller places the module and the batches on a device, casts, compiles, accumulates, clips and updates. Python's,
    NumPy's and torch's global random generators have the seed when `model` and `batches` are called.

    A workload may also have these methods:

    * ``optimizer(parameters) -> torch.optim.Optimizer``: instead of the configured one, for the trained parameters.
    * ``schedule(optimizer, steps) -> LRScheduler``: instead of the configured learning rates.
    * ``layers(model) -> Sequence[nn.Module]``: the layers that parity replays, in their order.
    * ``cost_class(batch) -> Hashable``: equal for batches that cost the same; by default the shapes of the tensors.
    * ``evaluate(model, batches) -> Mapping[str, float]``: figures of an evaluation, ``loss`` among them.
    * ``samples(batch) -> int``: by default the first dimension of the batch's first tensor.
    * ``tokens(batch) -> tuple[int, int]``: the real tokens of a batch, and those that are computed with padding.
    """

    def model(self, seed: int) -> nn.Module:
        """The module on the host, in float32, with the same weights for the same seed."""
        ...

    def batches(self, seed: int) -> Iterable[Any]:
        """Batches on the host: tensors, or dicts, lists, tuples or dataclasses of them.

        The iterable can be iterated any number of times and gives the same batches each time.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor | tuple[torch.Tensor, Mapping[str, Any]]:
        """The mean loss of a placed batch, a scalar, and figures to log (tensors or numbers) if there are any."""
        ...
