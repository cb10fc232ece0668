"""Short training runs in memory, made of the loop's own parts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...albert_core.config.schema import TrainConfig
from ...albert_core.features.compute import CachedFeatures, InputSource, TokenBatches
from ...albert_core.loop.optim import build_optimizer, load_optimizer_state, optimizer_state
from ...albert_core.loop.schedule import Schedule
from ...albert_core.loop.step import step_function
from ...albert_core.model.adapters import add_adapters
from ...albert_core.model.encoder import random_module
from ...albert_core.model.whole import WholeModel, load_trained_state, trained_state
from ...albert_core.runs.checkpoint import Snapshot, read_checkpoint, write_checkpoint
from ...albert_core.tasks import TASKS
from ...albert_core.tokens.order import BatchStream, Window
from ...backends import Backend, CastPolicy
from ...backends.training.loss_scale import loss_scale, unscaled
from ...benchmarks.parity.recording.observe import adam_on_device
from ..common.texts import VOCABULARY, random_texts

LABELS, WIDTH, LONGEST = 5, 24, 32
# A multiple of every batch size.
PROBED = 16
_SIZES = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "max_position_embeddings": LONGEST,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.15,
}


@dataclass(frozen=True)
class Recipe:
    """What is trained, on whatever device.

    Attributes:
        kind: "albert" or "bert" for a whole model. Empty for a head on random features.
        texts: The number of texts in an epoch.
        dropout: The rate of each of the model's dropout layers.
        hidden: The model's hidden size. A head has 16 columns, and the intermediate size is twice as large.
    """

    config: TrainConfig
    kind: str = ""
    texts: int = 48
    dropout: float = 0.0
    hidden: int = 48

    def changed(self, **keys: Any) -> Recipe:
        """This recipe with other keys of the configuration."""
        return replace(self, config=self.config.model_copy(update=keys))


def recipe(
    seed: int, kind: str = "", *, texts: int = 48, dropout: float = 0.0, hidden: int = 48, **keys: Any
) -> Recipe:
    """A recipe whose rounding errors stay as small as its dtype allows.

    Adam's epsilon is so large that the direction of a tiny gradient, which is rounding, doesn't decide an update.
    """
    defaults: dict[str, Any] = {
        "seed": seed,
        "freeze_encoder": not kind,
        "mlp_hidden_size": 16,
        "max_length": LONGEST,
        "batch_size": 8,
        "learning_rate": 2e-3 if kind else 1e-2,
        "weight_decay": 0.1,
        "adam_epsilon": 1e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
    }
    return Recipe(TrainConfig.model_validate(defaults | keys), kind, texts, dropout, hidden)


@dataclass(frozen=True)
class Outcome:
    """What a run did, in float64.

    Attributes:
        losses: [steps], the mean loss of each step in nats.
        before, after: [texts, labels], logits before the first step and after the last one.
        betas: Those of an Adam that has its step counter on the device, else None.
    """

    losses: np.ndarray
    before: np.ndarray
    after: np.ndarray
    betas: list[float] | None


class ShortRun:
    """A training run without files, log lines and evaluations.

    Args:
        policy: As of a frozen encoder.
    """

    def __init__(self, made: Recipe, backend: Backend, policy: CastPolicy, layout: str = "bucketed") -> None:
        config = made.config
        policy = backend.whole_model_policy(policy) if made.kind else policy
        self.config, self.backend, self.done = config, backend, 0
        self.schedule = Schedule(config, total_steps=40)
        generator = torch.Generator().manual_seed(config.seed)
        store = random_texts(_lengths(made.texts), generator, labels=LABELS, pairs=True)
        features = torch.randn(made.texts, WIDTH, generator=generator)
        task = TASKS["classification"]
        head = task.head(made.hidden if made.kind else WIDTH, LABELS, config)
        head = head.to(getattr(torch, config.head_dtype))
        self.model: nn.Module
        self.source: InputSource
        if made.kind:
            encoder = _encoder(made)
            kernel, recompute = config.kernel if layout == "packed" else "transformers", config.gradient_checkpointing
            whole = WholeModel(encoder, head, task.apply_head, backend, policy, kernel, recompute)
            self.model = backend.place(whole)
            rows, micro_batches = config.batch_size, config.gradient_accumulation_steps
            self.source = TokenBatches(store, backend, layout, LONGEST, rows, micro_batches)
        else:
            self.model = backend.place(head)
            placed = backend.place(features)
            self.source = CachedFeatures(placed, torch.from_numpy(store.labels), backend, config.batch_size)
        for part in self.model.modules():
            if isinstance(part, nn.Dropout):
                part.p = made.dropout
        self.model.train()
        self.optimizer = build_optimizer(self.model, config, backend)
        backend.prepare_optimizer(self.optimizer)
        self.scale = loss_scale(backend, policy) if made.kind else unscaled()
        summed = backend.compile(task.loss_of(self.model))
        self.step = step_function(config, backend, self.model, self.optimizer, summed, scale=self.scale)
        self.stream = BatchStream(
            made.texts,
            config.batch_size,
            config.gradient_accumulation_steps,
            config.seed,
            whole_windows=backend.static_shapes is not None,
        )

    def train(self, until: int) -> np.ndarray:
        """Makes steps until there are `until`. Returns the mean loss of each new one, float64."""
        sums: list[torch.Tensor] = []
        samples: list[int] = []
        while self.done < until:
            self.source.start_epoch(self.stream.order())
            for window in self.stream.windows():
                sums.append(self._step(window))
                samples.append(window.num_samples)
                if self.done == until:
                    self.stream.restore(self.stream.state(window))
                    break
        self.backend.synchronize(*self.model.parameters())
        return np.array([float(part.cpu()[0]) / size for part, size in zip(sums, samples, strict=True)])

    def _step(self, window: Window) -> torch.Tensor:
        self.backend.set_learning_rate(self.optimizer, self.schedule.at(self.done))
        batches = (self.source.batch(*part) for part in window.micro_batches)
        sums = self.step(window.num_samples, *chain.from_iterable(batches))
        # A later step may write its result where this one is.
        own = sums.clone()
        self.done += 1
        self.backend.step_boundary()
        return own

    def logits(self) -> np.ndarray:
        """The logits of the first PROBED texts, without dropout, float64 [texts, labels]."""
        rows = self.config.batch_size
        self.source.start_epoch(np.arange(PROBED))
        self.model.eval()
        with torch.no_grad():
            found = [self.model(self.source.batch(start, start + rows)[0]) for start in range(0, PROBED, rows)]
        self.model.train()
        self.backend.step_boundary()
        self.backend.synchronize(*found)
        return torch.cat([part.cpu().double() for part in found]).numpy()

    def outcome(self, steps: int) -> Outcome:
        """Trains the first `steps` steps."""
        before, losses = self.logits(), self.train(steps)
        return Outcome(losses, before, self.logits(), adam_on_device(self.optimizer))

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the trained weights on the host."""
        self.backend.synchronize(*self.model.parameters())
        return {name: tensor.detach().cpu().clone() for name, tensor in trained_state(self.model).items()}

    def save(self, folder: Path) -> Path:
        """Writes a checkpoint of what the following steps depend on into `folder`."""
        state = {"stream": self.stream.state(), "loss_scale": self.scale.state()}
        optimizer = optimizer_state(self.optimizer, self.model)
        generators = self.backend.rng_state()
        return write_checkpoint(
            Snapshot(self.weights(), optimizer, generators, state, {}, {}, self.done, self.stream.epoch), folder
        )

    def restore(self, checkpoint: Path) -> None:
        """Restores what `save` wrote."""
        saved = read_checkpoint(checkpoint)
        load_trained_state(self.model, saved.model)
        assert saved.optimizer is not None, "`save` writes it"
        load_optimizer_state(self.optimizer, self.model, saved.optimizer)
        self.scale.restore(saved.state["loss_scale"])
        self.backend.set_rng_state(saved.state_tensors)
        self.stream.restore(saved.state["stream"])
        self.backend.step_boundary()
        self.done = saved.step


def _lengths(texts: int) -> list[int]:
    """From 3 to LONGEST tokens, in another order than that of their size."""
    return [3 + 7 * number % (LONGEST - 2) for number in range(texts)]


def _encoder(made: Recipe) -> Any:
    """A small transformers module of the recipe's kind, with adapters if it has them."""
    config = made.config
    encoder: Any = copy.deepcopy(_random_encoder(made.kind, config.seed, made.hidden))
    if config.lora.rank:
        encoder = add_adapters(encoder, config.lora, config.seed)
    return encoder


@cache
def _random_encoder(kind: str, seed: int, hidden: int) -> Any:
    from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

    sizes = _SIZES | {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_attention_heads": hidden // 16}
    if kind == "albert":
        return random_module(AlbertModel, AlbertConfig(**sizes, embedding_size=16), seed)
    return random_module(BertModel, BertConfig(**sizes), seed)
