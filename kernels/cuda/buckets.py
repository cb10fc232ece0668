"""Fixed shapes for batches of any shape, so that captured graphs can be replayed.

With small batches, a GPU waits for the host's launches. A graph is one launch, but has fixed shapes and addresses. Each
batch is therefore copied into the buffers of a slightly larger bucket, and the bucket's graph is replayed. Behind the
batch, the buffers contain leftovers of earlier ones: rows that see no key and that no row sees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from .rows import TokenRows

log = logging.getLogger("isotrain")

# Above this, a chunk's kernels run longer than the host needs to launch them, and padding would cost real time.
GRAPH_TOKENS = 8192
MOST_BUCKETS = 32

_LEAST_TOKENS = 64
_STEPS_PER_OCTAVE = 8

Forward = Callable[[TokenRows], torch.Tensor]
Thunk = Callable[[], torch.Tensor]


class CaptureError(RuntimeError):
    """Work could not be recorded. Nothing of it was executed."""


class Capture(Protocol):
    """How a device records work to replay it later."""

    def warm_up(self, run: Thunk) -> torch.Tensor:
        """Runs it once for real to prepare `capture` (libraries, compilation)."""
        ...

    def capture(self, run: Thunk) -> Thunk:
        """Records `run` without executing it. The result executes it, into the same tensor each time.

        Raises:
            CaptureError: The device can't record it.
        """
        ...


@dataclass
class Repeated:
    """Work on fixed buffers. The first call runs it directly, the second captures it, later ones replay it."""

    run: Thunk
    warm: bool = False
    replay: Thunk | None = None

    @property
    def captures_next(self) -> bool:
        return self.warm and self.replay is None

    def __call__(self, capture: Capture) -> torch.Tensor:
        """The result, in memory that the next call may overwrite.

        Raises:
            CaptureError: The work was to be captured, and can't be. It was not executed.
        """
        if not self.warm:
            result = capture.warm_up(self.run)
            self.warm = True
            return result
        if self.replay is None:
            self.replay = capture.capture(self.run)
        return self.replay()


class BucketRunner:
    """Runs `forward` in buckets, one `Repeated` for each shape.

    At most `most_buckets` shapes are kept. Batches of other shapes, or of more than `graph_tokens` rows, run directly
    and unpadded. All calls must be made on one stream, because the next call overwrites the buffers. After a failed
    capture, every batch runs directly.
    """

    def __init__(
        self,
        forward: Forward,
        capture: Capture,
        longest: int,
        graph_tokens: int = GRAPH_TOKENS,
        most_buckets: int = MOST_BUCKETS,
    ) -> None:
        """`longest` is the most tokens that a sequence has (the encoder's positions)."""
        self._forward, self._capture, self._longest = forward, capture, longest
        self._graph_tokens, self._most_buckets = graph_tokens, most_buckets
        self._buckets: dict[tuple[int, int, bool, bool], _Bucket] = {}

    def __call__(self, rows: TokenRows) -> torch.Tensor:
        """Features, float32 [sequences, hidden], in separate memory."""
        if rows.num_tokens > self._graph_tokens:
            return self._forward(rows)
        key = (
            token_bucket(rows.num_tokens),
            sequence_bucket(rows.num_sequences),
            rows.token_type_ids is not None,
            rows.real_lengths is not None,
        )
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._most_buckets:
                return self._forward(rows)
            buffers = _buffers(rows, key[0], key[1], self._longest)
            bucket = self._buckets[key] = _Bucket(buffers, Repeated(lambda: self._forward(buffers)))
        _fill(bucket.buffers, rows)
        try:
            # A copy, because the next replay writes to the same memory.
            return bucket.repeated(self._capture)[: rows.num_sequences].clone()
        except CaptureError as error:
            log.warning("the encoder runs small batches without CUDA graphs: %s", error)
            self._buckets, self._most_buckets = {}, 0
            return self._forward(rows)


@dataclass(frozen=True)
class _Bucket:
    buffers: TokenRows
    repeated: Repeated


def token_bucket(tokens: int) -> int:
    """The bucket for `tokens` rows: eight sizes per octave, so that at most an eighth of it is padding."""
    if tokens <= _LEAST_TOKENS:
        return _LEAST_TOKENS
    step = max(1, (1 << (tokens - 1).bit_length() - 1) // _STEPS_PER_OCTAVE)
    return -(-tokens // step) * step


def sequence_bucket(sequences: int) -> int:
    """The next power of two. A spare sequence costs one row of the last layer."""
    return 1 << (sequences - 1).bit_length()


def _buffers(rows: TokenRows, tokens: int, sequences: int, longest: int) -> TokenRows:
    """Zeros, because id, position and type 0 exist in every model."""
    device = rows.input_ids.device

    def zeros(size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    return TokenRows(
        input_ids=zeros(tokens),
        position_ids=zeros(tokens),
        token_type_ids=None if rows.token_type_ids is None else zeros(tokens),
        cu_seqlens=zeros(sequences + 1, torch.int32),
        real_lengths=None if rows.real_lengths is None else zeros(sequences, torch.int32),
        max_length=longest,
    )


def _fill(buffers: TokenRows, rows: TokenRows) -> None:
    tokens, sequences = rows.num_tokens, rows.num_sequences
    buffers.input_ids[:tokens].copy_(rows.input_ids)
    buffers.position_ids[:tokens].copy_(rows.position_ids)
    if buffers.token_type_ids is not None and rows.token_type_ids is not None:
        buffers.token_type_ids[:tokens].copy_(rows.token_type_ids)
    buffers.cu_seqlens[: sequences + 1].copy_(rows.cu_seqlens)
    # Spare sequences are empty and begin where the last real one ends.
    buffers.cu_seqlens[sequences + 1 :].fill_(tokens)
    if buffers.real_lengths is not None and rows.real_lengths is not None:
        buffers.real_lengths[:sequences].copy_(rows.real_lengths)
        buffers.real_lengths[sequences:].fill_(0)
