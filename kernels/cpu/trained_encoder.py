"""A whole encoder that is trained in native code: its embedding (`embedding`), then its layers (`training`)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from ..packed.batch import PackedBatch
from ..weights import DropoutRates, EncoderWeights
from .embedding import embed
from .library import native
from .recycled import Recycled
from .training import TrainedLayers


class TrainedEncoder:
    """``encoder(batch, rates)`` gives the states of all tokens, float32 [T, hidden], differentiable by the weights.

    Args:
        weights: The trained parameters themselves, float32 on the host.
        padding: The word whose embedding is not trained, if there is one.
        recompute: Whether backward computes each layer's activations again instead of keeping them.
        isa: An instruction set of `library.ISAS`. By default the fastest.
        threads: The number of threads. By default torch's number at each call.
        sparse: Whether the word table's gradient has only the rows of the batch's words.

    Raises:
        UserError: The extension or the instruction set is missing, or the shape or the activation is not supported.
    """

    name = "native"

    def __init__(
        self,
        weights: EncoderWeights,
        padding: int | None = None,
        recompute: bool = False,
        isa: str | None = None,
        threads: int | None = None,
        sparse: bool = False,
    ) -> None:
        self.weights, self._padding, self._sparse, self._recycled = weights, padding, sparse, Recycled()
        self._layers = TrainedLayers(weights, recompute, self._recycled, isa, threads)
        self.version = f"1-{self._layers.isa}-{native().build}"

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedEncoder:
        # The copy of a model has other parameters, and no memory of the kernel's in common with it.
        layers = self._layers
        weights = copy.deepcopy(self.weights, memo)
        return TrainedEncoder(weights, self._padding, layers.recompute, layers.isa, layers.threads, self._sparse)

    def __call__(self, batch: PackedBatch, rates: DropoutRates) -> torch.Tensor:
        """Computes the states in the batch's order. Masks depend on torch's host generator, if anything is dropped.

        Raises:
            UserError: The batch doesn't fit the encoder (see `PackedBatch.validate`).
        """
        key = rates.draw_key()
        return self._layers(self._embedded(batch, rates.embedding, key), batch.host_lengths, key, rates)

    @torch.no_grad()
    def layer_states(self, batch: PackedBatch, given: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """See `backends.FrozenEncoder`."""
        return self._layers.states(self._embedded(batch, 0.0, 0), batch.host_lengths, given)

    def _embedded(self, batch: PackedBatch, rate: float, key: int) -> torch.Tensor:
        batch.validate(self.weights.config)
        isa, recycled = self._layers.isa, self._recycled
        return embed(self.weights, batch, isa, self._padding, rate, key, recycled, self._sparse)
