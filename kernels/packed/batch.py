"""Batches of token ids, packed (no padding) or padded (static shape).

Both keep the sequences' lengths on the host as well, so that a kernel can group sequences by length without waiting for
a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from ... import UserError
from ..weights import EncoderConfig

IntArray = np.ndarray
B = TypeVar("B", "PackedBatch", "PaddedBatch")


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Concatenated sequences: T tokens in total, B sequences. int32 is accepted for int64 and the reverse.

    Attributes:
        input_ids: int64 [T].
        cu_seqlens: int32 [B + 1]. Sequence b is ``input_ids[cu_seqlens[b]:cu_seqlens[b + 1]]``.
        position_ids: int64 [T], from 0 in every sequence.
        token_type_ids: int64 [T]. None means all 0.
        host_lengths: int64 numpy [B]. If not given, read from `cu_seqlens`, which waits for the device.

    Raises:
        UserError: Tensors contradict each other or hold no integers, no sequence, or an empty one.
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor | None = None
    host_lengths: IntArray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

    def __post_init__(self) -> None:
        shape = self.input_ids.shape
        types = self.token_type_ids
        if len(shape) != 1 or self.position_ids.shape != shape or (types is not None and types.shape != shape):
            raise UserError(
                f"input_ids {tuple(shape)}, position_ids {tuple(self.position_ids.shape)} and token_type_ids "
                f"{None if types is None else tuple(types.shape)} of a packed batch must be flat and of one length"
            )
        if self.cu_seqlens.dim() != 1:
            raise UserError(f"cu_seqlens of a packed batch must be flat, not {tuple(self.cu_seqlens.shape)}")
        _check_integers(self, "input_ids", "cu_seqlens", "position_ids", "token_type_ids")
        given = len(self.host_lengths) > 0
        # Kernels rely on the lengths, so wrong ones would give a wrong number. On a device, the comparison would wait.
        if not given or self.device.type == "cpu":
            bounds = self.cu_seqlens.cpu().numpy().astype(np.int64)
            lengths = np.diff(bounds)
            _check_lengths(lengths)
            if bounds[0] != 0 or bounds[-1] != shape[0]:
                raise UserError(
                    f"cu_seqlens must run from 0 to {shape[0]} tokens, not from {bounds[0]} to {bounds[-1]}"
                )
            if not given:
                object.__setattr__(self, "host_lengths", lengths)
            elif not np.array_equal(lengths, self.host_lengths):
                raise UserError("host_lengths of a packed batch differ from its cu_seqlens; give the same, or none")

    @classmethod
    def from_lists(
        cls, sequences: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
    ) -> PackedBatch:
        """A batch from one list of token ids per sequence (and one of token types, of the same lengths)."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        _check_lengths(lengths)
        types = None
        if token_types is not None:
            if [len(row) for row in token_types] != lengths.tolist():
                raise UserError("token_types must have as many lists as sequences, each of its sequence's length")
            types = _flat_integers(token_types, "token types")
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        return cls.from_flat(_flat_integers(sequences, "token ids"), offsets, np.arange(len(lengths)), types)

    @classmethod
    def from_flat(
        cls, ids: IntArray, offsets: IntArray, indices: IntArray | Sequence[int], token_types: IntArray | None = None
    ) -> PackedBatch:
        """Copies the sequences `indices`, in that order, of a token store. The store may be memory-mapped.

        Args:
            ids: Integers of any dtype [all tokens].
            offsets: Integers [sequences + 1]. Sequence i is ``ids[offsets[i]:offsets[i + 1]]``.
            token_types: Integers like `ids`.

        Raises:
            UserError: An index outside the store, no index, or an empty sequence.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(offsets) - 1):
            raise UserError(
                f"sequence index {chosen[(chosen < 0) | (chosen >= len(offsets) - 1)][0]} is outside the token store; "
                f"allowed are 0 to {len(offsets) - 2}"
            )
        starts = np.asarray(offsets[chosen], dtype=np.int64)
        lengths = np.asarray(offsets[chosen + 1], dtype=np.int64) - starts
        _check_lengths(lengths)
        bounds = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=bounds[1:])
        token = np.arange(bounds[-1])
        position = token - np.repeat(bounds[:-1], lengths)
        source = position + np.repeat(starts, lengths)
        return cls(
            input_ids=torch.from_numpy(ids[source].astype(np.int64, copy=False)),
            cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
            position_ids=torch.from_numpy(position),
            token_type_ids=None
            if token_types is None
            else torch.from_numpy(token_types[source].astype(np.int64, copy=False)),
            host_lengths=lengths,
        )

    @property
    def num_sequences(self) -> int:
        return len(self.host_lengths)

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]

    @property
    def lengths(self) -> torch.Tensor:
        """int32 [B], tokens of each sequence, on the batch's device."""
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1]

    @property
    def max_seqlen(self) -> int:
        return int(self.host_lengths.max())

    @property
    def device(self) -> torch.device:
        return self.input_ids.device

    def to(self, device: torch.device | str) -> PackedBatch:
        """This batch on `device`, or itself if it is there already."""
        return _moved(self, device)

    def by_length(self) -> tuple[PackedBatch, torch.Tensor]:
        """Sorts the sequences by length. All of it happens on the batch's device, without a copy from the host.

        Returns:
            The sorted batch, and where each of its tokens stands in this one's `to_padded`, row after row: int64 [T].
        """
        order = torch.argsort(self.lengths, stable=True)
        bounds = torch.nn.functional.pad(self.lengths[order].cumsum(0, dtype=torch.int32), (1, 0))
        place, position = self._tokens(bounds)
        sequence = order[place]
        source = self.cu_seqlens[sequence] + position
        ordered = PackedBatch(
            input_ids=self.input_ids[source],
            cu_seqlens=bounds,
            position_ids=self.position_ids[source],
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids[source],
            host_lengths=np.sort(self.host_lengths),
        )
        return ordered, sequence * self.max_seqlen + position

    def places(self) -> torch.Tensor:
        """Where each token stands in `to_padded`, row after row: int64 [T], on the batch's device."""
        sequence, position = self._tokens(self.cu_seqlens)
        return sequence * self.max_seqlen + position

    def _tokens(self, bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequence of each token, int64 [T], and its position in it, for sequences with these bounds."""
        token = torch.arange(self.num_tokens, dtype=bounds.dtype, device=self.device)
        sequence = torch.searchsorted(bounds[1:], token, right=True)
        return sequence, token - bounds[sequence]

    def to_padded(self, length: int | None = None, pad_id: int = 0) -> PaddedBatch:
        """The same sequences padded on the right to `length` (None: the longest sequence's)."""
        length = self.max_seqlen if length is None else length
        if length < self.max_seqlen:
            raise UserError(f"a sequence of {self.max_seqlen} tokens can't be padded to {length}; give a larger length")
        lengths = self.host_lengths
        slots = torch.from_numpy(flat_token_index(np.arange(len(lengths)) * length, lengths)).to(self.device)

        def spread(values: torch.Tensor, fill: int) -> torch.Tensor:
            rows = torch.full((len(lengths) * length,), fill, dtype=torch.int64, device=self.device)
            rows[slots] = values
            return rows.view(len(lengths), length)

        return PaddedBatch(
            input_ids=spread(self.input_ids, pad_id),
            attention_mask=spread(torch.ones_like(self.input_ids), 0),
            token_type_ids=None if self.token_type_ids is None else spread(self.token_type_ids, 0),
            host_lengths=lengths,
        )

    def validate(self, config: EncoderConfig) -> None:
        """Raises UserError if this batch doesn't fit an encoder of `config`.

        Lengths are always checked. Ids, positions and token types are checked only on the host, because reading them
        elsewhere waits for the device. Validate before `to`.
        """
        _check_longest(self.max_seqlen, config)
        if self.device.type == "cpu":
            _check_range("token id", self.input_ids, config.vocab_size)
            _check_range("position", self.position_ids, config.max_positions)
            if self.token_type_ids is not None:
                _check_range("token type", self.token_type_ids, config.type_vocab_size)


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """B sequences padded on the right to the length L. Positions are 0 .. L - 1 in every row.

    Attributes:
        input_ids: int64 [B, L].
        attention_mask: int64 [B, L], 1 for real tokens.
        token_type_ids: int64 [B, L]. None means all 0.
        host_lengths: int64 numpy [B], or None if they aren't known yet.

    Raises:
        UserError: Tensors of different or wrong shapes, ids that are no integers, or no sequence.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None = None
    host_lengths: IntArray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = self.input_ids.shape
        types = self.token_type_ids
        if len(shape) != 2 or 0 in shape:
            raise UserError(
                f"input_ids of a padded batch must be (sequences, length), both above 0, not {tuple(shape)}"
            )
        if self.attention_mask.shape != shape or (types is not None and types.shape != shape):
            raise UserError(
                f"attention_mask and token_type_ids of a padded batch must have the shape of input_ids, {tuple(shape)}"
            )
        _check_integers(self, "input_ids", "token_type_ids")

    @property
    def num_sequences(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_tokens(self) -> int:
        """Real tokens. Waits for the device if the lengths aren't on the host."""
        return int(self.attention_mask.sum()) if self.host_lengths is None else int(self.host_lengths.sum())

    @property
    def device(self) -> torch.device:
        return self.input_ids.device

    def to(self, device: torch.device | str) -> PaddedBatch:
        """This batch on `device`, or itself if it is there already."""
        return _moved(self, device)

    def to_packed(self) -> PackedBatch:
        """The same sequences without padding. Raises UserError for a mask that isn't padding on the right."""
        _check_mask(self.attention_mask)
        real = self.attention_mask.bool()
        lengths = self.attention_mask.sum(dim=1, dtype=torch.int64)
        cu_seqlens = torch.zeros(self.num_sequences + 1, dtype=torch.int32, device=self.device)
        cu_seqlens[1:] = lengths.cumsum(0)
        positions = torch.arange(self.input_ids.shape[1], device=self.device).expand_as(self.input_ids)
        return PackedBatch(
            input_ids=self.input_ids[real],
            cu_seqlens=cu_seqlens,
            position_ids=positions[real],
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids[real],
            host_lengths=lengths.cpu().numpy(),
        )

    def validate(self, config: EncoderConfig) -> None:
        """Raises UserError if this batch doesn't fit an encoder of `config` (see `PackedBatch.validate`)."""
        _check_longest(self.input_ids.shape[1], config)
        if self.device.type == "cpu":
            _check_mask(self.attention_mask)
            _check_range("token id", self.input_ids, config.vocab_size)
            if self.token_type_ids is not None:
                _check_range("token type", self.token_type_ids, config.type_vocab_size)


def _moved(batch: B, device: torch.device | str) -> B:
    if batch.device == torch.device(device):
        return batch
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
    }
    return replace(batch, **moved)


def flat_token_index(starts: IntArray, lengths: IntArray) -> IntArray:
    """The positions of all tokens of sequences that begin at `starts`, sequence by sequence: int64 [all tokens]."""
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def _flat_integers(rows: Sequence[Sequence[int]], what: str) -> IntArray:
    flat = np.concatenate([np.asarray(row) for row in rows])
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise UserError(f"{what} must be integers, one flat list a sequence; these are {flat.dtype}")
    return flat


def _check_integers(batch: PackedBatch | PaddedBatch, *names: str) -> None:
    """Rejects dtypes that torch would truncate, mistake for a mask, or refuse in the middle of a pass."""
    for name in names:
        values = getattr(batch, name)
        if values is not None and values.dtype not in (torch.int64, torch.int32):
            raise UserError(f"{name} of a batch must be int64 or int32, not {values.dtype}")


def _check_lengths(lengths: IntArray) -> None:
    if not len(lengths):
        raise UserError("the batch has no sequence; it needs at least one")
    if lengths.min() < 1:
        raise UserError(
            f"sequence {int(np.argmax(lengths < 1))} of the batch is empty; every sequence needs at least one token "
            "([CLS])"
        )


def _check_longest(length: int, config: EncoderConfig) -> None:
    if length > config.max_positions:
        raise UserError(
            f"a sequence of {length} tokens is longer than the encoder's {config.max_positions} positions; "
            "truncate it (max_length) or take an encoder with more positions"
        )


def _check_range(what: str, values: torch.Tensor, limit: int) -> None:
    low, high = (int(bound) for bound in torch.aminmax(values))
    if low < 0 or high >= limit:
        raise UserError(
            f"{what} {low if low < 0 else high} is outside the encoder's range; allowed are 0 to {limit - 1}"
        )


def _check_mask(mask: torch.Tensor) -> None:
    starts_real = bool((mask[:, 0] == 1).all())
    binary = bool(((mask == 0) | (mask == 1)).all())
    if not (starts_real and binary and bool((mask[:, 1:] <= mask[:, :-1]).all())):
        raise UserError(
            "attention_mask must hold, in every row, ones for the real tokens (at least one) and then zeros; "
            "padding on the left, gaps and empty rows are not allowed"
        )
