"""What a step does, on the CPU backend and on backends that break in known ways."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType

import pytest
import torch
import torch._dynamo
from isotrain.albert_core.loop.job import frozen_encoder
from isotrain.albert_core.model.encoder import LoadedEncoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.harness import worker
from isotrain.benchmarks.harness.document import Measured, Peaks
from isotrain.benchmarks.harness.measure import Budget, measure
from isotrain.benchmarks.harness.plan import CACHED, Options, TargetSpec
from isotrain.benchmarks.harness.texts import Texts, make_batches, reference_logits
from isotrain.benchmarks.harness.work import work_per_step
from isotrain.benchmarks.harness.workloads import WORKLOAD_CLASSES, TrainedEncoder, Workload
from isotrain.benchmarks.work.flops import encoder_flops, head_backward_flops, head_forward_flops
from isotrain.kernels import inductor
from isotrain.kernels.cpu.library import why_not
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

HIDDEN, MLP, LABELS = 64, 16, 7


class WatchedBackend(CpuBackend):
    """Remembers what it was asked to wait for; can compile when told."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for: list[torch.Tensor] = []
        self.compiles = 0

    def synchronize(self, *tensors: torch.Tensor) -> None:
        self.waited_for = list(tensors)

    def compile_count(self) -> int:
        return self.compiles


@pytest.fixture
def make(albert: LoadedEncoder, texts: Texts) -> Callable[..., Workload]:
    def build(name: str, layout: str = "packed", kernel: str = "auto", spoil=None) -> Workload:
        backend = WatchedBackend()
        encoder = frozen_encoder(albert, backend, backend.cast_policy("float32"), kernel)
        batches = make_batches(texts, 4, layout, 64)
        head = ClassificationHead(HIDDEN, MLP, LABELS, seed=1)
        if name == "full_step":
            module = copy.deepcopy(albert.module())
            mode = "default" if kernel == "compile" else None
            encoder = TrainedEncoder(module, backend.cast_policy("float32"), "transformers", "5", mode)
        expected = reference_logits(albert, head, texts, "float32", "float32")
        workload = WORKLOAD_CLASSES[name](backend, spoil(encoder) if spoil else encoder, head, batches, texts)
        workload.judge(expected)
        return workload

    return build


def run_all(workload: Workload) -> list[str]:
    workload.begin()
    for index in range(len(workload.classes)):
        workload.step(index)
    workload.fence()
    return workload.read()


@pytest.mark.parametrize(
    ("layout", "kernel"),
    [("padded", "auto"), ("bucketed", "auto"), ("packed", "portable"), ("padded", "transformers")],
)
def test_every_layout_and_kernel_gives_the_logits_of_transformers(
    make: Callable[..., Workload], albert: LoadedEncoder, texts: Texts, layout: str, kernel: str
) -> None:
    workload = make("forward", layout, kernel)
    assert run_all(workload) == []
    assert sorted(workload.probe) == sorted(workload.expected) == [0, 2, 4, 6, 9, 11, 13, 15]
    for row, logits in workload.probe.items():
        ids = torch.from_numpy(texts.ids[texts.offsets[row] : texts.offsets[row + 1]])[None]
        with torch.no_grad():
            expected = workload.head(albert.module()(input_ids=ids).last_hidden_state[:, 0])[0]
        assert torch.allclose(torch.tensor(logits), expected, atol=1e-5)


