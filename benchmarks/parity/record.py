"""Records a trace: observes a real training run in the calling process.

The loop, the step (fused, captured or lazy), the schedule and the evaluations are those of `isotrain train`. After each
step, the returned loss and the parameters are read, and the gradient is computed from Adam's first moment.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from ... import UserError
from ...albert_core.config.load import load_config
from ...albert_core.config.schedule import ADAPTIVE
from ...albert_core.config.schema import TrainConfig
from ...albert_core.features.compute import token_batch
from ...albert_core.features.source import module_layer_states
from ...albert_core.loop.build import Training, text_job
from ...albert_core.loop.events import TrainingError
from ...albert_core.loop.job import TextJob, trains_on_features
from ...albert_core.loop.train import train
from ...albert_core.model.whole import WholeModel
from ...albert_core.output.progress import Reporter
from ...albert_core.runs.folder import environment
from ...albert_core.tasks.multi_label import boundary
from ...albert_core.tokens.order import Window
from ...kernels.packed import PackedBatch, PaddedBatch
from ..outcome.parity import Ended
from ..outcome.trace_header import Evaluation, PromisedBudget, Split, TraceEnvironment, TraceHeader, TracePolicy
from .evaluations import moves, number_moves, question_moves, set_moves
from .head_replay import replay_head
from .observe import (
    PROBE_TEXTS,
    HeadInputs,
    Steps,
    adam_on_device,
    batch_hash,
    on_host,
    probe,
    trained,
    without_dropout,
)
from .recipe import recipe_of
from .trace import HEAD_SERIES, HEAD_STEPS, Trace

# The hidden states of so many first texts of the evaluation split are kept.
STATE_TEXTS = 8


def record(
    config: str | None,
    label: str,
    sets: Sequence[str],
    *,
    replay_from: Trace | None = None,
    steps: int | None = None,
    reporter: Reporter | None = None,
) -> Trace:
    """Trains `config` with `sets` and returns the run's trace.

    Features come from the cache as in `isotrain train`, but a float64 run computes them at every step unless `sets`
    decide. Dropout is off, since its masks differ between dtypes and devices. If the loss stops being finite, the trace
    ends there.

    Args:
        config: A file, a packaged name, or None for the defaults.
        replay_from: A reference with the same weights. Each layer is also applied to its hidden states, and the head
            is trained once more on its features.
        steps: The most optimizer steps; None makes all of them.

    Raises:
        UserError: The run can't start, or was stopped.
    """
    resolved = load_config(config, sets)
    if resolved.config.lr_scheduler_type in ADAPTIVE:
        raise UserError(
            f"lr_scheduler_type: {resolved.config.lr_scheduler_type} follows each run's own evaluations, and parity "
            "compares steps with the same learning rate; set another schedule"
        )
    if resolved.config.dtype == "float64":
        # Cached features of the candidates are judged by features that are computed where they are used.
        resolved = load_config(config, ["feature_cache=false", *sets])
    resolved = resolved.with_absolute_paths()
    limits = [number for number in (resolved.config.max_steps, steps) if number is not None]
    with tempfile.TemporaryDirectory(prefix="isotrain-parity-") as folder:
        own: dict[str, Any] = {
            "max_steps": min(limits, default=None),
            "project_dir": folder,
            "run_name": "trace",
            "save_strategy": "no",
            "use_wandb": False,
            "use_tensorboard": False,
            "trackers": [],
            "resume_from_checkpoint": False,
            "sync_to_storage": False,
            "load_from_storage": False,
            "stop_on_collapse": False,
            "early_stopping_patience": None,
            "early_stopping_threshold": 0.0,
            "eval_on_start": False,
            "copy_encoder": False,
            "stop_at_step": None,
        }
        reporter = reporter or Reporter()
        recorder = _Recorder(label, replay_from, reporter.phase("step"))
        quiet = replace(resolved, config=resolved.config.model_copy(update=own))
        failure = ""
        try:
            result = train(quiet, observer=recorder, reporter=reporter)
        except TrainingError as error:
            if not recorder.batches:
                raise
            failure = str(error).partition(";")[0]
        else:
            if result.status != "completed":
                raise UserError(f"the run of {label} was stopped at step {result.step}: there is no trace of it")
        trace = recorder.trace(resolved.config, failure)
        if replay_from is not None and "features" in replay_from.arrays:
            trace.arrays.update(replay_head(quiet, replay_from))
    return trace


class _Recorder:
    """An observer of a training run that collects the contents of a trace."""

    def __init__(
        self, label: str, replay_from: Trace | None, advance: Callable[[int, int], None] | None = None
    ) -> None:
        self.label, self.reference, self.advance = label, replay_from, advance
        self.logits: list[np.ndarray] = []
        self.metrics: list[Evaluation] = []
        self.batches: list[str] = []
        self.batch_sizes: list[int] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.inputs: HeadInputs | None = None
        self.head_steps: Steps | None = None

    def started(self, training: Training) -> None:
        job = text_job(training)
        self.training = training
        self.steps = Steps(training, trained(training))
        states = _LayerStates(training)
        self.header = _header(self.label, training, on_host(trained(training)), states.kernel, self.reference)
        self._check_reference()
        self.arrays["states"] = states.run()
        if self.reference is not None:
            self.arrays["replay"] = states.run(self.reference.states[:-1])
        self._watch_the_head()
        self._probe()
        job.backend.step_boundary()

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        for steps in (self.steps, self.head_steps):
            if steps is not None:
                steps.add(training, window, sums)
        if self.inputs is not None:
            self.inputs.stepped(window)
        rows = training.stream.order()[window.micro_batches[0][0] : window.micro_batches[-1][1]]
        self.batches.append(batch_hash(text_job(training).train_tokens, rows))
        self.batch_sizes.append(len(rows))
        if self.advance is not None:
            self.advance(len(self.batches), training.total_steps)

    def evaluated(self, training: Training, epoch: int) -> None:
        figures = {key.removeprefix("eval/"): value for key, value in training.state.last_evaluation.items()}
        assert self.header.evaluation is not None, "a header of this version has it"
        # The others, such as the best threshold, don't depend on the logits in a way that can be judged.
        judged = {"loss", *self.header.evaluation.moves}
        named: dict[str, Any] = {name: float(value) for name, value in figures.items() if name in judged}
        self.metrics.append(Evaluation(epoch=epoch + 1, step=training.state.step, **named))
        self._probe()

    def trace(self, config: TrainConfig, failure: str = "") -> Trace:
        """The trace of the observed run. `failure` says why training could not continue."""
        found = {
            "config": config.model_dump(),
            "batches": self.batches,
            "metrics": self.metrics,
            "batch_sizes": self.batch_sizes,
            "ended": Ended(step=len(self.batches), reason=failure) if failure else None,
        }
        arrays = {**self.steps.arrays(), "probe_logits": np.stack(self.logits), **self.arrays}
        if self.inputs is not None:
            arrays |= self.inputs.arrays(self.training)
        if self.head_steps is not None:
            arrays |= self._own_head(self.head_steps)
        return Trace(self.header.model_copy(update=found), arrays)

    def _check_reference(self) -> None:
        """Raises UserError if the reference has other weights or texts, so that a replay is impossible."""
        reference = self.reference
        if reference is None:
            return
        ours, theirs = self.header, reference.header
        if theirs.weights_sha256 != ours.weights_sha256:
            raise UserError(
                f"the reference {reference.label} has other initial weights than {self.label} "
                f"(weights_sha256 {theirs.weights_sha256[:12]}, {ours.weights_sha256[:12]}); record both from "
                "the same model and seed"
            )
        if theirs.probe_sha256 != ours.probe_sha256:
            raise UserError(
                f"the reference {reference.label} has other evaluation texts than {self.label}; record both from "
                "the same data, tokenizer and max_length"
            )

    def _watch_the_head(self) -> None:
        """Keeps the inputs of a head on features. For a whole model, only a reference keeps them for replays."""
        job, model = text_job(self.training), self.training.model
        frozen = trains_on_features(job.config)
        # The clipped gradient of a whole model's head depends on the encoder, too.
        separable = job.task.on_features and (frozen or job.config.max_grad_norm is None)
        if frozen or (separable and self.reference is None):
            self.inputs = HeadInputs(self.training)
        if separable and self.reference is None:
            head: Any = model if frozen else model.head
            self.head_steps = Steps(self.training, list(head.parameters()))

    def _own_head(self, steps: Steps) -> dict[str, np.ndarray]:
        """The head's part of this run, with which replays of the head are compared."""
        found = steps.arrays()
        evaluations = sum(entry.step <= HEAD_STEPS for entry in self.metrics)
        return {
            **{f"head_{name}": found[name][:HEAD_STEPS] for name in HEAD_SERIES},
            "head_logits": np.stack(self.logits[: evaluations + 1]),
        }

    def _probe(self) -> None:
        inputs, logits = probe(self.training)
        self.logits.append(logits)
        if self.inputs is not None:
            self.inputs.probed(inputs, len(logits))


