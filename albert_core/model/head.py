"""The trainable head: layers on the encoder's [CLS] feature, or a linear layer on every token's state.

Initial weights are drawn on the host in float32 from their own generator. They have the same bits on every device,
whatever else has drawn random numbers before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ..config.schema import TrainConfig

# The standard deviation of new weights in transformers' ALBERT and BERT (`initializer_range`).
INITIALIZER_RANGE = 0.02


def sequence_head(hidden_size: int, outputs: int, config: TrainConfig) -> ClassificationHead | PoolerHead:
    """The head `config.head` with `outputs` logits a sequence."""
    if config.head == "pooler_linear":
        return PoolerHead(hidden_size, outputs, config.seed, config.head_dropout)
    return ClassificationHead(hidden_size, config.mlp_hidden_size, outputs, config.seed, config.head_dropout)


class ClassificationHead(nn.Module):
    """``Linear(hidden_size, mlp_hidden_size) -> GELU -> dropout -> Linear(mlp_hidden_size, num_labels)``.

    Initial weights and biases have torch.nn.Linear's default distribution, uniform in +-1/sqrt(fan_in).
    """

    def __init__(
        self, hidden_size: int, mlp_hidden_size: int, num_labels: int, seed: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = nn.utils.skip_init(nn.Linear, hidden_size, mlp_hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.utils.skip_init(nn.Linear, mlp_hidden_size, num_labels)
        _draw((self.hidden, self.output), seed)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_labels) of features (batch, hidden_size), in the head's dtype."""
        hidden = nn.functional.gelu(self.hidden(features.to(self.hidden.weight.dtype)))
        return self.output(self.dropout(hidden))


class PoolerHead(nn.Module):
    """``Linear(hidden_size, hidden_size) -> tanh -> dropout -> Linear(hidden_size, num_labels)``.

    The head of transformers' AlbertForSequenceClassification and BertForSequenceClassification. Initial weights are
    normal with a standard deviation of INITIALIZER_RANGE, and biases zero, as there.
    """

    def __init__(self, hidden_size: int, num_labels: int, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.pooler = nn.utils.skip_init(nn.Linear, hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.utils.skip_init(nn.Linear, hidden_size, num_labels)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for linear in (self.pooler, self.output):
                linear.weight.normal_(0.0, INITIALIZER_RANGE, generator=generator)
                linear.bias.zero_()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_labels) of features (batch, hidden_size), in the head's dtype."""
        pooled = torch.tanh(self.pooler(features.to(self.pooler.weight.dtype)))
        return self.output(self.dropout(pooled))


class SpanHead(nn.Module):
    """``Linear(hidden_size, outputs)`` on every token's state, no dropout.

    Initial weights and biases have torch.nn.Linear's default distribution, uniform in +-1/sqrt(fan_in).
    """

    def __init__(self, hidden_size: int, outputs: int, seed: int = 0) -> None:
        super().__init__()
        self.output = nn.utils.skip_init(nn.Linear, hidden_size, outputs)
        _draw((self.output,), seed)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (batch, length, outputs) of states (batch, length, hidden_size), in the head's dtype."""
        return self.output(states.to(self.output.weight.dtype))


def _draw(layers: Sequence[nn.Linear], seed: int) -> None:
    """Draws initial weights and biases, layer by layer from one generator."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in layers:
            bound = 1.0 / math.sqrt(linear.in_features)
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.uniform_(-bound, bound, generator=generator)
