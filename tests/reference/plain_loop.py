"""A recipe as a plain transformers script: the judge of isotrain's losses. It imports nothing of isotrain.

Texts are read with the csv module, tokenised and padded by transformers, batched by a given order, and trained with
torch's AdamW and transformers' schedules. What is drawn at random is given: the order and the head's first weights.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerFast, get_scheduler


@dataclass(frozen=True)
class Recipe:
    """What the published recipe says, and how far to go."""

    learning_rate: float
    batch_size: int
    steps: int
    max_length: int
    accumulation: int = 1
    weight_decay: float = 0.0
    decay_all: bool = True
    schedule: str = "constant"
    warmup_steps: int = 0
    clip: float | None = None
    frozen: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ()


def read_rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The cells of `columns`, row by row."""
    with path.open(newline="", encoding="utf-8") as file:
        return [[row[name] for name in columns] for row in csv.DictReader(file)]


def train(
    folder: Path,
    texts: Sequence[Sequence[str]],
    labels: Sequence[int],
    head_weights: dict[str, torch.Tensor],
    order: Sequence[int],
    recipe: Recipe,
    adapter_weights: dict[str, torch.Tensor] | None = None,
) -> list[float]:
    """The mean loss of each optimizer step, from the model and tokenizer in `folder`.

    `texts` holds one text a row, or two; `order` the rows of the one epoch that the steps fall into, in the order of
    training; `head_weights` those of Linear, GELU (tanh after a pooler), Linear on the [CLS] state; `adapter_weights`
    those of the adapters of a recipe with a rank, by peft's names.
    """
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).train(not recipe.frozen)
    first, _, last, _ = head_weights.values()
    activation = nn.Tanh() if "pooler.weight" in head_weights else nn.GELU()
    head = nn.Sequential(nn.Linear(*first.shape[::-1]), activation, nn.Linear(*last.shape[::-1]))
    head.load_state_dict(dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), head_weights.values(), strict=True)))
    encoder.requires_grad_(not recipe.frozen)
    if recipe.lora_rank:
        from peft import LoraConfig, get_peft_model

        targets = list(recipe.lora_targets)
        encoder = get_peft_model(
            encoder, LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, target_modules=targets)
        )
        adapters = {f"base_model.model.{name}": weight for name, weight in (adapter_weights or {}).items()}
        assert adapters.keys() == {name for name, weight in encoder.named_parameters() if weight.requires_grad}
        encoder.load_state_dict(adapters, strict=False)
    trained = [parameter for parameter in [*encoder.parameters(), *head.parameters()] if parameter.requires_grad]
    decay = recipe.weight_decay
    groups = [{"params": trained, "weight_decay": decay}] if recipe.decay_all else decay_groups((encoder, head), decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    name = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    scheduler = get_scheduler(name, optimizer, recipe.warmup_steps, recipe.steps)

    def loss_of(rows: Sequence[int]) -> torch.Tensor:
        columns = zip(*(texts[row] for row in rows), strict=True)
        batch = tokenizer(
            *map(list, columns), truncation=True, max_length=recipe.max_length, padding=True, return_tensors="pt",
            return_token_type_ids=True,
        )  # fmt: skip
        state = encoder(**batch).last_hidden_state[:, 0]
        return nn.functional.cross_entropy(head(state), torch.tensor([labels[row] for row in rows]))

    history = []
    for window in _cut(order, recipe.batch_size * recipe.accumulation)[: recipe.steps]:
        total = 0.0
        for rows in _cut(window, recipe.batch_size):
            loss = loss_of(rows) * len(rows) / len(window)
            loss.backward()
            total += loss.item()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        history.append(total)
    return history


def decay_groups(parts: Sequence[nn.Module], decay: float) -> list[dict[str, Any]]:
    """Trained parameters in two groups, as Trainer makes them: biases and those of layer norms don't decay."""
    decayed, spared = [], []
    for part in parts:
        norms = {name for name, layer in part.named_modules() if isinstance(layer, nn.LayerNorm)}
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                owner, _, last = name.rpartition(".")
                (spared if owner in norms or "bias" in last else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]


def _cut(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