class _LayerStates:
    """The hidden states of the first evaluation texts, layer by layer, before the first step."""

    def __init__(self, training: Training) -> None:
        job = text_job(training)
        self.backend, self.policy = job.backend, job.policy
        store = job.test_tokens
        rows = np.arange(min(STATE_TEXTS, store.num_texts))
        layout = "bucketed" if isinstance(training.model, WholeModel) else job.layout
        self.batch: PackedBatch | PaddedBatch = token_batch(store, rows, layout, job.config.max_length)
        if isinstance(training.model, WholeModel):
            self.encoder: Any = training.model.encoder
            mode = job.config.torch_compile
            self.kernel = f"transformers, trained{f', torch.compile {mode}' if mode else ''}"
        else:
            self.encoder = job.frozen_encoder()
            self.kernel = f"{self.encoder.name} {self.encoder.version}"

    def run(self, given: np.ndarray | None = None) -> np.ndarray:
        """The states of real tokens, in the order of the texts, [R + 1, T, H], or for a replay [R, T, H]."""
        batch = self.backend.place(self.batch)
        inputs = None if given is None else [self._placed(state) for state in given]
        if isinstance(self.encoder, torch.nn.Module):
            assert isinstance(batch, PaddedBatch), "whole models take padded batches"
            with self.backend.autocast(self.policy):
                states = module_layer_states(self.encoder, batch, inputs)
        else:
            states = self.encoder.layer_states(batch, inputs)
        self.backend.synchronize(*states)
        return np.stack([self._real(state.detach().cpu()) for state in states])

    def _placed(self, state: np.ndarray) -> torch.Tensor:
        flat = torch.from_numpy(state)
        if isinstance(self.batch, PaddedBatch):
            mask = self.batch.attention_mask.bool()
            padded = flat.new_zeros(*mask.shape, flat.shape[-1])
            padded[mask] = flat
            flat = padded
        wide = torch.float64 if self.policy.accumulate == "float64" else torch.float32
        return self.backend.place(flat.to(wide))

    def _real(self, state: torch.Tensor) -> np.ndarray:
        if isinstance(self.batch, PaddedBatch):
            state = state[self.batch.attention_mask.bool()]
        return state.to(torch.float64 if self.policy.accumulate == "float64" else torch.float32).numpy()


