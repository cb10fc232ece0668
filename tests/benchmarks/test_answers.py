"""Wrong answers that are planted in a target: it is named, and no other one; right ones raise no alarm."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from isotrain.albert_core.features.source import frozen_encoder
from isotrain.albert_core.model.encoder import LoadedEncoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.backends import get_backend
from isotrain.benchmarks.harness import worker
from isotrain.benchmarks.harness.document import Measured, Policy
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.measure import Budget, measure
from isotrain.benchmarks.harness.plan import Options, make_plan
from isotrain.benchmarks.harness.runner import WorkerRun
from isotrain.benchmarks.harness.texts import PROBED_TEXTS, Texts, make_batches, probed_texts, reference_logits
from isotrain.benchmarks.harness.workloads import CHANGED, WORKLOAD_CLASSES, TrainedEncoder, Workload
from isotrain.benchmarks.outcome.answers import LARGEST_DISTANCE, answers_differ, limit, wrong_answers
from isotrain.benchmarks.outcome.build import build_result
from isotrain.benchmarks.outcome.model import Bench, MeasuredTarget
from isotrain.kernels.cpu.library import why_not
from isotrain.kernels.packed import PortableEncoder

LABELS, LATE = 7, 0.003
DTYPES = ("float32", "bfloat16", "float64")
ON_FEATURES = ("forward", "train_step", "head_step")
Encoder = Callable[[Any], torch.Tensor]
Make = Callable[..., Workload]
Judged = Callable[[Workload, str], Bench]
Runs = Callable[..., list[WorkerRun]]
Handed = Callable[..., Measured]


@pytest.fixture
def make(albert: LoadedEncoder, texts: Texts) -> Make:
    """`make(workload, layout, kernel, dtype, spoil)`: a workload that is judged; `spoil` changes its encoder."""

    def build(
        name: str,
        layout: str = "packed",
        kernel: str = "portable",
        dtype: str = "float32",
        spoil: Callable[[Any], Any] = lambda encoder: encoder,
    ) -> Workload:
        backend = get_backend("cpu")
        policy = backend.cast_policy(dtype)
        encoder: Any = None
        if name == "full_step":
            encoder = TrainedEncoder(copy.deepcopy(albert.module()), policy, "transformers", "5")
        else:
            encoder = frozen_encoder(albert, backend, policy, kernel)
        head = ClassificationHead(64, 16, LABELS, seed=1)
        param = policy.accumulate if name == "full_step" else policy.param
        expected = reference_logits(albert, head, texts, param, policy.compute)
        workload = WORKLOAD_CLASSES[name](backend, spoil(encoder), head, make_batches(texts, 4, layout, 64), texts)
        workload.judge(expected)
        return workload

    return build


@pytest.fixture
def judged(all_runs: Runs) -> Judged:
    """A result of two targets: what the measurement of a workload in `dtype` found, and a right one after it."""

    def build(workload: Workload, dtype: str) -> Bench:
        measure(workload, Budget(2, 0.02, 0.02))
        policy = Policy.of(get_backend("cpu").cast_policy(dtype)).document()
        changes = {
            # The dtype's limit, also where this processor computes in a wider one.
            "policy": policy | {"compute": dtype},
            "probe": {str(text): logits for text, logits in workload.probe.items()},
            "expected": {str(text): logits.tolist() for text, logits in workload.expected.items()},
        }
        plan = make_plan(Options(workloads=("forward",), layouts=("padded", "packed"), processes=1, blocks=3))
        return build_result(plan, all_runs(plan, {0: changes}), describe())

    return build


def skipped(encoder: PortableEncoder) -> PortableEncoder:
    """One layer of three."""
    shorter = copy.copy(encoder)
    shorter._layers = encoder._layers[:1]
    return shorter


def stale(encoder: Encoder) -> Encoder:
    results: list[torch.Tensor] = []

    def features(batch: Any) -> torch.Tensor:
        results.append(encoder(batch))
        return results[-2] if len(results) > 1 else results[-1]

    return features


def swapped(encoder: Encoder) -> Encoder:
    return lambda batch: encoder(batch)[[1, 0, 2, 3]]


def constant(encoder: Encoder) -> Encoder:
    return lambda batch: encoder(batch)[:1].expand(4, -1).contiguous()


def racing(encoder: Encoder) -> Encoder:
    """Hands over a buffer that a thread fills later."""
    return lambda batch: later(encoder(batch))


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    yield
    while THREADS:
        THREADS.pop().join()


THREADS: list[threading.Thread] = []


def later(value: torch.Tensor) -> torch.Tensor:
    buffer = torch.zeros_like(value)

    def fill() -> None:
        time.sleep(LATE)
        buffer.copy_(value)

    THREADS.append(threading.Thread(target=fill))
    THREADS[-1].start()
    return buffer


@pytest.mark.parametrize("fault", [skipped, stale, swapped, constant, racing], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", ON_FEATURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_encoder_is_named_and_not_the_right_one_beside_it(
    make: Make, judged: Judged, dtype: str, name: str, fault: Callable[[Any], Any]
) -> None:
    wrong, right = judged(make(name, dtype=dtype, spoil=fault), dtype).targets
    assert right.valid
    assert any("differ from those of transformers' module in float32 by" in reason for reason in wrong.reasons)


def module_fault(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[TrainedEncoder], TrainedEncoder]:
    """Whatever the encoder's module gives, changed."""

    def spoil(encoder: TrainedEncoder) -> TrainedEncoder:
        def changed(_: Any, __: Any, output: Any) -> Any:
            output.last_hidden_state = change(output.last_hidden_state)
            return output

        encoder.module.register_forward_hook(changed)
        return encoder

    return spoil


