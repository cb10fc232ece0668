"""Opens everything that a configuration of training on texts names: backend, data, tokens, encoder."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from ... import UserError
from ...backends import PADDED_KERNELS, Backend, CastPolicy, FrozenEncoder, get_backend
from ...backends.training.loss_scale import loss_scale
from ...kernels.words import count
from ..config.schema import TrainConfig
from ..config.training_type import training_type_note
from ..data.datasets import RawSplit
from ..data.tabular import shown
from ..features.layout import LayoutChoice
from ..features.source import frozen_encoder
from ..model.adapters import add_adapters
from ..model.encoder import LoadedEncoder, load_encoder, save_encoder
from ..model.names import model_source
from ..model.whole import WholeModel
from ..processes.ranks import ALONE, Ranks
from ..runs.folder import COPY_AGAIN, RunFolder
from ..tasks import TASKS, Task
from ..terminal.text import quoted
from ..tokens.order import epoch_order
from ..tokens.store import TokenStore
from ..tokens.tokenizer import TextTokenizer, load_tokenizer
from .base import Job, PhaseProgress, check_compiles, timed
from .optim import build_optimizer
from .step import step_function

log = logging.getLogger("isotrain")


@dataclass(kw_only=True)
class TextJob(Job):
    """What training on texts reads.

    Attributes:
        dataset: What the task's `load` returned.
        num_labels: The number of the head's outputs.
    """

    task: Task
    dataset: Any
    tokenizer: TextTokenizer
    train_tokens: TokenStore
    test_tokens: TokenStore
    encoder: LoadedEncoder
    num_labels: int
    layout: str

    @property
    def model_name(self) -> str:
        return self.encoder.name

    @property
    def model_label(self) -> str:
        return self.encoder.label

    @property
    def random_weights(self) -> bool:
        return self.encoder.random

    @property
    def data_label(self) -> str:
        return str(self.dataset.name)

    @property
    def counts_right(self) -> bool:
        return self.task.answer != "number"

    @property
    def small_steps(self) -> bool:
        return trains_on_features(self.config) and self.config.feature_cache

    @property
    def example(self) -> tuple[str, ...]:
        return tuple(self.dataset.test.example)

    def metric_words(self, metrics: Mapping[str, float]) -> dict[str, str]:
        return {name: word for name, word in self.task.metrics.items() if name in metrics}

    def metric_names(self, metrics: Mapping[str, float]) -> tuple[str, ...]:
        del metrics
        return self.task.metrics_of(self.dataset)

    def notes(self) -> Iterator[str]:
        yield f"model {self.label}; tokenizer {self.tokenizer.label}"
        if self.ranks.size > 1:
            yield f"{self.ranks.size} processes share each batch of {count(self.config.batch_size, 'text')}"
        splits = [
            f"{count(tokens.num_texts, f'{name} {self.task.sequence}')} ({count(tokens.num_tokens, 'token')})"
            for name, tokens in (("train", self.train_tokens), ("test", self.test_tokens))
        ]
        yield f"data {self.dataset.name}: {', '.join(splits)}, {self.num_labels} outputs"
        yield from self.dataset.remarks
        note = training_type_note(self.config)
        if note:
            yield note

    def origin(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.label}

    def record(self, run: RunFolder, *, new: bool) -> None:
        if new:
            self.task.record(run, self.dataset)
            self.tokenizer.save(run.tokenizer)
        # Random weights are drawn again from their name and seed.
        if self.config.copy_encoder and not self.encoder.random and not run.encoder.exists():
            save_encoder(self.encoder, run.encoder)

    def check_kept(self, run: RunFolder, trained: Mapping[str, Any]) -> None:
        check_kept(run, self.task, load_tokenizer(str(run.tokenizer), self.config.model_name), trained)

    def frozen_encoder(self) -> FrozenEncoder:
        """The frozen forward pass by the configured kernel."""
        return frozen_encoder(self.encoder, self.backend, self.policy, self.config.kernel)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        """Hashes of the evaluation's examples, raw and tokenised, and of what the outputs stand for."""
        return {
            "test_data": _hash([self.test_tokens.fingerprint, self.dataset.test.content]),
            "labels": _hash(self.dataset.meaning),
        }

    def identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "task": self.task.name,
            "encoder": self.encoder.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "train_data": self.train_tokens.fingerprint,
            **self._hashes,
            "num_labels": self.num_labels,
            "mlp_hidden_size": config.mlp_hidden_size,
            "freeze_encoder": config.freeze_encoder,
            "optim": config.optim,
            "head_dtype": config.head_dtype,
            "dtype": config.dtype,
            "cast_policy": f"{self.policy.param} {self.policy.compute} {self.policy.accumulate} "
            f"{self.policy.mode}".rstrip(),
            "kernel": config.kernel,
            "layout": self.layout,
            "max_length": config.max_length,
            "n_best_size": config.n_best_size,
            "max_answer_length": config.max_answer_length,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            **{key: getattr(config, key) for key in self.task.own_keys},
            **({"lora": config.lora.model_dump(mode="json")} if config.lora.rank else {}),
            **({"head": config.head} if config.head != "mlp" else {}),
            **({"torch_compile": config.torch_compile} if config.torch_compile else {}),
            **({"loss_over_padding": True} if config.loss_over_padding else {}),
        }


