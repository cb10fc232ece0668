"""`isotrain bench --workload end_to_end`: a whole training run from the shell, beside the experiment's loop.

Our run is measured whole, from start to end of a fresh process ``isotrain train banking77`` with an empty cache folder:
tokenising, features, every step, one evaluation per epoch. The experiment's loop would take hours for the same work.
Some of its steps and validation batches are timed in a fresh process and extrapolated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ... import UserError
from ...albert_core.config.load import as_set
from ...albert_core.config.parsing import read_json
from ...albert_core.processes.signals import interrupted_by_signals
from ...albert_core.runs.files import scratch_folder
from ...backends import EIGHT_BIT, caveat
from ...kernels.words import count
from ..baselines import refuse_race
from ..bench import FAILED, INTERRUPTED, Outcome, exit_code
from ..harness import environment
from ..harness.answer import read_answer
from ..harness.document import Refused
from ..harness.extrapolate import EPOCHS, total_interval, total_ratio
from ..harness.plan import (
    COMMON_KEYS,
    EMBEDDED_LENGTHS,
    END_TO_END,
    Options,
    check_values,
    hash_of,
)
from ..harness.runner import Ended, how, run_process, said
from ..harness.turns import interleaved
from ..outcome.build import backend_notes, result_path, write_result
from ..outcome.end_to_end import END_TO_END as SCHEMA
from ..outcome.end_to_end import (
    METRICS,
    Counted,
    EndToEnd,
    EndToEndConfig,
    EndToEndMethod,
    RunMemory,
    Side,
    TimedLoop,
    TimedOf,
    WholeProcess,
)
from ..outcome.model import Environment
from .figures import with_figures
from .specs import CountSpec, LoopSpec

OWN = "isotrain train"
RUN = Path("runs/end-to-end")
BATCH_SIZE, LEARNING_RATE = 8, 1e-3
# The steps and validation batches of the experiment that each process times.
LEAST_STEPS, LEAST_VALIDATION = 50, 20
# On a slow machine, our end-to-end run takes longer than a target of the other workloads.
TIME_LIMIT = 6 * 3600.0

TRAIN = (sys.executable, "-m", "isotrain.benchmarks.end_to_end.peak_memory")
LOOP = (sys.executable, "-m", "isotrain.benchmarks.end_to_end.blacksmith_loop")
COUNT = (sys.executable, "-m", "isotrain.benchmarks.end_to_end.work")

Said = Callable[[str], None]


@dataclass
class _Side:
    """One row of the comparison: its results so far, why it is invalid, and the folder of its last process."""

    name: str
    padding: str = ""
    documents: list[WholeProcess | TimedLoop] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    last: Path | None = None

    @property
    def extrapolated(self) -> bool:
        return bool(self.padding)


def run_end_to_end(
    options: Options, *, out: Path | None = None, write: bool = True, tell: Said = lambda _: None
) -> Outcome:
    """Measures our run, and with `options.vs` also the experiment's loop. An interruption keeps complete processes.

    Raises:
        UserError: The options can't be used, or our run refuses its input.
    """
    check(options)
    path = result_path(out, datetime.now(UTC)) if write else None
    backend = options.backends[0]
    said = caveat(backend)
    sides = [_Side(f"{OWN} on {said}" if said else OWN)]
    if options.vs:
        sides += [_Side("experiment-dynamic", "dynamic"), _Side("experiment-padded", "padded")]
    machine = environment.describe()
    interrupted = False
    import_bytes: list[int] = []
    counted: Counted | None = None
    order = interleaved(len(sides), options.processes, options.seed)
    try:
        with scratch_folder("isotrain-end-to-end") as folder, interrupted_by_signals():
            import_bytes.append(_import_torch(options, folder))
            for place, (index, process) in enumerate(order, start=1):
                side = sides[index]
                if side.reasons:
                    continue
                tell(f"[{place}/{len(order)}] {side.name}, process {process + 1} of {options.processes}")
                scratch = folder / f"{index}-{process}"
                scratch.mkdir()
                (_train if not side.extrapolated else _loop)(options, side, scratch)
            if sides[0].last is not None:
                tell("counting the work, measuring the device's peaks")
                counted = _count(options, sides, sides[0].last)
    except KeyboardInterrupt:
        interrupted = True
    if not any(side.documents for side in sides):
        return Outcome(None, None, INTERRUPTED if interrupted else FAILED)
    result = _result(options, sides, import_bytes, counted, machine, interrupted)
    if path is not None:
        write_result(result, path)
    return Outcome(result, path, exit_code(result))


def check(options: Options) -> None:
    """Checks the options of this workload.

    Raises:
        UserError: The workload can't use them.
    """
    check_values(options)
    if options.dataset == EMBEDDED_LENGTHS:
        raise UserError(
            f"--workload {END_TO_END} trains on texts, and {EMBEDDED_LENGTHS} has none; give --dataset: a folder with "
            "train and test files, a Hub id, or embedded:intents"
        )
    if max(map(len, (options.backends, options.kernels, options.dtypes))) > 1:
        raise UserError(
            f"--workload {END_TO_END} runs one backend, kernel and dtype; give --backend, --kernel and --dtype once"
        )
    if options.vs and options.dtype in EIGHT_BIT:
        raise UserError(f"--dtype {options.dtype} is ours alone: tt-blacksmith's loop has no such products; drop --vs")
    if options.vs:
        refuse_race(*options.backends)


def training_arguments(options: Options, folder: Path) -> list[str]:
    """The arguments of our run after ``isotrain``, with the packaged configuration of the experiment."""
    values: dict[str, Any] = {
        "dataset_id": _absolute(options.dataset),
        "model_name": _absolute(options.model),
        "dtype": options.dtype,
        "strict_dtype": options.strict_dtype,
        "max_length": options.max_length,
        "batch_size": BATCH_SIZE,
        "num_epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "mlp_hidden_size": options.mlp_hidden_size,
        "num_labels": "",
        "kernel": options.kernels[0],
        "seed": options.seed,
        "project_dir": str(folder / RUN.parent),
        "run_name": RUN.name,
    }
    if options.tokenizer is not None:
        values["tokenizer_name"] = _absolute(options.tokenizer)
    if options.threads is not None:
        values["threads"] = options.threads
    for backend, section in options.backend_options.items():
        values |= {f"{backend}.{key}": value for key, value in section.items()}
    sets = [part for key, value in values.items() for part in ("--set", as_set(key, value))]
    return ["train", "banking77", "--backend", options.backends[0], *sets]


def _absolute(name: str) -> str:
    """`name` as an absolute path if it exists, else unchanged (a Hub id, random:tiny)."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _train(options: Options, side: _Side, folder: Path) -> None:
    """Runs our training once, with empty caches."""
    memory = folder / "peak"
    command = [*TRAIN, str(memory), *training_arguments(options, folder)]
    ended = run_process(
        command, None, folder / "log", options.threads, TIME_LIMIT, {"ISOTRAIN_CACHE": str(folder / "cache")}
    )
    summary = folder / RUN / "summary.json"
    if ended.code == 2:
        raise UserError(_last_error(ended))
    if ended.code != 0 or ended.timed_out or not summary.is_file():
        side.reasons.append(_death(ended))
        return
    ended_run = read_json(summary, "run it again")
    process = WholeProcess.model_validate(
        ended_run
        | {
            "seconds": ended.seconds,
            "peak_bytes": int(memory.read_text(encoding="utf-8")),
            # As the user gave it. The run got an absolute path, which is valid only on this machine.
            "dataset": options.dataset,
            "metrics": {key: ended_run[key] for key in METRICS},
        }
    )
    side.documents.append(process)
    side.last = folder
    if process.status != "completed":
        side.reasons.append(f"a run ended {process.status}")


