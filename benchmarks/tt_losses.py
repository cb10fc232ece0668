"""`isotrain tt-losses`: what each part of a Tenstorrent card's arithmetic costs a job, by how far losses move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from ..albert_core.config.load import load_config
from ..albert_core.config.schema import TrainConfig
from ..albert_core.loop.build import Training
from ..albert_core.loop.events import TrainingError
from ..albert_core.loop.foresee import check_names
from ..albert_core.loop.job import trains_on_features
from ..albert_core.loop.train import train
from ..albert_core.processes.signals import StopRequest, stop_on_signals
from ..albert_core.terminal.text import duration
from ..albert_core.tokens.order import Window
from ..backends.tt.options import Operation, TtOptions
from .parity.recording.observe import without_dropout
from .parity.recording.record import for_observing

Kind = Literal["configured", "alone", "without", "finer", "other", "host"]
# Each option in words, and its values from the coarsest to the finest.
SETTINGS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "math_fidelity": ("math fidelity", ("lofi", "hifi2", "hifi3", "hifi4")),
    "fp32_dest_acc_en": ("destination", (False, True)),
    "weight_dtype": ("frozen weights", ("bfp_bf4", "bfp_bf8", "bfloat16")),
    "optimizer_dtype": ("optimizer", ("bfloat16", "float32")),
}


_WORDS: dict[Kind, str] = {"alone": " alone in the card's arithmetic", "without": " in float32"}


@dataclass(frozen=True)
class Variant:
    """One arithmetic of the job.

    Attributes:
        name: What is different from the configured arithmetic.
        kind: "alone": only one operation is the card's; "without": it alone is float32; "finer": a setting has its
            finest value; "other": another one; "host": float32 without a card.
        sets: Its settings of the configuration.
    """

    name: str
    kind: Kind
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """A variant, measured.

    Attributes:
        distance: The root mean square of the differences between its losses and float64's; None if it diverged.
        reason: Why there is no distance.
    """

    name: str
    kind: Kind
    sets: tuple[str, ...]
    distance: float | None
    reason: str = ""


@dataclass(frozen=True)
class TtLosses:
    """What was measured of a job.

    Attributes:
        config: As it was given.
        label: The job's model and device.
        arithmetic: The configured one, in words.
        steps: Optimizer steps of each run.
        complete: Whether all variants are here.
        costs: The configured arithmetic first, then the others, each kind by its distance.
    """

    config: str
    label: str
    arithmetic: str
    steps: int
    complete: bool
    costs: tuple[Cost, ...]

    @property
    def configured(self) -> float | None:
        return self.costs[0].distance if self.costs else None

    @property
    def chance(self) -> float:
        """The relative difference of two distances that may be chance: two standard errors of a root mean square."""
        return 2 / (2 * self.steps) ** 0.5


def tt_losses(config: str, sets: Sequence[str], steps: int, tell: Callable[[str], None]) -> TtLosses:
    """Trains the job's first steps in float64 on the host, and then in each variant of the card's arithmetic.

    All runs begin with the same weights and see the same batches, without dropout. An interrupt ends the measurement
    with the variants that are done. If none is, it is raised.

    Args:
        config: A file, a packaged name, or a workload.
        sets: Settings of the configuration.
        steps: Optimizer steps of each run.
        tell: Called with a line before each run.

    Raises:
        UserError: The job can't run.
        KeyboardInterrupt: Nothing is measured yet.
    """
    resolved = load_config(config, sets).config
    check_names(resolved)
    options = TtOptions.model_validate(resolved.backend_options.get("tt", {}))
    texts = resolved.workload is None
    common = (*sets, *(("feature_cache=false",) if texts else ()))
    exact = ("backend=cpu", "dtype=float64", *(("head_dtype=float64",) if texts else ()))
    variants = list(variants_of(resolved, options))
    tell(f"1 of {len(variants) + 1}: float64 on the host")
    costs: list[Cost] = []
    with stop_on_signals() as stop:
        reference, label = _until(stop, config, [*common, *exact], steps)
        began = time.perf_counter()
        try:
            for done, variant in enumerate(variants):
                each = (time.perf_counter() - began) / max(1, done)
                left = f", about {duration(each * (len(variants) - done))} left" if done else ""
                tell(f"{done + 2} of {len(variants) + 1}: {variant.name}{_WORDS.get(variant.kind, '')}{left}")
                found, reason = np.empty(0), ""
                try:
                    found, named = _until(stop, config, [*common, *variant.sets], steps)
                    label = named if variant.kind == "configured" else label
                except TrainingError as error:
                    reason = str(error).partition(";")[0]
                distance = None if reason else float(np.sqrt(np.square(found - reference).mean()))
                costs.append(Cost(variant.name, variant.kind, variant.sets, distance, reason))
        except KeyboardInterrupt:
            if not costs:
                raise
    order = get_args(Kind)
    costs.sort(key=lambda cost: (order.index(cost.kind), np.inf if cost.distance is None else cost.distance))
    words = f"{options.products}, {options.emulation}, all operations"
    return TtLosses(config, label, words, len(reference), len(costs) == len(variants), tuple(costs))


def variants_of(config: TrainConfig, options: TtOptions) -> Iterator[Variant]:
    """The configured arithmetic, and all that differ from it in one thing."""
    card = ("backend=tt-emulated", "use_tt=false", "tt.device=emulated", "tt.emulate=all")
    yield Variant("as configured", "configured", card)
    emulated = [operation for operation in get_args(Operation) if operation not in options.float32]
    for operation in emulated:
        others = ",".join(name for name in get_args(Operation) if name != operation)
        yield Variant(operation, "alone", (*card, f"tt.float32={others}"))
        yield Variant(operation, "without", (*card, f"tt.float32={','.join([*options.float32, operation])}"))
    for key, (name, values) in SETTINGS.items():
        if key == "weight_dtype" and (config.workload is not None or not trains_on_features(config)):
            continue
        for value in values:
            if value == getattr(options, key):
                continue
            word = {True: "float32", False: "bfloat16"}.get(value, value)
            kind: Kind = "finer" if value == values[-1] else "other"
            yield Variant(f"{name} {word}", kind, (*card, f"tt.{key}={str(value).lower()}"))
    yield Variant("no card: float32 on the host", "host", ("backend=cpu", "use_tt=false", "dtype=float32"))


def _until(stop: StopRequest, config: str, sets: Sequence[str], steps: int) -> tuple[np.ndarray, str]:
    """`_losses`, unless a stop is requested. A run's end is not the end of the measurement for the next signal."""
    try:
        found = _losses(config, sets, steps)
    finally:
        stop.over = stop.loop_started = False
    if stop.requested:
        raise KeyboardInterrupt
    return found


def _losses(config: str, sets: Sequence[str], steps: int) -> tuple[np.ndarray, str]:
    """The loss of each of the first steps, float64 [steps], and the job's label."""
    observer = _Losses()
    with for_observing(load_config(config, sets), steps + 1, "losses", stop_at_step=steps, log_level="ERROR") as quiet:
        train(quiet, observer=observer)
    return np.array(observer.losses), observer.label


class _Losses:
    """An observer of a run that keeps the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.label = ""

    def started(self, training: Training) -> None:
        without_dropout(training.model)
        self.label = training.job.label

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        del training
        self.losses.append(float(sums[0]) / window.num_samples)

    def evaluated(self, training: Training, epoch: int) -> None:
        del training, epoch
