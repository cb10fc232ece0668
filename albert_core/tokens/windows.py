"""Questions and contexts as windows of tokens, with the answers' places in them.

A context that is too long for one sequence is read in several, which overlap (Devlin et al. 2018, 1810.04805, and the
scripts that came with it). A window that doesn't hold the whole answer is labelled with its first position, [CLS]: the
answer isn't here. An answer that no window holds whole would be lost to training; the store counts those.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import UserError
from ...backends.host.cache import cache_folder
from ..data.squad_file import Answer, QuestionSplit
from ..runs.array_cache import ArraySpec
from .store import CHUNK_TEXTS, Progress, TokenStore, fingerprint_of_arrays, kept_arrays
from .tokenizer import EncodedWindows, TextTokenizer

# Part of every cache key: raise it when the same input should give other arrays.
FORMAT_VERSION = 1

_SPECS = {
    "ids": ArraySpec("int32", (None,), mapped=True),
    "offsets": ArraySpec("int64", (None,)),
    "labels": ArraySpec("int64", (None, 2)),
    "token_type_ids": ArraySpec("uint8", (None,), mapped=True),
    "questions": ArraySpec("int64", (None,)),
    "spans": ArraySpec("int32", (None, 2), mapped=True),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowStore(TokenStore):
    """A token store whose N sequences are windows, those of a question one after the other.

    labels: int64 [N, 2], the positions of the first given answer's first and last token; (0, 0), which is [CLS], where
    the window doesn't hold all of it. questions: int64 [N], the window's question. spans: int32 [T, 2], the characters
    [begin, end) of the context that each token stands for, -1 for tokens of the question and special ones.
    """

    questions: np.ndarray
    spans: np.ndarray

    @property
    def num_questions(self) -> int:
        return int(self.questions[-1]) + 1

    @property
    def num_split(self) -> int:
        """Questions whose context takes several windows."""
        return int((np.bincount(self.questions) > 1).sum())

    @property
    def num_lost(self) -> int:
        """Questions whose answer no window holds whole."""
        held = np.zeros(self.num_questions, dtype=bool)
        held[self.questions[self.labels[:, 1] > 0]] = True
        return int((~held).sum())

    @property
    def num_without_answer(self) -> int:
        """Windows labelled with [CLS]."""
        return int((self.labels[:, 1] == 0).sum())


def build_window_store(
    split: QuestionSplit,
    tokenizer: TextTokenizer,
    max_length: int,
    stride: int,
    *,
    cache_dir: Path | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> WindowStore:
    """The windows of `split`, from the cache where they are there and intact, else made and put there.

    Windows have at most `max_length` tokens, and neighbours share `stride` of the context's. `cache_dir` is
    ``cache_folder("tokens")`` when absent; `progress(done, total)` counts questions. Raises UserError for an empty
    split or a question that leaves no room for context.
    """
    total = len(split)
    if not total:
        raise UserError("the split to tokenise has no questions; give data with at least one")
    root = (cache_dir or cache_folder("tokens")) if use_cache else None
    folder = root and root / _key(split, tokenizer, max_length, stride)

    def make() -> dict[str, np.ndarray]:
        chunks = []
        for start in range(0, total, CHUNK_TEXTS):
            part = split.rows(range(start, min(start + CHUNK_TEXTS, total)))
            chunks.append((start, part, tokenizer.encode_windows(part.questions, part.contexts, max_length, stride)))
            if progress is not None:
                progress(start + len(part), total)
        return _joined(chunks)

    arrays, from_cache = kept_arrays(folder, _SPECS, make)
    if from_cache and progress is not None:
        progress(total, total)
    return WindowStore(**arrays, fingerprint=fingerprint_of_arrays(arrays), from_cache=from_cache)


def _key(split: QuestionSplit, tokenizer: TextTokenizer, max_length: int, stride: int) -> str:
    """SHA-256 (hex) of everything the windows follow from."""
    first = [(given[0].text, given[0].start) if given else None for given in split.answers]
    inputs = ["windows", FORMAT_VERSION, tokenizer.fingerprint, max_length, stride]
    encoded = json.dumps([inputs, split.questions, split.contexts, first], ensure_ascii=False)
    return hashlib.sha256(encoded.encode()).hexdigest()


def _joined(chunks: list[tuple[int, QuestionSplit, EncodedWindows]]) -> dict[str, np.ndarray]:
    lengths = np.concatenate([np.diff(windows.offsets) for _, _, windows in chunks])
    return {
        "ids": np.concatenate([windows.ids for _, _, windows in chunks]),
        "offsets": np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        "labels": np.concatenate([_labels(windows, part.answers) for _, part, windows in chunks]),
        "token_type_ids": np.concatenate([windows.token_type_ids for _, _, windows in chunks]),
        "questions": np.concatenate([start + windows.questions for start, _, windows in chunks]),
        "spans": np.concatenate([windows.spans for _, _, windows in chunks]),
    }


def _labels(windows: EncodedWindows, answers: list[tuple[Answer, ...]]) -> np.ndarray:
    """int64 [W, 2]: where each window has its question's first answer."""
    labels = np.zeros((len(windows.questions), 2), dtype=np.int64)
    for window, row in enumerate(windows.questions):
        if answers[row]:
            is_first = window == 0 or windows.questions[window - 1] != row
            is_last = window == len(labels) - 1 or windows.questions[window + 1] != row
            spans = windows.spans[windows.offsets[window] : windows.offsets[window + 1]]
            labels[window] = _place(spans, answers[row][0], is_first, is_last)
    return labels


def _place(spans: np.ndarray, answer: Answer, is_first: bool, is_last: bool) -> tuple[int, int]:
    """The positions of the first and last token that overlap with `answer`; (0, 0) where it isn't whole in the window.

    Only the first and the last window of a context know that nothing comes before or after them.
    """
    begin = answer.end - len(answer.text.lstrip())
    end = answer.start + len(answer.text.rstrip())
    positions = np.flatnonzero(spans[:, 0] >= 0)
    begins, ends = spans[positions].T
    cut = (not is_first and begins[0] > begin) or (not is_last and ends[-1] < end)
    found = positions[(ends > begin) & (begins < end)]
    return (0, 0) if cut or not len(found) else (int(found[0]), int(found[-1]))
