"""The speed of a card's emulation on this host, in CPU time of one thread, and its least acceptable speed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from ...albert_core.model.encoder import load_encoder
from ...albert_core.model.head import ClassificationHead
from ...backends import get_backend
from ...kernels.packed import PackedBatch
from ...kernels.tt import model, native

NAME = "tt-emulated"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fastest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of the fastest call of each. They are called in turn, so that a busy moment affects all alike."""
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time_ns()
            call()
            seconds[name] = min(seconds[name], (time.process_time_ns() - start) / 1e9)
    return seconds


@pytest.mark.parametrize("fp32_dest", [True, False])
@pytest.mark.parametrize("engine", native.ENGINES[:-1])
def test_a_core_multiplies_at_the_rate_asked_for(engine: str, fp32_dest: bool) -> None:
    if engine not in native.engines():
        pytest.skip(f"engine {engine} does not run here: {native.library().reason}")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).bfloat16().float() for shape in ((256, 768), (768, 768)))

    def multiplied(fidelity: str) -> Callable[[], object]:
        return lambda: native.matmul(a, b, fidelity, fp32_dest=fp32_dest, engine=engine, threads=1)

    seconds = fastest({fidelity: multiplied(fidelity) for fidelity in ("lofi", "hifi4")}, rounds=2)
    rates = {name: a.numel() * b.shape[1] * model.PHASES[name] / taken / 1e6 for name, taken in seconds.items()}
    said = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    sys.stdout.write(f"{NAME}, exact, {engine}, float32 Dst {fp32_dest}: {said} million phase products a second\n")
    assert min(rates.values()) > 400


def test_the_fast_forward_is_a_sixth_of_the_portable_ones_speed_or_more() -> None:
    encoder = load_encoder("random:albert-base-v2")
    rng = np.random.default_rng(0)
    batch = PackedBatch.from_lists([rng.integers(0, 30000, length).tolist() for length in rng.integers(6, 24, 16)])

    def forward(name: str, kernel: str) -> Callable[[], object]:
        backend = get_backend(name)
        frozen = backend.frozen_encoder(encoder.weights, backend.cast_policy("bfloat16"), kernel)
        head = backend.place(ClassificationHead(encoder.weights.config.hidden_size, 256, 77))

        @torch.no_grad()
        def call() -> torch.Tensor:
            return head(frozen(batch))

        return call

    seconds = fastest({"portable": forward("cpu", "portable"), "fast": forward(NAME, "auto")}, rounds=3)
    ratio = seconds["portable"] / seconds["fast"]
    sys.stdout.write(
        f"ALBERT-base forward and head, {NAME} fast HiFi4, float32 Dst: {ratio:.2f} of the portable kernel's\n"
    )
    assert ratio >= 1 / 6
