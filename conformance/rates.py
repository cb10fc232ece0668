"""Cases of the group "rates": how fast operations and the parts of a training step are, as shares of measured peaks.

A rate is never judged. A measurement that isn't valid is: one whose fence returns early, whose results change
afterwards, or that compiles in its timed blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import product
from statistics import median
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional

from .. import UserError
from ..albert_core.loop.optim import build_optimizer
from ..albert_core.model.encoder import LoadedEncoder, load_encoder
from ..albert_core.model.head import ClassificationHead
from ..albert_core.tasks import TASKS
from ..backends import DTYPES, Backend, CastPolicy, FrozenEncoder
from ..benchmarks.harness.document import Peaks
from ..benchmarks.harness.measure import Budget, Target, measure
from ..benchmarks.harness.peaks import MOST_MEASUREMENTS, measure_peaks
from ..benchmarks.harness.texts import embedded_texts, make_batches
from ..benchmarks.harness.work import work_per_step
from ..benchmarks.harness.workloads import CHANGED, Forward, FullStep, HeadStep, TrainedEncoder, Workload
from ..benchmarks.outcome.conformance import Rate
from ..benchmarks.work.traffic import FLOAT32, UPDATE_PASSES
from .case import Case, Device, Passed, UnsupportedError, ViolationError, implemented

# Tokens and widths of ALBERT base: 8 texts of 128 tokens.
BATCH, LENGTH, HIDDEN, INNER, HEADS, WORDS, CLASSES = 8, 128, 768, 3072, 12, 30_000, 77
TOKENS = BATCH * LENGTH
MODEL = "random:albert-base-v2"
BUDGET = Budget(blocks=3, seconds=0.15, warmup_seconds=0.1)
STEP_BUDGET = Budget(blocks=3, seconds=1.5, warmup_seconds=0.5)
# Those in which a whole model is trained without a loss scale.
STEP_DTYPES = ("float32", "bfloat16")

Work = TypeVar("Work", bound=Workload)


@dataclass(frozen=True)
class Timed:
    """An operation that is timed.

    Attributes:
        shapes: Of its inputs, which are random. An entry of ids or labels is (rows, number of values).
        flops: Those of its matrix products. 0: its rate is that of the bytes of its inputs and its result.
    """

    name: str
    run: Callable[..., torch.Tensor]
    shapes: tuple[tuple[int, ...], ...]
    flops: int = 0
    integers: tuple[int, int] | None = None

    def inputs(self, generator: torch.Generator, dtype: torch.dtype) -> list[torch.Tensor]:
        found = [torch.randn(*shape, generator=generator).to(dtype) for shape in self.shapes]
        if self.integers is not None:
            rows, values = self.integers
            found.append(torch.randint(values, (rows,), generator=generator))
        return found


_STATES, _WIDE = (TOKENS, HIDDEN), (TOKENS, INNER)
_HEAD = (BATCH, HEADS, LENGTH, HIDDEN // HEADS)
OPERATIONS = (
    Timed("matmul", torch.matmul, (_STATES, (HIDDEN, INNER)), 2 * TOKENS * HIDDEN * INNER),
    Timed("linear", functional.linear, (_WIDE, (HIDDEN, INNER), (HIDDEN,)), 2 * TOKENS * HIDDEN * INNER),
    Timed(
        "bmm",
        torch.bmm,
        ((BATCH * HEADS, LENGTH, HIDDEN // HEADS), (BATCH * HEADS, HIDDEN // HEADS, LENGTH)),
        2 * TOKENS * LENGTH * HIDDEN,
    ),
    Timed("attention", functional.scaled_dot_product_attention, (_HEAD,) * 3, 4 * TOKENS * LENGTH * HIDDEN),
    Timed("tanh", torch.tanh, (_WIDE,)),
    Timed("gelu-erf", functional.gelu, (_WIDE,)),
    Timed("gelu-tanh", partial(functional.gelu, approximate="tanh"), (_WIDE,)),
    Timed(
        "layer_norm",
        lambda x, weight, bias: functional.layer_norm(x, (HIDDEN,), weight, bias),
        (_STATES, (HIDDEN,), (HIDDEN,)),
    ),
    Timed("softmax", partial(torch.softmax, dim=-1), ((BATCH, HEADS, LENGTH, LENGTH),)),
    Timed("sum", partial(torch.sum, dim=-1), (_WIDE,)),
    Timed("embedding", lambda table, ids: functional.embedding(ids, table), ((WORDS, 128),), integers=(TOKENS, WORDS)),
    Timed("cross_entropy", functional.cross_entropy, ((TOKENS, CLASSES),), integers=(TOKENS, CLASSES)),
    Timed("dropout", partial(functional.dropout, p=0.1), (_STATES,)),
)


def cases() -> list[Case]:
    """Every case of this group."""
    return list(_cases())


def _cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for timed in OPERATIONS:
            clause = f"{timed.name} can be timed: its fence waits, and its results stay"
            yield Case("rates", timed.name, clause, partial(_operation_rate, timed, dtype), dtype, "perf")
    for dtype in STEP_DTYPES:
        for name, check in (
            ("forward", _forward_rate),
            ("backward", _backward_rate),
            ("clip", _clip_rate),
            ("optimizer", _optimizer_rate),
            ("sgd", _sgd_rate),
            ("step", _step_rate),
            ("frozen-forward", _frozen_rate),
            ("head-step", _head_rate),
        ):
            clause = f"the part {name!r} of a training step can be timed: its fence waits, and its results stay"
            yield Case("rates", name, clause, partial(check, dtype), dtype, "perf", time_limit=300.0)


class Repeated:
    """A target of `measure`: one call, again and again."""

    classes = (0,)

    def __init__(self, backend: Backend, call: Callable[[], Sequence[torch.Tensor]]) -> None:
        self._backend, self._call = backend, call
        self._results: Sequence[torch.Tensor] = ()
        self._read: list[torch.Tensor] = []

    def begin(self) -> None:
        self._results, self._read = (), []

    def step(self, index: int) -> None:
        del index
        self._results = self._call()
        self._backend.step_boundary()

    def fence(self) -> None:
        self._backend.synchronize(*self._results)

    def read(self) -> list[str]:
        # Copies, since a host's results are where they were.
        found = [result.detach().cpu().clone() for result in self._results]
        before, self._read = self._read or found, found
        same = all(torch.equal(left, right) for left, right in zip(before, found, strict=True))
        return [] if same else [CHANGED]

    def compile_count(self) -> int:
        return self._backend.compile_count()


def _seconds(target: Target, budget: Budget) -> float:
    """Median seconds of a call. On a busy machine a reading may look late, so only what repeats is a violation.

    Raises:
        ViolationError: No measurement is valid.
    """
    for _ in range(MOST_MEASUREMENTS):
        measured = measure(target, budget)
        if not measured.reasons:
            return median(measured.step_seconds)
    raise ViolationError("; ".join(measured.reasons))


def _operation_rate(timed: Timed, dtype: str, device: Device) -> Passed:
    backend = device.backend
    compute = device.policy(dtype).compute
    inputs = backend.place(timed.inputs(device.generator(), getattr(torch, compute)))

    def call() -> list[torch.Tensor]:
        with torch.no_grad():
            return [timed.run(*inputs)]

    with implemented(timed.name):
        (result,) = call()
        seconds = _seconds(Repeated(backend, call), BUDGET)
    if timed.flops:
        return _flop_rate(device, compute, timed.flops, seconds)
    # An embedding reads the rows that it returns, not the table.
    read = [result, *inputs[1:]] if timed.name == "embedding" else inputs
    moved = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in (*read, result))
    return _byte_rate(device, compute, moved, seconds)


@cache
def _peaks(backend: Backend, dtype: str) -> Peaks:
    """Measured once in the process."""
    return measure_peaks(backend, dtype)


def _flop_rate(device: Device, dtype: str, flops: float, seconds: float) -> Passed:
    peak = None if device.backend.caveat else _peaks(device.backend, dtype).matmul_tflops
    return _rate(device, seconds, flops / seconds / 1e12, peak, "TFLOP/s")


def _byte_rate(device: Device, dtype: str, moved: float, seconds: float) -> Passed:
    peak = None if device.backend.caveat else _peaks(device.backend, dtype).copy_gbps
    return _rate(device, seconds, moved / seconds / 1e9, peak, "GB/s")


def _rate(device: Device, seconds: float, value: float, peak: float | None, unit: Literal["TFLOP/s", "GB/s"]) -> Passed:
    """The rate, and its share of the measured peak. What is in caches may be faster than memory's peak."""
    rate = Rate(value=value, unit=unit, share=None if peak is None else value / peak)
    limit = f"no peak{device.backend.on_caveat}" if peak is None else f"{rate.share:.0%} of the measured {peak:.3g}"
    return Passed(detail=f"{value:.3g} {unit}, {limit}; {1e3 * seconds:.3g} ms", rate=rate)


