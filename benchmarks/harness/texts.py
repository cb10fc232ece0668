"""The texts of a measurement as token ids, the same for every layout, kernel and process of a run, and their logits by
a reference: transformers' module and the head, on the host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ... import UserError
from ...albert_core.model.encoder import LoadedEncoder
from ...albert_core.model.head import ClassificationHead
from ...albert_core.tokens.order import MULTIPLE, padded_length
from ...kernels.packed import PackedBatch, PaddedBatch
from ...kernels.weights import EncoderConfig
from .document import Data
from .plan import EMBEDDED_LENGTHS, Options

# How many texts are judged.
PROBED_TEXTS = 8


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts end to end: text i is ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        ids: int64 [tokens].
        offsets: int64 [texts + 1].
        labels: int64 [texts].
    """

    name: str
    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    num_labels: int

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids, offsets and labels."""
        digest = hashlib.sha256(self.name.encode())
        for values in (self.ids, self.offsets, self.labels):
            digest.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
        return digest.hexdigest()

    def describe(self) -> Data:
        """What a result says about its data, with lengths in tokens."""
        lengths = self.lengths
        return Data(
            name=self.name,
            sha256=self.fingerprint(),
            texts=len(lengths),
            tokens=int(lengths.sum()),
            mean_length=round(float(lengths.mean()), 3),
            max_length=int(lengths.max()),
            num_labels=self.num_labels,
        )


@dataclass(frozen=True, eq=False)
class BenchBatch:
    """One batch on the host. For each text, its number (rows), its length and its computed tokens, int64 [B] each."""

    inputs: PackedBatch | PaddedBatch
    rows: np.ndarray
    lengths: np.ndarray
    computed: np.ndarray


def representatives(lengths: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Chooses texts whose lengths represent all: the middles of `count` equal shares, in random order.

    The mean length of a few dozen texts drawn at random may be off by a fifth.

    Returns:
        Indices, int64 [count].
    """
    order = np.argsort(lengths, kind="stable")
    middles = ((np.arange(count) + 0.5) * len(lengths) / count).astype(np.int64)
    return generator.permutation(order[middles])


def load_texts(options: Options, vocab_size: int, count: int) -> Texts:
    """`count` texts of `options.dataset`: random ids of the embedded lengths, or a data set's training split."""
    if options.dataset == EMBEDDED_LENGTHS:
        return embedded_texts(count, options.max_length, vocab_size, options.num_labels, options.seed)
    return dataset_texts(
        options.dataset, options.model, count, options.max_length, vocab_size, options.seed, options.tokenizer
    )


def embedded_texts(count: int, max_length: int, vocab_size: int, num_labels: int, seed: int) -> Texts:
    """`count` texts of random ids with Banking77's lengths. The only special id (0 to 4) in them is [CLS]."""
    from ...albert_core.tokens.lengths import banking77_lengths

    generator = np.random.default_rng(seed)
    lengths = np.minimum(banking77_lengths(count, seed), max_length)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = generator.integers(5, vocab_size, size=offsets[-1])
    ids[offsets[:-1]] = 2
    return Texts(EMBEDDED_LENGTHS, ids, offsets, generator.integers(num_labels, size=count), num_labels)


def dataset_texts(
    dataset: str, model: str, count: int, max_length: int, vocab_size: int, seed: int, tokenizer_name: str | None = None
) -> Texts:
    """`count` texts of a real training split, tokenised as in training.

    Raises:
        UserError: As in training.
    """
    from ...albert_core.data.datasets import load_dataset
    from ...albert_core.model.names import model_source
    from ...albert_core.tokens.store import build_token_store
    from ...albert_core.tokens.tokenizer import load_tokenizer

    raw = load_dataset(dataset, seed=seed)
    tokenizer = load_tokenizer(tokenizer_name, model_source(model), texts=raw.train.texts, vocab_size=vocab_size)
    store = build_token_store(raw.train, tokenizer, max_length)
    chosen = representatives(np.asarray(store.lengths), count, np.random.default_rng(seed))
    batch = PackedBatch.from_flat(store.ids, store.offsets, chosen)
    return Texts(
        name=raw.name,
        ids=batch.input_ids.numpy(),
        offsets=batch.cu_seqlens.numpy().astype(np.int64),
        labels=np.asarray(store.labels, dtype=np.int64)[chosen],
        num_labels=len(raw.label_names),
    )


def make_batches(
    texts: Texts,
    batch_size: int,
    layout: str,
    max_length: int,
    static_shapes: int = 1,
    *,
    sort: bool = True,
    multiple: int = MULTIPLE,
) -> list[BenchBatch]:
    """All texts once, in batches.

    Args:
        batch_size: Texts per batch; for "static", the most.
        layout: "padded" (to `max_length`), "packed" (no padding), "bucketed" (sorted by length, each batch padded to
            the next length of training's grid), or "dynamic" (each batch padded to its longest text). A longer list of
            texts has less padding when it is sorted. Baselines also use "sorted" (dynamic, sorted by length) and
            "static" (a few shapes, see `static_cells`).
        static_shapes: The most shapes of "static".
        sort: Whether "bucketed" sorts, as for features. Training takes texts as they come.
        multiple: Dynamic lengths are multiples of it. Baselines pad to the longest text itself.
    """
    if layout == "static":
        return _static(texts, batch_size, static_shapes)
    order = np.arange(len(texts.lengths))
    if layout == "sorted" or (layout == "bucketed" and sort):
        order = np.argsort(texts.lengths, kind="stable")
    if layout == "sorted":
        layout, multiple = "dynamic", 1
    cuts = range(0, len(order), batch_size)
    return [_batch(texts, order[start : start + batch_size], layout, max_length, multiple) for start in cuts]