def test_a_training_step_is_that_of_plain_torch(make: Callable[..., Workload], albert: LoadedEncoder) -> None:
    workload = make("train_step", "padded")
    head = ClassificationHead(HIDDEN, MLP, LABELS, seed=1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.0)
    for index, batch in enumerate(workload.batches):
        workload.begin()
        workload.step(index)
        with torch.no_grad():
            inputs = {"input_ids": batch.inputs.input_ids, "attention_mask": batch.inputs.attention_mask}
            features = albert.module()(**inputs).last_hidden_state[:, 0]
        labels = torch.from_numpy(workload.texts.labels[batch.rows])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    for got, expected in zip(workload.head.parameters(), head.parameters(), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_the_fence_waits_for_all_logits_and_for_the_updated_parameters(make: Callable[..., Workload]) -> None:
    forward = make("forward")
    run_all(forward)
    assert [tuple(tensor.shape) for tensor in forward.backend.waited_for] == [(4, LABELS)] * 4
    for name, layout in (("train_step", "packed"), ("head_step", "packed"), ("full_step", "padded")):
        train = make(name, layout)
        run_all(train)
        assert {id(tensor) for tensor in train.backend.waited_for} == {id(p) for p in train.model.parameters()}


def poisoned(encoder: Callable) -> Callable:
    return lambda batch: encoder(batch) * float("nan")


def test_nan_is_found(make: Callable[..., Workload]) -> None:
    assert run_all(make("forward", spoil=poisoned)) == ["112 logits of 112 were NaN or infinite"]
    found = run_all(make("train_step", spoil=poisoned))
    assert found == ["4 losses of 4 were NaN or infinite", "the trained weights became NaN or infinite"]


def test_nan_makes_a_measurement_invalid(make: Callable[..., Workload]) -> None:
    measured = measure(make("forward", spoil=poisoned), Budget(2, 0.02, 0.02))
    assert any("were NaN or infinite" in reason for reason in measured.reasons)


def test_a_recompiling_backend_makes_a_measurement_invalid(make: Callable[..., Workload]) -> None:
    workload = make("forward")

    def compiling(batch):
        workload.backend.compiles += 1
        return encoder(batch)

    encoder, workload.encoder = workload.encoder, compiling
    measured = measure(workload, Budget(2, 0.02, 0.02))
    assert any("compilations inside the timed region" in reason for reason in measured.reasons)


def test_a_compilation_in_a_timed_block_is_found_on_the_host(make: Callable[..., Workload]) -> None:
    """By torch's own counters: the CPU backend compiles nothing, what runs on it may."""
    workload = make("forward")
    workload.backend = CpuBackend()
    encoder = workload.encoder

    def double(features: torch.Tensor) -> torch.Tensor:
        return features * 2.0

    def compiling(batch: object) -> torch.Tensor:
        # torch keeps what it compiled with the code, so each call brings code of its own.
        copy = FunctionType(double.__code__.replace(), globals())
        return torch.compile(copy, backend="eager")(encoder(batch))

    workload.encoder = compiling
    measured = measure(workload, Budget(2, 0.02, 0.02))
    assert any("compilations inside the timed region" in reason for reason in measured.reasons)


@pytest.mark.parametrize("name", ["forward", "full_step"])
def test_a_recompilation_of_a_compiled_encoder_or_step_is_found(
    make: Callable[..., Workload], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "COMPILER", "eager")
    workload = make(name, "padded", "compile")
    workload.backend = CpuBackend()
    run_all(workload)
    before = workload.compile_count()
    assert run_all(workload) == []
    assert workload.compile_count() == before
    run = workload.run

    def forgetful(index: int) -> torch.Tensor:
        torch._dynamo.reset()
        return run(index)

    workload.run = forgetful
    measured = measure(workload, Budget(2, 0.02, 0.02))
    assert any("compilations inside the timed region" in reason for reason in measured.reasons)


def test_a_compiled_step_is_warmed_up_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "COMPILER", "aot_eager")
    options = Options(model="random:tiny", dtypes=("float32",), blocks=2, seconds=0.05, num_labels=LABELS, seed=0)
    target = TargetSpec("cpu", "full_step", "padded", "transformers", 4, torch_compile="default")
    before = CpuBackend().compile_count()
    document = worker.run(replace(options, torch_compile="default"), target)
    assert CpuBackend().compile_count() > before
    assert document.reasons == []
    assert document.warm_up.compiles == 0, "the first step compiled what all of one shape need"
    for text, logits in document.probe.items():
        assert logits == pytest.approx(document.expected[text], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "layout"), [("train_step", "packed"), ("head_step", "packed"), ("full_step", "padded")]
)
def test_training_that_changes_nothing_is_found(make: Callable[..., Workload], name: str, layout: str) -> None:
    workload = make(name, layout)
    workload.config = workload.config.model_copy(update={"learning_rate": 0.0})
    run_all(workload)
    assert workload.problems() == ["the trained weights never changed: the training steps did nothing"]


