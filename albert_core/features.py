"""From token stores to what the trained part reads: cached features, streamed features, or token batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch

from ..backends import Backend, CastPolicy, FrozenEncoder
from ..kernels.packed import PackedBatch, PaddedBatch
from .array_cache import ArraySpec, load_arrays, publish_arrays
from .batches import bucket_length
from .data import TokenStore, cache_root

# Part of every cache key: raise it when the same inputs should give other features.
FEATURES_FORMAT = 1

Batch = PackedBatch | PaddedBatch


class InputSource(Protocol):
    """Where the loop's inputs come from. `start_epoch` fixes an order; `batch` takes ranges of it."""

    def start_epoch(self, order: np.ndarray) -> None: ...

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor | Batch, torch.Tensor]:
        """Inputs and labels (int64) of the texts at [start, stop) of the order, on the device."""
        ...


def token_batch(store: TokenStore, indices: np.ndarray, layout: str, max_length: int) -> Batch:
    """The texts `indices` of `store` as one host batch in `layout` (packed, padded or bucketed)."""
    packed = PackedBatch.from_flat(store.ids, store.offsets, indices, store.token_type_ids)
    if layout == "packed":
        return packed
    length = max_length if layout == "padded" else bucket_length(packed.max_seqlen, max_length)
    return packed.to_padded(length)


def compute_features(
    encoder: FrozenEncoder,
    store: TokenStore,
    backend: Backend,
    layout: str,
    max_length: int,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """The features of every text, once: float32 (texts, hidden) on the device, in the store's order.

    Texts are taken in order of length, so that batches hold texts of like lengths whatever the layout.
    `progress(done, total)` counts texts.
    """
    features: torch.Tensor | None = None
    done = 0
    groups = _length_sorted_groups(
        store.lengths, max_length if layout == "padded" else None, backend.feature_batch_tokens
    )
    batches = ((torch.from_numpy(indices), token_batch(store, indices, layout, max_length)) for indices in groups)
    for indices, batch in backend.prefetch(batches):
        rows = encoder(batch)
        if features is None:
            features = rows.new_empty(store.num_texts, rows.shape[1])
        features.index_copy_(0, indices, rows)
        backend.step_boundary()
        done += len(indices)
        if progress is not None:
            progress(done, store.num_texts)
    assert features is not None, "a token store holds at least one text"
    backend.synchronize(features)
    return features


def _length_sorted_groups(lengths: np.ndarray, padded_to: int | None, tokens: int) -> Iterator[np.ndarray]:
    """Indices in order of length, cut into groups of about `tokens` tokens (padding counted)."""
    order = np.argsort(lengths, kind="stable")
    cost = np.full(len(order), padded_to) if padded_to else lengths[order]
    cell = np.cumsum(cost) // tokens
    yield from np.split(order, np.flatnonzero(np.diff(cell)) + 1)


def cached_features(
    encoder: FrozenEncoder,
    fingerprint: str,
    store: TokenStore,
    backend: Backend,
    policy: CastPolicy,
    layout: str,
    max_length: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[torch.Tensor, bool]:
    """`compute_features`, or what an earlier run kept of it; and whether it came from the disk.

    The key holds everything the bits follow from: weights (`fingerprint`), tokens, kernel and its version, layout,
    dtypes, device and torch. A damaged or foreign file is found by its checksum and computed anew.
    """
    info = backend.info()
    made_from = {
        "format": FEATURES_FORMAT,
        "encoder": fingerprint,
        "ids": store.fingerprint,
        "kernel": [encoder.name, encoder.version],
        "layout": [layout, max_length if layout == "padded" else None],
        "policy": [policy.param, policy.compute, policy.accumulate],
        "device": [info.backend, info.name, info.features, info.emulated, torch.get_num_threads()],
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    folder = cache_root() / "features" / key
    specs = {"features": ArraySpec("float32", (store.num_texts, None), mapped=True)}
    arrays = load_arrays(folder, specs)
    if arrays is not None:
        return backend.place(torch.from_numpy(arrays["features"])), True
    features = compute_features(encoder, store, backend, layout, max_length, progress)
    publish_arrays(folder, {"features": features.cpu().numpy()}, specs)
    return features, False


class CachedFeatures:
    """Features computed once: a batch is a gather of rows."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, backend: Backend) -> None:
        self.features, self.labels, self.backend = features, backend.place(labels), backend
        self.order = labels.new_empty(0)

    def start_epoch(self, order: np.ndarray) -> None:
        self.order = self.backend.place(torch.from_numpy(order))

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.order[start:stop]
        return self.features.index_select(0, rows), self.labels.index_select(0, rows)


class StreamedFeatures:
    """The frozen encoder at every step: what a run without the cache measures."""

    def __init__(
        self, encoder: FrozenEncoder, store: TokenStore, backend: Backend, layout: str, max_length: int
    ) -> None:
        self.encoder = encoder
        self.tokens = TokenBatches(store, backend, layout, max_length)

    def start_epoch(self, order: np.ndarray) -> None:
        self.tokens.start_epoch(order)

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch, labels = self.tokens.batch(start, stop)
        return self.encoder(batch), labels


class TokenBatches:
    """Token batches for a model that is trained whole.

    Batches are taken in order nearly always, so the ones that follow are handed to the backend's `prefetch`: it
    prepares and copies them while the device works on the current one, where it can.
    """

    def __init__(self, store: TokenStore, backend: Backend, layout: str, max_length: int) -> None:
        self.store, self.backend, self.layout, self.max_length = store, backend, layout, max_length
        self.order = np.empty(0, dtype=np.int64)
        self._ahead: Iterator[tuple[Batch, torch.Tensor]] = iter(())
        self._expected: tuple[int, int] | None = None

    def start_epoch(self, order: np.ndarray) -> None:
        self.order = order
        self._expected = None

    def batch(self, start: int, stop: int) -> tuple[Batch, torch.Tensor]:
        if (start, stop) != self._expected:
            self._ahead = iter(self.backend.prefetch(self._on_host(start, stop - start)))
        self._expected = (stop, min(2 * stop - start, len(self.order)))
        return next(self._ahead)

    def _on_host(self, start: int, size: int) -> Iterator[tuple[Batch, torch.Tensor]]:
        """The batches of `size` texts from `start` to the end of the order."""
        for first in range(start, len(self.order), size):
            rows = self.order[first : first + size]
            labels = torch.from_numpy(np.ascontiguousarray(self.store.labels[rows]))
            yield token_batch(self.store, rows, self.layout, self.max_length), labels