@dataclass(frozen=True)
class _Training:
    """A whole model that is trained, and the matrix FLOPs of a step's forward pass."""

    workload: FullStep
    forward_flops: float
    compute: str

    def loss(self) -> torch.Tensor:
        inputs, labels = self.workload.inputs(0)
        return TASKS["classification"].loss_of(self.workload.model)(inputs, labels)[0]

    def gradients(self) -> list[torch.Tensor]:
        """Those of the loss by all parameters."""
        self.workload.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        return [one.grad for one in self.workload.model.parameters() if one.grad is not None]


def _workload(
    kind: type[Work],
    device: Device,
    policy: CastPolicy,
    layout: str,
    encoder_of: Callable[[LoadedEncoder], FrozenEncoder | TrainedEncoder],
) -> tuple[Work, float]:
    """Random weights, texts of Banking77's lengths. Returns the matrix FLOPs of a step, too."""
    loaded = load_encoder(MODEL, device.seed)
    config, encoder = loaded.weights.config, encoder_of(loaded)
    texts = embedded_texts(BATCH, LENGTH, config.vocab_size, CLASSES, device.seed)
    batches = make_batches(texts, BATCH, layout, LENGTH)
    head = ClassificationHead(config.hidden_size, 256, CLASSES, device.seed)
    made = kind(device.backend, encoder, head, batches, texts)
    skips = encoder.skips_padding
    work = work_per_step(config, made.head, batches, kind.name, encoder.name, policy, skips_padding=skips)
    return made, work.hardware_flops


