"""A recipe by `transformers.Trainer` itself, with its defaults. It imports nothing of isotrain.

What Trainer draws at random is given instead: the order of the samples and the first weights of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.loss.loss_utils import ForSequenceClassificationLoss


class Model(nn.Module):
    """An encoder and the published job's loss of what `head` makes of its states."""

    def __init__(self, folder: Path, head: nn.Module, loss: Callable[..., torch.Tensor], frozen: bool) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
        self.encoder.requires_grad_(not frozen)
        self.head = head
        self._loss = loss

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.encoder(**inputs).last_hidden_state
        return {"loss": self._loss(self.head, states, inputs["attention_mask"], labels)}


def of_texts(head: nn.Module, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the head on the [CLS] state."""
    del mask
    return nn.functional.cross_entropy(head(states[:, 0]), labels)


def of_numbers(problem_type: str) -> Callable[..., torch.Tensor]:
    """The loss of transformers' own models of that `problem_type`, of the head on the [CLS] state."""

    def loss(head: nn.Module, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        del mask
        logits = head(states[:, 0])
        config = PretrainedConfig(problem_type=problem_type, num_labels=logits.shape[-1])
        found: torch.Tensor = ForSequenceClassificationLoss(labels, logits, config)
        return found

    return loss


def of_spans(head: nn.Module, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean of both ends' cross entropies over each window's own tokens."""
    logits = head(states).masked_fill(mask[..., None] == 0, torch.finfo(states.dtype).min)
    ends = [nn.functional.cross_entropy(logits[..., end], labels[:, end]) for end in (0, 1)]
    return (ends[0] + ends[1]) / 2


class _Watched(Trainer):
    """Trainer with the order of its samples given, and every micro-batch's loss kept."""

    def __init__(self, order: Sequence[int], decay_all: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.order, self.decay_all = order, decay_all
        self.seen: list[float] = []
        # The loss is a mean already: Trainer is to divide it by the number of micro-batches.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_: Any) -> Any:
        return list(self.order)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        if self.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def compute_loss(self, *arguments: Any, **settings: Any) -> Any:
        loss = super().compute_loss(*arguments, **settings)
        self.seen.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss


def train(
    folder: Path,
    output: Path,
    model: Model,
    samples: Sequence[dict[str, Any]],
    order: Sequence[int],
    decay_all: bool = False,
    **arguments: Any,
) -> list[float]:
    """The mean loss of each optimizer step.

    `samples` hold ids, types and labels; `arguments` are TrainingArguments that differ from Trainer's defaults.
    `decay_all` lets all weights decay, which no argument asks for.
    """
    pad = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]").pad_token_id

    def padded(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(sample["ids"]) for sample in batch)
        rows = [(sample["ids"], length - len(sample["ids"]), sample["types"]) for sample in batch]
        return {
            "input_ids": torch.tensor([[*ids, *[pad] * rest] for ids, rest, _ in rows]),
            "attention_mask": torch.tensor([[*[1] * len(ids), *[0] * rest] for ids, rest, _ in rows]),
            "token_type_ids": torch.tensor([[*types, *[0] * rest] for _, rest, types in rows]),
            "labels": torch.tensor([sample["labels"] for sample in batch]),
        }

    settings = TrainingArguments(
        output_dir=str(output),
        optim="adamw_torch",
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        **arguments,
    )
    trainer = _Watched(order, decay_all, model=model, args=settings, train_dataset=list(samples), data_collator=padded)
    trainer.train()
    size = settings.gradient_accumulation_steps
    return [sum(trainer.seen[start : start + size]) / size for start in range(0, len(trainer.seen), size)]
