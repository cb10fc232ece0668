"""One pass over four batches of eight texts, with each frozen kernel and each training step of each backend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.features.source import frozen_encoder
from isotrain.albert_core.model.encoder import LoadedEncoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.backends import Backend
from isotrain.benchmarks.harness.texts import Texts, make_batches
from isotrain.benchmarks.harness.workloads import WORKLOAD_CLASSES, TrainedEncoder, Workload
from isotrain.benchmarks.suites.plugin import BATCH_SIZE, MAX_LENGTH, NUM_LABELS, SEED, opened_backends, usable_kernels

BACKENDS = opened_backends()
KERNELS = [
    pytest.param(backend, kernel, id=f"{backend.name}-{kernel}")
    for backend in BACKENDS
    for kernel in usable_kernels(backend)
]
STEPS = [
    pytest.param(backend, step, id=f"{backend.name}-{step}")
    for backend in BACKENDS
    for step in ("train_step", "head_step", "full_step")
]

Make = Callable[..., Workload]
Run = Callable[[Workload], None]


@pytest.fixture
def make(encoder: LoadedEncoder, texts: Texts, dtype: str) -> Make:
    """`make(backend, workload, kernel)` builds a workload of `isotrain bench` in the layout with the least padding."""

    def build(backend: Backend, workload: str, kernel: str = "auto") -> Workload:
        policy = backend.cast_policy(dtype)
        layout = "bucketed" if kernel == "transformers" else backend.traits.layouts[-1]
        batches = make_batches(texts, BATCH_SIZE, layout, MAX_LENGTH)
        head = ClassificationHead(encoder.weights.config.hidden_size, 256, NUM_LABELS, SEED)
        runs: Any
        if workload == "full_step":
            runs = TrainedEncoder(copy.deepcopy(encoder.module()), policy, kernel, "")
        else:
            try:
                runs = frozen_encoder(encoder, backend, policy, kernel)
            except UserError as error:
                # A kernel may have no form for this model or dtype.
                pytest.skip(str(error))
        return WORKLOAD_CLASSES[workload](backend, runs, head, batches, texts)

    return build


@pytest.mark.parametrize(("backend", "kernel"), KERNELS)
def test_forward(make: Make, in_rounds: Run, backend: Backend, kernel: str) -> None:
    in_rounds(make(backend, "forward", kernel))


@pytest.mark.parametrize(("backend", "step"), STEPS)
def test_step(make: Make, in_rounds: Run, backend: Backend, step: str) -> None:
    in_rounds(make(backend, step))