@lru_cache(maxsize=1)
def _training(backend: Backend, dtype: str, seed: int) -> _Training:
    """The parts of one dtype share it."""
    device = Device(backend, seed)
    policy = backend.whole_model_policy(device.policy(dtype))
    made, flops = _workload(
        FullStep,
        device,
        policy,
        backend.traits.whole_model_layout,
        lambda loaded: TrainedEncoder(loaded.module(), policy, "auto", ""),
    )
    return _Training(made, flops / 3, policy.compute)


def _forward_rate(dtype: str, device: Device) -> Passed:
    training = _training(device.backend, dtype, device.seed)
    seconds = _seconds(Repeated(device.backend, lambda: [training.loss()]), STEP_BUDGET)
    return _flop_rate(device, training.compute, training.forward_flops, seconds)


def _backward_rate(dtype: str, device: Device) -> Passed:
    """Forward and backward pass, less the forward pass."""
    training = _training(device.backend, dtype, device.seed)
    forward = _seconds(Repeated(device.backend, lambda: [training.loss()]), STEP_BUDGET)
    both = _seconds(Repeated(device.backend, training.gradients), STEP_BUDGET)
    if both <= forward:
        raise ViolationError(f"forward and backward take {1e3 * both:.3g} ms, the forward pass {1e3 * forward:.3g} ms")
    return _flop_rate(device, training.compute, 2 * training.forward_flops, both - forward)


