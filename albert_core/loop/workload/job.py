"""Opens a run of a user's own workload: backend, module, batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn

from .... import UserError
from ....backends import get_backend
from ...config.keys import Keys
from ...config.schedule import ADAPTIVE
from ...config.schema import TrainConfig
from ...processes.ranks import ALONE, Ranks
from ...runs.folder import RunFolder
from ...terminal.text import quoted
from ...workload.batches import shape_advice
from ...workload.checks import check_repeats, checked_gradients, make_batches, make_model, seeded, trial
from ...workload.load import LoadedWorkload, load_workload
from ..base import Job, PhaseProgress, check_compiles, timed

log = logging.getLogger("isotrain")

# Batches without a length are counted up to here. Those of an endless iterable are more than any run reads.
MOST_COUNTED = 10**7
ENDLESS = 10**15
# So many first batches are read twice and are part of a run's identity.
CHECKED_BATCHES = 8

# Keys that a workload's own method replaces.
_OF_OPTIMIZER = (
    *("learning_rate", "weight_decay", "optim", "no_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "momentum"),
)
_OF_SCHEDULE = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")
# Keys that mean nothing without evaluations.
_OF_EVALUATIONS = (
    *("checkpoint_metric", "checkpoint_metric_mode", "val_steps_freq", "eval_on_start", "chart"),
    *("early_stopping_patience", "early_stopping_threshold"),
)


@dataclass(kw_only=True)
class WorkloadJob(Job):
    """What training of a user's workload reads.

    Attributes:
        module: The module on the host, with its initial weights.
        weights_sha256: Of them.
        batches_sha256: Of the first CHECKED_BATCHES batches.
        num_batches: The number of batches of an epoch; ENDLESS if the run ends before its first epoch does.
        unused: Whether the loss depends on only some of the trained parameters.
    """

    workload: LoadedWorkload
    module: nn.Module
    weights_sha256: str
    batches_sha256: str
    num_batches: int
    unused: bool

    @property
    def model_name(self) -> str:
        return self.workload.spec

    @property
    def model_label(self) -> str:
        return self.workload.name

    @property
    def random_weights(self) -> bool:
        # Whatever the module begins with is what the user trains.
        return False

    @property
    def data_label(self) -> str:
        return f"batches of {self.workload.name}"

    @property
    def evaluates(self) -> bool:
        return self.workload.optional("evaluate") is not None

    def metric_words(self, metrics: Mapping[str, float]) -> dict[str, str]:
        return {name: name.removeprefix("eval/") for name in metrics}

    def notes(self) -> Iterator[str]:
        yield f"workload {self.label} of {self.workload.spec} (SHA-256 {self.workload.sha256[:12]})"
        trained = sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)
        every = sum(parameter.numel() for parameter in self.module.parameters())
        epoch = "batches without end" if self.num_batches == ENDLESS else f"{self.num_batches:,} batches an epoch"
        yield f"{trained:,} weights are trained, of {every:,}; {epoch}"
        if self.ranks.size > 1:
            held = "a part of the weights" if self.sharded else "all weights"
            shared = f"the {self.config.gradient_accumulation_steps} batches of each step"
            yield f"{self.ranks.size} processes share {shared}; each holds {held}"

    def identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "workload": self.workload.name,
            "workload_sha256": self.workload.sha256,
            "initial_weights": self.weights_sha256,
            "train_data": self.batches_sha256,
            "optim": config.optim,
            "dtype": config.dtype,
            "cast_policy": self.policy.label,
            "seed": config.seed,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            **({"torch_compile": config.torch_compile} if config.torch_compile else {}),
        }

    def origin(self) -> dict[str, Any]:
        return {"workload": {"spec": self.workload.spec, "sha256": self.workload.sha256}}

    def check_kept(self, run: RunFolder, trained: Mapping[str, Any]) -> None:
        if trained.get("workload_sha256", self.workload.sha256) != self.workload.sha256:
            file = self.workload.file or self.workload.spec
            raise UserError(
                f"{file} has changed since run {quoted(str(run.path))} was trained with it, so the resume would not be "
                "exact; put the file back as it was, or start a new run"
            )


def open_workload_job(
    config: TrainConfig, progress: PhaseProgress = lambda _: None, ranks: Ranks = ALONE
) -> WorkloadJob:
    """Opens the workload that `config` names, with the cheapest checks first.

    Raises:
        UserError: Something in it can't be used. The message names the user's file and line.
    """
    del progress
    assert config.workload is not None, "a job on texts is opened by open_job"
    phases: dict[str, float] = {}
    workload = load_workload(config.workload)
    _refuse_unread(config, workload)
    with timed(phases, "open_backend"):
        backend = get_backend(ranks.backend(config.backend_name), config.backend_options)
        policy = backend.whole_model_policy(backend.cast_policy(config.dtype, strict=config.strict_dtype))
        check_compiles(config, backend, ranks)
        energy = backend.energy()
    with timed(phases, "load_model"):
        made = make_model(workload, config.seed)
    with timed(phases, "load_data"):
        checked = make_batches(workload, config.seed, CHECKED_BATCHES)
        advice = shape_advice(checked.batches, backend)
        if advice:
            log.warning("%s", advice)
        needed = None if config.max_steps is None else config.max_steps * config.gradient_accumulation_steps
        num_batches = _count_batches(workload, config.seed, needed)
        with trial(made.module, config.seed, training=True):
            checked_gradients(workload, made.module, checked.batches[0])
            unused = any(parameter.requires_grad and parameter.grad is None for parameter in made.module.parameters())
        check_repeats(workload, made.module, checked.batches[0], config.seed)
    return WorkloadJob(
        config=config,
        backend=backend,
        policy=policy,
        phases=phases,
        energy=energy,
        ranks=ranks,
        workload=workload,
        module=made.module,
        weights_sha256=made.sha256,
        batches_sha256=checked.sha256,
        num_batches=num_batches,
        unused=unused,
    )


def _count_batches(workload: LoadedWorkload, seed: int, needed: int | None) -> int:
    """The number of batches of an epoch. Without a length, they are counted, or found to be more than are `needed`."""
    with seeded(seed), workload.blamed("batches"):
        batches: Any = workload.workload.batches(seed)
        if hasattr(batches, "__len__"):
            return len(batches)
        found = sum(1 for _ in islice(batches, MOST_COUNTED if needed is None else needed + 1))
    if needed is None and found == MOST_COUNTED:
        raise UserError(
            f"{workload.place_of('batches')}: batches({seed}) has no length and at least {MOST_COUNTED:,} batches; set "
            "max_steps, or give it __len__"
        )
    return ENDLESS if needed is not None and found > needed else found


def _refuse_unread(config: TrainConfig, workload: LoadedWorkload) -> None:
    """Raises UserError if a key is set that a method of the workload replaces, or that needs a method it lacks."""
    defaults = {key: field.get_default(call_default_factory=True) for key, field in Keys.model_fields.items()}
    for method, keys in (("optimizer", _OF_OPTIMIZER + _OF_SCHEDULE), ("schedule", _OF_SCHEDULE)):
        for key in keys if workload.optional(method) is not None else ():
            if getattr(config, key) != defaults[key]:
                raise UserError(f"{key} is set, and {workload.place_of(method)} has its own {method}; drop {key}")
    if workload.optional("evaluate") is None:
        unread = [key for key in _OF_EVALUATIONS if getattr(config, key) != defaults[key]]
        unread += ["lr_scheduler_type"] if config.lr_scheduler_type in ADAPTIVE else []
        if unread:
            raise UserError(
                f"{unread[0]} needs evaluations, and {workload.spec} has no evaluate; add it, or drop the key"
            )