def check_kept(run: RunFolder, task: Task, tokenizer: TextTokenizer, identity: Mapping[str, Any]) -> None:
    """Checks that the files a run keeps for predictions are those that its weights were trained with.

    The run's manifest doesn't show this, because files and manifest may have been replaced together.

    Raises:
        UserError: The labels or the tokenizer differ.
    """
    wrong = [
        name
        for name, found, trained in (
            ("labels", _hash(task.meaning(task.recall(run))), identity.get("labels")),
            ("tokenizer", tokenizer.fingerprint, identity.get("tokenizer")),
        )
        if found != trained
    ]
    if wrong:
        raise UserError(
            f"run {quoted(str(run.path))} has another {' and another '.join(wrong)} than its weights were trained "
            f"with; {COPY_AGAIN}"
        )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def trains_on_features(config: TrainConfig) -> bool:
    """Whether the head is trained on a frozen encoder's features instead of in one model with the encoder."""
    return config.freeze_encoder and TASKS[config.task].on_features


def policy_on(backend: Backend, config: TrainConfig) -> CastPolicy:
    """The dtypes on `backend` of the encoder that `config` trains or trains on.

    Raises:
        UserError: The backend lacks the dtype.
    """
    policy = backend.cast_policy(config.dtype, strict=config.strict_dtype)
    return policy if trains_on_features(config) else backend.whole_model_policy(policy)


def build_encoder(encoder: LoadedEncoder, config: TrainConfig) -> Any:
    """The transformers module of `encoder` that a head is joined to, frozen or with adapters as `config` says."""
    return _prepared(encoder.module(), config)


def _prepared(module: Any, config: TrainConfig) -> Any:
    if config.freeze_encoder:
        return module.requires_grad_(False)
    return add_adapters(module, config.lora, config.seed) if config.lora.rank else module


def trained_kernel(config: TrainConfig, layout: str) -> str:
    """The kernel of a `WholeModel` on batches of `layout`. The kernels that train an encoder take packed ones only."""
    return config.kernel if layout == "packed" else "transformers"


def open_job(config: TrainConfig, progress: PhaseProgress = lambda _: None, ranks: Ranks = ALONE) -> TextJob:
    """Opens what `config` names, with the cheapest checks first.

    Raises:
        UserError: Something in it can't be used.
    """
    phases: dict[str, float] = {}
    if config.workload is not None:
        raise UserError(
            f"workload {quoted(config.workload)} is a model of your own; only isotrain train and bench take one"
        )
    task = TASKS[config.task]
    with timed(phases, "open_backend"):
        backend = get_backend(ranks.backend(config.backend_name), config.backend_options)
        policy = policy_on(backend, config)
        padded = config.model_copy(update={"layout": "padded"})
        layout = layout_on(backend, padded if config.loss_over_padding else config)
        check_compiles(config, backend, ranks)
        energy = backend.energy()
    if config.gradient_checkpointing and not backend.traits.recomputes:
        raise UserError(
            f"gradient_checkpointing can't run on the {backend.name} backend, where torch recomputes no activations; "
            "drop it, and save memory by a smaller batch_size with more gradient_accumulation_steps"
        )
    with timed(phases, "load_data"):
        dataset = sampled(task.load(config), config)
        num_labels = task.outputs(config, dataset)
        task = task.configured(config, dataset, num_labels, backend.place)
        for key, metrics in (("checkpoint_metric", [config.checkpoint_metric]), ("chart", config.chart)):
            unknown = [name for name in metrics if name not in task.metrics_of(dataset)]
            if unknown:
                allowed = ", ".join(task.metrics_of(dataset))
                raise UserError(f"{key} {unknown[0]!r} is no metric that {dataset.name} has; allowed are {allowed}")
    with timed(phases, "load_model"):
        encoder = load_encoder(config.model_name, config.seed)
        positions = encoder.config.max_position_embeddings
        if config.max_length > positions:
            raise UserError(
                f"max_length {config.max_length} exceeds the positions that {encoder.name} has; set at most {positions}"
            )
    with timed(phases, "tokenise"):
        tokenizer = load_tokenizer(
            config.tokenizer_name,
            model_source(config.model_name),
            texts=dataset.train.corpus,
            vocab_size=encoder.config.vocab_size,
            label=encoder.label,
        )
        train_tokens = task.tokenise(dataset.train, tokenizer, config, True, progress("tokenise train"))
        test_tokens = task.tokenise(dataset.test, tokenizer, config, True, progress("tokenise test"))
    if config.layout == "auto" and backend.traits.measures_layout and not _fixed_layout(config):
        with timed(phases, "choose_layout"):
            choice = _layout_choice(config, backend, policy, task, encoder, train_tokens, num_labels)
            layout = ranks.gather(choice.made())[0]
    return TextJob(
        config=config,
        task=task,
        backend=backend,
        policy=policy,
        dataset=dataset,
        tokenizer=tokenizer,
        train_tokens=train_tokens,
        test_tokens=test_tokens,
        encoder=encoder,
        num_labels=num_labels,
        layout=layout,
        phases=phases,
        energy=energy,
        ranks=ranks,
    )


