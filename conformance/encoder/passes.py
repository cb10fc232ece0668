"""Passes of an encoder over texts, in the batches that training would give the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ...albert_core.features.compute import Batch, batches_by_length
from ...albert_core.tokens.store import TokenStore
from ...backends import FrozenEncoder
from ...kernels import reference
from ...kernels.packed import PackedBatch
from ...kernels.weights import EncoderWeights
from ..case import Device, ViolationError
from ..common.texts import span_of


def all_texts(store: TokenStore) -> PackedBatch:
    """All texts of `store` in one batch on the host."""
    return PackedBatch.from_flat(store.ids, store.offsets, np.arange(store.num_texts), store.token_type_ids)


def exact_states(weights: EncoderWeights, store: TokenStore) -> list[torch.Tensor]:
    """The states in float64: the first layer's input and each layer's output, [tokens, hidden] in the store's order."""
    found = reference.encode(weights, all_texts(store), keep_layer_states=True).layer_states
    return [torch.cat(states) for states in zip(*found, strict=True)]


def exact_replay(weights: EncoderWeights, store: TokenStore, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each layer applied in float64 to its own one of the `given` states, [tokens, hidden] each."""
    exact = weights.to("cpu", torch.float64)
    layers = [exact.layers[index] for index in exact.config.weights_of_layer]
    return [
        torch.cat([reference.layer_forward(exact.config, layer, text) for text in state.split(store.lengths.tolist())])
        for layer, state in zip(layers, given, strict=True)
    ]


def encoded(
    device: Device,
    encoder: FrozenEncoder,
    store: TokenStore,
    layout: str,
    max_length: int,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> np.ndarray:
    """The features of all texts, float64 [texts, hidden], in the store's order; see `encoded_in_turn`."""
    (features,) = encoded_in_turn(device, encoder, [store], layout, max_length, change)
    return features


def encoded_in_turn(
    device: Device,
    encoder: FrozenEncoder,
    stores: Sequence[TokenStore],
    layout: str,
    max_length: int,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> list[np.ndarray]:
    """The features of each store's texts, float64 [texts, hidden]. They are read after the last batch, as in training.

    Args:
        change: Applied to each placed batch.

    Raises:
        ViolationError: They have another shape or dtype, or are elsewhere.
    """
    parts: list[torch.Tensor] = []
    places: list[tuple[int, np.ndarray]] = []
    for number, store in enumerate(stores):
        for rows, batch in batches_by_length(store, device.backend, layout, max_length):
            part = encoder(change(batch))
            if part.dim() != 2 or len(part) != batch.num_sequences or part.dtype != torch.float32:
                raise ViolationError(
                    f"features of {batch.num_sequences} texts are {part.dtype} {tuple(part.shape)}, not float32 "
                    f"({batch.num_sequences}, hidden)"
                )
            if part.device != batch.device:
                raise ViolationError(f"features of a batch on {batch.device} are on {part.device}")
            parts.append(part)
            places.append((number, rows))
            device.backend.step_boundary()
    found = [np.empty((store.num_texts, parts[0].shape[1])) for store in stores]
    for (number, rows), values in zip(places, device.read(*parts), strict=True):
        found[number][rows] = values[: len(rows)].double().numpy()
    return found


def layer_states(
    device: Device,
    encoder: FrozenEncoder,
    store: TokenStore,
    layout: str,
    max_length: int,
    count: int,
    given: Sequence[torch.Tensor] | None = None,
) -> list[np.ndarray]:
    """The states that `encoder` shows, float64 [tokens, hidden] each, in the store's order and without padding.

    Args:
        count: The number of states that it must show.
        given: The states that each layer is applied to, [tokens, hidden] each, in the store's order.

    Raises:
        ViolationError: It shows more or fewer.
    """
    found: list[np.ndarray] = []
    for rows, batch in batches_by_length(store, device.backend, layout, max_length):
        inputs = None
        if given is not None:
            inputs = device.backend.place([_laid_out(state, store, rows, batch) for state in given])
        states = device.read(*encoder.layer_states(batch, inputs))
        if len(states) != count:
            raise ViolationError(f"{len(states)} states are shown, not {count}")
        if not found:
            found = [np.empty((store.num_tokens, state.shape[-1])) for state in states]
        for total, state in zip(found, states, strict=True):
            lengths = store.lengths[rows].tolist()
            texts = state.split(lengths) if isinstance(batch, PackedBatch) else state
            # A static shape has further rows after these.
            for row, length, text in zip(rows.tolist(), lengths, texts, strict=False):
                total[span_of(store, row)] = text[:length].double().numpy()
    return found


def _laid_out(state: torch.Tensor, store: TokenStore, rows: np.ndarray, batch: Batch) -> torch.Tensor:
    """A host `state` [tokens, hidden] of the texts `rows`, in the layout of their `batch`."""
    texts = [state[span_of(store, row)] for row in rows.tolist()]
    if isinstance(batch, PackedBatch):
        return torch.cat(texts)
    padded = state.new_zeros(*batch.input_ids.shape, state.shape[-1])
    for place, text in zip(padded, texts, strict=False):
        place[: len(text)] = text
    return padded
