"""transformers' Trainer: its own loop, which is given one batch at a time."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from ... import UserError
from ...albert_core.config.schema import TrainConfig
from ...backends import Backend, CastPolicy
from ...kernels.inductor import COMPILER, why_no_compiler
from ...kernels.packed import PaddedBatch
from .base import running

# Of a text's logits from float32's, in bfloat16: twice what is allowed where the head is float32.
LARGEST_DISTANCE = 0.1
# More steps than any measurement makes.
MOST_STEPS = 10**9

# The arguments of `Classifier.forward`, by name.
Inputs = dict[str, torch.Tensor]


class Classifier(nn.Module):
    """An encoder and a head on [CLS] as Trainer takes them: the loss is among the outputs."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Logits [B, labels], and with labels [B] their mean cross entropy."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        logits = self.head(output.last_hidden_state[:, 0])
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits.float(), labels), "logits": logits}


class TrainerLoop:
    """Trainer with our optimizer's settings, and otherwise its defaults, without files and logs.

    It runs in a thread. `step` hands it a batch and returns when it asks for the next one, so that a step includes
    everything that its loop does.

    Attributes:
        policy: The dtypes of the encoder. Trainer's autocast includes the head.
        notes: How it was set up, for the reader of the result.
    """

    name = "transformers.Trainer"
    skips_padding = False
    compiler: str | None = None

    def __init__(self, encoder: nn.Module, head: nn.Module, backend: Backend, policy: CastPolicy) -> None:
        import accelerate
        import transformers

        if policy.compute not in ("float32", "bfloat16"):
            raise UserError(f"{self.name} is set up for float32 and bfloat16; it can't be compared in {policy.compute}")
        if self.compiler and (reason := why_no_compiler(backend.device.type)):
            raise UserError(f"{self.name} can't compile its model here: {reason}")
        config = TrainConfig.model_validate({})
        self.version, self.policy, self._backend = transformers.__version__, policy, backend
        if policy.compute == "bfloat16":
            # Its autocast includes the head, whose roundings come on top.
            self.policy = replace(policy, largest_distance=LARGEST_DISTANCE)
        self._folder = tempfile.TemporaryDirectory(prefix="isotrain-trainer-")
        with running(self.name):
            settings = TrainingArguments(
                output_dir=self._folder.name,
                use_cpu=backend.place(torch.empty(0)).is_cpu,
                bf16=policy.compute == "bfloat16",
                torch_compile_backend=self.compiler,
                max_steps=MOST_STEPS,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                lr_scheduler_type="constant",
                # Its default would clip gradients.
                max_grad_norm=0.0,
                seed=config.seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            self._trainer = _FedTrainer(model=Classifier(copy.deepcopy(encoder), head), args=settings)
        if settings.device != backend.device:
            raise UserError(f"{self.name} trains on {settings.device} here; it can't be compared on {backend.device}")
        self.notes = (
            f"accelerate {accelerate.__version__}; {settings.optim.value} without clipping; "
            + (f"torch.compile by {self.compiler}; " if self.compiler else "")
            + "batches padded beforehand to their longest text, no workers",
        )

    @property
    def model(self) -> nn.Module:
        """What is trained, on the device."""
        model: nn.Module = self._trainer.model
        return model

    def logits(self, batch: PaddedBatch) -> torch.Tensor:
        """The logits [B, labels] of a host batch, with the dtypes of training."""
        with self._backend.autocast(self.policy):
            logits: torch.Tensor = self.model(**_named(self._backend.place(batch)))["logits"]
        return logits

    @contextmanager
    def training(self, batches: Sequence[tuple[PaddedBatch, torch.Tensor]]) -> Iterator[None]:
        """Inside, Trainer trains on those of the host `batches` and their labels that `step` names."""
        self._feed = _Feed([_named(batch) | {"labels": labels} for batch, labels in batches])
        thread = Thread(target=self._train, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._feed.asked.put(None)
            thread.join()

    def step(self, index: int) -> torch.Tensor:
        """Makes a step on batch `index`.

        Returns:
            The mean loss, a scalar on the device.

        Raises:
            UserError: Trainer failed.
        """
        self._feed.asked.put(index)
        found = self._feed.done.get()
        if isinstance(found, UserError):
            raise found
        return found

    def _train(self) -> None:
        self._trainer.feed = self._feed
        try:
            with suppress(SystemExit), running(self.name):
                self._trainer.train()
        except UserError as error:
            self._feed.done.put(error)


class CompiledTrainerLoop(TrainerLoop):
    """The same with Trainer's option `torch_compile`."""

    compiler = COMPILER


class _Feed:
    """What the two threads exchange: the indices of batches, and the loss of each step or why there is none."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self.batches = batches
        self.asked: SimpleQueue[int | None] = SimpleQueue()
        self.done: SimpleQueue[torch.Tensor | UserError] = SimpleQueue()


class _FedTrainer(Trainer):
    """Trainer that waits for the index of each batch. None ends its thread."""

    feed: _Feed
    loss: torch.Tensor

    def get_train_dataloader(self) -> Iterator[Inputs]:
        while (index := self.feed.asked.get()) is not None:
            yield self.feed.batches[index]
            # The loop asks for another batch, so the step on this one is over.
            self.feed.done.put(self.loss)
        # Trainer would begin the next epoch if the iterator just ended.
        raise SystemExit

    def training_step(self, *arguments: Any, **settings: Any) -> torch.Tensor:
        self.loss = super().training_step(*arguments, **settings)
        return self.loss


def _named(batch: PaddedBatch) -> Inputs:
    named = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return named if batch.token_type_ids is None else named | {"token_type_ids": batch.token_type_ids}
