"""What the check's own measurements run: an encoder, texts of Banking77's lengths, and how much of both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...albert_core.model.encoder import LoadedEncoder, load_encoder
from ...backends import Backend, CastPolicy
from ...kernels.packed import PackedBatch
from ..harness.texts import Texts, embedded_texts

SEED = 23
DTYPE = "bfloat16"


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        batch_tokens: Tokens per packed batch.
        padded_batch: Texts per batch padded to `max_length`.
        compiler: The backend of torch.compile. In a dry run, machine code isn't worth its compilation.
    """

    model: str = "random:albert-base-v2"
    texts: int = 30_009
    batch_tokens: int = 65_536
    padded_batch: int = 512
    max_length: int = 128
    rounds: int = 7
    compiler: str = "inductor"


TINY = Size("random:tiny", texts=40, batch_tokens=300, padded_batch=16, max_length=64, rounds=3, compiler="eager")


@dataclass(frozen=True)
class Inputs:
    backend: Backend
    size: Size

    @cached_property
    def policy(self) -> CastPolicy:
        return self.backend.cast_policy(DTYPE)

    @cached_property
    def encoder(self) -> LoadedEncoder:
        return load_encoder(self.size.model, SEED)

    @cached_property
    def texts(self) -> Texts:
        return embedded_texts(self.size.texts, self.size.max_length, self.encoder.weights.config.vocab_size, 77, SEED)

    def packed(self, rows: np.ndarray) -> PackedBatch:
        """A batch of the texts `rows`, int64 [n], on the host."""
        return PackedBatch.from_flat(self.texts.ids, self.texts.offsets, rows)