def skipped_layers(encoder: TrainedEncoder) -> TrainedEncoder:
    module: Any = encoder.module
    module.encoder.config.num_hidden_layers = 1
    return encoder


@pytest.mark.parametrize(
    "fault",
    [
        skipped_layers,
        module_fault(lambda states: states[[1, 0, 2, 3]]),
        module_fault(lambda states: states[:1].expand(4, -1, -1)),
    ],
    ids=["skipped", "swapped", "constant"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_whole_model_is_named(make: Make, judged: Judged, dtype: str, fault: Callable[[Any], Any]) -> None:
    wrong, right = judged(make("full_step", "padded", dtype=dtype, spoil=fault), dtype).targets
    assert right.valid
    assert any("differ from those of transformers' module in float32 by" in reason for reason in wrong.reasons)


@pytest.mark.parametrize("name", [*ON_FEATURES, "full_step"])
def test_results_that_are_computed_after_they_were_handed_over_are_found(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Their values arrive in the pause before the last reading."""
    workload = make(name)
    assert CHANGED not in measure(workload, Budget(2, 0.02, 0.02)).reasons
    run = workload.run
    pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def early(index: int) -> torch.Tensor:
        value = run(index)
        pending.append((torch.zeros_like(value), value))
        return pending[-1][0]

    def arrive(_: float) -> None:
        for buffer, value in pending:
            buffer.copy_(value)

    monkeypatch.setattr(workload, "run", early)
    monkeypatch.setattr(time, "sleep", arrive)
    assert CHANGED in measure(workload, Budget(2, 0.02, 0.02)).reasons


KERNELS = [
    *product(ON_FEATURES, ("padded", "bucketed", "packed"), ("portable",), DTYPES),
    *product(("forward", "train_step"), ("padded", "bucketed"), ("transformers",), DTYPES),
    *product(("full_step",), ("padded", "packed"), ("transformers",), DTYPES),
    ("forward", "packed", "portable", "int8"),
    *(
        pytest.param(*case, marks=pytest.mark.skipif(why_not() is not None, reason=why_not() or ""))
        for case in (
            *product(ON_FEATURES, ("padded", "packed"), ("native",), ("bfloat16",)),
            ("forward", "packed", "native", "int8"),
        )
    ),
]


@pytest.mark.parametrize(("name", "layout", "kernel", "dtype"), KERNELS)
def test_right_answers_raise_no_alarm(make: Make, name: str, layout: str, kernel: str, dtype: str) -> None:
    workload = make(name, layout, kernel, dtype)
    workload.begin()
    for index in range(len(workload.batches)):
        workload.step(index)
    workload.fence()
    assert workload.read() == workload.read() == []
    assert sorted(workload.probe) == sorted(workload.expected)
    policy = get_backend("cpu").cast_policy(dtype)
    farthest = max(workload._distances.values())
    # Half of what is allowed: a limit that right answers nearly reach would be no limit.
    assert farthest < LARGEST_DISTANCE[policy.compute] / 2


@pytest.mark.parametrize("fidelity", ["lofi", "hifi4"])
def test_a_mode_states_how_far_its_numbers_are(albert: LoadedEncoder, texts: Texts, fidelity: str) -> None:
    """The limit of a mode lets its own numbers pass, and not much more."""
    backend = get_backend("tt-emulated", {"tt": {"math_fidelity": fidelity}})
    policy = backend.cast_policy("bfloat16")
    head = ClassificationHead(64, 16, LABELS, seed=1)
    batches = make_batches(texts, 4, "packed", 64)
    workload = WORKLOAD_CLASSES["forward"](
        backend, frozen_encoder(albert, backend, policy, "auto"), head, batches, texts
    )
    workload.judge(reference_logits(albert, head, texts, policy.param, policy.compute))
    workload.begin()
    for index in range(len(batches)):
        workload.step(index)
    assert workload.read() == []
    allowed = policy.largest_distance
    assert allowed is not None
    assert allowed / 30 < max(workload._distances.values()) < allowed / 1.5


def test_the_reference_leaves_the_model_as_it_was(albert: LoadedEncoder, texts: Texts) -> None:
    module, head = albert.module(), ClassificationHead(64, 16, LABELS, seed=1)
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    exact = reference_logits(albert, head, texts, "float32", "float32")
    rounded = reference_logits(albert, head, texts, "bfloat16", "float32")
    wide = reference_logits(albert, head, texts, "float64", "float64")
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == before
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in module.modules())
    for text, logits in exact.items():
        ids = torch.from_numpy(texts.ids[texts.offsets[text] : texts.offsets[text + 1]])[None]
        with torch.no_grad():
            plain = head(module(input_ids=ids).last_hidden_state[:, 0])[0].numpy()
            cast = copy.deepcopy(module).to(torch.bfloat16).float()
            narrow = head(cast(input_ids=ids).last_hidden_state[:, 0])[0].numpy()
        np.testing.assert_allclose(logits, plain, atol=2e-6)
        np.testing.assert_allclose(rounded[text], narrow, atol=2e-6)
        assert np.abs(rounded[text] - logits).max() > 1e-4
        np.testing.assert_allclose(wide[text], logits, atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 8, 16, 32, 512])
def test_the_judged_texts_lie_all_over(count: int) -> None:
    found = probed_texts(count)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, count - 1)
    assert len(found) == min(count, PROBED_TEXTS)
    if count == 32:
        assert {text % 8 for text in found} == set(range(8)), "every place in a batch of 8"


def test_a_wrong_kernel_is_invalid_beside_a_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through real workers: the kernel that both targets run skips layers in one layout alone, the first one."""
    plan = make_plan(
        Options(
            model="random:tiny",
            dtypes=("float32",),
            workloads=("forward",),
            layouts=("padded", "packed"),
            batch_sizes=(4,),
            num_labels=LABELS,
            processes=1,
            blocks=2,
            seconds=0.02,
        )
    )
    right = PortableEncoder.__call__

    def wrong(self: PortableEncoder, batch: Any) -> torch.Tensor:
        if hasattr(batch, "attention_mask"):
            return right(skipped(self), batch)
        return right(self, batch)

    monkeypatch.setattr(PortableEncoder, "__call__", wrong)
    documents = [worker.run(plan.options, spec) for spec in plan.targets]
    runs = [WorkerRun(target, process, 1.0, documents[target]) for target, process in plan.order]
    padded, packed = build_result(plan, runs, describe()).targets
    (reason,) = [reason for reason in padded.reasons if "logits differ" in reason]
    assert "at most 0.0001" in reason
    assert not any("logits" in reason for reason in packed.reasons)
    assert isinstance(padded, MeasuredTarget)
    assert isinstance(packed, MeasuredTarget)
    assert padded.probe is not None
    assert packed.probe is not None
    assert padded.probe.distance is not None
    assert padded.probe.distance > 0.1 > 1e-4 > (packed.probe.distance or 0.0)
    assert len(packed.probe.logits) == PROBED_TEXTS
    # What a comparison would say of the two, were they one target before and after.
    assert "its logits of the same texts differ by" in answers_differ(packed, padded)
    assert answers_differ(packed, packed) == ""


def test_every_process_is_judged(measured: Handed) -> None:
    right, wrong = measured(), measured(probe={"0": [1.0, 2.0], "1": [3.0, 4.4]})
    assert wrong_answers([right, right]) == ""
    said = wrong_answers([right, wrong, right])
    assert said == (
        "its logits differ from those of transformers' module in float32 by 8.0e-02 in relative L2 (text 1; at most "
        "0.0001) (process 2)"
    )


def test_a_target_that_ran_no_judged_text_says_so(all_runs: Runs) -> None:
    plan = make_plan(Options(workloads=("forward",), layouts=("padded",), processes=1, blocks=3))
    (target,) = build_result(plan, all_runs(plan, {0: {"probe": {}}}), describe()).targets
    assert target.valid
    assert target.warnings == ["none of the texts that are judged was run: nobody knows whether its logits are right"]


def test_a_result_keeps_logits_and_reads_without_them(all_runs: Runs) -> None:
    plan = make_plan(Options(workloads=("forward",), layouts=("padded",), processes=1, blocks=3))
    changes = {"probe": {"0": [1.0, float("nan")], "1": [3.0, 4.0]}}
    for told, kept in (({}, {"0": [1.0, 2.0], "1": [3.0, 4.0]}), (changes, {"1": [3.0, 4.0]})):
        written = json.loads(json.dumps(build_result(plan, all_runs(plan, {0: told}), describe()).document()))
        assert written["targets"][0]["probe"]["logits"] == kept
        assert (written["targets"][0]["probe"]["distance"] is None) is bool(told)
    del written["targets"][0]["probe"]
    (old,) = Bench.model_validate(written).measured
    assert old.probe is None
    assert answers_differ(old, old) == ""


def test_a_limit_is_the_modes_own_or_the_dtypes(measured: Handed) -> None:
    policy = measured().policy
    assert limit(policy) == LARGEST_DISTANCE["float32"]
    assert limit(policy.model_copy(update={"largest_distance": 0.3})) == 0.3