def _header(
    label: str, training: Training, weights: list[torch.Tensor], kernel: str, reference: Trace | None
) -> TraceHeader:
    """The header of a run that starts. Switches its dropout off."""
    job = text_job(training)
    info = job.backend.info()
    error_budget = replace(job.backend.error_budget(job.policy), head_dtype=job.config.head_dtype)
    digest = hashlib.sha256(job.encoder.fingerprint.encode())
    for weight in weights:
        # As float32, so that a float64 run with the same initial head has the same hash.
        digest.update(weight.to(torch.float32).contiguous().numpy().tobytes())
    store = job.test_tokens
    return TraceHeader(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        label=label if job.backend.caveat in label else label + job.backend.on_caveat,
        backend=info.backend,
        device=info.name,
        emulated=info.emulated,
        policy=TracePolicy.of(job.policy),
        kernel=kernel,
        layout=job.layout,
        model=job.encoder.label,
        random_weights=job.encoder.random,
        dataset=job.dataset.name,
        adam_on_device=adam_on_device(training.optimizer),
        error_budget=PromisedBudget.of(error_budget),
        weights_sha256=digest.hexdigest(),
        probe_sha256=batch_hash(store, np.arange(min(PROBE_TEXTS, store.num_texts))),
        replayed_sha256=None if reference is None else reference.states_sha256(),
        dropout_off=without_dropout(training.model),
        ended=None,
        recipe=recipe_of(job.config, job.num_labels, training.total_steps),
        environment=TraceEnvironment.model_validate(environment()),
        config={},
        batches=[],
        metrics=[],
        evaluation=_evaluation(job),
    )


def _evaluation(job: TextJob) -> Split:
    """The evaluation split: its rows, their hash, and how much one answer can change each figure."""
    store = job.test_tokens
    rows = store.num_texts
    match job.task.answer:
        case "number":
            moved = number_moves(rows)
        case "above":
            moved = set_moves(rows, store.labels.sum(axis=0).tolist())
        case "largest" if job.task.on_features:
            moved = moves(rows, np.bincount(store.labels, minlength=job.num_labels).tolist())
        case _:
            moved = question_moves([bool(given) for given in job.dataset.test.answers])
    return Split(
        rows=rows,
        sha256=batch_hash(store, np.arange(rows)),
        moves=moved,
        answer=job.task.answer,
        boundary=boundary(job.config),
    )
