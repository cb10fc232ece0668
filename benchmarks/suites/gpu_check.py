"""Checks on a machine with a GPU whether the kernels are right, and how fast they are.

    python -m isotrain.benchmarks.suites.gpu_check            # all of it, about ten minutes
    python -m isotrain.benchmarks.suites.gpu_check --quick    # fewer rounds, no torch.compile

It compares every kernel with the float64 reference. It times frozen forward passes of Banking77's lengths, ours and
those of transformers, interleaved in one process, against the matrix peak measured in the same run. It times attention,
LayerNorm and GELU against their alternatives, and small batches and head steps with and without graphs. It writes
``benchmarks/results/<device>-<date>.json``. Exit code 0: all results are right; 1: one is wrong; 2: it can't run here.

The intervals are within one process; `isotrain bench` uses fresh processes.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ... import UserError
from ...albert_core.features.source import TransformersEncoder, frozen_encoder
from ...albert_core.model.encoder import LoadedEncoder, load_encoder
from ...albert_core.model.head import ClassificationHead
from ...albert_core.runs.files import write_json
from ...albert_core.terminal.console import say_lines
from ...backends import Backend, CastPolicy, FrozenEncoder, get_backend
from ...kernels import reference
from ...kernels.packed import PackedBatch, PaddedBatch, PortableEncoder
from ..harness import environment
from ..harness.document import Device, Model, Policy
from ..harness.peaks import measure_peaks
from ..harness.statistics import median_interval, ratio_interval
from ..harness.texts import Texts, embedded_texts
from ..harness.turns import interleaved
from ..work.flops import encoder_flops
from .gpu_operators import block_seconds, fastest, time_operators
from .gpu_result import OURS, PORTABLE, Check, Contender, GpuCheck, Operator, Throughput

SEED = 23
KERNELS = ("auto", "triton", "flash", "portable")
SHARE_OF_PEAK = (0.40, 0.60)
PADDED_RATIO = (8.0, 15.0)
SORTED_RATIO = (2.0, 4.0)
# A kernel's error against float64, at most, over the portable kernel's in the same dtype.
LARGEST_ERROR_RATIO = {"float32": 2.0, "bfloat16": 3.0}
# By how much length-sorted batches are smaller.
SORTED_SHARE = 4
# Below this, an error is float32's rounding, and the ratio of two errors says nothing.
ERROR_FLOOR = 1e-6

Forward = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Size:
    """How much is run. batch_tokens: tokens per packed batch; padded_batch: texts per batch padded to max_length."""

    model: str = "random:albert-base-v2"
    check_models: tuple[str, ...] = ("random:tiny", "random:albert-base-v2")
    check_lengths: tuple[int, ...] = (1, 2, 3, 16, 17, 63, 64, 65, 200, 512)
    texts: int = 10_003
    batch_tokens: int = 65_536
    padded_batch: int = 512
    max_length: int = 128
    rounds: int = 9
    compiled: bool = True


QUICK = Size(rounds=3, compiled=False)


def run(backend: Backend, dtype: str, size: Size) -> GpuCheck:
    """The whole check."""
    policy = backend.cast_policy(dtype)
    checks = [check for name in size.check_models for check in check_kernels(backend, name, size.check_lengths)]
    encoder = load_encoder(size.model, SEED)
    texts = embedded_texts(size.texts, size.max_length, encoder.weights.config.vocab_size, 77, SEED)
    peaks = measure_peaks(backend, policy.compute)
    throughput = measure_throughput(backend, encoder, policy, texts, size, peaks.matmul_tflops)
    lengths = np.sort(texts.lengths)[: np.searchsorted(np.cumsum(np.sort(texts.lengths)), size.batch_tokens)]
    operators = time_operators(
        backend, encoder.weights.config, lengths, getattr(torch, policy.compute), size.rounds, size.compiled
    )
    problems = [f"{check.kernel}, {check.model}: {check.problem}" for check in checks if check.problem]
    return GpuCheck(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=Device.of(backend.info()),
        policy=Policy.of(policy),
        size=asdict(size),
        model=Model(name=size.model, label=encoder.label, random_weights=encoder.random, sha256=encoder.fingerprint),
        texts=texts.describe(),
        peaks=peaks,
        checks=checks,
        throughput=throughput,
        operators={name: Operator(seconds=ways, fastest=fastest(ways)) for name, ways in operators.items()},
        small_batch_seconds=small_batches(backend, encoder, policy, texts, size.rounds),
        head_step_seconds=head_steps(backend, encoder.weights.config.hidden_size, size.rounds),
        environment=environment.describe(),
        command=environment.command_line(),
        problems=problems + throughput.problems,
    )


def check_kernels(backend: Backend, model: str, lengths: Sequence[int]) -> Iterator[Check]:
    """Checks every kernel in float32 and bfloat16 on a batch of `lengths`, from the host and from the device."""
    encoder = load_encoder(model, SEED)
    config = encoder.weights.config
    rng = np.random.default_rng(SEED)
    fitting = [min(length, config.max_positions) for length in lengths]
    ids = [rng.integers(5, config.vocab_size, length).tolist() for length in fitting]
    pairs = [[0] * (length // 2) + [1] * (length - length // 2) for length in fitting]
    batch = PackedBatch.from_lists(ids, pairs)
    exact = reference.encode(encoder.weights, batch).features
    for dtype in LARGEST_ERROR_RATIO:
        policy = backend.cast_policy(dtype)
        rounded = encoder.weights.to(dtype=getattr(torch, policy.param))
        portable = PortableEncoder(rounded, getattr(torch, policy.compute), getattr(torch, policy.accumulate))
        allowed = LARGEST_ERROR_RATIO[dtype] * max(ERROR_FLOOR, _error(portable(batch), exact))
        for kernel in KERNELS:
            found: dict[str, Any] = {"model": model, "kernel": kernel, "dtype": policy.label, "allowed": allowed}
            try:
                forward = frozen_encoder(encoder, backend, policy, kernel)
            except UserError as error:
                yield Check(**found, error=None, skipped=str(error), problem="")
                continue
            layouts = (batch, backend.place(batch), batch.to_padded())
            # Three times: eagerly, capturing a graph, and replaying it.
            errors = [_error(forward(layout), exact) for _ in range(3) for layout in layouts]
            worst = max(errors)
            # NaN is wrong, too.
            problem = "" if worst <= allowed else f"error {worst:.2e} in {policy.label}, allowed {allowed:.2e}"
            yield Check(**found, ran=forward.name, error=worst, skipped="", problem=problem)


def _error(features: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square difference."""
    difference = features.cpu().double() - exact
    return float(difference.square().mean().sqrt())