def static_cells(lengths: np.ndarray, count: int) -> list[int]:
    """At most `count` lengths, ascending, that pad texts of these lengths with the least padding.

    Dynamic programming over the distinct lengths finds the best static shapes for these texts: the cheapest way to
    cover the shorter ones with one shape fewer, then the others up to the current length with one shape.
    """
    distinct, texts = np.unique(lengths, return_counts=True)
    before = np.concatenate(([0], np.cumsum(texts)))
    best = np.array([length * number for length, number in zip(distinct, before[1:], strict=True)], dtype=np.int64)
    cuts: list[list[int]] = [[int(length)] for length in distinct]
    for _ in range(min(count, len(distinct)) - 1):
        cost, chosen = best.copy(), list(cuts)
        for last in range(1, len(distinct)):
            options = best[:last] + distinct[last] * (before[last + 1] - before[1 : last + 1])
            split = int(np.argmin(options))
            if options[split] < cost[last]:
                cost[last], chosen[last] = options[split], [*cuts[split], int(distinct[last])]
        best, cuts = cost, chosen
    return cuts[-1]


def cost_classes(batches: Sequence[BenchBatch]) -> list[int]:
    """One number per batch, equal for batches of the same shape, which cost the same. Packed batches all differ."""
    shapes = [
        tuple(batch.inputs.input_ids.shape) if isinstance(batch.inputs, PaddedBatch) else (index,)
        for index, batch in enumerate(batches)
    ]
    known = list(dict.fromkeys(shapes))
    return [known.index(shape) for shape in shapes]


def check_length(max_length: int, config: EncoderConfig, model: str) -> None:
    """Raises UserError if the model has fewer positions than `max_length`."""
    if max_length > config.max_positions:
        raise UserError(
            f"--max-length {max_length} exceeds the {config.max_positions} positions of {model}; "
            f"give at most {config.max_positions}"
        )


def _batch(texts: Texts, rows: np.ndarray, layout: str, max_length: int, multiple: int = MULTIPLE) -> BenchBatch:
    packed = PackedBatch.from_flat(texts.ids, texts.offsets, rows)
    if layout == "packed":
        return BenchBatch(packed, rows, packed.host_lengths, packed.host_lengths)
    length = padded_length(packed.max_seqlen, layout, max_length, multiple)
    return BenchBatch(packed.to_padded(length), rows, packed.host_lengths, np.full(len(rows), length))


def _static(texts: Texts, batch_size: int, count: int) -> list[BenchBatch]:
    """Batches of equal size for each length. The last one of a length repeats texts to fill its shape."""
    batches = []
    cells = static_cells(texts.lengths, count)
    for shorter, length in zip([0, *cells], cells, strict=False):
        members = np.flatnonzero((texts.lengths > shorter) & (texts.lengths <= length))
        parts = -(-len(members) // batch_size)
        rows_each = -(-len(members) // parts)
        for start in range(0, len(members), rows_each):
            rows = members[start : start + rows_each]
            filled = _batch(texts, np.resize(rows, rows_each), "padded", length)
            batches.append(BenchBatch(filled.inputs, rows, filled.lengths[: len(rows)], filled.computed))
    return batches


def probed_texts(count: int) -> list[int]:
    """Numbers of the judged texts of `count`: evenly spread, so that they lie in several batches, at several places."""
    return np.unique(np.linspace(0, count - 1, PROBED_TEXTS).round().astype(np.int64)).tolist()


@torch.no_grad()
def reference_logits(
    encoder: LoadedEncoder, head: ClassificationHead, texts: Texts, param: str, compute: str
) -> dict[int, np.ndarray]:
    """Computes the logits of the judged texts without any kernel or layout of this project.

    All texts are one row, in which a token sees only its own text's. That costs one forward pass of as many tokens as
    they have, and no copy of the model.

    Args:
        head: With its initial weights, on the host.
        param: Dtype that the encoder's weights are rounded to first, as the target rounds them.
        compute: The target's compute dtype; the reference computes in float64 for float64, else in float32.

    Returns:
        By the text's number, its logits [labels].
    """
    judged = probed_texts(len(texts.lengths))
    lengths = torch.from_numpy(texts.lengths[judged])
    ids = np.concatenate([texts.ids[texts.offsets[text] : texts.offsets[text + 1]] for text in judged])
    owner = torch.arange(len(judged)).repeat_interleave(lengths)
    first = lengths.cumsum(0) - lengths
    module = encoder.module()
    with _rounded(module, getattr(torch, param), torch.float64 if compute == "float64" else torch.float32):
        states = module(
            input_ids=torch.from_numpy(ids)[None],
            position_ids=(torch.arange(len(ids)) - first[owner])[None],
            attention_mask=(owner[:, None] == owner)[None, None],
        ).last_hidden_state
    return dict(zip(judged, head(states[0, first]).numpy(), strict=True))


@contextmanager
def _rounded(module: nn.Module, param: torch.dtype, wide: torch.dtype) -> Iterator[None]:
    """Each layer computes in `wide` with weights rounded to `param`: copies that live only while the layer runs."""
    loaded: dict[tuple[nn.Module, str], nn.Parameter] = {}

    def enter(layer: nn.Module, _: Any) -> None:
        for name, weight in layer.named_parameters(recurse=False):
            loaded[layer, name] = weight
            setattr(layer, name, nn.Parameter(weight.to(param).to(wide), requires_grad=False))

    def leave(layer: nn.Module, *_: Any) -> None:
        for name, _weight in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, loaded.pop((layer, name)))

    hooks = []
    for layer in module.modules():
        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
