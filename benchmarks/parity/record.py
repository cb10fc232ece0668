"""Recording a trace: a real training run, seen from inside, in the process that calls.

Nothing of the run is replaced: the loop, the step (fused, captured or lazy), the schedule and the evaluations are those
of `isotrain train`. What is read after each step is what the step left behind: the loss it returned, the parameters,
and of Adam's first moment the gradient that moved it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from ... import UserError
from ...albert_core.batches import Window
from ...albert_core.config import TrainConfig
from ...albert_core.config_file import load_config
from ...albert_core.data import TokenStore
from ...albert_core.events import TrainingError
from ...albert_core.features import token_batch
from ...albert_core.frozen import module_repetitions
from ...albert_core.model import WholeModel
from ...albert_core.run import environment
from ...albert_core.train import train
from ...albert_core.training import Training
from ...backends import Yardstick
from ...kernels.packed import PackedBatch, PaddedBatch
from .trace import Trace

# Texts whose hidden states are kept, and those whose logits are: the first ones of the evaluation split.
STATE_TEXTS, PROBE_TEXTS = 8, 64

# What makes two runs the same training; where, in which dtype and by which kernel it runs is what is compared.
RECIPE_KEYS = (
    "max_length",
    "num_labels",
    "mlp_hidden_size",
    "learning_rate",
    "weight_decay",
    "no_decay",
    "batch_size",
    "gradient_accumulation_steps",
    "num_epochs",
    "epoch_freq",
    "val_steps_freq",
    "optim",
    "freeze_encoder",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "momentum",
    "max_steps",
    "seed",
)


def record(
    config: str | None,
    label: str,
    sets: Sequence[str],
    *,
    replay_from: Trace | None = None,
    steps: int | None = None,
) -> Trace:
    """Trains `config` (a file, a packaged name, or None for the defaults) with `sets`, and returns the run's trace.

    steps: the most optimizer steps that it makes; None makes all of them.
    replay_from: the reference whose hidden states each repetition is applied to; it must be of the same weights.
    Unless `sets` say otherwise the encoder runs at every step, and nothing is taken from a cache. Dropout is off: its
    masks are other ones in every dtype and on every device. A run whose loss stops being finite gives a trace as far as
    it came. Raises UserError for what can't run, and what else training raises.
    """
    resolved = load_config(config, ["feature_cache=false", *sets]).with_absolute_paths()
    limits = [number for number in (resolved.config.max_steps, steps) if number is not None]
    with tempfile.TemporaryDirectory(prefix="isotrain-parity-") as folder:
        own = {
            "max_steps": min(limits, default=None),
            "project_dir": folder,
            "run_name": "trace",
            "save_strategy": "no",
            "use_wandb": False,
            "use_tensorboard": False,
            "resume_from_checkpoint": False,
            "sync_to_storage": False,
            "load_from_storage": False,
            "stop_on_collapse": False,
            "stop_at_step": None,
        }
        recorder = _Recorder(label, replay_from)
        quiet = replace(resolved, config=resolved.config.model_copy(update=own))
        try:
            result = train(quiet, observer=recorder)
        except TrainingError as error:
            if not recorder.series["loss"]:
                raise
            return recorder.trace(resolved.config, str(error).partition(";")[0])
    if result.status != "completed":
        raise UserError(f"the run of {label} was stopped at step {result.step}: there is no trace of it")
    return recorder.trace(resolved.config)


class _Recorder:
    """An observer of a training run that keeps what a trace holds."""

    def __init__(self, label: str, replay_from: Trace | None) -> None:
        self.label, self.reference = label, replay_from
        self.series: dict[str, list[float]] = {"loss": [], "grad_norm": [], "update_norm": []}
        self.logits: list[np.ndarray] = []
        self.metrics: list[dict[str, float]] = []
        self.batches: list[str] = []
        self.header: dict[str, Any] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self._weights: list[torch.Tensor] = []
        self._moments: list[torch.Tensor] | None = None
        self._gradient = 0.0

    def started(self, training: Training) -> None:
        job = training.job
        self._weights = _on_host(_trained(training))
        adam = isinstance(training.optimizer, torch.optim.Adam | torch.optim.AdamW)
        if adam:
            self._moments = [torch.zeros_like(weight) for weight in self._weights]
        else:
            # Not Adam: such a step is made by autograd, and its gradients can be seen before they are used.
            training.optimizer.register_step_pre_hook(self._see_gradients)
        self.header = _header(self.label, training, self._weights)
        self.header["dropout_off"] = _without_dropout(training.model)
        self.header["replayed_sha256"] = None if self.reference is None else self.reference.states_sha256()
        if self.reference is not None and self.reference.header["weights_sha256"] != self.header["weights_sha256"]:
            raise UserError(
                f"the reference {self.reference.label} has other initial weights than {self.label} "
                f"(weights_sha256 {self.reference.header['weights_sha256'][:12]}, "
                f"{self.header['weights_sha256'][:12]}); record both from the same model and seed"
            )
        if self.reference is not None and self.reference.header["probe_sha256"] != self.header["probe_sha256"]:
            raise UserError(
                f"the reference {self.reference.label} has other evaluation texts than {self.label}; record both from "
                "the same data, tokenizer and max_length"
            )
        states = _Repetitions(training)
        self.arrays["states"] = states.run()
        if self.reference is not None:
            self.arrays["replay"] = states.run(self.reference.arrays["states"][:-1])
        self.header["kernel"] = states.kernel
        self.logits.append(_probe_logits(training))
        job.backend.step_boundary()

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        weights = _on_host(_trained(training))
        self.series["loss"].append(float(sums[0]) / window.num_samples)
        self.series["grad_norm"].append(self._gradient_norm(training))
        self.series["update_norm"].append(_norm(now - then for now, then in zip(weights, self._weights, strict=True)))
        self._weights = weights
        rows = training.stream.order()[window.micro_batches[0][0] : window.micro_batches[-1][1]]
        self.batches.append(_batch_hash(training.job.train_tokens, rows))

    def evaluated(self, training: Training, epoch: int) -> None:
        evaluation = training.state.last_evaluation
        named = {key.removeprefix("eval/"): float(value) for key, value in evaluation.items()}
        self.metrics.append({"epoch": epoch + 1, "step": training.state.step, **named})
        self.logits.append(_probe_logits(training))

    def trace(self, config: TrainConfig, failure: str = "") -> Trace:
        """`failure`: why training could not go on."""
        series = {name: np.array(values, dtype=np.float64) for name, values in self.series.items()}
        header = self.header | {"config": config.model_dump(), "batches": self.batches, "metrics": self.metrics}
        header["ended"] = {"step": len(self.batches), "reason": failure} if failure else None
        return Trace(header, {**series, "probe_logits": np.stack(self.logits), **self.arrays})

    def _gradient_norm(self, training: Training) -> float:
        """Of Adam: m' = b m + (1 - b) g, solved for g; its state is there whatever made the step."""
        if self._moments is None:
            return self._gradient
        beta = training.optimizer.param_groups[0]["betas"][0]
        state = training.optimizer.state
        moments = _on_host(
            state[parameter].get("exp_avg", torch.zeros_like(parameter)) for parameter in _trained(training)
        )
        norm = _norm((now - beta * then) / (1 - beta) for now, then in zip(moments, self._moments, strict=True))
        self._moments = moments
        return norm

    def _see_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        self._gradient = _norm(_on_host(parameter.grad for group in groups for parameter in group["params"]))


