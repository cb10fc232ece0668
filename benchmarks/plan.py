"""What a benchmark run measures, and in which order: options, targets and the schedule. Imports no torch.

Rules 7 and 9: every target in several fresh processes, interleaved in random order, under a hashed configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from .. import UserError
from ..backends import DTYPES, LAYOUTS, backend_layouts, list_backends

WORKLOADS = ("forward", "train_step")
KERNELS = ("auto", "portable", "transformers")
EMBEDDED_LENGTHS = "banking77-lengths"

QUICK_PROCESSES, QUICK_BLOCKS, QUICK_SECONDS = 1, 3, 3.0
QUICK_LEAST_BLOCKS = 2
FULL_PROCESSES, FULL_BLOCKS, FULL_SECONDS = 3, 9, 10.0
# Importing torch and transformers, building a model, warming up and measuring the peaks: what a process costs beside
# its timed blocks, for the estimate of --dry-run alone.
OVERHEAD_SECONDS = 12.0


@dataclass(frozen=True)
class Options:
    """Everything that can be chosen. `config` is the part that decides what is measured, the rest how thoroughly.

    mlp_hidden_size and num_labels are those of the Banking77 head; `batches` is the length of the list of different
    batches that every target cycles through. `backend_options`: what a configuration says to backends, by name.
    """

    backends: tuple[str, ...] = ("cpu",)
    model: str = "random:albert-base-v2"
    workloads: tuple[str, ...] = WORKLOADS
    layouts: tuple[str, ...] = LAYOUTS
    kernels: tuple[str, ...] = ("auto",)
    batch_sizes: tuple[int, ...] = (8,)
    dtype: str = "bfloat16"
    strict_dtype: bool = False
    max_length: int = 128
    threads: int | None = None
    dataset: str = EMBEDDED_LENGTHS
    seed: int = 23
    batches: int = 4
    mlp_hidden_size: int = 256
    num_labels: int = 77
    processes: int = FULL_PROCESSES
    blocks: int = FULL_BLOCKS
    seconds: float = FULL_SECONDS
    quick: bool = False
    time_limit: float = 900.0
    backend_options: dict[str, Any] = field(default_factory=dict)

    @property
    def least_blocks(self) -> int:
        """Timed blocks that a process runs however slow its steps are: all of them, unless it is a quick look."""
        return min(self.blocks, QUICK_LEAST_BLOCKS) if self.quick and self.processes == 1 else self.blocks

    def config(self) -> dict[str, Any]:
        """What is measured: results are comparable only where these agree (apart from the targets' own keys)."""
        keys = (
            "model",
            "dtype",
            "strict_dtype",
            "max_length",
            "threads",
            "dataset",
            "seed",
            "batches",
            "mlp_hidden_size",
            "num_labels",
        )
        told = {"backend_options": self.backend_options} if self.backend_options else {}
        return {key: getattr(self, key) for key in keys} | told

    def method(self) -> dict[str, Any]:
        """How thoroughly it is measured."""
        return {key: getattr(self, key) for key in ("processes", "blocks", "seconds", "quick", "time_limit")}


@dataclass(frozen=True)
class TargetSpec:
    """One thing to measure."""

    backend: str
    workload: str
    layout: str
    kernel: str
    batch_size: int

    @property
    def label(self) -> str:
        return f"{self.backend} {self.workload} {self.layout} {self.kernel} x{self.batch_size}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """The targets, the order of their processes as (target index, process index), and what was left out and why."""

    options: Options
    targets: tuple[TargetSpec, ...]
    order: tuple[tuple[int, int], ...]
    skipped: tuple[str, ...] = ()

    @property
    def least_seconds(self) -> float:
        """The run's length where every block fits its budget; slow steps make it longer."""
        per_process = OVERHEAD_SECONDS + 2.0 * self.options.seconds
        return len(self.order) * per_process


def make_plan(options: Options) -> Plan:
    """Checks `options` and lists the targets and their schedule. Raises UserError for anything not allowed."""
    _check(options)
    targets, skipped = [], []
    for backend, workload, layout, kernel, size in product(
        options.backends, options.workloads, options.layouts, options.kernels, options.batch_sizes
    ):
        spec = TargetSpec(backend, workload, layout, kernel, size)
        if kernel == "transformers" and layout == "packed":
            skipped.append(f"{spec.label}: transformers takes padded batches only")
        elif layout not in backend_layouts(backend):
            skipped.append(f"{spec.label}: {backend} compiles a program for each shape, and packed batches repeat none")
        else:
            targets.append(spec)
    if not targets:
        raise UserError(f"nothing is left to measure ({skipped[0]}); add --layout padded or bucketed")
    order = interleaved(len(targets), options.processes, options.seed)
    return Plan(options, tuple(targets), tuple(order), tuple(skipped))


def interleaved(targets: int, processes: int, seed: int) -> list[tuple[int, int]]:
    """(target, process) in rounds: a random order of all targets, then that order reversed, then the next random one.

    A B B A: a machine that grows slower (or faster) steadily during two rounds touches all targets alike.
    """
    generator = random.Random(seed)
    order: list[tuple[int, int]] = []
    current: list[int] = []
    for process in range(processes):
        if process % 2 == 0:
            current = list(range(targets))
            generator.shuffle(current)
        else:
            current = current[::-1]
        order.extend((target, process) for target in current)
    return order


def with_quick(options: Options) -> Options:
    """`options` as a demonstration: one process, few short blocks; its intervals are within that process."""
    return replace(options, processes=QUICK_PROCESSES, blocks=QUICK_BLOCKS, seconds=QUICK_SECONDS, quick=True)


def hash_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(options: Options) -> None:
    for flag, values, allowed in (
        ("--workload", options.workloads, WORKLOADS),
        ("--layout", options.layouts, LAYOUTS),
        ("--kernel", options.kernels, KERNELS),
        ("--dtype", (options.dtype,), DTYPES),
        ("--backend", [name.partition(":")[0] for name in options.backends], list_backends()),
    ):
        _check_names(flag, values, allowed)
    for flag, sizes in (("--batch-size", options.batch_sizes), ("--backend", options.backends)):
        if len(set(sizes)) != len(sizes):
            raise UserError(f"{flag} is given {', '.join(map(str, sizes))}; give each value once")
    _check_range("--max-length", options.max_length, 2, 512)
    _check_range("--processes", options.processes, 1, 100)
    _check_range("--blocks", options.blocks, 1, 10_000)
    _check_range("--seconds", options.seconds, 0.01, 3600)
    _check_range("--seed", options.seed, 0, 2**63 - 1)
    for size in options.batch_sizes:
        _check_range("--batch-size", size, 1, 65_536)
    if options.threads is not None:
        _check_range("--threads", options.threads, 1, available_cpus(), "the CPUs this process may use")


def _check_names(flag: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    for value in values:
        if value not in allowed:
            raise UserError(f"{flag} {value!r} does not exist; allowed are {', '.join(allowed)}")
    if len(set(values)) != len(values) and flag != "--backend":
        raise UserError(f"{flag} is given {', '.join(values)}; give each value once")
    if not values:
        raise UserError(f"{flag} needs at least one value; allowed are {', '.join(allowed)}")


def _check_range(flag: str, value: float, least: float, most: float, why: str = "") -> None:
    # `not (a <= b)` rather than `a > b`: NaN must fail too.
    if not least <= value <= most:
        raise UserError(f"{flag} {value} is out of range; allowed is {least} to {most}{f' ({why})' if why else ''}")
