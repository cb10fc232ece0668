"""The XLA backend as the loop relies on it, on PJRT's CPU device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.backends import backend_class, get_backend
from isotrain.conformance import device
from isotrain.conformance.case import Case, Device
from isotrain.conformance.worker import judge
from isotrain.kernels.packed import PackedBatch
from support.running_statistics import MODULES, check_running_statistics


@pytest.mark.parametrize("case", device.cases(), ids=lambda case: case.subject)
def test_it_holds_the_contract_of_a_device(backend: Any, case: Case) -> None:
    judged = judge(case, Device(backend))
    assert judged.status in ("pass", "unsupported"), judged.detail


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


def test_a_fence_starts_what_nobody_started(backend: Any) -> None:
    parameter = backend.place(torch.ones(3))
    updated = parameter + 2
    before = executions()
    backend.synchronize(updated)
    assert executions() == before + 1
    assert torch.equal(updated.cpu(), torch.full((3,), 3.0))
    assert executions() == before + 1


@pytest.mark.parametrize("module", MODULES)
def test_running_statistics_are_the_hosts(backend: Any, module: str) -> None:
    check_running_statistics(backend, module)


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
    with pytest.raises(UserError, match="float32, bfloat16;"):
        backend.cast_policy("float16")


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def test_the_frozen_encoder_in_bfloat16_gives_the_cpu_backends_features(backend: Any) -> None:
    encoder = load_encoder("random:tiny")
    batch = PackedBatch.from_lists([[2, 5, 9, 3], [2, 7], [2, *range(10, 30)]])
    host = get_backend("cpu")
    reference = host.frozen_encoder(encoder.weights, host.cast_policy("float32"))(batch)
    before = backend.compile_count()
    forward = backend.frozen_encoder(encoder.weights, backend.cast_policy("bfloat16"))
    backend.step_boundary()
    assert backend.compile_count() == before
    features = forward(backend.place(batch.to_padded(32)))
    assert relative(features.cpu(), reference.double()) < 1e-2
    with pytest.raises(UserError, match="layout: bucketed or padded"):
        forward(backend.place(batch))


def test_memory_is_the_processs_on_a_host(backend: Any) -> None:
    assert backend.memory().scope == "resident memory of the process"