def _clip_rate(dtype: str, device: Device) -> Passed:
    training = _training(device.backend, dtype, device.seed)
    gradients = training.gradients()
    parameters = list(training.workload.model.parameters())

    def call() -> list[torch.Tensor]:
        return [nn.utils.clip_grad_norm_(parameters, 1.0), *gradients]

    # The norm reads each gradient, and the scaling reads and writes it.
    return _pass_rate(device, training, call, 3)


def _optimizer_rate(dtype: str, device: Device) -> Passed:
    # The gradient is read, too.
    return _update_rate(dtype, device, {}, UPDATE_PASSES + 1)


def _sgd_rate(dtype: str, device: Device) -> Passed:
    """With momentum, which is read and written like the parameter. The gradient is read."""
    return _update_rate(dtype, device, {"optim": "sgd", "momentum": 0.9}, 5)


def _update_rate(dtype: str, device: Device, changes: Mapping[str, Any], passes: int) -> Passed:
    """Steps of the workload's optimizer, or of another one with these `changes` of the configuration."""
    training = _training(device.backend, dtype, device.seed)
    config, optimizer = training.workload.config.model_copy(update=changes), training.workload.optimizer
    if changes:
        optimizer = build_optimizer(training.workload.model, config, device.backend)
        device.backend.prepare_optimizer(optimizer)
    parameters: list[torch.Tensor] = list(training.workload.model.parameters())
    device.backend.synchronize(*training.gradients())

    def call() -> list[torch.Tensor]:
        device.backend.set_learning_rate(optimizer, config.learning_rate)
        optimizer.step()
        return parameters

    return _pass_rate(device, training, call, passes)


def _pass_rate(device: Device, training: _Training, call: Callable[[], Sequence[torch.Tensor]], passes: int) -> Passed:
    """The rate of a call that reads or writes as many float32 numbers as there are parameters, `passes` times."""
    seconds = _seconds(Repeated(device.backend, call), STEP_BUDGET)
    moved = passes * FLOAT32 * sum(parameter.numel() for parameter in training.workload.model.parameters())
    return _byte_rate(device, training.compute, moved, seconds)


def _step_rate(dtype: str, device: Device) -> Passed:
    training = _training(device.backend, dtype, device.seed)
    seconds = _seconds(training.workload, STEP_BUDGET)
    return _flop_rate(device, training.compute, 3 * training.forward_flops, seconds)


def _frozen_rate(dtype: str, device: Device) -> Passed:
    """Each kernel in the layout with the least padding that it takes. The rate is the fastest one's."""
    found: dict[str, Passed] = {}
    refused: dict[str, str] = {}
    kernels = [name for name, state in device.backend.kernels().items() if state.ok]
    for kernel, layout in product(kernels, reversed(device.backend.traits.layouts)):
        if kernel not in found:
            try:
                found[kernel] = _frozen_step_rate(Forward, dtype, device, kernel, layout)
            except UserError as error:
                refused[kernel] = str(error)
    lacks = "; ".join(why for kernel, why in refused.items() if kernel not in found)
    if not found:
        raise UnsupportedError(lacks)
    fastest = max(found.values(), key=lambda one: one.rate.value if one.rate else 0.0)
    detail = "\n".join(f"{kernel}: {one.detail}" for kernel, one in found.items())
    return replace(fastest, detail=detail, lacks=lacks)


def _head_rate(dtype: str, device: Device) -> Passed:
    """On cached features, which any kernel may have computed."""
    return _frozen_step_rate(HeadStep, dtype, device, "auto", device.backend.traits.layouts[-1])


def _frozen_step_rate(kind: type[Workload], dtype: str, device: Device, kernel: str, layout: str) -> Passed:
    policy = device.policy(dtype)
    made, flops = _workload(
        kind, device, policy, layout, lambda loaded: device.backend.frozen_encoder(loaded.weights, policy, kernel)
    )
    return _flop_rate(device, policy.compute, flops, _seconds(made, STEP_BUDGET))
