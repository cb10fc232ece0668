"""What is checked of a comparison before its first side runs, perhaps for an hour."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from ... import UserError
from ...albert_core.config.load import load_config
from ...albert_core.config.schema import TrainConfig
from ...albert_core.config.workload_name import names_workload, short_name
from ...albert_core.loop.foresee import check_names
from ...albert_core.runs.files import check_place
from ...backends import backend_traits, check_available
from ...kernels.names import check_range
from .compare import OWN_FILES
from .run import Comparison
from .seeds import LEAST_SEEDS


def check(comparison: Comparison) -> None:
    """Raises UserError for numbers out of range, a wrong name, a reference that can't judge, or no candidate here."""
    if comparison.seeds != 1 and comparison.seeds < LEAST_SEEDS:
        raise UserError(f"--seeds {comparison.seeds}: an equivalence test needs at least {LEAST_SEEDS}")
    check_range("--seeds", comparison.seeds, 1, 1000)
    check_range("--margin", comparison.margin, 1e-6, 1)
    check_range("--time-limit", comparison.time_limit, 0.001, 10**7)
    sides = (comparison.reference, *comparison.candidates)
    configs = {side: load_config(comparison.config, [*comparison.sets, *side.sets]).config for side in sides}
    for side, config in configs.items():
        check_names(config)
        backend_traits(side.backend).check_kernel(f"{side.label!r}: kernel", config.kernel, side.backend)
    if configs[comparison.reference].dtype != "float64":
        raise UserError(f"--reference {comparison.reference.label}: only float64 judges; write cpu:float64")
    known = {side.base for side in sides}
    elsewhere = comparison.pythons or {}
    for name in elsewhere:
        if name not in known:
            raise UserError(f"--python {name}=...: no side runs on {name}; here are {', '.join(sorted(known))}")
    reasons = [None if side.base in elsewhere else _absence(configs[side]) for side in comparison.candidates]
    if all(reasons):
        # If no candidate can be judged, the reference need not run.
        raise UserError(str(reasons[0]))


def trace_folder(out: Path | None, config: str) -> Path:
    """The folder of a comparison's traces: `out`, which may hold some from before, or a new one under parity/.

    Raises:
        UserError: It can't be written, or has other files.
    """
    name = short_name(config) if names_workload(config) else Path(config).stem
    folder = out or Path("parity") / f"{name}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}"
    foreign = [path.name for path in folder.iterdir() if not _is_own(path)] if folder.is_dir() else []
    if foreign or (folder.exists() and not folder.is_dir()):
        found = f"has {foreign[0]!r}, which no comparison wrote" if foreign else "is a file"
        raise UserError(f"--out {str(folder)!r} {found}; choose another folder")
    check_place(folder, "--out")
    return folder


def _is_own(path: Path) -> bool:
    """Whether an entry of a comparison's folder is one that a comparison writes."""
    named = path.name in ("reference", "candidates") or path.name.startswith("seed-")
    return named or path.name.endswith(OWN_FILES)


def _absence(config: TrainConfig) -> UserError | None:
    """Why the backend can't run here; None if it can."""
    try:
        check_available(config.backend_name)
    except UserError as error:
        return error
    return None
