"""Times frozen forward passes of Banking77's lengths, ours and those of transformers, in turns in one process.

The intervals are within that process; `isotrain bench` uses fresh processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ...albert_core.features.source import TransformersEncoder, frozen_encoder
from ...albert_core.terminal.text import error_line
from ...backends.host.choices import block_seconds
from ..harness.document import ChoiceMade, Model, Peaks, Policy
from ..harness.peaks import measure_peaks
from ..harness.statistics import median_interval, ratio_interval
from ..harness.turns import interleaved
from ..work.flops import encoder_flops
from .inputs import SEED, Inputs
from .result import OURS, Contender, Throughput

# The kernel that torch compiles.
COMPILED = "compile"
# Length-sorted batches of transformers are cut by real tokens, and so are smaller by this.
SORTED_SHARE = 4
# The most that features may differ from those of the first contender.
LARGEST_DISTANCE = 0.05

Forward = Callable[[], torch.Tensor]


def contenders(inputs: Inputs, compiled: bool) -> Iterator[tuple[str, Callable[[], Forward]]]:
    """The name of each contender and what builds it: transformers by torch.compile beside ours, or all eager ones."""
    size, backend, lengths = inputs.size, inputs.backend, inputs.texts.lengths
    in_order, by_length = np.arange(size.texts), np.argsort(lengths, kind="stable")

    def cut(order: np.ndarray, tokens: int) -> list[np.ndarray]:
        return np.split(order, np.flatnonzero(np.diff(np.cumsum(lengths[order]) // tokens)) + 1)

    def forward(run: Callable[..., torch.Tensor], groups: list[Any], order: np.ndarray) -> Forward:
        back = backend.place(torch.from_numpy(np.argsort(order)))
        return lambda: torch.cat([run(group) for group in groups])[back]

    def ours(kernel: str) -> Forward:
        return forward(frozen_encoder(inputs.encoder, backend, inputs.policy, kernel), placed, in_order)

    def streamed() -> Forward:
        run = frozen_encoder(inputs.encoder, backend, inputs.policy, "auto")
        return lambda: torch.cat([run(batch) for batch in backend.prefetch(host)])

    def theirs(batches: list[Any], order: np.ndarray, dynamic: bool) -> Forward:
        run = TransformersEncoder(inputs.encoder.module(), backend, inputs.policy)
        if compiled:
            run.module.compile(dynamic=dynamic, backend=size.compiler)
        return forward(run, [backend.place(batch) for batch in batches], order)

    host = [inputs.packed(rows) for rows in cut(in_order, size.batch_tokens)]
    placed = [backend.place(batch) for batch in host]
    if not compiled:
        # It judges the others. The first kernel is what "auto" runs.
        yield "ours, portable", partial(ours, "portable")
        for kernel in list(backend.kernels())[1:]:
            if kernel not in ("portable", COMPILED):
                yield f"ours, {kernel}", partial(ours, kernel)
        yield "ours, auto, copied from the host", streamed
    yield OURS, partial(ours, "auto")
    if compiled and size.compiler == "inductor" and COMPILED in backend.kernels():
        yield f"ours, {COMPILED}", partial(ours, COMPILED)
    padded = np.split(in_order, range(size.padded_batch, size.texts, size.padded_batch))
    by_size = cut(by_length, max(1, size.batch_tokens // SORTED_SHARE))
    way = "torch.compile" if compiled else "eager"
    # Sorted batches have many shapes, for which torch needs one dynamic compilation.
    for shape, groups, order, length in (
        (f"padded to {size.max_length}", padded, in_order, size.max_length),
        ("sorted by length", by_size, by_length, None),
    ):
        packed = [inputs.packed(rows) for rows in groups]
        batches = [batch.to_padded(length or -(-batch.max_seqlen // 8) * 8) for batch in packed]
        yield f"transformers, {shape}, {way}", partial(theirs, batches, order, length is None)


def measure_throughput(
    inputs: Inputs, compiled: bool, keep: Callable[[Throughput], object], known: Sequence[Peaks] = ()
) -> Throughput:
    """Times every contender on all texts in each round, in alternating order. Inputs are on the device by default.

    Args:
        keep: Called with the result so far after each round.
        known: What an earlier process has measured.
    """
    peaks = measure_peaks(inputs.backend, inputs.policy.compute, known=known)
    running: dict[str, Forward] = {}
    failed: dict[str, str] = {}
    problems: list[str] = []
    judge: torch.Tensor | None = None
    for name, build in contenders(inputs, compiled):
        try:
            run = build()
            # The first pass compiles and the second captures. The third is like those that are timed.
            features = [run().float().cpu() for _ in range(3)][-1]
        except Exception as error:  # noqa: BLE001 (compilers and libraries raise any error)
            failed[name] = error_line(error)
            continue
        judge = features if judge is None else judge
        running[name] = run
        distance = float((features - judge).norm() / judge.norm())
        # NaN is a difference, too.
        if not distance <= LARGEST_DISTANCE:
            problems.append(f"{name}: features differ from those of {next(iter(running))} by {distance:.1%}")
    names = list(running)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    if OURS in failed:
        problems.append(f"{OURS}: {failed[OURS]}")
    result = _result(inputs, peaks, seconds, failed, problems)
    for number, (index, _) in enumerate(interleaved(len(names), inputs.size.rounds, SEED), start=1):
        seconds[names[index]].append(block_seconds(inputs.backend, running[names[index]], 1))
        if number % len(names) == 0:
            result = _result(inputs, peaks, seconds, failed, problems)
            keep(result)
    return result


def _result(
    inputs: Inputs, peaks: Peaks, seconds: dict[str, list[float]], failed: dict[str, str], problems: list[str]
) -> Throughput:
    encoder = inputs.encoder
    useful = encoder_flops(encoder.weights.config, inputs.texts.lengths.tolist())
    table = {}
    for name, samples in seconds.items():
        if samples:
            each = median_interval([samples], SEED)
            tflops = useful / each.median / 1e12
            table[name] = Contender(
                seconds=each,
                texts_per_second=inputs.size.texts / each.median,
                model_tflops=tflops,
                share_of_peak=tflops / peaks.compute_limit,
                samples=list(samples),
            )
    too_fast = [
        f"{name}: {one.model_tflops:.1f} model TFLOP/s are more than the measured peak of {peaks.compute_limit:.1f}"
        for name, one in table.items()
        # Where other work had the machine, the true peak is higher.
        if one.share_of_peak > 1.05 and not peaks.contended
    ]
    ours = seconds.get(OURS)
    ratios = {name: ratio_interval([seconds[name]], [ours], SEED) for name in table if ours and name != OURS}
    return Throughput(
        policy=Policy.of(inputs.policy),
        model=Model(
            name=inputs.size.model, label=encoder.label, random_weights=encoder.random, sha256=encoder.fingerprint
        ),
        texts=inputs.texts.describe(),
        peaks=peaks,
        contenders=table,
        speedup_of_ours=ratios,
        failed=failed,
        problems=problems + too_fast,
        choices=[ChoiceMade.of(chosen) for chosen in inputs.backend.choices()],
    )
