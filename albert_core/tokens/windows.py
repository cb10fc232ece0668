"""Questions and contexts as windows of tokens, with the positions of the answers.

A context that is too long for one sequence is split into overlapping windows (Devlin et al. 2018, 1810.04805, and the
scripts that came with it). A window without the whole answer is labelled with its first position, [CLS]. An answer that
no window contains completely is lost to training. The store counts those.
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

# Part of every cache key. Raise it when the same input should give other arrays.
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
    """A token store with N windows as sequences. Windows of the same question are adjacent.

    Attributes:
        labels: int64 [N, 2], the positions of the first token and the last token of the first given answer, or (0, 0),
            which is [CLS], if the window doesn't contain all of it.
        questions: int64 [N], the question of each window.
        spans: int32 [T, 2], the characters [begin, end) of the context for each token, or -1 for tokens of the question
            and special ones.
    """

    questions: np.ndarray
    spans: np.ndarray

    @property
    def num_questions(self) -> int:
        return int(self.questions[-1]) + 1

    @property
    def num_split(self) -> int:
        """Questions with a context that needs several windows."""
        return int((np.bincount(self.questions) > 1).sum())

    @property
    def num_lost(self) -> int:
        """Questions with an answer that no window contains completely."""
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
    """The windows of `split`, read from the cache or else computed and written to it.

    Args:
        max_length: Limit in tokens of a window.
        stride: Tokens of the context that neighbouring windows share.
        cache_dir: By default ``cache_folder("tokens")``.
        progress: Called with the done and total number of questions.

    Raises:
        UserError: The split is empty, or a question leaves no room for context.
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
    """SHA-256 (hex) of everything that determines the windows."""
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
    """int64 [W, 2]: the position of the question's first answer in each window."""
    labels = np.zeros((len(windows.questions), 2), dtype=np.int64)
    for window, row in enumerate(windows.questions):
        if answers[row]:
            is_first = window == 0 or windows.questions[window - 1] != row
            is_last = window == len(labels) - 1 or windows.questions[window + 1] != row
            spans = windows.spans[windows.offsets[window] : windows.offsets[window + 1]]
            labels[window] = _place(spans, answers[row][0], is_first, is_last)
    return labels


def _place(spans: np.ndarray, answer: Answer, is_first: bool, is_last: bool) -> tuple[int, int]:
    """The first and last token that overlap with `answer`, or (0, 0) if the window doesn't contain all of it.

    Only the first window of a context has nothing before it, and only the last nothing after it.
    """
    begin = answer.end - len(answer.text.lstrip())
    end = answer.start + len(answer.text.rstrip())
    positions = np.flatnonzero(spans[:, 0] >= 0)
    begins, ends = spans[positions].T
    cut = (not is_first and begins[0] > begin) or (not is_last and ends[-1] < end)
    found = positions[(ends > begin) & (begins < end)]
    return (0, 0) if cut or not len(found) else (int(found[0]), int(found[-1]))