def _loop(options: Options, side: _Side, folder: Path) -> None:
    """Times some steps and validation batches of the experiment's loop."""
    result = folder / "result.json"
    spec = LoopSpec(
        backend=options.backends[0],
        model=_absolute(options.model),
        dataset=_absolute(options.dataset),
        tokenizer=None if options.tokenizer is None else _absolute(options.tokenizer),
        dtype=options.dtype,
        max_length=options.max_length,
        padding=side.padding,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        mlp_hidden_size=options.mlp_hidden_size,
        seed=options.seed,
        threads=options.threads,
        steps=LEAST_STEPS,
        validation_batches=LEAST_VALIDATION,
        result=str(result),
    )
    ended = run_process(LOOP, spec, folder / "log", options.threads, TIME_LIMIT)
    if not result.is_file():
        side.reasons.append(_death(ended))
        return
    document = read_answer(result, TimedLoop)
    if isinstance(document, Refused):
        side.reasons.append(document.message)
        return
    side.documents.append(document)
    if not document.finite:
        side.reasons.append("its loss became NaN or infinite")


def _count(options: Options, sides: Sequence[_Side], folder: Path) -> Counted | None:
    """What `count` finds for the run in `folder` and for the loops. If it fails, None, and our side gets a reason."""
    result = folder / "work.json"
    loops = [[one for one in side.documents if isinstance(one, TimedLoop)] for side in sides]
    spec = CountSpec(
        run=str(folder / RUN),
        loops=[timed for timed in loops if timed],
        dtype=options.dtype,
        threads=options.threads,
        result=str(result),
    )
    cache = {"ISOTRAIN_CACHE": str(folder / "cache")}
    ended = run_process(COUNT, spec, folder / "count.log", options.threads, TIME_LIMIT, cache)
    counted = read_answer(result, Counted) if result.is_file() else Refused(message=_death(ended))
    if isinstance(counted, Refused):
        sides[0].reasons.append(f"its work could not be counted: {counted.message}")
        return None
    return counted


