"""From token stores to the inputs of training: cached features, streamed features, or token batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from ...backends import Backend, CastPolicy, FrozenEncoder, ShapeGrid
from ...backends.host.cache import cache_folder
from ...kernels.packed import PackedBatch, PaddedBatch
from ..processes.ranks import ALONE, Ranks
from ..runs.array_cache import ArraySpec, load_arrays, publish_arrays
from ..runs.files import json_digest
from ..tokens.order import BUCKETS, bucket_length, pad_labels, pad_rows, padded_length
from ..tokens.store import Progress, TokenStore

# Part of every cache key. Raise it when the same inputs should give other features.
FEATURES_FORMAT = 1

Batch = PackedBatch | PaddedBatch


class InputSource(Protocol):
    """Supplies the loop's inputs. `start_epoch` sets an order; `batch` reads ranges of it.

    If several processes train one run, each gets its share of a range.
    """

    def start_epoch(self, order: np.ndarray) -> None: ...

    def batch(self, start: int, stop: int) -> tuple[Any, Any]:
        """Inputs and labels of the samples [start, stop) of the order, on the device."""
        ...


def token_batch(
    store: TokenStore, indices: np.ndarray, layout: str, max_length: int, length: int | None = None
) -> Batch:
    """Builds one host batch of the texts `indices` of `store`.

    Args:
        layout: "packed", "padded", "bucketed" or "dynamic".
        length: Tokens to pad to, instead of the layout's own choice.
    """
    packed = PackedBatch.from_flat(store.ids, store.offsets, indices, store.token_type_ids)
    if layout == "packed":
        return packed
    if length is None:
        length = padded_length(packed.max_seqlen, layout, max_length)
    return packed.to_padded(length)


def compute_features(
    encoder: FrozenEncoder,
    store: TokenStore,
    backend: Backend,
    layout: str,
    max_length: int,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> torch.Tensor:
    """Computes the features of every text once.

    Texts are read in order of length, so that batches hold texts of similar length in any layout. Several processes
    share the batches, and all get all features, bit for bit as one process would compute them.

    Args:
        progress: Called with the done and total number of this process's texts.

    Returns:
        float32 [texts, hidden] on the device, in the store's order.
    """
    parts: list[tuple[np.ndarray, torch.Tensor]] = []
    for rows, batch in batches_by_length(store, backend, layout, max_length, progress, ranks):
        parts.append((rows, encoder(batch)))
        backend.step_boundary()
    backend.synchronize(*(part for _, part in parts))
    # Reordered on the host, since a device that compiles would need another program for each split.
    shares = ranks.gather([(rows, part.cpu()[: len(rows)]) for rows, part in parts])
    parts.clear()
    width = next(share for share in shares if share)[0][1].shape[1]
    features = torch.empty(store.num_texts, width)
    for share in shares:
        while share:
            # Popped from the list, so that memory never holds all of them twice.
            rows, part = share.pop()
            features[torch.from_numpy(rows)] = part
    return backend.place(features)


def batches_by_length(
    store: TokenStore,
    backend: Backend,
    layout: str,
    max_length: int,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields all texts once, in order of length.

    Batches hold about as many tokens as the device prefers. With static shapes they have a shape of the grid, and rows
    beyond the first n are padding. Each of several processes gets a share of the batches.

    Args:
        progress: Called with the done and total number of this process's texts.

    Yields:
        Row numbers, int64 [n], and their batch on the device.
    """
    grid = backend.static_shapes
    groups: list[tuple[np.ndarray, int | None]]
    if grid is None:
        padded_to = max_length if layout == "padded" else None
        sorted_groups = _length_sorted_groups(store.lengths, padded_to, backend.traits.feature_batch_tokens)
        groups = [(indices, None) for indices in sorted_groups]
    else:
        groups = list(grid_groups(store.lengths, grid, layout, max_length))
    groups = groups[ranks.rank :: ranks.size]

    def rows_of(indices: np.ndarray, length: int | None) -> np.ndarray:
        return indices if grid is None or length is None else pad_rows(indices, grid.rows(length), indices[-1])

    batches = (token_batch(store, rows_of(*group), layout, max_length, group[1]) for group in groups)
    done, total = 0, sum(len(indices) for indices, _ in groups)
    for (indices, _), batch in zip(groups, backend.prefetch(batches), strict=True):
        yield indices, batch
        done += len(indices)
        if progress is not None:
            progress(done, total)