class _Repetitions:
    """The hidden states of the first evaluation texts, repetition by repetition, before the first step."""

    def __init__(self, training: Training) -> None:
        job = training.job
        self.backend, self.policy = job.backend, job.policy
        store = job.test_tokens
        rows = np.arange(min(STATE_TEXTS, store.num_texts))
        layout = "bucketed" if isinstance(training.model, WholeModel) else job.layout
        self.batch: PackedBatch | PaddedBatch = token_batch(store, rows, layout, job.config.max_length)
        if isinstance(training.model, WholeModel):
            self.encoder: Any = training.model.encoder
            self.kernel = "transformers, trained"
        else:
            self.encoder = job.frozen_encoder()
            self.kernel = f"{self.encoder.name} {self.encoder.version}"

    def run(self, given: np.ndarray | None = None) -> np.ndarray:
        """[R + 1, T, H], or of a replay [R, T, H]: real tokens alone, in the texts' order, on the host."""
        batch = self.backend.place(self.batch)
        inputs = None if given is None else [self._placed(state) for state in given]
        if isinstance(self.encoder, torch.nn.Module):
            assert isinstance(batch, PaddedBatch), "whole models take padded batches"
            with self._mixed_precision():
                states = module_repetitions(self.encoder, batch, inputs)
        else:
            states = self.encoder.repetitions(batch, inputs)
        self.backend.synchronize(*states)
        return np.stack([self._real(state.detach().cpu()) for state in states])

    def _mixed_precision(self) -> AbstractContextManager[Any]:
        return self.backend.autocast(self.policy) if self.policy.compute != self.policy.accumulate else nullcontext()

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


