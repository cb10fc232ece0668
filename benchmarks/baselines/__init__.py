"""The baselines of `isotrain bench --vs`: other software that computes the same frozen forward or training step.

This file imports none of them. The named module builds each in a fresh process. A baseline runs the same texts as this
project's kernels. A forward pass has the layout and batch size that suit it best: a short sweep picks the fastest of
its `shapes`. A training step has those that were asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ... import UserError
from ...backends import EIGHT_BIT, caveat
from ...kernels.install import install_hint
from ...kernels.names import check_name

if TYPE_CHECKING:
    from ...albert_core.model.encoder import LoadedEncoder
    from ...albert_core.model.head import ClassificationHead
    from ...backends import Backend, CastPolicy
    from .base import BaselineEncoder
    from .trainer import TrainerLoop

ALL = "baselines"

Shape = tuple[str, int]


@dataclass(frozen=True)
class Baseline:
    """One baseline.

    Attributes:
        builder: ``module:class`` in this package.
        shapes: (layout, batch size) to choose from.
        packages: What it imports beyond isotrain's own dependencies.
        fixed: Whether its shape defines it, so that --batch-size doesn't change it.
        workload: What it computes, "forward" or "full_step".
        eight_bit: Whether it computes in 8 bits.
    """

    name: str
    what: str
    builder: str
    shapes: tuple[Shape, ...]
    packages: tuple[str, ...] = ()
    fixed: bool = False
    workload: str = "forward"
    eight_bit: bool = False

    def missing(self) -> str:
        """Which packages are missing and how to get them, found without imports; or an empty string."""
        absent = [package for package in self.packages if find_spec(package) is None]
        if not absent:
            return ""
        them = "it" if len(absent) == 1 else "them"
        return f"{', '.join(absent)} not installed; get {them} by: `{install_hint('baselines')}`"

    def choices(self, batch_sizes: Sequence[int]) -> tuple[Shape, ...]:
        """Its shapes, with the given batch sizes instead of its own if there are any."""
        if self.fixed or not batch_sizes:
            return self.shapes
        layouts = dict.fromkeys(layout for layout, _ in self.shapes)
        return tuple((layout, size) for layout in layouts for size in batch_sizes)


# --quick takes the first shape of each without a sweep.
BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline(
            "experiment-padded",
            "the Banking77 experiment's forward, every text padded to max_length",
            "eager:ExperimentEncoder",
            (("padded", 8),),
            fixed=True,
        ),
        Baseline(
            "experiment-dynamic",
            "the Banking77 experiment's forward, each batch padded to its longest text",
            "eager:ExperimentEncoder",
            (("dynamic", 8),),
            fixed=True,
        ),
        Baseline(
            "transformers-dynamic",
            "transformers eager, batches as they come, each padded to its longest text",
            "eager:EagerEncoder",
            (("dynamic", 8), ("dynamic", 32), ("dynamic", 64)),
        ),
        Baseline(
            "transformers-sorted",
            "transformers eager, batches in order of length, each padded to its longest text",
            "eager:EagerEncoder",
            (("sorted", 8), ("sorted", 32), ("sorted", 64)),
        ),
        Baseline(
            "torch-compile",
            "torch.compile with inductor's freezing, one graph for each of a few static shapes",
            "compiled:CompiledEncoder",
            (("static", 64), ("static", 256)),
        ),
        Baseline(
            "onnxruntime",
            "ONNX Runtime, exported and fused by its own transformers optimizer",
            "onnx_runtime:OnnxEncoder",
            (("sorted", 8), ("sorted", 32), ("sorted", 128)),
            ("onnx", "onnxruntime"),
        ),
        Baseline(
            "openvino",
            "OpenVINO, converted from the torch module",
            "open_vino:OpenVinoEncoder",
            (("sorted", 8), ("sorted", 32), ("sorted", 128), ("static", 64), ("static", 256)),
            ("openvino",),
        ),
        Baseline(
            "openvino-int8",
            "the same in 8 bits, quantised by NNCF with the measured texts",
            "open_vino:OpenVinoInt8Encoder",
            (("sorted", 8), ("sorted", 32), ("sorted", 128), ("static", 64), ("static", 256)),
            ("openvino", "nncf"),
            eight_bit=True,
        ),
        Baseline(
            "trainer",
            "a step of the whole model by transformers' Trainer, each batch padded to its longest text",
            "trainer:TrainerLoop",
            (("dynamic", 8),),
            ("accelerate",),
            workload="full_step",
        ),
        Baseline(
            "trainer-compile",
            "the same with its option torch_compile",
            "trainer:CompiledTrainerLoop",
            (("dynamic", 8),),
            ("accelerate",),
            workload="full_step",
        ),
    )
}


def chosen_baselines(names: Sequence[str], workload: str = "forward") -> list[Baseline]:
    """The baselines that `--vs` names; ``baselines`` means all of `workload`.

    Raises:
        UserError: A name is unknown or of another workload.
    """
    every = [name for name, baseline in BASELINES.items() if baseline.workload == workload]
    for name in names:
        if name != ALL and workload_of(name) != workload:
            raise UserError(
                f"--vs {name!r} computes {workload_of(name)}, not {workload}; allowed for that are "
                f"{', '.join((ALL, *every))}; compare others by their own --workload"
            )
    wanted = dict.fromkeys(one for name in names for one in (every if name == ALL else [name]))
    return [BASELINES[name] for name in wanted]


def check_comparison(
    names: Sequence[str],
    backends: Sequence[str],
    workloads: Sequence[str],
    batch_sizes: Sequence[int],
    profiled: bool,
) -> None:
    """Raises UserError if `--vs` can't compare these baselines with such targets."""
    if len(backends) > 1:
        raise UserError(f"--vs compares on one backend, not {', '.join(backends)}; give --backend once")
    refuse_race(*backends)
    if tuple(workloads) not in (("forward",), ("full_step",)):
        raise UserError(
            f"--vs compares forward or full_step, not {', '.join(workloads)}; give one of them by --workload, or "
            "end_to_end for a whole training run"
        )
    chosen_baselines(names, *workloads)
    if "full_step" in workloads and len(batch_sizes) > 1:
        sizes = ", ".join(map(str, batch_sizes))
        raise UserError(f"--vs compares steps of one batch size, not {sizes}; give --batch-size once")
    if "full_step" in workloads and profiled:
        raise UserError("--profile can't see into a baseline that runs its own training loop; drop --profile")