def test_a_loss_that_never_changes_is_found(make: Callable[..., Workload]) -> None:
    def blind(encoder: Callable) -> Callable:
        def features(batch: object) -> torch.Tensor:
            return torch.zeros(4, HIDDEN)

        return features

    workload = make("train_step", spoil=blind)
    step = workload._step

    def undone(*inputs: object) -> torch.Tensor:
        before = [parameter.detach().clone() for parameter in workload.head.parameters()]
        sums = step(*inputs)
        for parameter, value in zip(workload.head.parameters(), before, strict=True):
            parameter.data.copy_(value)
        return sums

    workload._step = undone
    run_all(workload)
    assert workload.read() == []
    # Weights that moved once, and never any more.
    workload.head.hidden.weight.data.add_(1.0)
    assert workload.problems() == []
    run_all(workload)
    assert workload.problems() == ["the loss of a batch never changed from one pass to the next"]


@pytest.mark.parametrize(
    ("name", "layout"), [("train_step", "packed"), ("head_step", "packed"), ("full_step", "padded")]
)
def test_a_sound_training_step_has_no_complaint(make: Callable[..., Workload], name: str, layout: str) -> None:
    workload = make(name, layout)
    assert run_all(workload) == run_all(workload) == workload.problems() == []


def test_a_step_on_cached_features_trains_as_one_that_computes_them(make: Callable[..., Workload]) -> None:
    cached, streamed = make("head_step"), make("train_step")
    run_all(cached)
    run_all(streamed)
    for got, expected in zip(cached.head.parameters(), streamed.head.parameters(), strict=True):
        assert torch.allclose(got, expected, atol=1e-6)
    assert cached.kernel()[0] in ("fused head step", "autograd")


