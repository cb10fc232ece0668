"""One target in one fresh process: ``python -m isotrain.benchmarks.harness.worker`` with its specification on stdin.

It writes one JSON document to the file that the specification names: a result, or the error that a user can mend.
Anything else that goes wrong is a traceback on stderr and exit code 1. The phases are timed apart (rule 3).
"""

from __future__ import annotations

import copy
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ... import UserError
from ...kernels.names import check_name
from .answer import Stages, answer
from .document import (
    BACKEND,
    RUN,
    TARGET,
    BlockEnergy,
    ChoiceMade,
    Device,
    KernelUsed,
    Measured,
    Memory,
    Model,
    Peaks,
    Policy,
    ProcessEnvironment,
    Profile,
    RangeCost,
    Shape,
    Spec,
    Sweep,
    Threads,
    WarmUp,
    Work,
)
from .environment import Contention, affinity, moment
from .plan import CACHED, Options, TargetSpec
from .turns import ALONE, Turns

if TYPE_CHECKING:
    import numpy as np

    from ...albert_core.model.encoder import LoadedEncoder
    from ...albert_core.model.head import ClassificationHead
    from ...backends import Backend, CastPolicy
    from .texts import Texts
    from .workloads import Prepared, Steps, Workload

# A shape's timed passes in a sweep: enough to choose by, and no more.
SWEEP_PASS_SECONDS = 2.0
MOST_SWEEP_PASSES = 5


class WorkerSpec(Spec):
    """One process of a target; with `candidates`, a sweep over these shapes of it.

    known_peaks: what earlier processes of the run measured on the target's backend. turns: the pipes (to read from, to
    write to) by which it alternates with another process block by block. trace: the file for the trace of a profile.
    """

    options: Options
    target: TargetSpec
    candidates: list[TargetSpec]
    process: int
    known_peaks: list[Peaks] = Field(default=[])
    turns: tuple[int, int] | None = None
    trace: str | None = None


def main() -> int:
    """Specification from stdin, document to its file; returns the exit code: 0, or 2 for what the user can mend."""
    stages = Stages()

    def work(spec: WorkerSpec) -> Measured | Sweep:
        if spec.candidates:
            return sweep(spec.options, spec.candidates, stages)
        return run(spec.options, spec.target, stages, spec.known_peaks, Turns(spec.turns), spec.trace)

    return answer(WorkerSpec, work, lambda: stages.scope)


@dataclass
class _Opened:
    """What targets of one backend and model share in a process."""

    backend: Backend
    policy: CastPolicy
    encoder: LoadedEncoder
    texts: Texts


def _open_backend(
    options: Options, target: TargetSpec, stages: Stages, needed: Sequence[str]
) -> tuple[Backend, CastPolicy]:
    """Imports what is `needed`, and opens the device, in separate phases. Raises UserError for wrong input."""
    with stages.phase("import", RUN), _without_collections():
        import torch

        from ...backends import get_backend

        # Imported where they are first used; brought forward, so that import and the later phases are figures apart.
        for name in (".peaks", ".workloads", *needed):
            import_module(name, __package__)

    with stages.phase("open", BACKEND):
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        backend = get_backend(target.backend, options.backend_options)
    # A dtype of this target alone leaves the backend's other targets as they are.
    stages.scope = TARGET if target.dtype else BACKEND
    return backend, backend.cast_policy(target.dtype or options.dtype, strict=options.strict_dtype)


def _open(options: Options, target: TargetSpec, stages: Stages) -> _Opened:
    """Opens the device, and loads weights and texts. Raises UserError for wrong input."""
    needed = ("...albert_core.loop.job", "transformers.models.albert.modeling_albert")
    backend, policy = _open_backend(options, target, stages, needed)
    from ...albert_core.model.encoder import load_encoder
    from .texts import check_length, load_texts

    stages.scope = TARGET
    _check_kernel(target, backend)
    with stages.phase("load", RUN):
        encoder = load_encoder(options.model, options.seed)
        config = encoder.weights.config
        check_length(options.max_length, config, encoder.label)
    with stages.phase("data", RUN):
        texts = load_texts(options, config.vocab_size, options.texts or options.batches * target.batch_size)
    return _Opened(backend, policy, encoder, texts)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Imports make no garbage, and looking for it is a sixth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _check_kernel(target: TargetSpec, backend: Backend) -> None:
    if not target.baseline:
        allowed = ("auto", *backend.kernels(), "transformers")
        check_name("--kernel", target.kernel, allowed, f"on backend {target.backend}")