def _import_torch(options: Options, folder: Path) -> int:
    """Peak bytes of a process that only imports torch."""
    file = folder / "import"
    ended = run_process([*TRAIN, str(file), "import", "torch"], None, folder / "import.log", options.threads, 600.0)
    if ended.code != 0:
        raise UserError(f"a process that imports torch {_death(ended)}")
    return int(file.read_text(encoding="utf-8"))


def _death(ended: Ended) -> str:
    return f"{'outlasted its time limit' if ended.timed_out else how(ended)}{said(ended.log)}"


def _last_error(ended: Ended) -> str:
    lines = ended.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    marked = [line.partition("isotrain: error: ")[2] for line in lines if line.startswith("isotrain: error: ")]
    return marked[-1] if marked else (lines[-1] if lines else "the training run refused its input")


def _result(
    options: Options,
    sides: Sequence[_Side],
    import_bytes: Sequence[int],
    counted: Counted | None,
    machine: dict[str, Any],
    interrupted: bool,
) -> EndToEnd:
    config = options.config(COMMON_KEYS) | {
        "backend": options.backends[0],
        "kernel": options.kernels[0],
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "mlp_hidden_size": options.mlp_hidden_size,
    }
    judged = [_side(side, sides[0], options) for side in sides]
    if counted is not None:
        judged = with_figures(judged, counted, options.seed)
    failed = any(side.reasons and not side.documents for side in sides)
    return EndToEnd(
        schema=SCHEMA,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="partial" if interrupted else "failed" if failed else "complete",
        valid=all(side.valid for side in judged),
        notes=_notes(options, sides, counted),
        command=environment.command_line(),
        config=EndToEndConfig(**config),
        config_sha256=hash_of(config),
        method=EndToEndMethod(
            processes=options.processes, quick=options.quick, steps=LEAST_STEPS, validation_batches=LEAST_VALIDATION
        ),
        environment=Environment.model_validate(machine),
        sides=judged,
        device=None if counted is None else counted.device,
        policy=None if counted is None else counted.policy,
        kernel=None if counted is None else counted.kernel,
        peaks=None if counted is None else counted.peaks,
        memory=_memory(sides[0], import_bytes),
    )


def _memory(own: _Side, import_bytes: Sequence[int]) -> RunMemory | None:
    if not own.documents:
        return None
    peak = max(document.peak_bytes for document in own.documents)
    return RunMemory(
        peak_bytes=peak,
        import_torch_bytes=import_bytes[0],
        above_import_bytes=peak - import_bytes[0],
        scope="most resident memory of the process",
    )


def _side(side: _Side, own: _Side, options: Options) -> Side:
    """A side without the figures of its work."""
    found: dict[str, Any] = {}
    sampled = [document.sampled for document in side.documents]
    if sampled:
        found["seconds"] = total_interval(sampled, options.seed)
    timed = [document for document in side.documents if isinstance(document, TimedLoop)]
    if timed:
        found["timed_of"] = TimedOf(
            steps=sum(len(document.steps) for document in timed),
            of_steps=EPOCHS * timed[0].steps_per_epoch,
            validation_batches=sum(len(document.validation) for document in timed),
            of_validation_batches=EPOCHS * timed[0].validation_batches_per_epoch,
        )
        if own.documents:
            found["ratio"] = total_ratio(sampled, [document.sampled for document in own.documents], options.seed)
    return Side(
        name=side.name,
        extrapolated=side.extrapolated,
        valid=bool(sampled) and not side.reasons,
        reasons=list(side.reasons) or ([] if sampled else ["no process of it was complete"]),
        warnings=[],
        processes=list(side.documents),
        **found,
    )


def _notes(options: Options, sides: Sequence[_Side], counted: Counted | None) -> list[str]:
    notes = backend_notes(options.backends[:1])
    if any(side.extrapolated for side in sides):
        notes.append(
            "the experiment's loop is re-created as published and does the same work as ours: one evaluation an epoch, "
            "not one every ten steps; checkpoints and trackers are left out of it"
        )
    if counted is None:
        notes.append("the work was not counted: there are seconds, and no rates")
    if options.processes < 3:
        processes = count(options.processes, "process")
        notes.append(f"{processes} a side: intervals don't cover what differs between processes")
    return notes
