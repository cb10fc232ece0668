"""What a backend hands out to be called: frozen encoders, a head's fused step, the attention of packed batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from ..kernels.packed import PackedBatch, PaddedBatch


class FrozenForward(Protocol):
    """A frozen forward pass: a batch in, one [CLS] feature row a sequence out.

    skips_padding: whether a padded batch costs what its real tokens cost. What it computes is counted by it.
    """

    name: str
    version: str
    skips_padding: bool

    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features, float32, shape (sequences, hidden), on the backend's device."""
        ...


class FrozenEncoder(FrozenForward, Protocol):
    """One that also shows what happens between its layers."""

    def layer_states(
        self, batch: PackedBatch | PaddedBatch, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Every token's hidden state: what the first layer takes in, then what each one gives (R + 1 tensors).

        [tokens, hidden] of a packed batch, [sequences, length, hidden] of a padded one, whose padded places mean
        nothing. With `given`, R such tensors, it is a replay: each layer is applied to its own one (R results).
        It is how parity tells a layer's own error from what came before; speed doesn't matter.
        """
        ...


class HeadStep(Protocol):
    """A whole optimizer step of a classification head ``Linear -> GELU -> Linear`` under cross entropy."""

    def __call__(self, features: torch.Tensor, labels: torch.Tensor, num_samples: int) -> torch.Tensor:
        """Updates the head by the mean loss over `num_samples` of features [b, f] and labels [b].

        float32 [2] on the device: the batch's summed loss, and how many of its texts were classified correctly.
        """
        ...


class PackedAttention(Protocol):
    """Attention within each sequence of one packed batch, for a module that is trained: autograd goes through it."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0
    ) -> torch.Tensor:
        """[1, T, heads, width] of a batch's T tokens, from query, key and value [1, heads, T, width] each.

        Scores are divided by the root of the width, as in ALBERT and BERT. Of the probabilities a share `dropout` is
        dropped and the others are scaled up; without it no random number is drawn.
        """
        ...
