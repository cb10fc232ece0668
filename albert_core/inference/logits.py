"""A trained model as one function from token ids to logits, and how far another such function is from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

# (texts, tokens) of the probes. Lengths are limited to the run's max_length.
PROBES = ((1, 1), (3, 17), (2, 128), (5, 8))

Logits = Callable[..., torch.Tensor]


class LogitsModel(nn.Module):
    """From token ids to logits, float32, in one graph: the encoder and the task's `apply_head`."""

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        apply_head: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self._apply_head = apply_head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """Computes logits from int64 [batch, length] each. The mask is 1 on real tokens.

        Returns:
            (batch, outputs), or (batch, length, outputs) if the task reads every token.
        """
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return self._apply_head(self.head, output.last_hidden_state, attention_mask)


def probes(config: Any, max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields test batches for an encoder of `config`, as INPUTS.

    They hold random ids, rows of different lengths, and two token types if the model has them. Some are longer than the
    batch that is traced, some shorter, and one has a single token.
    """
    generator = torch.Generator().manual_seed(0)
    for texts, wanted in PROBES:
        length = min(wanted, max_length)
        ids = torch.randint(0, config.vocab_size, (texts, length), generator=generator)
        lengths = torch.randint(1, length + 1, (texts, 1), generator=generator)
        # The longest row has no padding, as in training.
        lengths[0] = length
        mask = (torch.arange(length)[None] < lengths).long()
        second = (torch.arange(length)[None] > lengths // 2).long() if config.type_vocab_size > 1 else 0
        yield ids * mask, mask, second * mask


def difference(model: LogitsModel, logits: Logits, max_length: int) -> tuple[float, float]:
    """Largest absolute difference and relative L2 of `logits` from `model` over all probes. NaN counts as infinite."""
    differences, references = [], []
    for batch in probes(model.encoder.config, max_length):
        expected, found = model(*batch), logits(*batch)
        if expected.dim() == 3:
            # The logits of padding are an extremely low constant, which would hide any error.
            real = batch[1].bool()
            expected, found = expected[real], found[real]
        differences.append((found - expected).flatten().double())
        references.append(expected.flatten().double())
    error = torch.cat(differences).nan_to_num(nan=float("inf"))
    return float(error.abs().max()), float(error.norm() / torch.cat(references).norm())
