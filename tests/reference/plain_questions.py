"""The SQuAD recipe as a plain transformers script: the judge of isotrain's losses. It imports nothing of isotrain.

Questions are read with the json module, cut into windows by transformers' tokenizer, labelled character by character,
batched by a given order, and trained with torch's AdamW and transformers' linear schedule. What is drawn at random is
given: the order and the head's first weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerFast, get_scheduler

from .plain_loop import decay_groups


@dataclass(frozen=True)
class Recipe:
    """What the recipe says, and how far to go."""

    learning_rate: float
    batch_size: int
    accumulation: int
    steps: int
    total_steps: int
    max_length: int
    stride: int
    weight_decay: float
    frozen: bool
    clip: float


def windows(folder: Path, file: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Token ids, token types and answer positions of every window, in the file's order."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    found = []
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                encoded = tokenizer(
                    question["question"],
                    paragraph["context"],
                    max_length=recipe.max_length,
                    stride=recipe.stride,
                    truncation="only_second",
                    return_overflowing_tokens=True,
                    return_offsets_mapping=True,
                    return_token_type_ids=True,
                )
                answer = question["answers"][0]
                wanted = set(range(answer["answer_start"], answer["answer_start"] + len(answer["text"])))
                wanted = {place for place in wanted if not paragraph["context"][place].isspace()}
                for number, ids in enumerate(encoded["input_ids"]):
                    roles = encoded.sequence_ids(number)
                    covers = {
                        token: wanted & set(range(*encoded["offset_mapping"][number][token]))
                        for token, role in enumerate(roles)
                        if role == 1
                    }
                    tokens = [token for token, places in covers.items() if places]
                    whole = wanted == set().union(*covers.values())
                    found.append(
                        {
                            "ids": ids,
                            "types": encoded["token_type_ids"][number],
                            "answer": (tokens[0], tokens[-1]) if whole else (0, 0),
                        }
                    )
    return found


def train(
    folder: Path,
    examples: Sequence[dict[str, Any]],
    head_weights: dict[str, torch.Tensor],
    order: Sequence[int],
    recipe: Recipe,
) -> list[float]:
    """The mean loss of each optimizer step: a window's is the mean of both ends' cross entropies over its own tokens.

    `order` holds the windows of the one epoch that the steps fall into, in the order of training; `head_weights` those
    of a Linear on every token's state.
    """
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).train(not recipe.frozen)
    encoder.requires_grad_(not recipe.frozen)
    head = nn.Linear(encoder.config.hidden_size, 2)
    head.load_state_dict(dict(zip(("weight", "bias"), head_weights.values(), strict=True)))
    parts = [head] if recipe.frozen else [encoder, head]
    optimizer = torch.optim.AdamW(decay_groups(parts, recipe.weight_decay), lr=recipe.learning_rate)
    trained = [parameter for part in parts for parameter in part.parameters()]
    scheduler = get_scheduler("linear", optimizer, 0, recipe.total_steps)

    def loss_of(row: int) -> torch.Tensor:
        """One window at a time: nothing is padded, so that nothing has to be left out."""
        example = examples[row]
        ids, types = torch.tensor([example["ids"]]), torch.tensor([example["types"]])
        start, end = head(encoder(input_ids=ids, token_type_ids=types).last_hidden_state)[0].T
        places = torch.tensor(example["answer"])
        both = [
            nn.functional.cross_entropy(logits[None], place[None])
            for logits, place in zip((start, end), places, strict=True)
        ]
        return (both[0] + both[1]) / 2

    history = []
    per_step = recipe.batch_size * recipe.accumulation
    for first in range(0, recipe.steps * per_step, per_step):
        rows = order[first : first + per_step]
        total = 0.0
        for row in rows:
            loss = loss_of(row) / len(rows)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        history.append(total)
    return history
