"""The batch layout of a model that is trained whole, on a device that measures which one is fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ...backends import Backend, CastPolicy
from ...backends.host.choices import LARGEST_DISTANCE, Choice, Way
from ...kernels.weights import EncoderConfig
from ..tokens.order import epoch_order
from ..tokens.store import TokenStore
from .compute import token_batch

# Padding to the batch's longest text is the default, so no other layout is chosen that is slower.
LAYOUTS = ("dynamic", "packed")
# Batches of the training split that are measured.
BATCHES = 4


@dataclass(frozen=True)
class LayoutChoice:
    """Optimizer steps of a model over its first training batches, in each layout.

    Attributes:
        build: Builds a model of its own for a policy, whose weights nothing else reads.
        loss_of: From a model to its summed loss of inputs and labels.
        step_of: From a model to its optimizer step, as training makes it (see `loop.step.step_function`).
    """

    backend: Backend
    policy: CastPolicy
    config: EncoderConfig
    store: TokenStore
    batch_size: int
    max_length: int
    seed: int
    build: Callable[[CastPolicy], nn.Module]
    loss_of: Callable[[nn.Module], Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]
    step_of: Callable[[nn.Module], Callable[..., torch.Tensor]]

    def made(self) -> str:
        """The layout. What is measured draws from no generator that training draws from."""
        drawn = self.backend.rng_state()
        try:
            return self.backend.choose(self._choice()) or LAYOUTS[0]
        finally:
            self.backend.set_rng_state(drawn)

    def _choice(self) -> Choice:
        config = self.config
        lengths = [self.store.lengths[rows] for rows in self._rows]
        mean = float(np.concatenate(lengths).mean())
        padded = float(np.mean([one.max() for one in lengths]))
        return Choice(
            "layout",
            f"training {len(config.weights_of_layer)} layers of {config.hidden_size} and {config.intermediate_size}, "
            f"{config.num_heads} heads, {self.policy.label}, {len(self._rows[0])} texts of {_class(mean)} to "
            f"{_class(padded)} tokens",
            {layout: partial(self._way, layout) for layout in LAYOUTS},
            self._exact,
            LARGEST_DISTANCE[self.policy.compute],
        )

    @cached_property
    def _rows(self) -> list[np.ndarray]:
        order = epoch_order(self.store.num_texts, self.seed, 0)[: BATCHES * self.batch_size]
        return np.split(order, range(self.batch_size, len(order), self.batch_size))

    @cached_property
    def _model(self) -> nn.Module:
        return self.backend.place(self.build(self.policy)).train()

    @cached_property
    def _step(self) -> Callable[..., torch.Tensor]:
        return self.step_of(self._model)

    def _exact(self) -> torch.Tensor:
        wide = self.backend.place(self.build(self.backend.cast_policy("float32")))
        return self._losses(wide, LAYOUTS[0])

    def _batches(self, layout: str) -> list[Any]:
        batches = []
        for rows in self._rows:
            labels = torch.from_numpy(np.ascontiguousarray(self.store.labels[rows]))
            batches.append(self.backend.place((token_batch(self.store, rows, layout, self.max_length), labels)))
        return batches

    def _way(self, layout: str) -> Way:
        batches = self._batches(layout)

        def run() -> None:
            for inputs, labels in batches:
                self._step(len(labels), inputs, labels)

        return Way(run, partial(self._losses, self._model, layout))

    @torch.no_grad()
    def _losses(self, model: nn.Module, layout: str) -> torch.Tensor:
        """The loss of each batch without dropout."""
        loss_of = self.loss_of(model.eval())
        losses = torch.stack([loss_of(inputs, labels)[0] for inputs, labels in self._batches(layout)])
        model.train()
        return losses


def _class(tokens: float) -> int:
    """The nearest power of two."""
    return int(2 ** round(np.log2(tokens)))
