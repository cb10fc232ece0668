"""What a benchmark run measures, and in which order: options, targets and the schedule. Imports no torch.

Rules 7 and 9: every target runs in several fresh processes, interleaved in random order, and the configuration is
hashed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from ... import UserError
from ...albert_core.config.workload_name import check_workload_name, short_name
from ...albert_core.data.datasets import check_dataset_name
from ...albert_core.model.names import check_model_name, model_source
from ...albert_core.terminal.text import duration
from ...albert_core.tokens.tokenizer import check_tokenizer_name
from ...backends import backend_traits, caveat, list_backends
from ...backends.host.processor import usable_cores
from ...backends.types import COMPILED_LAYOUTS, DTYPES, EIGHT_BIT, LAYOUTS, PADDED_KERNELS
from ...kernels.names import check_name, check_range
from ...kernels.words import count
from ..baselines import Shape, check_comparison, chosen_baselines, not_installed, with_dtypes, workload_of
from .turns import interleaved

WORKLOADS = ("forward", "train_step", "head_step", "full_step")
# Those of a module of the user's own.
MODULE_WORKLOADS = ("forward", "full_step")
# A whole training run. It can't be combined with other workloads.
END_TO_END = "end_to_end"
DEFAULT_WORKLOADS = ("forward", "train_step")
# The layout of a step on cached features, which has no tokens.
CACHED = "cached"
# The layout of a module's own batches.
OWN = "own"
EMBEDDED_LENGTHS = "banking77-lengths"

QUICK_PROCESSES, QUICK_BLOCKS, QUICK_SECONDS = 1, 3, 3.0
# A comparison has more targets, and its smoke run should take less than three minutes.
QUICK_BASELINE_SECONDS = 1.5
QUICK_LEAST_BLOCKS = 2
FULL_PROCESSES, FULL_BLOCKS, FULL_SECONDS = 3, 9, 10.0
# Two checkouts take turns in many short blocks: most disturbances are longer than one. What differs between processes
# (their memory's layout) decides the interval, and of three pairs it is more than twice as wide as of six.
PAIRED_PROCESSES, PAIRED_BLOCKS, PAIRED_SECONDS = 6, 20, 5.0
# Texts of a comparison with baselines, and the number of static shapes for compilers; see `texts.static_cells`.
BASELINE_TEXTS, QUICK_BASELINE_TEXTS = 512, 32
STATIC_SHAPES, QUICK_STATIC_SHAPES = 4, 2
# The batch sizes that a sweep of this project's kernels tries.
OWN_SIZES = (128, 32, 512)
# For the estimate before a run: a sweep of a baseline's shapes; what a process does before its warm-up, mostly imports;
# and the peaks of a backend.
SWEEP_SECONDS, START_SECONDS, PEAKS_SECONDS = 30.0, 5.0, 5.0
# The options that every configuration of a measurement has.
MODULE_KEYS = ("model", "dtype", "strict_dtype", "threads", "seed", "batches")
COMMON_KEYS = ("model", "dtype", "strict_dtype", "max_length", "threads", "dataset", "tokenizer", "seed")


@dataclass(frozen=True)
class Options:
    """Everything that can be chosen: what is measured (`config`), and how thoroughly (`method`).

    Attributes:
        batch_sizes: With `vs`, the sizes that a sweep tries instead of the default ones.
        dtypes: If there are several, each target has one of them.
        batches: The number of different batches that every target cycles through.
        mlp_hidden_size, num_labels: Those of the Banking77 head.
        module: Whether `model` is a workload of the user's own, as FILE.py:NAME, instead of an encoder.
        profile: Steps that each target's first process profiles after its blocks, with traces in the folder `traces`.
        vs: Baselines to compare with. Every target then runs the same `texts` texts.
        backend_options: As in a configuration, by section.
        torch_compile: The mode of torch.compile for the training step of the whole model.
    """

    backends: tuple[str, ...] = ("cpu",)
    model: str = "random:albert-base-v2"
    module: bool = False
    workloads: tuple[str, ...] = DEFAULT_WORKLOADS
    layouts: tuple[str, ...] = LAYOUTS
    kernels: tuple[str, ...] = ("auto",)
    batch_sizes: tuple[int, ...] = (8,)
    dtypes: tuple[str, ...] = ("bfloat16",)
    strict_dtype: bool = False
    max_length: int = 128
    threads: int | None = None
    dataset: str = EMBEDDED_LENGTHS
    tokenizer: str | None = None
    seed: int = 23
    batches: int = 4
    mlp_hidden_size: int = 256
    num_labels: int = 77
    vs: tuple[str, ...] = ()
    texts: int | None = None
    static_shapes: int = STATIC_SHAPES
    processes: int = FULL_PROCESSES
    blocks: int = FULL_BLOCKS
    seconds: float = FULL_SECONDS
    quick: bool = False
    profile: int = 0
    traces: str = ""
    time_limit: float = 900.0
    backend_options: dict[str, Any] = field(default_factory=dict)
    torch_compile: str | None = None

    @property
    def dtype(self) -> str:
        """The dtype of the run, or all of them."""
        return ", ".join(self.dtypes)

    @property
    def target_dtypes(self) -> tuple[str, ...]:
        """The dtypes as targets name them: not at all if all targets have the same."""
        return self.dtypes if len(self.dtypes) > 1 else ("",)

    @property
    def least_blocks(self) -> int:
        """Timed blocks that a process runs even if its steps are slow: all of them, except in a smoke run."""
        return min(self.blocks, QUICK_LEAST_BLOCKS) if self.quick and self.processes == 1 else self.blocks

    def config(
        self, keys: Sequence[str] = (*COMMON_KEYS, "batches", "mlp_hidden_size", "num_labels", "texts", "static_shapes")
    ) -> dict[str, Any]:
        """What is measured. Results are comparable only if it is equal (apart from the targets' own keys)."""
        given = {"backend_options": self.backend_options} if self.backend_options else {}
        return {key: getattr(self, key) for key in (MODULE_KEYS if self.module else keys)} | given

    def method(self) -> dict[str, Any]:
        """How thoroughly it is measured."""
        return {key: getattr(self, key) for key in ("processes", "blocks", "seconds", "quick", "time_limit")}


@dataclass(frozen=True)
class TargetSpec:
    """One thing to measure: a kernel of a backend, the baseline `kernel`, or the workload `kernel` of `module`.

    `dtype` is empty if all targets of the run have the same.
    """

    backend: str
    workload: str
    layout: str
    kernel: str
    batch_size: int
    baseline: bool = False
    emulated: bool = False
    module: str = ""
    torch_compile: str = ""
    dtype: str = ""

    @property
    def label(self) -> str:
        kernel = f"{self.kernel} {self.dtype}" if self.dtype else self.kernel
        if self.module:
            return f"{self.backend} {self.workload} {kernel}"
        mode = f" torch.compile {self.torch_compile}" if self.torch_compile else ""
        return f"{self.backend} {self.workload} {self.layout} {kernel}{mode} x{self.batch_size}"

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value != ""}


