"""One target in one fresh process: ``python -m isotrain.benchmarks.worker`` with its specification on stdin.

It writes one JSON document to the file that the specification names: a result, or the error that a user can mend.
Anything else that goes wrong is a traceback on stderr and exit code 1. The phases are timed apart (rule 3).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import UserError
from .environment import affinity, involuntary_switches, is_disturbed, moment
from .plan import Options, TargetSpec

# Whom an error concerns: every target of the run, those of one backend, or this target alone.
RUN, BACKEND, TARGET = "run", "backend", "target"


class _Stages:
    """Seconds of each phase, and whom an error in the present one concerns."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.scope = RUN

    @contextmanager
    def phase(self, name: str, scope: str) -> Iterator[None]:
        self.scope = scope
        start = time.perf_counter_ns()
        yield
        self.seconds[name] = (time.perf_counter_ns() - start) / 1e9


class _Disturbances:
    """How often, while measuring, other work took a CPU away from this process's threads."""

    def __enter__(self) -> _Disturbances:
        self._switches, self._start = involuntary_switches(), time.perf_counter_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = (time.perf_counter_ns() - self._start) / 1e9
        self.switches = involuntary_switches() - self._switches


def main() -> int:
    """Specification from stdin, document to its file; returns the exit code: 0, or 2 for what the user can mend."""
    spec = json.load(sys.stdin)
    stages = _Stages()
    code = 0
    try:
        document = run(options_from(spec["options"]), TargetSpec(**spec["target"]), stages)
    except UserError as error:
        document = {"error": {"message": " ".join(str(error).split()), "scope": stages.scope}}
        code = 2
    path = Path(spec["result"])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)
    return code


def options_from(values: dict[str, Any]) -> Options:
    """`Options` from their JSON form, where tuples are lists."""
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Options(**fields)


def run(options: Options, target: TargetSpec, stages: _Stages | None = None) -> dict[str, Any]:
    """Measures one target in this process. Raises UserError for what the user can mend."""
    stages = stages or _Stages()
    before = moment()

    with stages.phase("import", RUN):
        import torch

        from ..albert_core.encoder import load_encoder
        from ..albert_core.head import ClassificationHead
        from ..albert_core.job import frozen_encoder
        from ..backends import get_backend
        from .measure import Budget, measure
        from .peaks import measure_peaks
        from .texts import check_length, load_texts, make_batches
        from .workloads import WORKLOAD_CLASSES, work_per_step

        # load_encoder imports it when it is called; brought forward, so that import and load are two figures.
        import_module("transformers.models.albert.modeling_albert")

    with stages.phase("open", BACKEND):
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        backend = get_backend(target.backend, options.backend_options)
        policy = backend.cast_policy(options.dtype, strict=options.strict_dtype)
        info = backend.info()
    with stages.phase("load", RUN):
        encoder = load_encoder(options.model, options.seed)
        config = encoder.weights.config
        check_length(options.max_length, config, encoder.label)
    with stages.phase("data", RUN):
        texts = load_texts(options, config.vocab_size, options.batches * target.batch_size)
        batches = make_batches(texts, target.batch_size, target.layout, options.max_length)
    with stages.phase("prepare", TARGET):
        forward = frozen_encoder(encoder, backend, policy, target.kernel)
        head = ClassificationHead(config.hidden_size, options.mlp_hidden_size, texts.num_labels, options.seed)
        workload = WORKLOAD_CLASSES[target.workload](backend, forward, head, batches, texts)
        backend.synchronize(*workload.head.parameters())

    with _Disturbances() as disturbances:
        warmup_seconds = max(1.0, options.seconds / 2)
        budget = Budget(options.blocks, options.seconds, warmup_seconds, options.least_blocks)
        measured = measure(workload, budget)
    # Before the peaks: their large operands would count as the workload's memory.
    memory = backend.memory()
    peaks = measure_peaks(backend, policy.compute)
    return {
        "target": target.as_dict(),
        "phases": {**stages.seconds, **measured.phases, "peaks": peaks.seconds},
        "warm_up": {
            "steps": measured.warm_up.steps,
            "quiet": measured.warm_up.quiet,
            "compiles": measured.warm_up.compiles,
        },
        "steps_per_block": measured.steps_per_block,
        "step_seconds": measured.step_seconds,
        "work": work_per_step(config, head, batches, target.workload, forward.name),
        "memory": {"peak_bytes": memory.peak_bytes, "scope": memory.scope},
        "peaks": peaks.as_dict(),
        "device": info.as_dict(),
        "policy": {**policy.__dict__, "label": policy.label},
        "kernel": {"name": forward.name, "version": str(forward.version)},
        "model": {
            "name": encoder.name,
            "label": encoder.label,
            "random_weights": encoder.random,
            "sha256": encoder.fingerprint,
        },
        "data": texts.describe(),
        "probe": {str(row): logits for row, logits in workload.probe.items()},
        "reasons": [*measured.reasons, *workload.verdict()],
        "warnings": list(measured.warnings),
        "environment": {
            "threads": {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
            "affinity": affinity(),
            "involuntary_switches_per_second": round(disturbances.switches / disturbances.seconds, 1),
            "disturbed": is_disturbed(disturbances.switches, disturbances.seconds, torch.get_num_threads()),
            "before": before,
            "after": moment(),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
