"""The tokens of a split in flat arrays, cached on disk under a hash of their inputs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ... import UserError
from ...backends.host.cache import cache_folder
from ..data.datasets import RawSplit
from ..runs.array_cache import ArraySpec, Specs, load_arrays, publish_arrays
from .tokenizer import TextTokenizer

log = logging.getLogger("isotrain")

# Part of every cache key. Raise it when the same input should give other arrays.
FORMAT_VERSION = 1

# Texts between two calls of `progress`. A bar then moves a few times a second, and threads have enough to share.
CHUNK_TEXTS = 1000

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The tokens of N texts, T in total.

    Attributes:
        ids: int32 [T]. Text i is ``ids[offsets[i]:offsets[i + 1]]``. May be a memory-mapped cache file.
        offsets: int64 [N + 1].
        labels: int64 [N], or [N, k] if a task has k labels per text; float32 [N, k] if they are no ids or positions.
        token_type_ids: uint8 [T] for pairs, else None. May be memory-mapped too.
        fingerprint: SHA-256 (hex) of the arrays' dtypes, shapes and bytes.
        from_cache: Whether they were read from disk.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    token_type_ids: np.ndarray | None
    fingerprint: str = field(repr=False)
    from_cache: bool = False

    @property
    def num_texts(self) -> int:
        return len(self.labels)

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [N]."""
        return np.diff(self.offsets)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, without those that are None."""
        named = {"ids": self.ids, "offsets": self.offsets, "labels": self.labels}
        return named if self.token_type_ids is None else named | {"token_type_ids": self.token_type_ids}


def build_token_store(
    split: RawSplit,
    tokenizer: TextTokenizer,
    max_length: int,
    *,
    cache_dir: Path | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> TokenStore:
    """The tokens of `split`, read from the cache or else computed and written to it.

    A cache that can't be written only causes a warning.

    Args:
        max_length: Limit in tokens, including special ones. Longer texts are cut.
        cache_dir: By default ``cache_folder("tokens")``.
        use_cache: Whether to read and write the cache.
        progress: Called with the done and total number of texts.

    Raises:
        UserError: The split is empty, or `max_length` is too small for text.
    """
    total = len(split)
    if not total:
        raise UserError("the split to tokenise has no texts; give data with at least one")
    make = partial(_tokenise, split, tokenizer, max_length, progress)
    root = (cache_dir or cache_folder("tokens")) if use_cache else None
    folder = root and root / store_key(split, tokenizer, max_length)
    arrays, from_cache = kept_arrays(folder, _specs(split), make)
    if from_cache and progress is not None:
        progress(total, total)
    return TokenStore(
        arrays["ids"],
        arrays["offsets"],
        arrays["labels"],
        arrays.get("token_type_ids"),
        fingerprint_of_arrays(arrays),
        from_cache,
    )


def kept_arrays(
    folder: Path | None, specs: Specs, make: Callable[[], dict[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], bool]:
    """Loads a store's arrays from `folder` if they are intact; otherwise makes and writes them.

    Without a folder they are only made. Returns the arrays and whether they were loaded.
    """
    arrays = None if folder is None else load_arrays(folder, specs)
    if arrays is not None and _fit_each_other(arrays):
        return arrays, True
    arrays = make()
    if folder is not None:
        publish_arrays(folder, arrays, specs)
    return arrays, False


def fingerprint_of_arrays(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 (hex) of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(b"isotrain tokens 1")
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def store_key(split: RawSplit, tokenizer: TextTokenizer, max_length: int) -> str:
    """SHA-256 (hex) of what determines the tokens: texts, labels, tokenizer, `max_length`, format version."""
    inputs = [FORMAT_VERSION, tokenizer.fingerprint, max_length, split.texts, split.pairs, split.labels]
    return hashlib.sha256(json.dumps(inputs, ensure_ascii=False).encode()).hexdigest()


def _specs(split: RawSplit) -> Specs:
    """What the arrays of this split's store must be. Arrays with a value per token are mapped."""
    labels = _label_array(split)
    specs = {
        "ids": ArraySpec("int32", (None,), mapped=True),
        "offsets": ArraySpec("int64", (len(split) + 1,)),
        "labels": ArraySpec(str(labels.dtype), labels.shape),
    }
    return specs if split.pairs is None else specs | {"token_type_ids": ArraySpec("uint8", (None,), mapped=True)}


def _label_array(split: RawSplit) -> np.ndarray:
    return np.array(split.labels, dtype=np.float32 if isinstance(split.labels[0], list) else np.int64)


def _fit_each_other(arrays: dict[str, np.ndarray]) -> bool:
    offsets, total = arrays["offsets"], len(arrays["ids"])
    types = arrays.get("token_type_ids")
    return bool(offsets[0] == 0 and (np.diff(offsets) >= 1).all() and offsets[-1] == total) and (
        types is None or len(types) == total
    )


def _tokenise(
    split: RawSplit, tokenizer: TextTokenizer, max_length: int, progress: Progress | None
) -> dict[str, np.ndarray]:
    total = len(split)
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for start in range(0, total, CHUNK_TEXTS):
        stop = min(start + CHUNK_TEXTS, total)
        pairs = None if split.pairs is None else split.pairs[start:stop]
        chunk_ids, chunk_offsets, chunk_types = tokenizer.encode_batch(split.texts[start:stop], max_length, pairs)
        ids.append(chunk_ids)
        lengths.append(np.diff(chunk_offsets))
        if chunk_types is not None:
            types.append(chunk_types)
        if progress is not None:
            progress(stop, total)
    offsets = np.zeros(total + 1, dtype=np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    arrays = {"ids": np.concatenate(ids), "offsets": offsets, "labels": _label_array(split)}
    return arrays | {"token_type_ids": np.concatenate(types)} if types else arrays