def measure_throughput(
    backend: Backend, encoder: LoadedEncoder, policy: CastPolicy, texts: Texts, size: Size, peak: float
) -> Throughput:
    """Times every contender on all texts in each round, in alternating order. Inputs are on the device by default."""
    config = encoder.weights.config
    contenders, skipped = _contenders(backend, encoder, policy, texts, size)
    results = {name: run() for name, run in contenders.items()}  # compiles, warms up
    results = {name: run().float().cpu() for name, run in contenders.items()}
    judge = results[PORTABLE]
    problems = [
        f"{name}: features differ from the portable kernel's by {distance:.1%}"
        for name, rows in results.items()
        if not (distance := float((rows - judge).norm() / judge.norm())) <= 0.05
    ]
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index, _ in interleaved(len(names), size.rounds, SEED):
        seconds[names[index]].append(block_seconds(backend, contenders[names[index]], 1))
    useful = encoder_flops(config, texts.lengths.tolist())
    table = {}
    for name, samples in seconds.items():
        time_each = median_interval([samples], SEED)
        tflops = useful / time_each.median / 1e12
        table[name] = Contender(
            seconds=time_each,
            texts_per_second=size.texts / time_each.median,
            model_tflops=tflops,
            share_of_peak=tflops / peak,
            samples=samples,
        )
        if tflops > 1.05 * peak:
            problems.append(f"{name}: {tflops:.1f} model TFLOP/s are more than the measured peak of {peak:.1f}")
    ratios = {name: ratio_interval([seconds[name]], [seconds[OURS]], SEED) for name in names if name != OURS}
    return Throughput(contenders=table, speedup_of_ours=ratios, skipped=skipped, problems=problems)