def refuse_race(backend: str) -> None:
    """Refuses to compare baselines with an emulated device. Raises UserError if `backend` has only the host's speed."""
    if caveat(backend):
        raise UserError(
            f"--vs compares speeds, and {backend} has only the host's; give another --backend, or drop --vs"
        )


def with_dtypes(baselines: Sequence[Baseline], dtypes: Sequence[str]) -> list[tuple[Baseline, str]]:
    """Each of the baselines with each of the `dtypes` that it computes in.

    If it has none of them, it gets them all, and says itself why it can't run.
    """
    return [
        (one, dtype)
        for one in baselines
        for dtype in [dtype for dtype in dtypes if (dtype in EIGHT_BIT) == one.eight_bit] or dtypes
    ]


def not_installed(baselines: Sequence[tuple[Baseline, str]], first: int) -> dict[int, str]:
    """Why baselines can't run here, by the number of their target; the first of `baselines` has the number `first`."""
    return {number: reason for number, (one, _) in enumerate(baselines, first) if (reason := one.missing())}


def workload_of(name: str) -> str:
    """What a baseline of `--vs` computes; ``baselines`` the forward pass. Raises UserError if the name is unknown."""
    check_name("--vs", name, (ALL, *BASELINES))
    return "forward" if name == ALL else BASELINES[name].workload


def build_baseline(name: str, encoder: LoadedEncoder, backend: Backend, dtype: str, layout: str) -> BaselineEncoder:
    """Builds the baseline called `name` with the weights of `encoder`.

    Args:
        dtype: The requested dtype.

    Raises:
        UserError: It can't run here; the message says why.
    """
    built: BaselineEncoder = _builder(name)(encoder, backend, dtype, layout)
    return built


def build_trainer(
    name: str,
    encoder: LoadedEncoder,
    head: ClassificationHead,
    backend: Backend,
    policy: CastPolicy,
) -> TrainerLoop:
    """Builds the loop called `name`, which trains a copy of the encoder and `head`. Raises as `build_baseline`."""
    built: TrainerLoop = _builder(name)(encoder.module(), head, backend, policy)
    return built


def _builder(name: str) -> Any:
    module, _, attribute = BASELINES[name].builder.partition(":")
    return getattr(import_module(f".{module}", __package__), attribute)
