"""What the CUDA backend measures before it decides, with the host in the GPU's place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop import job as jobs
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.backends import CastPolicy, DeviceInfo, EnergyUse
from isotrain.backends.cuda import device, encoder_choices
from isotrain.backends.cuda.device import CudaBackend
from isotrain.backends.host.choices import timed_in_turns
from isotrain.benchmarks.harness import measure, worker
from isotrain.benchmarks.harness.document import Measured
from isotrain.benchmarks.harness.plan import Options, make_plan
from isotrain.kernels import reference
from isotrain.kernels.cuda import PackedGpuEncoder, encoder, ways
from isotrain.kernels.packed import PortableEncoder
from isotrain.kernels.weights import EncoderWeights
from support.hosted_cuda import HostedCuda, Told, batch_of, plain_flash
from support.recorded_graph import RecordedGraph
from support.workloads import PEAKS

FLOAT32 = CastPolicy("float32", "float32", "float32", "float32", "for a test")
BFLOAT16 = CastPolicy("bfloat16", "bfloat16", "bfloat16", "float32", "for a test")
LENGTHS = (4, 8, 16)
CHUNKS = (64, 32)


class InOrder(Told):
    """A timer that is told times for each attention in the order of the measurements, from long texts to short ones."""

    def __init__(self, attention: list[dict[str, float | str]], **others: float | str) -> None:
        super().__init__(**others)
        self.attention = iter(attention)

    def __call__(self, ways: Mapping[str, Any]) -> dict[str, float | str]:
        found = super().__call__(ways)
        return dict(found) | next(self.attention) if set(ways) == {"triton", "flash"} else found


@pytest.fixture(scope="module")
def weights() -> EncoderWeights:
    return load_encoder("random:tiny", 3).weights


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install -e '.[dev]'")
    if torch.cuda.is_available():
        pytest.skip("Triton's kernels are compiled for the GPU here, the host can't run them")
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    for name, value in (("ROWS", 40), ("TEXT_TOKENS", 8), ("LENGTHS", LENGTHS), ("CHUNKS", CHUNKS)):
        monkeypatch.setattr(encoder_choices, name, value)
    for place in (encoder, ways):
        monkeypatch.setattr(place, "flash_attention", plain_flash)


def built(backend: HostedCuda, weights: EncoderWeights, policy: CastPolicy = BFLOAT16) -> PackedGpuEncoder:
    found = backend.frozen_encoder(weights, policy)
    assert isinstance(found, PackedGpuEncoder)
    return found


FAST, SLOW = {"triton": 1.0, "flash": 0.5}, {"triton": 1.0, "flash": 1.5}


@pytest.mark.parametrize(
    ("attention", "flash_from"),
    [([FAST, FAST, FAST], 4), ([FAST, FAST, SLOW], 8), ([FAST, SLOW], 16), ([SLOW], None)],
)
def test_flash_attention_is_taken_from_the_length_that_it_is_faster_at(
    attention: list[dict[str, float | str]], flash_from: int | None, weights: EncoderWeights
) -> None:
    backend = HostedCuda(InOrder(attention))
    found = built(backend, weights)
    assert found.operators.flash_from == flash_from
    made = [chosen for chosen in backend.choices() if chosen.name == "attention"]
    assert [chosen.shape.rpartition("texts of ")[2] for chosen in made] == [
        f"{length} tokens" for length in LENGTHS[::-1][: len(attention)]
    ]
    batch = batch_of([5, 9, 1, 20])
    exact = reference.encode(weights, batch).features
    assert (found(batch).double() - exact).square().mean().sqrt() < 0.06


def test_each_part_is_what_was_fastest(weights: EncoderWeights) -> None:
    told = Told(flash=2.0, epilogue=0.5, compute=0.5, **{"32": 0.5})
    backend = HostedCuda(told)
    found = built(backend, weights)
    assert (found.operators.activation, found.operators.residual, found.chunk_tokens) == ("epilogue", "compute", 32)
    assert found.version == "1, activation epilogue, residual compute, chunks of 32 tokens"
    assert [chosen.name for chosen in backend.choices()] == ["attention", "activation", "residual", "chunk"]
    assert {chosen.source for chosen in backend.choices()} == {"measured"}
    batch = batch_of([5, 9, 1, 20, 30])
    exact = reference.encode(weights, batch).features
    for _ in range(3):
        assert (found(batch).double() - exact).square().mean().sqrt() < 0.06


def test_what_was_measured_is_kept_for_the_next_process(weights: EncoderWeights) -> None:
    first = built(HostedCuda(Told(flash=2.0, epilogue=0.5)), weights)
    again = HostedCuda(lambda _: pytest.fail("measured again"))
    later = built(again, weights)
    assert (later.operators, later.chunk_tokens) == (first.operators, first.chunk_tokens)
    assert {chosen.source for chosen in again.choices()} == {"kept"}
    assert {chosen.name for chosen in HostedCuda(Told()).choices(kept=True)} == {
        chosen.name for chosen in again.choices()
    }


def test_float32_has_no_flash_attention_and_no_narrow_residual(weights: EncoderWeights) -> None:
    backend = HostedCuda(Told())
    assert built(backend, weights, FLOAT32).operators.residual == "float32"
    found = {chosen.name: chosen for chosen in backend.choices()}
    assert "attention" not in found
    assert found["residual"].source == "the only way"


@pytest.mark.parametrize("kernel", ["triton", "flash"])
def test_a_kernel_that_is_named_is_not_measured(kernel: str, weights: EncoderWeights) -> None:
    backend = HostedCuda(lambda _: pytest.fail("measured"))
    found = backend.frozen_encoder(weights, BFLOAT16, kernel)
    assert (found.name, found.version) == (kernel, "1")
    assert backend.choices() == []


def test_wrong_operators_are_never_chosen(weights: EncoderWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "flash_attention", lambda *given: given[2])
    monkeypatch.setattr(torch, "_addmm_activation", lambda bias, x, weight, **_: x @ weight + bias)
    backend = HostedCuda(Told(flash=1e-6, epilogue=1e-6))
    found = built(backend, weights)
    assert (found.operators.flash_from, found.operators.activation) == (None, "triton")
    reasons = {chosen.name: chosen.refused for chosen in backend.choices()}
    assert "its result is off by" in reasons["attention"]["flash"]
    assert "its result is off by" in reasons["activation"]["epilogue"]


def test_where_no_way_is_right_the_portable_kernel_serves(
    weights: EncoderWeights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*_: Any) -> dict[str, Callable[[], torch.Tensor]]:
        return dict.fromkeys(("triton", "torch", "epilogue"), lambda: torch.zeros(40, 64))

    monkeypatch.setattr(encoder_choices, "activation_ways", wrong)
    assert isinstance(HostedCuda(Told()).frozen_encoder(weights, BFLOAT16), PortableEncoder)
    assert "the portable kernel serves: what was measured of the others was wrong" in caplog.text


def test_the_real_timer_times_every_way(weights: EncoderWeights) -> None:
    backend = HostedCuda()
    backend.timer = lambda runs: timed_in_turns(backend, runs, 1, 0.0)
    built(backend, weights)
    assert all(taken > 0 for chosen in backend.choices() for taken in chosen.seconds.values())
    assert [len(chosen.seconds) for chosen in backend.choices()][-1] == len(CHUNKS)


def test_decisions_are_of_one_gpu_and_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MIG slices have names of their own; partitions without one have fewer units or less memory."""
    found = []
    for name, units, memory, driver in (
        ("NVIDIA H200", 132, 141, "580.65"),
        ("NVIDIA H200 MIG 1g.18gb", 16, 18, "580.65"),
        ("NVIDIA H200", 132, 141, "590.01"),
        ("NVIDIA H200", 66, 141, "580.65"),
        ("NVIDIA H200", 132, 70, "580.65"),
    ):
        properties = SimpleNamespace(name=name, total_memory=memory, multi_processor_count=units, major=9, minor=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=properties: found)
        monkeypatch.setattr(device, "_driver_version", lambda _, version=driver: version)
        backend = HostedCuda()
        assert backend.info().versions["driver"] == driver
        found.append(CudaBackend._chooser.func(backend)._device)
    assert len({tuple(sorted(one.items())) for one in found}) == 5
    assert found[0].keys() == {"name", "units", "memory", "isotrain", "kernels", "torch", "cuda", "driver"}