def _contenders(
    backend: Backend, encoder: LoadedEncoder, policy: CastPolicy, texts: Texts, size: Size
) -> tuple[dict[str, Forward], dict[str, str]]:
    by_length = np.argsort(texts.lengths, kind="stable")
    in_order = np.arange(len(by_length))

    def batches(order: np.ndarray, tokens: int) -> list[np.ndarray]:
        return np.split(order, np.flatnonzero(np.diff(np.cumsum(texts.lengths[order]) // tokens)) + 1)

    def packed(rows: np.ndarray) -> PackedBatch:
        return PackedBatch.from_flat(texts.ids, texts.offsets, rows)

    def forward(run: FrozenEncoder | Callable[..., torch.Tensor], groups: list[Any], order: np.ndarray) -> Forward:
        back = torch.from_numpy(np.argsort(order))

        def whole() -> torch.Tensor:
            return torch.cat([run(group) for group in groups])[backend.place(back)]

        return whole

    def streamed(run: FrozenEncoder) -> Forward:
        return lambda: torch.cat([run(batch) for batch in backend.prefetch(host)])

    contenders: dict[str, Forward] = {}
    skipped: dict[str, str] = {}
    host = [packed(rows) for rows in batches(in_order, size.batch_tokens)]
    placed = [backend.place(batch) for batch in host]
    for kernel in KERNELS:
        try:
            ours = frozen_encoder(encoder, backend, policy, kernel)
        except UserError as error:
            skipped[f"ours, {kernel}"] = str(error)
            continue
        contenders[f"ours, {kernel}"] = forward(ours, placed, in_order)
        if kernel == "auto":
            contenders["ours, auto, copied from the host"] = streamed(ours)
    padded = [
        backend.place(packed(rows).to_padded(size.max_length))
        for rows in np.split(in_order, range(size.padded_batch, len(in_order), size.padded_batch))
    ]
    # Cut by real tokens and padded to the longest text. They are smaller than ours, since they then hold less padding.
    groups = [packed(rows) for rows in batches(by_length, max(1, size.batch_tokens // SORTED_SHARE))]
    by_sorted = [backend.place(group.to_padded(-(-group.max_seqlen // 8) * 8)) for group in groups]
    for suffix in ("eager", "torch.compile") if size.compiled else ("eager",):
        # Sorted batches have many shapes, for which torch needs one dynamic compilation.
        for shape, inputs, order, dynamic in (
            (f"padded to {size.max_length}", padded, in_order, False),
            ("sorted by length", by_sorted, by_length, True),
        ):
            theirs = TransformersEncoder(encoder.module(), backend, policy)
            if suffix == "torch.compile":
                theirs.module.compile(dynamic=dynamic)
            contenders[f"transformers, {shape}, {suffix}"] = forward(theirs, inputs, order)
    return contenders, skipped


def small_batches(
    backend: Backend, encoder: LoadedEncoder, policy: CastPolicy, texts: Texts, rounds: int
) -> dict[str, float]:
    """Seconds of a forward pass of 8 texts: the backend's kernel (with graphs), the portable one, transformers."""
    batch = PackedBatch.from_flat(texts.ids, texts.offsets, np.arange(8))
    inputs: dict[str, PackedBatch | PaddedBatch] = {"auto": batch, "portable": batch, "transformers": batch.to_padded()}
    seconds = {}
    for kernel, given in inputs.items():
        forward, placed = frozen_encoder(encoder, backend, policy, kernel), backend.place(given)
        seconds[kernel] = _steady(backend, partial(forward, placed), rounds)
    return seconds


def head_steps(backend: Backend, hidden: int, rounds: int) -> dict[str, float]:
    """Seconds of an optimizer step of the Banking77 head at batch 8: plain torch, and the backend's form of it."""
    generator = torch.Generator().manual_seed(SEED)
    features = backend.place(torch.randn(8, hidden, generator=generator))
    labels = backend.place(torch.randint(0, 77, (8,), generator=generator))

    def steps() -> tuple[Callable[..., torch.Tensor], torch.optim.Optimizer]:
        head = backend.place(ClassificationHead(hidden, 256, 77, SEED))
        optimizer = torch.optim.AdamW(head.parameters(), 1e-4, **backend.adam_options())

        def step(inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            loss = functional.cross_entropy(head(inputs), wanted)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step, optimizer

    plain, _ = steps()
    ways = {"plain": plain, "backend": backend.capture_step(*steps())}
    with backend.single_threaded():
        return {name: _steady(backend, partial(way, features, labels), rounds) for name, way in ways.items()}


def _steady(backend: Backend, run: Forward, rounds: int) -> float:
    """The median seconds of a call, after enough calls to capture graphs."""
    block_seconds(backend, run, 3)
    count = max(1, min(200, int(0.05 / max(1e-6, block_seconds(backend, run, 3)))))
    return float(np.median([block_seconds(backend, run, count) for _ in range(rounds)]))


def result_path(folder: Path, device: str, now: datetime) -> Path:
    """``<folder>/<device>-<date>.json``, with the device's name in lower case and hyphens."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return folder / f"{slug}-{now:%Y%m%d}.json"


def summary(result: GpuCheck, seconds: float) -> Iterator[str]:
    """The result in lines: checks, throughput, the targets, operators."""
    yield f"{result.device.name}, {result.model.label}, {result.policy.requested}, {seconds:.0f} s"
    for check in result.checks:
        state = f"error {check.error:.1e}" if check.error is not None else f"skipped: {check.skipped}"
        verdict = "WRONG" if check.problem else "ok" if check.error is not None else "-"
        yield f"  {verdict:5} {check.kernel:9} {check.model}, {check.dtype}: {state}"
    peaks, throughput = result.peaks, result.throughput
    yield (f"matrix peak {peaks.matmul_tflops:.1f} TFLOP/s ({peaks.matmul_size}^3), copy {peaks.copy_gbps:.0f} GB/s")
    for name, row in throughput.contenders.items():
        ratio = throughput.speedup_of_ours.get(name)
        beside = "" if ratio is None else f", ours is {ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
        yield (
            f"  {name}: {row.texts_per_second:,.0f} texts/s, {row.model_tflops:.2f} model TFLOP/s, "
            f"{row.share_of_peak:.1%} of the peak{beside}"
        )
    for name, reason in throughput.skipped.items():
        yield f"  {name}: skipped: {reason}"
    yield from _targets(throughput)
    for name, part in result.operators.items():
        times = ", ".join(
            f"{way} {value * 1e6:.0f} us" if isinstance(value, float) else f"{way} {value}"
            for way, value in part.seconds.items()
        )
        yield f"{name}: fastest is {part.fastest or 'none'} ({times})"
    for title, ways in (("small batch", result.small_batch_seconds), ("head step", result.head_step_seconds)):
        times = ", ".join(f"{name} {value * 1e3:.3f} ms" for name, value in ways.items())
        yield f"{title} of 8 texts: {times}"
    for problem in result.problems:
        yield f"WRONG: {problem}"


def _targets(throughput: Throughput) -> Iterator[str]:
    figures = [("share of the peak", throughput.contenders[OURS].share_of_peak, SHARE_OF_PEAK)]
    for word, bounds in (("padded", PADDED_RATIO), ("sorted", SORTED_RATIO)):
        # The faster one of their two ways counts.
        ratios = [value.median for name, value in throughput.speedup_of_ours.items() if f", {word} " in name]
        figures.append((f"times transformers, {word}", min(ratios), bounds))
    for name, value, (least, aim) in figures:
        verdict = "aim reached" if value >= aim else "reached" if value >= least else "NOT reached"
        yield f"figure: {name}: {value:.2f} (at least {least:g}, aim {aim:g}): {verdict}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m isotrain.benchmarks.suites.gpu_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--backend", default="cuda", help="cuda (default), cuda:1, ...")
    parser.add_argument("--dtype", default="bfloat16", help="of the throughput part (default bfloat16)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no torch.compile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the result")
    given = parser.parse_args(arguments)
    began = time.perf_counter_ns()
    try:
        result = run(get_backend(given.backend), given.dtype, QUICK if given.quick else Size())
        given.out.mkdir(parents=True, exist_ok=True)
        path = result_path(given.out, result.device.name, datetime.now(UTC))
        write_json(path, result.document())
    except (UserError, OSError) as error:
        sys.stderr.write(f"isotrain: error: {' '.join(str(error).split())}\n")
        return 2
    say_lines([*summary(result, (time.perf_counter_ns() - began) / 1e9), f"result: {path}"])
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