@dataclass(frozen=True)
class Plan:
    """The targets and their schedule.

    Attributes:
        order: (target index, process index) of every process.
        skipped: What was left out, and why.
        candidates: By target, the shapes that a sweep chooses from before the measurement.
        unavailable: By target, why it can't run here. It then has no process.
        paired: Each process is a pair of them, one of each checkout, that alternate block by block.
    """

    options: Options
    targets: tuple[TargetSpec, ...]
    order: tuple[tuple[int, int], ...]
    skipped: tuple[str, ...] = ()
    candidates: Mapping[int, tuple[TargetSpec, ...]] = field(default_factory=dict)
    unavailable: Mapping[int, str] = field(default_factory=dict)
    paired: bool = False

    @property
    def least_seconds(self) -> float:
        """The duration of the run if every block fits its budget. Slow steps make it longer."""
        sides = 2 if self.paired else 1
        per_process = (START_SECONDS + 2.0 * self.options.seconds) * sides
        peaks = len(self.options.backends) * PEAKS_SECONDS
        return len(self.order) * per_process + peaks + len(self.candidates) * (START_SECONDS + SWEEP_SECONDS)

    @property
    def outlook(self) -> str:
        """How long the run takes, and what of it is not measuring."""
        one_of, both = ("pair", "of both ") if self.paired else ("process", "")
        each = f"{count(self.options.blocks, 'block')} {both}in about {self.options.seconds:g} s"
        return (
            f"{count(len(self.order), one_of)}, each {each} after about {START_SECONDS:g} s of start-up and a warm-up, "
            f"and once a backend about {PEAKS_SECONDS:g} s for its peaks: "
            f"about {duration(self.least_seconds)}, longer where a step takes longer than its share"
        )

    @property
    def processes(self) -> int:
        """The number of processes, including sweeps."""
        return len(self.order) + len(self.candidates)

    def settled(self, target: int, spec: TargetSpec) -> Plan:
        """This plan with the shape that a sweep chose for a target."""
        targets = tuple(spec if index == target else one for index, one in enumerate(self.targets))
        return replace(self, targets=targets)

    def without(self, target: int, reason: str) -> Plan:
        """This plan with a target that can't run."""
        order = tuple(pair for pair in self.order if pair[0] != target)
        return replace(self, order=order, unavailable={**self.unavailable, target: reason})