def grid_groups(lengths: np.ndarray, grid: ShapeGrid, layout: str, max_length: int) -> Iterator[tuple[np.ndarray, int]]:
    """Groups texts, in order of length, so that each group fits a batch of the grid.

    The remaining texts of a length join those of the next length if that computes fewer tokens than a padded batch.

    Yields:
        Indices of the texts, and the length that they are padded to.
    """
    order = np.argsort(lengths, kind="stable")
    longest = int(lengths[order[-1]])
    edges = (max_length,) if layout == "padded" else cell_lengths(longest, grid, max_length)
    start = 0
    for length, longer in zip(edges, (*edges[1:], None), strict=True):
        end = int(np.searchsorted(lengths[order], length, side="right"))
        rows = grid.rows(length)
        while start < end:
            left = end - start
            if left < rows and longer is not None and left * (longer - length) < (rows - left) * length:
                break
            stop = min(start + rows, end)
            yield order[start:stop], length
            start = stop


def cell_lengths(longest: int, grid: ShapeGrid, max_length: int) -> tuple[int, ...]:
    """The lengths of the grid that texts of up to `longest` tokens are padded to, in ascending order."""
    allowed = grid.lengths or BUCKETS
    return tuple(sorted({bucket_length(token, max_length, allowed) for token in range(1, longest + 1)}))


def _length_sorted_groups(lengths: np.ndarray, padded_to: int | None, tokens: int) -> Iterator[np.ndarray]:
    """Indices in order of length, cut into groups of about `tokens` tokens (including padding)."""
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
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> tuple[torch.Tensor, bool]:
    """Loads the features from the cache on disk, or computes them (see `compute_features`) and writes them there.

    The key covers everything that determines the bits: weights (`fingerprint`), tokens, kernel and its version, layout,
    dtypes, device and torch. The checksum detects a damaged or foreign file, which is then computed again.

    Returns:
        The features, and whether they came from the disk.
    """
    info = backend.info()
    made_from = {
        "format": FEATURES_FORMAT,
        "encoder": fingerprint,
        "ids": store.fingerprint,
        "kernel": [encoder.name, encoder.version],
        "layout": [layout, max_length if layout == "padded" else None],
        "policy": [policy.param, policy.compute, policy.accumulate],
        "device": [info.backend, info.name, info.features, torch.get_num_threads()],
        "torch": torch.__version__,
    }
    key = json_digest(made_from)
    root = cache_folder("features")
    specs = {"features": ArraySpec("float32", (store.num_texts, None), mapped=True)}
    arrays = None if root is None else load_arrays(root / key, specs)
    # Either all processes load it or all compute, since each waits for the others' parts.
    if all(ranks.gather(arrays is not None)) and arrays is not None:
        return backend.place(torch.from_numpy(arrays["features"])), True
    features = compute_features(encoder, store, backend, layout, max_length, progress, ranks)
    if root is not None and ranks.local_rank == 0:
        publish_arrays(root / key, {"features": features.cpu().numpy()}, specs)
    return features, False


