"""A whole comparison: the reference, the candidates and the error budgets, each recorded in a separate process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from ... import UserError
from ...albert_core.config.load import load_config
from ...albert_core.config.workload_name import files_of, package_of
from ...albert_core.processes.signals import interrupted_by_signals
from ...albert_core.runs.files import make_folders, refuse_links, write_text
from ...backends import ErrorBudget, options_section
from ..harness.answer import read_answer
from ..harness.document import Refused
from ..harness.environment import PACKAGE_ROOT, versions
from ..harness.plan import hash_of
from ..harness.runner import Ended, how, run_process, said
from ..outcome.parity import Equivalence, Parity, Seeds
from .compare import Missing, build_result
from .judge import FAILED, differences
from .seeds import equivalence
from .sides import Side
from .trace import DRAWS, ERROR_BUDGETS, HEADER_FILE, Trace, check_reference, read_trace, slug
from .worker import Job, Recorded, RecordSpec

WORKER_MODULE = ("-m", "isotrain.benchmarks.parity.worker")
Tell = Callable[[str], None]
# The end of the name of the file beside a trace that says what it was recorded for; see `compare.OWN_FILES`.
ASKED = ".asked"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Attributes:
        pythons: The interpreters of backends with separate environments.
        again: The command that goes on after an interruption.
    """

    config: str
    reference: Side
    candidates: tuple[Side, ...]
    out: Path
    sets: tuple[str, ...] = ()
    steps: int | None = None
    seeds: int = 1
    margin: float = 0.01
    time_limit: float = 3600.0
    pythons: Mapping[str, str] | None = None
    again: str = ""


def run_parity(comparison: Comparison, tell: Tell) -> Parity:
    """Records and judges. Traces stay in `comparison.out`, also after an interruption, and are used again.

    A candidate that dies, hangs or can't run is in the result with its last output, and the others continue.

    Args:
        tell: Called with one line per process, and with lines about its progress.

    Raises:
        UserError: The reference can't be recorded, or `comparison.out` has traces with other settings.
        KeyboardInterrupt: It was interrupted; the message says what is kept and how to go on.
    """
    labels = [side.label for side in (comparison.reference, *comparison.candidates)]
    if len(set(labels)) != len(labels):
        raise UserError(f"a side is given twice among {', '.join(labels)}; give each once")
    with interrupted_by_signals(), _kept(comparison):
        reference = _recorded(comparison, comparison.reference, comparison.out / "reference", None, tell)
        if isinstance(reference, Missing):
            raise UserError(f"the reference {reference.label} has no trace: {reference.reason}")
        check_reference(reference)
        found: list[Trace | Missing] = []
        for side in comparison.candidates:
            folder = comparison.out / "candidates" / slug(side.label)
            found.append(_recorded(comparison, side, folder, reference, tell))
        # A candidate of another run is refused, so it needs no error budget.
        traces = [one for one in found if isinstance(one, Trace) and not differences(reference, one)]
        add_error_budgets(reference, traces, comparison.time_limit, tell)
        seeds = _seeds(comparison, reference, found, tell) if comparison.seeds > 1 else None
    return build_result(reference, found, seeds)


