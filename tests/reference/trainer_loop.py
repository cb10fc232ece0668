"""A recipe by `transformers.Trainer` itself on transformers' own models, with its defaults. It imports no isotrain.

What Trainer draws at random is given instead: the order of the samples, the first weights of the last layer and the
seed of dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)


def classifier(
    folder: Path, weight: torch.Tensor, dropout: float, problem_type: str | None = None, *, frozen: bool = False
) -> Any:
    """AutoModelForSequenceClassification of the checkpoint, pooler included; `weight` is that of its new last layer.

    If `frozen`, the pooler and that layer are trained.
    """
    config = AutoConfig.from_pretrained(folder, num_labels=len(weight), problem_type=problem_type)
    config.classifier_dropout = config.classifier_dropout_prob = dropout
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)
    model.classifier.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight))})
    model.base_model.requires_grad_(not frozen)
    model.base_model.pooler.requires_grad_()
    return model


def reader(folder: Path, weight: torch.Tensor, bias: torch.Tensor) -> Any:
    """AutoModelForQuestionAnswering of the checkpoint with these weights of its new last layer."""
    model = AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32)
    model.qa_outputs.load_state_dict({"weight": weight, "bias": bias})
    return model


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
        if not self.seen:
            # Its loader has drawn from the generator that dropout draws from.
            torch.manual_seed(self.args.seed)
        loss = super().compute_loss(*arguments, **settings)
        self.seen.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss


def train(
    folder: Path,
    output: Path,
    model: nn.Module,
    samples: Sequence[dict[str, Any]],
    order: Sequence[int],
    decay_all: bool = False,
    padded_to: int | None = None,
    **arguments: Any,
) -> list[float]:
    """The mean loss of each optimizer step.

    `samples` hold ids, types and labels: a class, several numbers, or the two ends of an answer. `arguments` are
    TrainingArguments that differ from Trainer's defaults. `decay_all` lets all weights decay, which no argument does.
    Batches are padded to their longest sample, or to `padded_to` tokens.
    """
    pad = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]").pad_token_id

    def padded(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = padded_to or max(len(sample["ids"]) for sample in batch)
        rows = [(sample["ids"], length - len(sample["ids"]), sample["types"]) for sample in batch]
        labels = torch.tensor([sample["labels"] for sample in batch])
        spans = labels.dim() == 2 and not labels.is_floating_point()
        named = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]} if spans else {"labels": labels}
        return {
            "input_ids": torch.tensor([[*ids, *[pad] * rest] for ids, rest, _ in rows]),
            "attention_mask": torch.tensor([[*[1] * len(ids), *[0] * rest] for ids, rest, _ in rows]),
            "token_type_ids": torch.tensor([[*types, *[0] * rest] for _, rest, types in rows]),
            **named,
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