def _workload(opened: _Opened, options: Options, target: TargetSpec) -> tuple[Workload, CastPolicy, list[str]]:
    """The target ready to run, the cast policy that it has, and notes about it."""
    import transformers

    from ...albert_core.loop.job import frozen_encoder
    from ...albert_core.tokens.order import MULTIPLE
    from ...kernels.packed import PaddedBatch
    from ..baselines import build_baseline, build_trainer
    from .baseline import BaselineForward, BaselineStep
    from .texts import make_batches
    from .workloads import WORKLOAD_CLASSES, TrainedEncoder

    # Cached features have no layout: the device's last, which pads least, makes them.
    layout = opened.backend.traits.layouts[-1] if target.layout == CACHED else target.layout
    whole = target.workload == "full_step"
    settings: Any = {"sort": not whole, "multiple": 1 if target.baseline else MULTIPLE}
    batches = make_batches(
        opened.texts, target.batch_size, layout, options.max_length, options.static_shapes, **settings
    )
    head = _head(opened, options)
    if target.baseline and whole:
        policy = opened.backend.whole_model_policy(opened.policy)
        loop = build_trainer(target.kernel, opened.encoder, head, opened.backend, policy)
        return BaselineStep(opened.backend, loop, head, batches, opened.texts), loop.policy, list(loop.notes)
    if target.baseline:
        baseline = build_baseline(target.kernel, opened.encoder, opened.backend, opened.policy.requested, target.layout)
        baseline.prepare(
            [opened.backend.place(batch.inputs) for batch in batches if isinstance(batch.inputs, PaddedBatch)]
        )
        policy, notes = baseline.policy, list(baseline.notes)
        return BaselineForward(opened.backend, baseline, head, batches, opened.texts), policy, notes
    trained: Any
    if whole:
        # A copy: the encoder's own weights name the model in the result, and stay what they are.
        module = copy.deepcopy(opened.encoder.module())
        policy = opened.backend.whole_model_policy(opened.policy)
        trained = TrainedEncoder(module, policy, target.kernel, transformers.__version__, target.torch_compile)
    else:
        policy = opened.policy
        trained = frozen_encoder(opened.encoder, opened.backend, policy, target.kernel)
    workload = WORKLOAD_CLASSES[target.workload](opened.backend, trained, head, batches, opened.texts)
    opened.backend.synchronize(*workload.head.parameters())
    return workload, policy, []


def _head(opened: _Opened, options: Options) -> ClassificationHead:
    """The head with its initial weights, on the host: the same each time."""
    from ...albert_core.model.head import ClassificationHead

    hidden = opened.encoder.weights.config.hidden_size
    return ClassificationHead(hidden, options.mlp_hidden_size, opened.texts.num_labels, options.seed)


def _expected(opened: _Opened, options: Options, target: TargetSpec, policy: CastPolicy) -> dict[int, np.ndarray]:
    """The logits that the target's are judged by."""
    from .texts import reference_logits

    # A model that is trained whole starts from weights that aren't rounded.
    param = policy.accumulate if target.workload == "full_step" else policy.param
    return reference_logits(opened.encoder, _head(opened, options), opened.texts, param, policy.compute)


def sweep(options: Options, candidates: Sequence[TargetSpec], stages: Stages | None = None) -> Sweep:
    """Texts a second of each shape in turn: one untimed pass over all texts, then the fastest of a few timed ones.

    A shape that can't run is kept with its reason. Raises UserError where none can.
    """
    stages = stages or Stages()
    opened = _open(options, candidates[0], stages)
    stages.scope = TARGET
    found: list[Shape] = []
    for spec in candidates:
        try:
            workload, _, _ = _workload(opened, options, spec)
        except UserError as error:
            found.append(Shape(layout=spec.layout, batch_size=spec.batch_size, error=" ".join(str(error).split())))
        else:
            speed = len(opened.texts.lengths) / _pass_seconds(workload)
            found.append(Shape(layout=spec.layout, batch_size=spec.batch_size, samples_per_second=speed))
    if all(one.samples_per_second is None for one in found):
        raise UserError(found[0].error or "no shape can run")
    return Sweep(sweep=found)


def _texts_target(options: Options, target: TargetSpec, stages: Stages) -> Prepared:
    """A kernel, a whole model or a baseline on texts. Raises UserError for wrong input."""
    opened = _open(options, target, stages)
    from .work import work_per_step
    from .workloads import Prepared

    with stages.phase("prepare", TARGET):
        workload, policy, notes = _workload(opened, options, target)
    with stages.phase("reference", TARGET):
        expected = _expected(opened, options, target, policy)
        workload.judge(expected)
    encoder = opened.encoder

    def accounts() -> tuple[KernelUsed, Work]:
        kernel, version = workload.kernel()
        work = work_per_step(
            encoder.weights.config,
            workload.head,
            workload.batches,
            target.workload,
            # Baselines run the module's own graph and compute its last layer in full.
            "transformers" if target.baseline else kernel,
            policy,
            skips_padding=workload.encoder.skips_padding,
        )
        choices = [ChoiceMade.of(chosen) for chosen in opened.backend.choices()]
        return KernelUsed(name=kernel, version=version, notes=notes, choices=choices), work

    return Prepared(
        backend=opened.backend,
        policy=policy,
        steps=workload,
        expected={text: logits.tolist() for text, logits in expected.items()},
        accounts=accounts,
        model=Model(name=encoder.name, label=encoder.label, random_weights=encoder.random, sha256=encoder.fingerprint),
        data=opened.texts.describe(),
    )