@contextmanager
def _kept(comparison: Comparison) -> Iterator[None]:
    """Says after an interruption which traces are kept."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        traces = sorted(path.parent for path in comparison.out.rglob(HEADER_FILE))
        kept = ", ".join(str(trace.relative_to(comparison.out)) for trace in traces)
        again = f"; continue with: {comparison.again}" if comparison.again and traces else ""
        raise KeyboardInterrupt(f"kept in {comparison.out}: {kept or 'no trace'}{again}") from interrupt


def add_error_budgets(reference: Trace, candidates: Sequence[Trace], time_limit: float, tell: Tell) -> None:
    """Records the draws of error budgets that `candidates` need and `reference` lacks. Failures go to `tell`."""
    wanted = {trace.header.error_budget.label: trace.header.error_budget for trace in candidates}
    for promised in wanted.values():
        try:
            record_error_budget(reference, promised.budget, time_limit, tell)
        except UserError as error:
            # Only the candidates that need it are refused.
            tell(str(error))


def record_error_budget(reference: Trace, error_budget: ErrorBudget, time_limit: float, tell: Tell) -> None:
    """Records the draws of `error_budget` that the reference's folder lacks, as replays of its hidden states.

    Raises:
        UserError: It can't be recorded.
    """
    config = reference.folder / "config.yaml"
    write_config(reference, config)
    folder = reference.folder / ERROR_BUDGETS / slug(error_budget.label)
    # The reference may come from a stranger.
    refuse_links(reference.folder)
    jobs = [
        Job(label=f"error budget {error_budget.label}", sets=list(sets), out=str(folder / f"draw-{draw}"))
        for draw, sets in enumerate(draw_settings(error_budget))
        if not (folder / f"draw-{draw}").exists()
    ]
    if not jobs:
        return
    spec = RecordSpec(
        config=str(config), jobs=jobs, replay_from=str(reference.folder), steps=None, result=_answer_of(folder)
    )
    error = _run(spec, sys.executable, folder, f"error budget {error_budget.label}", time_limit, tell)
    if error:
        raise UserError(f"the error budget {error_budget.label} can't be recorded: {error}")


def draw_settings(error_budget: ErrorBudget) -> list[list[str]]:
    """The settings of a configuration for each draw of `error_budget`; a single one if all draws would be equal."""
    common = [f"dtype={error_budget.dtype}", f"strict_dtype={str(error_budget.narrow).lower()}"]
    common += [f"head_dtype={error_budget.head_dtype}", "kernel=auto", "layout=auto", "torch_compile="]
    section = options_section(error_budget.backend)
    common += [f"{section}.{key}={value}" for key, value in error_budget.options.items()]
    return [[f"backend={name}", *common] for name in error_budget.names(DRAWS)]


def write_config(trace: Trace, path: Path) -> None:
    """Writes the configuration of `trace` as YAML."""
    import yaml

    kept = {key: value for key, value in trace.header.config.items() if key not in ("backend", "use_tt")}
    steps = {"max_steps": trace.steps}
    write_text(path, yaml.safe_dump(kept | steps, sort_keys=False))


def _recorded(
    comparison: Comparison, side: Side, folder: Path, replay_from: Trace | None, tell: Tell, *more: str
) -> Trace | Missing:
    """Records the side's trace in a separate process, or says why there is none."""
    job = Job(label=side.label, sets=[*comparison.sets, *side.sets, *more], out=str(folder))
    spec = RecordSpec(
        config=comparison.config,
        jobs=[job],
        replay_from=None if replay_from is None else str(replay_from.folder),
        steps=comparison.steps,
        result=_answer_of(folder),
    )
    python = (comparison.pythons or {}).get(side.base, sys.executable)
    label = " ".join((side.label, *more))
    asked, note = _hash(spec, python, replay_from), folder.with_name(folder.name + ASKED)
    if folder.exists():
        if not note.is_file() or note.read_text(encoding="utf-8") != asked:
            raise UserError(
                f"--out {str(comparison.out)!r} has a trace of {label} with other settings, data or weights; choose "
                "another folder"
            )
        tell(f"{label}: kept from before")
        return read_trace(folder)
    error = _run(spec, python, folder, label, comparison.time_limit, tell)
    try:
        if error:
            raise UserError(error)
        write_text(note, asked)
        return read_trace(folder)
    except UserError as reason:
        return Missing(side.label, str(reason))


def _hash(spec: RecordSpec, python: str, replay_from: Trace | None) -> str:
    """A hash of everything that a trace depends on: settings, interpreter, and the files of code, data and model."""
    config = load_config(spec.config, spec.jobs[0].sets).config
    names = (config.dataset_id, config.model_name, config.tokenizer_name)
    data = [Path(name).expanduser() for name in names if name] if config.workload is None else files_of(config.workload)
    return hash_of(
        {
            "config": config.model_dump(mode="json"),
            "steps": spec.steps,
            "replayed": None if replay_from is None else replay_from.states_sha256(),
            "files": [*map(_files, data)],
            "code": [*map(_files, _code(config.backend_name.partition(":")[0]))],
            "versions": versions(),
            "python": python,
        }
    )


def _code(backend: str) -> list[Path]:
    """The folders of the code that a trace depends on: isotrain's, and those of a package that adds the backend."""
    own = [PACKAGE_ROOT / name for name in ("albert_core", "backends", "benchmarks", "kernels")]
    modules = [entry.module for entry in entry_points(group="isotrain.backends") if entry.name == backend]
    return [*own, *(place for module in modules for place in package_of(module))]


def _files(place: Path) -> list[tuple[str, int, int]]:
    """The files at a place by name, size and date, without what Python keeps there."""
    paths = [place] if place.is_file() else sorted(place.rglob("*"))
    return [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in paths
        if path.is_file() and path.parent.name != "__pycache__"
    ]


def _answer_of(folder: Path) -> str:
    """The file beside a trace for its worker's answer."""
    return str(folder.with_name(folder.name + ".answer.json"))


