"""`isotrain bench` on the XLA backend: valid where every shape was warm, invalid where one compiled while timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from isotrain.albert_core.features.source import frozen_encoder
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.benchmarks.harness.measure import Budget, measure
from isotrain.benchmarks.harness.peaks import measure_peaks
from isotrain.benchmarks.harness.plan import CACHED, OWN, Options, TargetSpec
from isotrain.benchmarks.harness.texts import embedded_texts, make_batches
from isotrain.benchmarks.harness.worker import run
from isotrain.benchmarks.harness.workloads import WORKLOAD_CLASSES, Workload
from support import own_modules

OPTIONS = Options(backends=("xla",), model="random:tiny", dtypes=("float32",), blocks=3, seconds=1.5, num_labels=7)


@pytest.mark.parametrize(
    ("workload", "layout", "kernel"),
    [
        ("forward", "padded", "portable"),
        ("forward", "bucketed", "portable"),
        ("train_step", "padded", "portable"),
        ("train_step", "bucketed", "portable"),
        ("head_step", CACHED, "autograd"),
        ("full_step", "bucketed", "transformers"),
    ],
)
def test_a_target_is_measured_and_valid(backend: Any, workload: str, layout: str, kernel: str) -> None:
    measured = run(OPTIONS, TargetSpec("xla", workload, layout, "auto", 4))
    assert measured.reasons == []
    assert measured.warm_up.compiles <= 4
    assert measured.kernel.name == kernel
    assert measured.device.backend == "xla"


def test_the_forward_pass_gives_the_cpu_backends_logits(backend: Any) -> None:
    here, there = (
        run(replace(OPTIONS, backends=(name,)), TargetSpec(name, "forward", "bucketed", "auto", 4)).probe
        for name in ("xla", "cpu")
    )
    assert here.keys() == there.keys()
    for text in there:
        np.testing.assert_allclose(here[text], there[text], rtol=1e-4, atol=1e-5)


class ChangingShapes(WORKLOAD_CLASSES["forward"]):
    """Meets a new shape in every timed block's second step; a warm-up's steps are each the first since `begin`."""

    length = 64

    @torch.no_grad()
    def run(self, index: int) -> torch.Tensor:
        batch = self.batches[index].inputs
        if len(self._ran) == 1:
            self.length += 1
            batch = batch.to_packed().to_padded(self.length)
        return self.logits(self.encoder(self.backend.place(batch)))


def make(kind: type[Workload], backend: Any) -> Workload:
    encoder = load_encoder("random:tiny")
    config = encoder.weights.config
    texts = embedded_texts(4, 64, config.vocab_size, 7, 0)
    forward = frozen_encoder(encoder, backend, backend.cast_policy("float32"), "auto")
    head = ClassificationHead(config.hidden_size, 16, 7)
    return kind(backend, forward, head, make_batches(texts, 4, "padded", 64), texts)


def test_a_recompile_in_a_timed_block_makes_a_measurement_invalid(backend: Any) -> None:
    measured = measure(make(ChangingShapes, backend), Budget(blocks=1, seconds=0.5, warmup_seconds=2))
    assert measured.steps_per_block > 1
    assert any("compilations inside the timed region" in reason for reason in measured.reasons)


def test_the_peaks_are_work_that_was_done(backend: Any) -> None:
    from torch_xla.debug import metrics

    before = metrics.metric_data("ExecuteTime")[0]
    peaks = measure_peaks(backend, "float32")
    assert metrics.metric_data("ExecuteTime")[0] > before + 10
    # A renamed buffer would look like thousands of GB/s.
    assert 0 < peaks.copy_gbps < 1000
    assert 0 < peaks.matmul_tflops < 100


@pytest.mark.parametrize(("name", "workload"), [("TinyGPT", "forward"), ("Ragged", "full_step")])
def test_a_users_module_is_measured_and_told_of_its_shapes(
    backend: Any, monkeypatch: pytest.MonkeyPatch, name: str, workload: str
) -> None:
    # Other work would look like a late fence: readings of so small a module's results take as long as its steps.
    monkeypatch.setattr("isotrain.benchmarks.harness.measure.LARGEST_LATE_SHARE", 100.0)
    module = f"{own_modules.__file__}:{name}"
    options = replace(OPTIONS, model=module, module=True)
    measured = run(options, TargetSpec("xla", workload, OWN, name, 0, module=module))
    assert measured.reasons == []
    advice = [warning for warning in measured.warnings if "would do" in warning]
    assert [len(advice), *("pad it to 8, 16" in one for one in advice)] == ([1, True] if name == "Ragged" else [0])
    for number, expected in measured.expected.items():
        np.testing.assert_allclose(measured.probe[number], expected, rtol=1e-3, atol=1e-4)