# --- the layout of a whole model


def open_job(backend: HostedCuda, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> jobs.TextJob:
    monkeypatch.setattr(jobs, "get_backend", lambda *_: backend)
    monkeypatch.setattr(backend, "energy", lambda: None)
    given = {
        "model_name": "random:tiny",
        "dataset_id": "embedded:intents?train=154&test=77",
        "freeze_encoder": False,
        "backend": "cpu",
        "batch_size": 16,
        **settings,
    }
    config = load_config("quickstart", [f"{key}={str(value).lower()}" for key, value in given.items()]).config
    return jobs.open_job(config)


@pytest.mark.parametrize(("packed", "layout"), [(0.5, "packed"), (0.98, "dynamic"), (1.0, "dynamic"), (2.0, "dynamic")])
def test_whole_models_are_packed_only_where_that_is_faster_than_padding_to_the_longest(
    packed: float, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(packed=packed)
    backend = HostedCuda(told)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    job = open_job(backend, monkeypatch)
    assert job.layout == layout
    assert told.timed == [["dynamic", "packed"]]
    assert job.identity()["layout"] == layout
    (chosen,) = backend.choices()
    assert "16 texts of " in chosen.shape
    assert torch.equal(torch.get_rng_state(), before), "what training draws must not depend on what was measured"
    assert all(parameter.grad is None for parameter in job.encoder.module().parameters())
    assert open_job(HostedCuda(lambda _: pytest.fail("measured again")), monkeypatch).layout == layout


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({"layout": "bucketed"}, "bucketed"),
        ({"freeze_encoder": True}, "packed"),
        ({"torch_compile": "default"}, "bucketed"),
    ],
)
def test_a_layout_that_is_given_is_not_measured(
    settings: dict[str, Any], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "check_compiles", lambda *_: None)
    backend = HostedCuda(lambda _: pytest.fail("measured"))
    assert open_job(backend, monkeypatch, **settings).layout == layout