def _pass_seconds(workload: Workload) -> float:
    """Seconds of the fastest pass over the whole list; as many as fit SWEEP_PASS_SECONDS, and at least one."""
    times: list[float] = []
    for number in range(1 + MOST_SWEEP_PASSES):
        workload.begin()
        start = time.perf_counter_ns()
        for index in range(len(workload.batches)):
            workload.step(index)
        workload.fence()
        if number > 0:
            times.append((time.perf_counter_ns() - start) / 1e9)
        if times and sum(times) >= SWEEP_PASS_SECONDS:
            break
    return min(times)


def run(
    options: Options,
    target: TargetSpec,
    stages: Stages | None = None,
    known_peaks: Sequence[Peaks] = (),
    turns: Turns = ALONE,
    trace: str | None = None,
) -> Measured:
    """Measures one target in this process, in `turns` with another one. Raises UserError for what the user can mend."""
    stages = stages or Stages()
    before = moment()
    if target.module:
        backend, policy = _open_backend(options, target, stages, (".module",))
        from .module import module_target

        prepared = module_target(options, target, backend, policy, stages)
    else:
        prepared = _texts_target(options, target, stages)
    import torch

    from .measure import Budget, measure
    from .peaks import measure_peaks

    backend, policy, steps = prepared.backend, prepared.policy, prepared.steps
    contention = Contention(turns)
    with steps.context():
        warmup_seconds = max(1.0, options.seconds / 2)
        budget = Budget(options.blocks, options.seconds, warmup_seconds, options.least_blocks)
        measured = measure(
            steps,
            budget,
            joules=lambda: backend.energy().joules,
            turns=turns,
            held=lambda: backend.memory().current_bytes,
        )
    contended, (switches, waited) = contention.so_far(), contention.a_second()
    # Before the peaks: their large operands would count as the workload's memory.
    memory = backend.memory()
    profile = None if trace is None else _profile(steps, options.profile, Path(trace))
    kernel, work = prepared.accounts()
    known_peaks = [*known_peaks, *([Peaks.model_validate_json(turns.told)] if turns.told else [])]
    return Measured(
        steps_per_block=measured.steps_per_block,
        step_seconds=measured.step_seconds,
        cpu_step_seconds=measured.cpu_step_seconds,
        warm_up=WarmUp.of(measured.warm_up),
        phases={**stages.seconds, **measured.phases},
        peaks=measure_peaks(backend, policy.compute, step_bytes=work.moved_bytes, known=known_peaks),
        memory=Memory(peak_bytes=memory.peak_bytes, scope=memory.scope, growth_bytes_per_step=measured.growth),
        energy=BlockEnergy(source=backend.energy().source, block_joules=list(measured.joules)),
        environment=ProcessEnvironment(
            threads=Threads(intra_op=torch.get_num_threads(), inter_op=torch.get_num_interop_threads()),
            affinity=affinity(),
            involuntary_switches_per_second=switches,
            waited_seconds_per_second=waited,
            contended=contended,
            before=before,
            after=moment(),
        ),
        losses=steps.first_losses,
        work=work,
        device=Device.of(backend.info()),
        policy=Policy.of(policy),
        kernel=kernel,
        model=prepared.model,
        data=prepared.data,
        probe={str(number): answers for number, answers in steps.probe.items()},
        expected={str(number): list(answers) for number, answers in prepared.expected.items()},
        profile=profile,
        reasons=[*measured.reasons, *steps.problems()],
        warnings=[*measured.warnings, *prepared.warnings, *_passed_over(backend, target, kernel.name)],
    )


def _profile(steps: Steps, count: int, trace: Path) -> Profile:
    """Profiles steps of a target that has been measured."""
    from ...albert_core.output.profile import record_steps

    def fence() -> None:
        with steps.backend.named_range("fence"):
            steps.fence()

    steps.begin()
    with steps.context():
        found = record_steps(lambda number: steps.step(number % len(steps.classes)), fence, count, trace)
    ranges, operators = ([RangeCost(**asdict(cost)) for cost in costs] for costs in found)
    return Profile(trace=trace.name, steps=count, ranges=ranges, operators=operators)


def _passed_over(backend: Backend, target: TargetSpec, kernel: str) -> list[str]:
    """Says that `auto` ran a slower kernel because a faster one is not here."""
    faster = dict(takewhile(lambda one: one[0] != "portable", backend.kernels().items()))
    absent = [name for name, state in faster.items() if not state.ok]
    if target.kernel != "auto" or not absent or kernel != "portable":
        return []
    return [f"kernel portable ran, for {', '.join(absent)} can't: isotrain doctor -v says why, and how to get it"]


if __name__ == "__main__":
    sys.exit(main())