def make_plan(options: Options) -> Plan:
    """Checks `options` and lists the targets and their schedule.

    Raises:
        UserError: An option isn't allowed, or nothing is left to measure.
    """
    check_values(options)
    if END_TO_END in options.workloads:
        raise UserError(f"--workload {END_TO_END} has results of its own kind; give it without other workloads")
    if options.vs:
        check_comparison(options.vs, options.backends, options.workloads, options.batch_sizes, bool(options.profile))
    if options.vs and options.workloads == ("forward",):
        return _forward_plan(options)
    targets, skipped = [], []
    for spec in _combinations(options):
        if reason := _unfit(spec):
            skipped.append(f"{spec.label}: {reason}")
        else:
            targets.append(spec)
    if not targets:
        raise UserError(f"nothing is left to measure: {skipped[0]}; add --layout padded or bucketed")
    baselines = with_dtypes(chosen_baselines(options.vs, "full_step"), options.target_dtypes)
    missing = not_installed(baselines, len(targets))
    targets += [
        TargetSpec(options.backends[0], "full_step", "dynamic", one.name, options.batch_sizes[0], True, dtype=dtype)
        for one, dtype in baselines
    ]
    return _planned(options, targets, missing, skipped=tuple(skipped))


def _planned(options: Options, targets: Sequence[TargetSpec], missing: Mapping[int, str], **others: Any) -> Plan:
    """The plan of the targets. Those in `missing` can't run."""
    order = interleaved(len(targets), options.processes, options.seed)
    runs = tuple(pair for pair in order if pair[0] not in missing)
    return Plan(options, tuple(targets), runs, unavailable=missing, **others)


def _unfit(spec: TargetSpec) -> str:
    """Why a target can't have its layout, or an empty string."""
    if spec.layout == "packed" and spec.kernel in PADDED_KERNELS and spec.workload != "full_step":
        return f"{spec.kernel} takes padded batches only"
    compiler = "torch.compile" if spec.torch_compile else spec.backend
    layouts = COMPILED_LAYOUTS if spec.torch_compile else backend_traits(spec.backend).layouts
    if spec.layout not in (*layouts, CACHED, OWN):
        return f"{compiler} makes a program for each shape, and {spec.layout} batches have many"
    return ""


def _combinations(options: Options) -> Iterator[TargetSpec]:
    """Every target that the options name. A head step has neither layout nor encoder kernel."""
    for backend, workload in product(options.backends, options.workloads):
        emulated = bool(caveat(backend))
        if options.module:
            own = TargetSpec(backend, workload, OWN, short_name(options.model), 0, False, emulated, options.model)
            yield from (replace(own, dtype=dtype) for dtype in options.target_dtypes)
            continue
        layouts = (CACHED,) if workload == "head_step" else options.layouts
        mode = (options.torch_compile or "") if workload == "full_step" else ""
        for layout in layouts:
            trained = backend_traits(backend).training_kernels(layout, options.kernels)
            kernels = {"head_step": ("auto",), "full_step": trained}.get(workload, options.kernels)
            for kernel, size, dtype in product(kernels, options.batch_sizes, options.target_dtypes):
                yield TargetSpec(backend, workload, layout, kernel, size, False, emulated, "", mode, dtype)


def _forward_plan(options: Options) -> Plan:
    """This project's kernels, then the baselines: all on the same texts, each in the shape that suits it best."""
    backend = options.backends[0]

    def specs(kernel: str, dtype: str, shapes: Sequence[Shape], is_baseline: bool) -> tuple[TargetSpec, ...]:
        first = TargetSpec(backend, "forward", "", kernel, 0, is_baseline, dtype=dtype)
        return tuple(replace(first, layout=layout, batch_size=size) for layout, size in shapes)

    # Sizes beyond the number of texts would all give the same batch.
    most = options.texts or 1
    sizes = tuple(dict.fromkeys(min(size, most) for size in options.batch_sizes or OWN_SIZES))
    choices = [
        specs(kernel, dtype, [("bucketed" if kernel in PADDED_KERNELS else "packed", size) for size in sizes], False)
        for kernel, dtype in product(options.kernels, options.target_dtypes)
    ]
    baselines = with_dtypes(chosen_baselines(options.vs), options.target_dtypes)
    missing = not_installed(baselines, len(choices))
    choices += [specs(one.name, dtype, one.choices(options.batch_sizes), True) for one, dtype in baselines]
    swept = {index: shapes for index, shapes in enumerate(choices) if len(shapes) > 1 and index not in missing}
    return _planned(options, [shapes[0] for shapes in choices], missing, candidates={} if options.quick else swept)