class CachedFeatures:
    """Features computed once. A batch gathers rows of them. With static shapes, every batch has `rows` rows."""

    def __init__(
        self, features: torch.Tensor, labels: torch.Tensor, backend: Backend, rows: int, ranks: Ranks = ALONE
    ) -> None:
        self.features, self.backend, self.rows, self.ranks = features, backend, rows, ranks
        self.static = backend.static_shapes is not None
        self.labels = labels if self.static else backend.place(labels)
        self.order = labels.new_empty(0)

    def start_epoch(self, order: np.ndarray) -> None:
        # The bounds of a slice would become part of a compiled program, so the indices of each batch are sent instead.
        self.order = torch.from_numpy(order) if self.static else self.backend.place(torch.from_numpy(order))

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.order[slice(*self.ranks.share(start, stop))]
        if not self.static:
            return self.features.index_select(0, rows), self.labels.index_select(0, rows)
        chosen = pad_rows(rows.numpy(), self.rows, 0)
        labels = pad_labels(self.labels[rows].numpy(), self.rows)
        sent, labels_sent = self.backend.place([torch.from_numpy(chosen), torch.from_numpy(labels)])
        return self.features.index_select(0, sent), labels_sent


class StreamedFeatures:
    """Runs the frozen encoder at every step, as a run without the cache does."""

    def __init__(self, encoder: FrozenEncoder, tokens: TokenBatches) -> None:
        self.encoder = encoder
        self.tokens = tokens

    def start_epoch(self, order: np.ndarray) -> None:
        self.tokens.start_epoch(order)

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch, labels = self.tokens.batch(start, stop)
        with self.tokens.backend.named_range("encoder"):
            return self.encoder(batch), labels


class TokenBatches:
    """Token batches for an encoder that runs at every step.

    Batches are nearly always read in order, so the following ones are passed to the backend's `prefetch`. If it can, it
    prepares and copies them while the device works on the current one.

    With static shapes, every batch has `rows` rows, and the `micro_batches` of an optimizer step share one length. A
    step is one program, and every combination of lengths in it would need another.
    """

    def __init__(
        self,
        store: TokenStore,
        backend: Backend,
        layout: str,
        max_length: int,
        rows: int,
        micro_batches: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        self.store, self.backend, self.layout, self.max_length = store, backend, layout, max_length
        self.ranks = ranks
        self.rows, self.window = rows, rows * micro_batches
        self.order = np.empty(0, dtype=np.int64)
        self._ahead: Iterator[tuple[Batch, torch.Tensor]] = iter(())
        self._expected: tuple[int, int] | None = None

    def start_epoch(self, order: np.ndarray) -> None:
        self.order = order
        self._expected = None

    def batch(self, start: int, stop: int) -> tuple[Batch, torch.Tensor]:
        if start == stop:
            return self.backend.place(self._on_host(start, stop))
        if (start, stop) != self._expected:
            size = stop - start
            ahead = (
                self._on_host(first, min(first + size, len(self.order)))
                for first in range(start, len(self.order), size)
            )
            self._ahead = iter(self.backend.prefetch(ahead))
        self._expected = (stop, min(2 * stop - start, len(self.order)))
        return next(self._ahead)

    def _on_host(self, start: int, stop: int) -> tuple[Batch, torch.Tensor]:
        rows = self.order[slice(*self.ranks.share(start, stop))]
        labels = np.ascontiguousarray(self.store.labels[rows])
        if not len(rows) and start < stop:
            # An empty share still takes part in the gradient exchange, with a text that isn't counted.
            rows, labels = self.order[start : start + 1], pad_labels(labels, 1)
        length = None
        grid = self.backend.static_shapes
        if grid is not None:
            # An empty range belongs to the last window, and begins where the window's texts end.
            first = max(0, start - (start == stop)) // self.window * self.window
            window = self.order[first : first + self.window]
            rows, labels = pad_rows(rows, self.rows, window[0]), pad_labels(labels, self.rows)
            if self.layout == "bucketed":
                longest = int(self.store.lengths[window].max())
                length = bucket_length(longest, self.max_length, grid.lengths or BUCKETS)
        return token_batch(self.store, rows, self.layout, self.max_length, length), torch.from_numpy(labels)
