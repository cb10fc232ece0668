"""The baselines of `isotrain bench --vs baselines`: other software that computes the same frozen forward pass.

This file imports none of them. The named module builds each in a fresh process. A baseline runs the same texts as this
project's kernels, in the layout and batch size that suit it best: a short sweep picks the fastest of its `shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ...kernels.install import install_hint
from ...kernels.names import check_name

if TYPE_CHECKING:
    from ...albert_core.model.encoder import LoadedEncoder
    from ...backends import Backend
    from .base import BaselineEncoder

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
    """

    name: str
    what: str
    builder: str
    shapes: tuple[Shape, ...]
    packages: tuple[str, ...] = ()
    fixed: bool = False

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
    )
}


def chosen_baselines(names: Sequence[str]) -> list[Baseline]:
    """The baselines that `--vs` names; ``baselines`` means all of them.

    Raises:
        UserError: A name is unknown.
    """
    for name in names:
        check_name("--vs", name, (ALL, *BASELINES))
    wanted = BASELINES if ALL in names else dict.fromkeys(names)
    return [BASELINES[name] for name in wanted]


def build_baseline(name: str, encoder: LoadedEncoder, backend: Backend, dtype: str, layout: str) -> BaselineEncoder:
    """Builds the baseline called `name` with the weights of `encoder`.

    Args:
        dtype: The requested dtype.

    Raises:
        UserError: It can't run here; the message says why.
    """
    module, _, attribute = BASELINES[name].builder.partition(":")
    factory = getattr(import_module(f".{module}", __package__), attribute)
    built: BaselineEncoder = factory(encoder, backend, dtype, layout)
    return built