@pytest.mark.parametrize("layout", ["bucketed", "packed"])
def test_a_step_of_the_whole_model_is_that_of_plain_torch(
    make: Callable[..., Workload], albert: LoadedEncoder, layout: str
) -> None:
    workload = make("full_step", layout)
    module, head = copy.deepcopy(albert.module()), ClassificationHead(HIDDEN, MLP, LABELS, seed=1)
    optimizer = torch.optim.AdamW([*module.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.0)
    workload.begin()
    workload.step(0)
    batch = workload.batches[0]
    padded = batch.inputs.to_padded() if layout == "packed" else batch.inputs
    features = module(input_ids=padded.input_ids, attention_mask=padded.attention_mask).last_hidden_state
    labels = torch.from_numpy(workload.texts.labels[batch.rows])
    torch.nn.functional.cross_entropy(head(features[:, 0]), labels).backward()
    optimizer.step()
    trained = zip(workload.model.named_parameters(), [*module.parameters(), *head.parameters()], strict=True)
    for (name, got), expected in trained:
        # What is added to all keys changes no probability: its gradient is rounding, which Adam makes a step of.
        if not name.endswith("key.bias"):
            assert torch.allclose(got, expected, atol=2e-5), name


def measured(options: Options, target: TargetSpec, known: list[Peaks]) -> Measured:
    """As a run of several targets measures one: with the peaks that are known, which gain its own."""
    document = worker.run(options, target, known_peaks=known)
    known.append(document.peaks)
    return document


def test_a_real_target_of_each_training_workload_leaves_the_model_its_name(albert: LoadedEncoder) -> None:
    """The result names the weights that were loaded, not what a benchmark's steps made of them."""
    options = Options(model="random:tiny", dtypes=("float32",), blocks=2, seconds=0.05, num_labels=LABELS, seed=0)
    known: list[Peaks] = []
    for spec in (
        TargetSpec("cpu", "full_step", "padded", "transformers", 4),
        TargetSpec("cpu", "full_step", "packed", "transformers", 4),
        TargetSpec("cpu", "head_step", CACHED, "auto", 4),
    ):
        document = measured(options, spec, known)
        assert document.reasons == []
        assert document.model.sha256 == albert.fingerprint


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_an_int8_target_is_held_to_the_peak_of_int8() -> None:
    options = Options(model="random:tiny", dtypes=("bfloat16", "int8"), blocks=2, seconds=0.05, num_labels=LABELS)
    known: list[Peaks] = []
    for dtype in options.dtypes:
        document = measured(options, TargetSpec("cpu", "forward", "packed", "auto", 4, dtype=dtype), known)
        assert document.reasons == []
        assert document.policy.requested == document.policy.compute == dtype
        assert document.kernel.name == "native"
        assert document.peaks.dtype == dtype
        assert document.peaks.unit is not None
        assert document.peaks.unit.dtype == dtype
        assert document.peaks.compute_limit >= document.peaks.unit.tflops
    assert known[1].unit.unit != known[0].unit.unit
    assert known[1].rate == "TOP/s"


@pytest.mark.parametrize("name", ["forward", "train_step"])
def test_the_work_of_a_step(make: Callable[..., Workload], albert: LoadedEncoder, texts: Texts, name: str) -> None:
    config = albert.weights.config
    head_flops = head_forward_flops(HIDDEN, MLP, LABELS, 16)
    if name == "train_step":
        head_flops += head_backward_flops(HIDDEN, MLP, LABELS, 16)
    useful = (encoder_flops(config, texts.lengths.tolist()) + head_flops) / 4
    for layout, kernel, hardware in (
        ("packed", "portable", useful),
        ("padded", "portable", (encoder_flops(config, [64] * 16) + head_flops) / 4),
        ("padded", "transformers", (encoder_flops(config, [64] * 16, False) + head_flops) / 4),
    ):
        workload = make(name, layout, kernel)
        policy = workload.backend.cast_policy("float32")
        skips = workload.encoder.skips_padding
        work = work_per_step(
            config, workload.head, workload.batches, name, workload.kernel()[0], policy, skips_padding=skips
        )
        assert work.samples == 4
        assert work.real_tokens == texts.lengths.sum() / 4
        assert work.padded_tokens == (4 * 64 if hardware != useful else texts.lengths.sum() / 4)
        assert work.model_flops == pytest.approx(useful)
        assert work.hardware_flops == pytest.approx(hardware)


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_padding_that_a_kernel_leaves_out_is_not_counted() -> None:
    """Else its figure would be above what the machine can do."""
    options = Options(model="random:tiny", strict_dtype=True, blocks=2, seconds=0.05, num_labels=LABELS, seed=0)
    known: list[Peaks] = []
    found = {
        kernel: measured(options, TargetSpec("cpu", "forward", "padded", kernel, 4), known).work
        for kernel in ("native", "portable")
    }
    assert found["native"].padded_tokens == found["native"].real_tokens < found["portable"].padded_tokens
    assert found["native"].hardware_flops == found["native"].model_flops < found["portable"].hardware_flops


@pytest.mark.parametrize("layout", ["bucketed", "packed"])
def test_the_flops_of_a_step_of_the_whole_model_are_those_that_torch_counts(
    make: Callable[..., Workload], albert: LoadedEncoder, layout: str
) -> None:
    """Forward and backward of every layer, as executed, on a batch's own shape (rule 10)."""
    workload = make("full_step", layout)
    policy = workload.backend.cast_policy("float32")
    for index, batch in enumerate(workload.batches):
        # The counter knows the plain products of attention, not the CPU's fused operator.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            workload.run(index)
        work = work_per_step(albert.weights.config, workload.head, [batch], "full_step", "transformers", policy)
        assert counter.get_total_flops() == work.hardware_flops
        assert work.model_flops < work.hardware_flops


def test_the_flops_of_a_head_step_are_the_heads_alone(make: Callable[..., Workload], albert: LoadedEncoder) -> None:
    workload = make("head_step")
    policy = workload.backend.cast_policy("float32")
    work = work_per_step(albert.weights.config, workload.head, workload.batches, "head_step", "autograd", policy)
    expected = head_forward_flops(HIDDEN, MLP, LABELS, 4) + head_backward_flops(HIDDEN, MLP, LABELS, 4)
    assert work.model_flops == work.hardware_flops == expected
