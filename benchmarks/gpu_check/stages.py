"""The stages of the check. What is most worth knowing comes first, what may take longest last."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from .result import MeasureSpec, What

PROCESS = (sys.executable, "-m", "isotrain.benchmarks.gpu_check.stage")
DTYPE = "bfloat16"
# The groups of checks that `isotrain conformance` runs, those of our own kernels first.
GROUPS = ("encoder/", "training/", "device/", "operations/")
TINY_GROUPS = ("device/place-bits",)
STEPS, TINY_STEPS = 48, 4


@dataclass(frozen=True)
class Asked:
    """What the user asked for.

    Attributes:
        out: The folder of the results.
        seconds: For all stages together.
        reference: A float64 trace from another machine, if there is one.
        tiny: A dry run: small models and few texts.
    """

    backend: str = "cuda"
    out: Path = Path("gpu-check")
    seconds: float = 600.0
    reference: Path | None = None
    tiny: bool = False


@dataclass(frozen=True)
class Command:
    """A process: `isotrain` with `arguments`, or a measurement."""

    arguments: tuple[str, ...] = ()
    spec: MeasureSpec | None = None


@dataclass(frozen=True)
class Stage:
    """Some processes, one after the other.

    Attributes:
        share: The most of all seconds that they may take.
        missing: Why the stage can't run, if so.
    """

    name: str
    share: float
    commands: tuple[Command, ...]
    missing: str = ""

    def folder(self, asked: Asked) -> Path:
        return asked.out / self.name


def parity_arguments(tiny: bool) -> tuple[str, ...]:
    """The run that parity compares, as arguments of `isotrain parity record`. Bundles have its reference."""
    if not tiny:
        return ("quickstart", "--steps", str(STEPS), "--set", "model_name=random:albert-base-v2")
    few = "dataset_id=embedded:intents?train=154&test=77"
    return ("quickstart", "--steps", str(TINY_STEPS), "--set", "model_name=random:tiny", "--set", few)


def stages(asked: Asked) -> list[Stage]:
    """All stages in their order."""

    def measured(stage: str, what: What, compiled: bool = False) -> Command:
        result = str(asked.out / stage / f"{what}.json")
        return Command(
            spec=MeasureSpec(
                what=what,
                backend=asked.backend,
                compiled=compiled,
                tiny=asked.tiny,
                peaks=str(asked.out / "peaks" / "peaks.json"),
                result=result,
            )
        )

    def isotrain(*arguments: str) -> Command:
        return Command(arguments)

    backend, tiny = ("--backend", asked.backend), asked.tiny
    groups = TINY_GROUPS if tiny else GROUPS
    model = "random:tiny" if tiny else "random:albert-base-v2"
    texts = "train=154&test=77" if tiny else "train=10003&test=3080"
    reference, trace = str(asked.reference or ""), str(asked.out / "parity" / "trace")
    steps = ["--workload", "full_step", "--layout", "packed", "--layout", "dynamic"]
    if not tiny:
        steps += ["--workload", "train_step", "--layout", "bucketed", "--batch-size", "32", "--batch-size", "512"]
    return [
        Stage("peaks", 0.2, (measured("peaks", "peaks"),)),
        Stage(
            "correctness",
            0.35,
            tuple(
                isotrain("conformance", *backend, "--only", group, "--json", _file(asked, "correctness", group))
                for group in groups
            ),
        ),
        Stage("throughput", 0.2, (measured("throughput", "throughput"),)),
        Stage("operators", 0.15, (measured("operators", "operators"),)),
        Stage(
            "training",
            0.3,
            (
                isotrain(
                    *("train", "banking77", *backend, "--set", f"dataset_id=embedded:intents?{texts}"),
                    *("--set", f"model_name={model}", "--set", f"project_dir={asked.out / 'training'}"),
                    *("--set", "run_name=banking77"),
                ),
                isotrain(
                    *("bench", *backend, "--quick", "--model", model, *steps),
                    *("--out", _file(asked, "training", "steps")),
                ),
            ),
        ),
        Stage(
            "parity",
            0.2,
            (
                isotrain(
                    *("parity", "record", *parity_arguments(tiny), *backend, "--dtype", DTYPE),
                    *("--replay-from", reference, "--out", trace),
                ),
                isotrain("parity", "compare", reference, trace, "--out", _file(asked, "parity", "parity")),
            ),
            "" if asked.reference else "no --reference was given; `isotrain gpu-check --bundle DIR` makes one",
        ),
        Stage(
            "compiled",
            1.0,
            (measured("compiled", "throughput", compiled=True), measured("compiled", "operators", compiled=True)),
        ),
    ]


def _file(asked: Asked, stage: str, name: str) -> str:
    return str(asked.out / stage / f"{name.strip('/').replace('/', '-')}.json")
