"""The CUDA backend: its choices and bookkeeping anywhere, its graphs and streams where there is a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.backends import CastPolicy, get_backend
from isotrain.backends.cuda.device import CudaBackend
from isotrain.backends.cuda.graphs import CapturedStep, why_not_captured
from isotrain.conformance import encoder
from isotrain.kernels import reference
from isotrain.kernels.cuda import BucketRunner, PackedGpuEncoder
from isotrain.kernels.packed import PortableEncoder
from isotrain.kernels.weights import EncoderWeights
from support.hosted_cuda import HostedCuda, batch_of
from support.mutated_training import failing
from support.recorded_graph import HostReadError, RecordedGraph

FLOAT32 = CastPolicy("float32", "float32", "float32", "float32", "for a test")
BFLOAT16 = CastPolicy("bfloat16", "bfloat16", "bfloat16", "float32", "for a test")


@pytest.fixture(scope="module")
def weights() -> EncoderWeights:
    return load_encoder("random:tiny", 3).weights


# --- choosing a kernel, anywhere


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> HostedCuda:
    pytest.importorskip("triton", reason="triton is not installed: pip install -e '.[dev]'")
    if torch.cuda.is_available():
        pytest.skip("Triton's kernels are compiled for the GPU here, the host can't run them")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    return HostedCuda()


@pytest.mark.parametrize("kernel", ["auto", "triton"])
def test_triton_is_the_fastest_correct_kernel(kernel: str, hosted: HostedCuda, weights: EncoderWeights) -> None:
    encoder = hosted.frozen_encoder(weights, FLOAT32, kernel)
    assert isinstance(encoder, PackedGpuEncoder)
    assert encoder.name == "triton"
    batch = batch_of([5, 9, 1])
    exact = reference.encode(weights, batch).features
    for _ in range(3):
        torch.testing.assert_close(encoder(batch).double(), exact, rtol=0, atol=1e-5)


def test_the_kernels_and_why_they_are_not_there(hosted: HostedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: state.ok for name, state in hosted.kernels().items()} == {
        "triton": True,
        "flash": True,
        "portable": True,
        "compile": True,
    }
    no_triton(monkeypatch)
    assert hosted.kernels()["triton"].reason == "triton is not installed"
    old_gpu(monkeypatch)
    assert "sm_75" in hosted.kernels()["flash"].reason
    assert hosted.kernels()["portable"].ok


def test_flash_and_portable_can_be_forced(hosted: HostedCuda, weights: EncoderWeights) -> None:
    assert hosted.frozen_encoder(weights, BFLOAT16, "flash").name == "flash"
    assert isinstance(hosted.frozen_encoder(weights, FLOAT32, "portable"), PortableEncoder)
    with pytest.raises(UserError, match="flash attention computes in bfloat16 or float16"):
        hosted.frozen_encoder(weights, FLOAT32, "flash")
    with pytest.raises(UserError, match="allowed are auto, triton, flash, portable"):
        hosted.frozen_encoder(weights, FLOAT32, "native")


def no_triton(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("isotrain.kernels.cuda.support.find_spec", lambda _: None)


def old_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))


def wrong_kernel(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("isotrain.kernels.cuda.triton_kernels.attention", lambda q, *_, **__: q)


@pytest.mark.parametrize(
    ("spoil", "policy", "reason"),
    [
        (no_triton, FLOAT32, "triton is not installed"),
        (old_gpu, FLOAT32, "this GPU is sm_75"),
        (wrong_kernel, FLOAT32, "wrong results here \\(attention"),
        (lambda _: None, replace(FLOAT32, param="float64", compute="float64", accumulate="float64"), "float64"),
    ],
)
def test_the_portable_kernel_serves_and_says_why(
    spoil: Callable[[pytest.MonkeyPatch], None],
    policy: CastPolicy,
    reason: str,
    hosted: HostedCuda,
    weights: EncoderWeights,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil(monkeypatch)
    with caplog.at_level(logging.INFO, "isotrain"):
        assert isinstance(hosted.frozen_encoder(weights, policy), PortableEncoder)
    assert "the portable kernel serves" in caplog.text
    with pytest.raises(UserError, match=f"{reason}.*; use kernel auto or portable"):
        hosted.frozen_encoder(weights, policy, "triton")


def test_broken_weights_are_refused(hosted: HostedCuda) -> None:
    assert failing(hosted, (case for case in encoder.cases() if case.subject == "broken-weights")) == {}


def test_an_unknown_activation_is_refused(hosted: HostedCuda, weights: EncoderWeights) -> None:
    swish = replace(weights, config=replace(weights.config, activation="swish"))
    with pytest.raises(UserError, match="activation 'swish' is not supported"):
        hosted.frozen_encoder(swish, FLOAT32)


@pytest.mark.parametrize(("there", "use"), [(2, "cuda:0 to cuda:1"), (1, "cuda")])
def test_a_device_number_beyond_the_last_says_which_there_are(
    there: int, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(CudaBackend, "device_count", classmethod(lambda _: there))
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    with pytest.raises(UserError, match=rf"^backend 'cuda:2': this machine has {there} CUDA devices?; use {use}$"):
        CudaBackend(2)
    last = CudaBackend(there - 1)
    assert (last.device, taken) == (torch.device("cuda", there - 1), [there - 1])


def test_a_driver_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> str:
        raise RuntimeError

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", fails)
    assert CudaBackend.probe().reason == "the GPU can't be opened (RuntimeError)"


# --- captured steps, anywhere


def make_step(
    head: torch.nn.Module, rate: float = 1e-2
) -> tuple[torch.optim.Optimizer, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    optimizer = torch.optim.AdamW(head.parameters(), rate, fused=True)

    def step(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(head(features), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return optimizer, step


def inputs(sizes: list[int], device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        yield (
            torch.randn(size, 24, generator=generator).to(device),
            torch.randint(0, 5, (size,), generator=generator).to(device),
        )


def compare_steps(capture: Any, device: torch.device, sizes: list[int], most_shapes: int = 8) -> None:
    """Captured steps against plain ones: the same losses, weights and state, whatever the shapes and rates."""
    plain_head, head = (ClassificationHead(24, 16, 5, seed=2).to(device) for _ in range(2))
    plain_optimizer, plain_step = make_step(plain_head)
    optimizer, step = make_step(head)
    captured = CapturedStep(step, optimizer, capture, most_shapes)
    kept = []
    for index, (features, labels) in enumerate(inputs(sizes, device)):
        # Exact in float32, the graph's precision: else Adam would enlarge the difference wherever a gradient is near 0.
        rate = 2.0 ** -(7 + index % 4)
        plain_optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = rate
        expected = plain_step(features, labels)
        loss = captured(features, labels)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        kept.append((loss, float(loss)))
        assert optimizer.param_groups[0]["lr"] == rate
        assert optimizer.param_groups[0]["capturable"] is False
        assert all(parameter.grad is None for parameter in head.parameters())
    assert all(float(loss) == value for loss, value in kept), "a later step wrote over an earlier loss"
    for ours, plain in zip(head.parameters(), plain_head.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
        assert float(optimizer.state[ours]["step"]) == len(sizes), "a step was made twice, or not at all"
    head.load_state_dict(plain_head.state_dict())
    assert torch.optim.AdamW(head.parameters()).load_state_dict(optimizer.state_dict()) is None


def test_recorded_steps_are_the_plain_ones() -> None:
    capture = RecordedGraph()
    compare_steps(capture, torch.device("cpu"), [8, 8, 8, 3, 8, 3, 3, 8])
    assert [event for event in capture.events if event != "replay"] == ["warm up", "capture"] * 2


def test_more_shapes_than_are_kept_run_plainly() -> None:
    capture = RecordedGraph()
    compare_steps(capture, torch.device("cpu"), [8, 8, 4, 5, 6, 4, 8], most_shapes=1)
    assert capture.events.count("warm up") == 1


def test_after_a_failed_capture_steps_are_made_plainly(caplog: pytest.LogCaptureFixture) -> None:
    capture = RecordedGraph(fails=True)
    compare_steps(capture, torch.device("cpu"), [8, 3, 8, 8, 3, 3, 5, 5])
    assert capture.events == ["warm up", "warm up", "capture"]
    (warning,) = caplog.messages
    assert warning.startswith("the optimizer's steps run without CUDA graphs: operation not permitted")


@pytest.mark.parametrize(
    "read", [float, bool, torch.Tensor.tolist, torch.Tensor.numpy, torch.nonzero, torch.Tensor.cpu]
)
def test_the_stand_in_for_a_graph_refuses_reads_by_the_host(read: Callable[[torch.Tensor], object]) -> None:
    value = torch.ones(())

    def run() -> torch.Tensor:
        read(value)
        return value

    with pytest.raises(HostReadError):
        RecordedGraph().capture(run)


def test_the_stand_in_for_a_graph_runs_no_python_again() -> None:
    value, calls = torch.zeros(2), []

    def run() -> torch.Tensor:
        calls.append(1)
        return value.add_(1).sum()

    replay = RecordedGraph().capture(run)
    assert value.tolist() == [0, 0], "a capture executes nothing"
    assert [float(replay()) for _ in range(3)] == [2, 4, 6]
    assert calls == [1]


def test_optimizers_that_cannot_be_captured_say_why(caplog: pytest.LogCaptureFixture) -> None:
    head = ClassificationHead(4, 4, 2)
    assert why_not_captured(torch.optim.AdamW(head.parameters(), fused=True)) == ""
    assert "fused" in why_not_captured(torch.optim.Adam(head.parameters()))
    sgd = torch.optim.SGD(head.parameters())

    def step(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("never called")

    with caplog.at_level(logging.INFO, "isotrain"):
        assert HostedCuda().capture_step(step, sgd) is step
    assert "without a CUDA graph: SGD" in caplog.text


def test_graphs_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, hosted: HostedCuda) -> None:
    optimizer, step = make_step(ClassificationHead(4, 4, 2))
    assert isinstance(hosted.capture_step(step, optimizer), CapturedStep)
    monkeypatch.setenv("ISOTRAIN_CUDA_GRAPHS", "0")
    assert hosted.capture_step(step, optimizer) is step


def test_other_backends_step_plainly() -> None:
    optimizer, step = make_step(ClassificationHead(4, 4, 2))
    assert get_backend("cpu").capture_step(step, optimizer) is step


# --- on a GPU


@pytest.fixture(scope="module")
def cuda(gpu: torch.device) -> CudaBackend:
    backend = get_backend("cuda")
    assert isinstance(backend, CudaBackend)
    return backend


@pytest.mark.parametrize("policy", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_every_kernel_is_near_the_oracle(policy: CastPolicy, cuda: CudaBackend, weights: EncoderWeights) -> None:
    batches = [batch_of(lengths, seed) for seed, lengths in enumerate(([1], [3, 9, 40], [64, 1, 1], [5] * 200))]
    kernels = ["portable", "triton", *(["flash"] if policy is BFLOAT16 else [])]
    for kernel in kernels:
        encoder = cuda.frozen_encoder(weights, policy, kernel)
        for _ in range(3):
            for batch in batches:
                exact = reference.encode(weights, batch).features
                error = (encoder(batch).cpu().double() - exact).square().mean().sqrt()
                assert error < (1e-5 if policy is FLOAT32 else 0.03), kernel


def test_replayed_graphs_equal_plain_runs_bit_for_bit(cuda: CudaBackend, weights: EncoderWeights) -> None:
    placed = weights.to(cuda.device)
    capture = cuda._new_capture()
    plain = PackedGpuEncoder(placed, torch.bfloat16)
    graphed = PackedGpuEncoder(placed, torch.bfloat16, runner=lambda forward: BucketRunner(forward, capture, 512))
    batches = [batch_of(lengths, seed) for seed, lengths in enumerate(([60, 1, 3], [30, 31], [64], [3, 9, 2, 40]))]
    first = [graphed(batch) for batch in batches]
    for _ in range(3):
        for batch, before in zip(batches, first, strict=True):
            features = graphed(batch)
            assert torch.equal(features, before), "what an earlier batch left in a bucket reached a feature"
            torch.testing.assert_close(features, plain(batch), rtol=0, atol=0.05)
    assert capture.count == 3


def test_graphs_read_weights_where_they_are(cuda: CudaBackend, weights: EncoderWeights) -> None:
    placed = weights.to(cuda.device)
    encoder = PackedGpuEncoder(
        placed, torch.float32, runner=lambda forward: BucketRunner(forward, cuda._new_capture(), 512)
    )
    batch = batch_of([5, 9])
    for _ in range(3):
        encoder(batch)
    placed.word_embeddings.mul_(0.5)
    exact = reference.encode(placed, batch).features
    torch.testing.assert_close(encoder(batch).cpu().double(), exact, rtol=0, atol=1e-5)


def test_nothing_waits_for_the_device(cuda: CudaBackend, weights: EncoderWeights) -> None:
    encoder = cuda.frozen_encoder(weights, BFLOAT16, "triton")
    batches = [cuda.place(batch_of(lengths)) for lengths in ([5, 9], [60] * 200)]
    for batch in batches * 3:
        encoder(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            encoder(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_copies_behind_heavy_work_arrive_whole(cuda: CudaBackend) -> None:
    """Pages and blocks are handed out again while earlier copies and reads are still queued."""
    values = [torch.full((500_000,), float(index)) for index in range(30)]
    busy = torch.randn(2048, 2048, device=cuda.device)
    sums = []
    for value in cuda.prefetch({"value": item} for item in values):
        for _ in range(20):
            busy = torch.tanh(busy @ busy)
        sums.append(value["value"].double().sum())
        del value
    assert [float(item) for item in sums] == [500_000.0 * index for index in range(30)]


def test_captured_steps_are_the_plain_ones_on_a_gpu(cuda: CudaBackend) -> None:
    compare_steps(cuda._new_capture(), cuda.device, [8, 8, 8, 3, 8, 3, 3, 8] * 3)
    compare_steps(cuda._new_capture(), cuda.device, [8, 8, 4, 5, 6, 4, 8], most_shapes=1)