def _fixed_layout(config: TrainConfig) -> bool:
    return trains_on_features(config) or config.torch_compile is not None or config.loss_over_padding


def _layout_choice(
    config: TrainConfig,
    backend: Backend,
    policy: CastPolicy,
    task: Task,
    encoder: LoadedEncoder,
    tokens: TokenStore,
    num_labels: int,
) -> LayoutChoice:
    """What measures the layout of a whole model's batches. Its models are copies."""

    def build(policy: CastPolicy) -> WholeModel:
        head = task.head(encoder.config.hidden_size, num_labels, config).to(getattr(torch, config.head_dtype))
        module = _prepared(copy.deepcopy(encoder.module()), config)
        return WholeModel(
            module, head, task.apply_head, backend, policy, "transformers", recompute=config.gradient_checkpointing
        )

    def step_of(model: nn.Module) -> Callable[..., torch.Tensor]:
        optimizer = build_optimizer(model, config, backend)
        backend.prepare_optimizer(optimizer)
        scale = loss_scale(backend, policy)
        return step_function(config, backend, model, optimizer, task.loss_of(model), scale=scale, weigh=task.weigher())

    return LayoutChoice(
        backend=backend,
        policy=policy,
        config=encoder.weights.config,
        store=tokens,
        batch_size=config.batch_size,
        max_length=config.max_length,
        seed=config.seed,
        build=build,
        loss_of=task.loss_of,
        step_of=step_of,
    )


def sampled(dataset: Any, config: TrainConfig) -> Any:
    """Takes as many rows of each split as the configuration asks for. Its seed chooses them; their order is kept."""
    for split, wanted in (("train", config.max_train_samples), ("test", config.max_eval_samples)):
        rows = getattr(dataset, split)
        if wanted is not None and wanted < len(rows):
            chosen = np.sort(epoch_order(len(rows), config.seed, 0)[:wanted]).tolist()
            kept = rows.rows(chosen)
            if split == "train" and config.task == "classification":
                _warn_of_lost_labels(rows, kept, dataset.label_names)
            dataset = replace(dataset, **{split: kept})
    return dataset


def _warn_of_lost_labels(rows: RawSplit, kept: RawSplit, names: Sequence[str]) -> None:
    """Warns of labels that have no row left in a smaller training split."""
    lost = sorted(set(rows.labels) - set(kept.labels))
    if lost:
        log.warning(
            "max_train_samples: %d leaves %s without a training row, of %d: %s; none of them can be learned",
            len(kept),
            count(len(lost), "label"),
            len(names),
            shown(names[label] for label in lost),
        )


def layout_on(backend: Backend, config: TrainConfig) -> str:
    """The encoder's batch layout on `backend`.

    "auto" is the device's own choice for a whole model, but bucketed under torch.compile; a device that measures it
    may choose another one for training. For the features of a frozen encoder it is packed, or dynamic if the kernel
    takes padded batches only. A device that compiles a program for each shape gets bucketed batches.

    Raises:
        UserError: The device doesn't support the configured layout.
    """
    if config.layout == "auto":
        frozen = "dynamic" if config.kernel in PADDED_KERNELS else "packed"
        whole = "bucketed" if config.torch_compile else backend.traits.whole_model_layout
        wanted = frozen if trains_on_features(config) else whole
        return next(layout for layout in (wanted, "dynamic", "bucketed") if layout in backend.traits.layouts)
    if config.layout in backend.traits.layouts:
        return config.layout
    raise UserError(
        f"layout {config.layout!r} can't run on the {backend.name} backend, which compiles a program for each shape; "
        f"allowed there are {', '.join(backend.traits.layouts)} and auto; set layout to one"
    )