def _run(spec: RecordSpec, python: str, folder: Path, label: str, time_limit: float, tell: Tell) -> str:
    """Runs a worker and returns its error or an empty string. Its output stays beside its trace as a .log file."""
    make_folders(folder.parent, "--out")
    result, log = Path(spec.result), folder.with_name(folder.name + ".log")
    result.unlink(missing_ok=True)
    try:
        command = [python, *WORKER_MODULE]
        ended = run_process(command, spec, log, None, time_limit, hear=lambda line: tell(f"{label}: {line}"))
    except OSError as error:
        return f"{python} can't be started ({error.strerror}); give an interpreter by --python BACKEND=PATH"
    reason = why_ended(ended, result, time_limit)
    tell(f"{label}: {ended.seconds:.1f} s{' FAILED' if reason else ''}")
    return reason


def why_ended(ended: Ended, result: Path, time_limit: float) -> str:
    """What went wrong in a worker, in its own words if it left any; an empty string if nothing did."""
    if ended.timed_out:
        return f"took longer than the time limit of {time_limit:g} s and was ended{said(ended.log)}"
    try:
        answer = read_answer(result, Recorded)
    except FileNotFoundError:
        return f"{how(ended)}{said(ended.log)}" if ended.code else ""
    except ValueError:
        # It died while it wrote its answer.
        return f"{how(ended)} and left half an error{said(ended.log)}"
    result.unlink()
    return answer.message if isinstance(answer, Refused) else ""


def _seeds(comparison: Comparison, reference: Trace, candidates: Sequence[Trace | Missing], tell: Tell) -> Seeds:
    """Tests whether final metrics over several seeds are equivalent to the reference's.

    For every seed, a candidate's run must match the reference's. If it doesn't, or dies, the candidate fails the test
    and isn't run again.
    """
    metric = _final_metric(reference)
    first = int(reference.header.recipe["seed"])
    sides = {one.label: side for side, one in zip(comparison.candidates, candidates, strict=True)}
    traces = [one for one in candidates if isinstance(one, Trace)]
    failed = {
        one.label: f"seed {first}: {why}"
        for one in traces
        for why in [*_unfinished(one), *differences(reference, one)][:1]
    }
    finals = {one.label: [] if one.label in failed else [_final(one, metric)] for one in traces}
    exact = [_final(reference, metric)]
    for seed in range(first + 1, first + comparison.seeds):
        tested = [label for label in finals if label not in failed]
        if not tested:
            tell(f"seed {seed} and later ones: not run, for no candidate is left to compare")
            break
        folder = comparison.out / f"seed-{seed}"
        again = _recorded(comparison, comparison.reference, folder / "reference", None, tell, f"seed={seed}")
        why_not = _no_reference(again)
        if why_not or isinstance(again, Missing):
            # The verdicts of the first seed are kept.
            failed |= dict.fromkeys(tested, f"seed {seed}: the reference can't be recorded: {why_not}")
            break
        exact.append(_final(again, metric))
        for label in tested:
            run = _recorded(comparison, sides[label], folder / slug(label), None, tell, f"seed={seed}")
            wrong = [run.reason] if isinstance(run, Missing) else [*_unfinished(run), *differences(again, run)]
            if wrong:
                failed[label] = f"seed {seed}: {wrong[0]}"
            elif isinstance(run, Trace):
                finals[label].append(_final(run, metric))
    tests = [
        Equivalence(label=label, verdict=FAILED, reason=failed[label])
        if label in failed
        else equivalence(label, exact, values, comparison.margin)
        for label, values in finals.items()
    ]
    return Seeds(n=comparison.seeds, metric=metric, margin=comparison.margin, candidates=tests)


def _no_reference(reference: Trace | Missing) -> str:
    """Why a reference can't judge, or an empty string."""
    if isinstance(reference, Missing):
        return reference.reason
    try:
        check_reference(reference)
    except UserError as error:
        return str(error)
    return ""


def _unfinished(trace: Trace) -> list[str]:
    """Why a run has no final metric; empty if it has one."""
    ended = trace.header.ended
    return [] if ended is None else [f"training could not continue beyond step {ended.step} ({ended.reason})"]


def _final_metric(trace: Trace) -> str:
    """Accuracy, or what the task has instead."""
    names = trace.header.metrics[-1].figures
    return next(name for name in ("f1_micro", "accuracy", "f1", "pearsonr", "loss") if name in names)


def _final(trace: Trace, metric: str) -> float:
    return trace.header.metrics[-1].figures[metric]