def _header(label: str, training: Training, weights: list[torch.Tensor]) -> dict[str, Any]:
    job = training.job
    info = job.backend.info()
    yardstick = Yardstick(**{**asdict(job.backend.yardstick(job.policy)), "head_dtype": job.config.head_dtype})
    digest = hashlib.sha256(job.encoder.fingerprint.encode())
    for weight in weights:
        # As float32, so that a float64 run of the same initial head has the same hash.
        digest.update(weight.to(torch.float32).contiguous().numpy().tobytes())
    store = job.test_tokens
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "label": f"{label} (emulated)" if info.emulated and "(emulated)" not in label else label,
        "backend": info.backend,
        "device": info.name,
        "emulated": info.emulated,
        "policy": {**asdict(job.policy), "label": job.policy.label},
        "layout": job.layout,
        "model": job.encoder.label,
        "random_weights": job.encoder.random,
        "dataset": job.dataset.name,
        "adam_on_device": _adam_on_device(training.optimizer),
        "yardstick": {**asdict(yardstick), "label": yardstick.label},
        "weights_sha256": digest.hexdigest(),
        "probe_sha256": _batch_hash(store, np.arange(min(PROBE_TEXTS, store.num_texts))),
        "recipe": _recipe(job.config, job.num_labels, training.total_steps),
        "environment": environment(),
    }


def _adam_on_device(optimizer: torch.optim.Optimizer) -> list[float] | None:
    """Adam's betas where its step counter is on the device, and bias corrections float32 ones; else None."""
    group = optimizer.param_groups[0]
    return [float(beta) for beta in group["betas"]] if group.get("capturable") else None


def _recipe(config: TrainConfig, num_labels: int, total_steps: int) -> dict[str, Any]:
    """Steps and labels as they are, whatever the configuration asked for."""
    asked = {key: getattr(config, key) for key in RECIPE_KEYS}
    return asked | {"num_labels": num_labels, "max_steps": total_steps, "lora": config.lora.model_dump(mode="json")}


def _without_dropout(model: torch.nn.Module) -> bool:
    """Switches dropout off for good, and says whether there was any. Attention takes its share from such a module."""
    layers = [part for part in model.modules() if isinstance(part, torch.nn.Dropout) and part.p > 0]
    for layer in layers:
        layer.p = 0.0
    return bool(layers)


def _probe_logits(training: Training) -> np.ndarray:
    """Logits of the first evaluation texts under the present weights, [texts, labels], on the host."""
    size = min(training.job.config.eval_batch_size, training.job.test_tokens.num_texts)
    source, model = training.test_source, training.model
    training_mode = model.training
    model.eval()
    source.start_epoch(np.arange(training.job.test_tokens.num_texts))
    with torch.no_grad():
        logits = model(source.batch(0, size)[0])
    model.train(training_mode)
    host = logits.cpu()[: min(size, PROBE_TEXTS)]
    # A masked logit is as low as its dtype goes: a constant, beside which no error would show.
    host = host.masked_fill(host <= torch.finfo(host.dtype).min / 2, 0.0)
    return host.to(torch.promote_types(host.dtype, torch.float32)).numpy()


def _batch_hash(store: TokenStore, rows: np.ndarray) -> str:
    """SHA-256 of the token ids, token types and labels of some texts, in this order."""
    digest = hashlib.sha256()
    for row in rows.tolist():
        span = slice(int(store.offsets[row]), int(store.offsets[row + 1]))
        digest.update(np.asarray(store.ids[span], dtype="<i8").tobytes())
        if store.token_type_ids is not None:
            digest.update(np.asarray(store.token_type_ids[span], dtype="<i8").tobytes())
    digest.update(np.asarray(store.labels[rows], dtype="<i8").tobytes())
    return digest.hexdigest()


def _trained(training: Training) -> list[torch.Tensor]:
    """The parameters that the optimizer moves: of a model with adapters, not those beneath them."""
    return [parameter for group in training.optimizer.param_groups for parameter in group["params"]]


def _on_host(tensors: Any) -> list[torch.Tensor]:
    """Copies, for the originals are written over by the next step."""
    return [tensor.detach().cpu().clone() for tensor in tensors if tensor is not None]


def _norm(parts: Any) -> float:
    """The L2 norm of all parts together, in float64."""
    return float(torch.stack([part.to(torch.float64).square().sum() for part in parts]).sum().sqrt())