def with_quick(options: Options) -> Options:
    """`options` for a smoke run: one process with few short blocks."""
    quick = replace(options, processes=QUICK_PROCESSES, blocks=QUICK_BLOCKS, seconds=QUICK_SECONDS, quick=True)
    if not options.vs:
        return quick
    return replace(quick, seconds=QUICK_BASELINE_SECONDS, texts=QUICK_BASELINE_TEXTS, static_shapes=QUICK_STATIC_SHAPES)


def with_baselines(options: Options, names: Sequence[str]) -> Options:
    """`options` for a comparison with these baselines. Raises UserError if a name is unknown."""
    by_default = options.workloads == DEFAULT_WORKLOADS
    workloads = tuple(dict.fromkeys(map(workload_of, names))) if by_default else options.workloads
    options = replace(options, vs=tuple(names), workloads=workloads)
    if "full_step" in workloads:
        # A step on other batches is another training, so there is no best size to look for.
        return replace(options, batch_sizes=options.batch_sizes or (8,))
    return replace(options, texts=options.texts or BASELINE_TEXTS)


def hash_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_values(options: Options) -> None:
    """Checks names and numbers before any process is started.

    Raises:
        UserError: A name doesn't exist, or a number is out of range.
    """
    for flag, values, allowed in (
        ("--workload", options.workloads, MODULE_WORKLOADS if options.module else (*WORKLOADS, END_TO_END)),
        ("--layout", options.layouts, LAYOUTS),
        ("--dtype", options.dtypes, (*DTYPES, *EIGHT_BIT)),
        ("--backend", [name.partition(":")[0] for name in options.backends], list_backends()),
    ):
        for value in values:
            check_name(flag, value, allowed)
    for backend, kernel in product(options.backends, options.kernels):
        backend_traits(backend).check_kernel("--kernel", kernel, backend)
    for backend in options.backends if options.torch_compile is not None else ():
        if "full_step" not in options.workloads or options.module:
            raise UserError("--torch-compile is for --workload full_step of --model; give that, or --kernel compile")
        backend_traits(backend).check_compile_mode("--torch-compile", options.torch_compile or "", backend)
    for flag, given in (
        ("--workload", options.workloads),
        ("--layout", options.layouts),
        ("--batch-size", options.batch_sizes),
        ("--backend", options.backends),
        ("--kernel", options.kernels),
        ("--dtype", options.dtypes),
    ):
        if len(set(given)) != len(given):
            raise UserError(f"{flag} is given {', '.join(map(str, given))}; give each value once")
    _check_inputs(options)
    check_range("--max-length", options.max_length, 2, 512)
    check_range("--processes", options.processes, 1, 100)
    check_range("--blocks", options.blocks, 1, 10_000)
    check_range("--seconds", options.seconds, 0.01, 3600)
    check_range("--seed", options.seed, 0, 2**63 - 1)
    if options.texts is not None:
        check_range("--texts", options.texts, 1, 1_000_000)
    for size in options.batch_sizes:
        check_range("--batch-size", size, 1, 65_536)
    if options.threads is not None:
        check_range("--threads", options.threads, 1, usable_cores(), "the CPUs this process may use")


def _check_inputs(options: Options) -> None:
    """Raises UserError, in the words of the options, if a model, data set or tokenizer can't exist by its name."""
    if options.module:
        check_workload_name(options.model)
        return
    with _called("model_name", "--model"):
        check_model_name(options.model)
    if options.dataset != EMBEDDED_LENGTHS:
        with _called("dataset_id", "--dataset"):
            check_dataset_name(options.dataset)
    if options.tokenizer is not None:
        with _called("tokenizer", "--tokenizer"):
            check_tokenizer_name(options.tokenizer, model_source(options.model))


@contextmanager
def _called(key: str, flag: str) -> Iterator[None]:
    """Replaces the configuration's key at the beginning of an error with the option of this command."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(rf"^{key}(_name)?\b", flag, str(error))) from error
