"""The callables that a backend returns: frozen encoders, a head's fused step, the attention of packed batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from ..kernels.packed import PackedBatch, PaddedBatch
    from ..kernels.weights import DropoutRates


class FrozenForward(Protocol):
    """A frozen forward pass: it takes a batch and returns one [CLS] feature row per sequence.

    Attributes:
        skips_padding: Whether a padded batch costs only its real tokens. The hardware FLOPs are counted accordingly.
        batch_invariant: Whether a text's features have the same bits in every batch.
    """

    name: str
    version: str
    skips_padding: bool
    batch_invariant: bool

    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features, float32 [sequences, hidden], on the backend's device."""
        ...


class FrozenEncoder(FrozenForward, Protocol):
    """A frozen forward pass that can also return what happens between its layers."""

    def layer_states(
        self, batch: PackedBatch | PaddedBatch, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Every token's hidden states between the layers. Parity uses them; speed doesn't matter.

        Args:
            given: One input per layer. Each layer is then applied to its own input (a replay), which separates its own
                error from the error of the layers before it.

        Returns:
            The first layer's input and each of the R layers' outputs (R + 1 tensors), or a replay's R outputs. Each is
            [tokens, hidden] for a packed batch, and [sequences, length, hidden] for a padded one, where padded
            positions mean nothing.
        """
        ...


class TrainedEncoder(Protocol):
    """A whole encoder that a kernel of the device trains on packed batches, in place of its module."""

    name: str
    version: str

    def __call__(self, batch: PackedBatch, rates: DropoutRates) -> torch.Tensor:
        """The last layer's states of all tokens, float32 [T, hidden], in the batch's order.

        Autograd differentiates them by the weights. A text's states have the same bits in every batch without dropout.
        """
        ...

    def layer_states(self, batch: PackedBatch, given: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """Those of `FrozenEncoder.layer_states`, without dropout."""
        ...


class HeadStep(Protocol):
    """A whole optimizer step of a classification head ``Linear -> GELU -> Linear`` under cross entropy."""

    def __call__(self, features: torch.Tensor, labels: torch.Tensor, num_samples: int) -> torch.Tensor:
        """Updates the head.

        Args:
            features: [b, f].
            labels: int64 [b].
            num_samples: The summed loss is divided by it.

        Returns:
            float32 [2] on the device: the batch's summed loss in nats, and its number of texts classified correctly.
        """
        ...


class PackedAttention(Protocol):
    """Attention within each sequence of one packed batch, for a trained module. Autograd differentiates it."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0
    ) -> torch.Tensor:
        """Computes attention. Scores are divided by the square root of the width, as in ALBERT and BERT.

        Args:
            query, key, value: [1, heads, T, width] for a batch of T tokens.
            dropout: The share of probabilities that is dropped; the others are scaled up. 0 draws no random number.

        Returns:
            [1, T, heads, width].
        """
        ...
