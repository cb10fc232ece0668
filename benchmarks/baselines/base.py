"""The interface of baselines, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from ... import UserError
from ...albert_core.model.encoder import LoadedEncoder
from ...backends import Backend, CastPolicy
from ...kernels.packed import PackedBatch, PaddedBatch


class BaselineEncoder(ABC):
    """A baseline's frozen forward pass, from a padded batch to [CLS] features, float32 [sequences, hidden].

    Attributes:
        policy: The dtypes that it really uses.
        notes: How it was set up, for the reader of the result.
    """

    name: str
    version: str
    policy: CastPolicy
    skips_padding = False
    batch_invariant = False
    notes: tuple[str, ...] = ()

    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        if isinstance(batch, PackedBatch):
            raise UserError(f"{self.name} takes padded batches only")
        return self.features(batch)

    @abstractmethod
    def features(self, batch: PaddedBatch) -> torch.Tensor:
        """The features of a placed batch."""

    def prepare(self, batches: Sequence[PaddedBatch]) -> None:
        """Compiles what these batches need, so that failures show before the measurement."""
        with running(self.name):
            for batch in {tuple(batch.input_ids.shape): batch for batch in batches}.values():
                self(batch)

    def compile_count(self) -> int:
        """The number of graphs compiled so far by its own compiler, which the backend doesn't count."""
        return 0


class ClsFeatures(nn.Module):
    """(input_ids, attention_mask) -> ``last_hidden_state[:, 0]``, for exporters and compilers."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        features: torch.Tensor = output.last_hidden_state[:, 0]
        return features


def baseline_policy(backend: Backend, dtype: str, compute: str | None = None, reason: str = "") -> CastPolicy:
    """The backend's policy for `dtype`, or that of a baseline that computes only in `compute`."""
    policy = backend.cast_policy(dtype)
    if compute is None:
        if policy.eight_bit:
            raise UserError(f"it has no {policy.label}; give another --dtype, or only baselines with that")
        return policy
    return replace(policy, param=compute, compute=compute, accumulate="float32", reason=reason, mode="")


def require_host(backend: Backend, name: str) -> None:
    """Raises UserError if the backend's tensors aren't in host memory."""
    if not backend.place(torch.empty(0)).is_cpu:
        raise UserError(f"{name} is set up for the host's processors only; it can't be compared on {backend.name}")


@contextmanager
def running(name: str) -> Iterator[None]:
    """Turns any error of third-party code into a UserError of one line."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UserError(f"{name} can't run here: {type(error).__name__}: {_first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silences exporters, which warn about every shape that they record. The results are compared anyway."""
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def example_inputs(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch for tracing, of unusual sizes: ids and a mask with padding, int64 [3, 11]."""
    ids = torch.arange(3 * 11).remainder(vocabulary - 5).add(5).view(3, 11)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


def cls_module(encoder: LoadedEncoder) -> ClsFeatures:
    """The encoder's module in `ClsFeatures`, in eval mode."""
    return ClsFeatures(encoder.module()).eval()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else "no message")[:300]
