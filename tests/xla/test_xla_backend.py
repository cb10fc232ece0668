"""The XLA backend as the loop relies on it, on PJRT's CPU device."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.backends import backend_class, get_backend
from isotrain.backends.selftest import self_test
from isotrain.kernels.packed import PackedBatch


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_doctors_self_test_passes(backend: Any, dtype: str) -> None:
    checks = self_test(backend, dtype)
    assert all(check.ok for check in checks), checks


def test_it_says_which_device_it_is(backend: Any) -> None:
    assert backend_class("xla").probe().ok
    info = backend.info()
    assert info.backend == "xla"
    assert info.features == ("PJRT CPU",)
    assert info.versions["torch_xla"].startswith("2.9")


def test_a_device_that_is_not_there_is_refused(backend: Any) -> None:
    with pytest.raises(UserError, match="it has 1 CPU device"):
        get_backend("xla:7")


def executions() -> int:
    from torch_xla.debug import metrics

    data = metrics.metric_data("ExecuteTime")
    return data[0] if data else 0


def test_zero_and_one_are_data_and_compile_nothing_new(backend: Any) -> None:
    base = backend.place(torch.arange(4.0))
    counts = []
    for value in (0.0, 1.0, 0.5, 2.0):
        result = base * backend.scalar(value)
        backend.step_boundary()
        counts.append(backend.compile_count())
        assert torch.equal(result.cpu(), torch.arange(4.0) * value)
    assert len(set(counts)) == 1


def test_the_fence_waits_for_the_work(backend: Any) -> None:
    factor = backend.place(torch.randn(1500, 1500) / 40)

    def work() -> torch.Tensor:
        product = factor
        for _ in range(6):
            product = product @ factor
        backend.step_boundary()
        return product

    backend.synchronize(work())
    product = work()
    start = time.perf_counter_ns()
    backend.synchronize(product)
    fenced = time.perf_counter_ns()
    product.cpu()
    read = time.perf_counter_ns()
    assert read - fenced < (fenced - start) / 2


def test_a_fence_starts_what_nobody_started(backend: Any) -> None:
    parameter = backend.place(torch.ones(3))
    updated = parameter + 2
    before = executions()
    backend.synchronize(updated)
    assert executions() == before + 1
    assert torch.equal(updated.cpu(), torch.full((3,), 3.0))
    assert executions() == before + 1


def test_generators_continue_where_they_were_saved(backend: Any) -> None:
    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        drawn = torch.nn.functional.dropout(backend.place(torch.ones(64)), 0.5)
        backend.step_boundary()
        return torch.rand(3), drawn.cpu()

    draw()
    saved = backend.rng_state()
    first, second = draw(), draw()
    assert not torch.equal(first[1], second[1])
    backend.set_rng_state(saved)
    again = draw()
    assert torch.equal(again[0], first[0])
    assert torch.equal(again[1], first[1])
    with pytest.raises(UserError, match="no generator"):
        backend.set_rng_state({"cpu": saved["cpu"]})


def test_the_seed_decides_the_devices_generator_too(backend: Any) -> None:
    torch.manual_seed(7)
    first = get_backend("xla").rng_state()["xla"]
    torch.manual_seed(8)
    assert not torch.equal(get_backend("xla").rng_state()["xla"], first)
    torch.manual_seed(7)
    assert torch.equal(get_backend("xla").rng_state()["xla"], first)


def test_bfloat16_on_a_host_is_what_the_policy_says(backend: Any) -> None:
    policy = backend.cast_policy("bfloat16")
    assert (policy.param, policy.compute, policy.accumulate) == ("bfloat16", "float32", "float32")
    strict = backend.cast_policy("bfloat16", strict=True)
    assert strict.compute == "bfloat16"
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 768), (768, 64)))
    exact = left.double() @ right.double()
    # Both as the policy's reason says: float32 products and sums, and a result that keeps more digits than bfloat16
    # where the same program goes on with it, but has no more than those once it is written.
    placed = backend.place(left) @ backend.place(right)
    widened = placed.float()
    backend.step_boundary()
    assert relative(widened.cpu(), exact) < 1e-6
    assert relative(placed.cpu(), exact) > 1e-3
    with pytest.raises(UserError, match="float32, bfloat16, float64"):
        backend.cast_policy("float16")


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_the_frozen_encoder_gives_the_cpu_backends_features(backend: Any, dtype: str, limit: float) -> None:
    encoder = load_encoder("random:tiny")
    batch = PackedBatch.from_lists([[2, 5, 9, 3], [2, 7], [2, *range(10, 30)]])
    host = get_backend("cpu")
    reference = host.frozen_encoder(encoder.weights, host.cast_policy("float32"))(batch)
    before = backend.compile_count()
    forward = backend.frozen_encoder(encoder.weights, backend.cast_policy(dtype))
    backend.step_boundary()
    assert backend.compile_count() == before
    features = forward(backend.place(batch.to_padded(32)))
    assert relative(features.cpu(), reference.double()) < limit
    with pytest.raises(UserError, match="layout: bucketed or padded"):
        forward(backend.place(batch))


def test_memory_is_the_processs_on_a_host(backend: Any) -> None:
    use = backend.memory()
    assert 0 < use.current_bytes <= use.peak_bytes
    assert use.scope == "resident memory of the process"
