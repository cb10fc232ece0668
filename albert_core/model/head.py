"""The trainable head: an MLP on the encoder's [CLS] feature, or a linear layer on every token's state.

Initial weights are drawn on the host in float32 from their own generator. They have the same bits on every device,
whatever else has drawn random numbers before. The distribution is torch.nn.Linear's default, uniform in
+-1/sqrt(fan_in) for weights and biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class ClassificationHead(nn.Module):
    """``Linear(hidden_size, mlp_hidden_size) -> GELU -> Linear(mlp_hidden_size, num_labels)``, no dropout."""

    def __init__(self, hidden_size: int, mlp_hidden_size: int, num_labels: int, seed: int = 0) -> None:
        super().__init__()
        self.hidden = nn.utils.skip_init(nn.Linear, hidden_size, mlp_hidden_size)
        self.output = nn.utils.skip_init(nn.Linear, mlp_hidden_size, num_labels)
        _draw((self.hidden, self.output), seed)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_labels) of features (batch, hidden_size), in the head's dtype."""
        hidden = nn.functional.gelu(self.hidden(features.to(self.hidden.weight.dtype)))
        return self.output(hidden)


class SpanHead(nn.Module):
    """``Linear(hidden_size, outputs)`` on every token's state, no dropout."""

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