def test_a_layout_is_measured_by_the_steps_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = RecordedGraph()

    def thrice(ways: Mapping[str, Any]) -> dict[str, float | str]:
        for run in [*ways.values()] * 3:
            run()
        return {"dynamic": 0.5, "packed": 1.0}

    backend = HostedCuda(thrice)
    monkeypatch.setattr(backend, "_new_capture", lambda: graph)
    assert open_job(backend, monkeypatch).layout == "dynamic"
    assert graph.events.count("warm up") == graph.events.count("capture") > 0
    assert graph.events.count("replay") > graph.events.count("capture")


def test_a_layout_with_other_losses_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(HostedCuda):
        def packed_attention(self, batch: Any) -> Any:
            return lambda *given: given[2].transpose(1, 2)

    assert open_job(Wrong(Told(packed=1e-6)), monkeypatch).layout == "dynamic"


# --- in results


def test_choices_are_made_before_anything_is_timed_and_stand_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(flash=2.0, epilogue=0.5)
    before: list[int] = []
    timed = measure.measure

    def measured(*given: Any, **others: Any) -> Any:
        before.append(len(told.timed))
        return timed(*given, **others)

    backend = HostedCuda(told)
    monkeypatch.setattr(backend, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(backend, "info", lambda: DeviceInfo("cuda", "cpu", "a GPU", untested=True))
    monkeypatch.setattr(backend, "energy", lambda: EnergyUse(None, "unavailable: for a test"))
    monkeypatch.setattr("isotrain.backends.get_backend", lambda *_: backend)
    monkeypatch.setattr(measure, "measure", measured)
    monkeypatch.setattr(measure, "LARGEST_LATE_SHARE", 100.0)
    options = Options(
        ("cpu",), model="random:tiny", workloads=("forward",), layouts=("packed",), batches=2, blocks=2, seconds=0.02
    )
    found = worker.run(
        options, make_plan(options).targets[0], known_peaks=[PEAKS.model_copy(update={"dtype": "bfloat16"})]
    )
    assert [choice.name for choice in found.kernel.choices] == ["attention", "activation", "residual", "chunk"]
    assert found.kernel.choices[1].way == "epilogue"
    assert found.kernel.version == "1, activation epilogue, chunks of 64 tokens"
    assert before == [len(told.timed)] == [4]
    assert Measured.model_validate_json(json.dumps(found.document())) == found
