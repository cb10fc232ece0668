"""`--vs`: the sweep, the interleaved run, the ratios, and what a baseline that can't run leaves behind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import isotrain.benchmarks
import jsonschema
import pytest
from isotrain import UserError
from isotrain.benchmarks import baselines
from isotrain.benchmarks.bench import FAILED, INVALID, VALID, run_bench
from isotrain.benchmarks.harness.plan import Options, Plan, make_plan, with_baselines, with_quick
from isotrain.benchmarks.harness.worker import sweep
from isotrain.benchmarks.outcome.model import Bench
from isotrain.benchmarks.reports.terminal import output_console, print_blocks
from isotrain.benchmarks.reports.views.bench import bench_view
from isotrain.benchmarks.reports.views.columns import WIDE
from isotrain.benchmarks.reports.views.plan import plan_view
from rich.console import Console

NAMES = ("experiment-padded", "transformers-sorted", "openvino")
OPTIONS = replace(with_baselines(Options(batch_sizes=()), NAMES), processes=2, blocks=3)

STEPS = {"vs": ("trainer",), "workloads": ("full_step",), "batch_sizes": (8,)}

FakeWorker = Callable[..., tuple[str, ...]]


@pytest.fixture(autouse=True)
def _all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda _: object())


def shown(result: Bench) -> str:
    output = io.StringIO()
    print_blocks(bench_view(result), Console(file=output, width=WIDE, highlight=False))
    return " ".join(output.getvalue().split())


def validate(result: Bench) -> None:
    path = Path(isotrain.benchmarks.__file__).parent / "schema" / "bench-2.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(result.document(), allow_nan=False)))


def test_own_kernels_come_first_and_every_baseline_is_a_target() -> None:
    plan = make_plan(replace(OPTIONS, kernels=("auto", "portable")))
    assert [(spec.kernel, spec.baseline) for spec in plan.targets] == [
        ("auto", False),
        ("portable", False),
        *((name, True) for name in NAMES),
    ]
    assert {spec.workload for spec in plan.targets} == {"forward"}
    assert set(plan.candidates) == {0, 1, 3, 4}, "what has one shape is not swept"
    assert plan.processes == 5 * 2 + 4


def test_baselines_compute_in_those_of_the_dtypes_that_they_have() -> None:
    def dtypes(*given: str) -> list[tuple[str, str]]:
        plan = make_plan(with_baselines(Options(dtypes=given), ("openvino", "openvino-int8")))
        return [(spec.kernel, spec.dtype) for spec in plan.targets]

    both = dtypes("bfloat16", "int8")
    assert both == [("auto", "bfloat16"), ("auto", "int8"), ("openvino", "bfloat16"), ("openvino-int8", "int8")]
    for dtype in ("bfloat16", "int8"):
        assert dtypes(dtype) == [("auto", ""), ("openvino", ""), ("openvino-int8", "")]
    trainer = replace(Options(dtypes=("float32", "bfloat16"), layouts=("packed",)), **STEPS)
    steps = [(spec.kernel, spec.dtype) for spec in make_plan(trainer).targets if spec.baseline]
    assert steps == [("trainer", "float32"), ("trainer", "bfloat16")]


def test_bfloat16_and_int8_are_compared_in_one_run(
    fake_worker: FakeWorker, document: Callable[..., Any], tmp_path: Path
) -> None:
    options = replace(with_baselines(Options(batch_sizes=(8,), dtypes=("bfloat16", "int8")), ("openvino-int8",)))
    slow = {"document": document(step_seconds=(1.0, 1.0, 1.0))}
    acts = {f"openvino-int8/{process}": slow for process in range(3)}
    result = run_bench(replace(options, blocks=3), out=tmp_path, command=fake_worker(acts)).result
    assert [(one["own"].split()[3:5], one["ratio"]["median"]) for one in result.document()["comparisons"]] == [
        (["auto", "bfloat16"], pytest.approx(2.0)),
        (["auto", "int8"], pytest.approx(2.0)),
    ]
    validate(result)
    text = shown(result)
    assert (
        "auto int8 has 2.00 times (2.00 to 2.00) the speed of the best baseline, openvino-int8 int8 static x8" in text
    )


def test_the_plan_says_which_shapes_will_be_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda _: None)
    print_blocks(plan_view(make_plan(OPTIONS)), output_console())
    text = " ".join(capsys.readouterr().out.split())
    assert "a sweep picks the shape of transformers-sorted: sorted x8, sorted x32, sorted x64" in text
    assert "unavailable: openvino: openvino not installed" in text


def test_steps_of_the_whole_model_run_beside_trainers_in_the_same_batches(
    fake_worker: FakeWorker, tmp_path: Path
) -> None:
    options = with_baselines(Options(batch_sizes=(), layouts=("dynamic", "packed")), ("trainer", "trainer-compile"))
    plan = make_plan(options)
    assert [(spec.workload, spec.layout, spec.batch_size, spec.baseline) for spec in plan.targets] == [
        ("full_step", "dynamic", 8, False),
        ("full_step", "packed", 8, False),
        ("full_step", "dynamic", 8, True),
        ("full_step", "dynamic", 8, True),
    ]
    assert not plan.candidates
    assert len(plan.order) == 4 * options.processes
    outcome = run_bench(replace(options, processes=1, blocks=3), out=tmp_path, command=fake_worker())
    assert outcome.code == VALID
    validate(outcome.result)
    assert len(outcome.result.comparisons) == 2 * 2
    assert "everyone trains the same weights on the same texts, in the same batches" in shown(outcome.result)


def test_the_workload_of_a_comparison_is_that_of_its_baselines() -> None:
    for names, workloads in (
        (["trainer"], ("full_step",)),
        (["openvino"], ("forward",)),
        (["baselines"], ("forward",)),
    ):
        assert with_baselines(Options(), names).workloads == workloads
    both = with_baselines(Options(), ["openvino", "trainer"])
    with pytest.raises(UserError, match="--vs compares forward or full_step, not forward, full_step; give one of them"):
        make_plan(both)


def test_a_quick_comparison_sweeps_nothing_and_runs_few_texts() -> None:
    plan = make_plan(with_quick(OPTIONS))
    assert not plan.candidates
    assert plan.options.texts == 32
    assert all(spec.batch_size <= 32 or spec.baseline for spec in plan.targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backends": ("cpu", "cuda")}, "--vs compares on one backend, not cpu, cuda"),
        ({"workloads": ("train_step",)}, "--vs compares forward or full_step, not train_step; give one"),
        ({"vs": ("tensorflow",)}, "--vs 'tensorflow' does not exist"),
        ({"workloads": ("full_step",)}, "--vs 'experiment-padded' computes forward, not full_step"),
        ({**STEPS, "batch_sizes": (8, 32)}, "--vs compares steps of one batch size, not 8, 32; give --batch-size once"),
        ({**STEPS, "profile": 3}, "--profile can't see into a baseline that runs its own training loop"),
        ({"texts": 0}, "--texts 0 is out of range"),
    ],
)
def test_wrong_options_say_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_plan(replace(OPTIONS, **change))
    assert message in str(error.value)


def test_the_fastest_shape_of_the_sweep_is_measured(fake_worker: FakeWorker, tmp_path: Path) -> None:
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker())
    assert outcome.code == VALID
    own, padded, by_length, openvino = outcome.result.document()["targets"]
    assert (own["layout"], own["batch_size"]) == ("packed", 512)
    assert (padded["layout"], padded["batch_size"], padded["sweep"]) == ("padded", 8, [])
    assert (by_length["layout"], by_length["batch_size"]) == ("sorted", 64)
    assert (openvino["layout"], openvino["batch_size"]) == ("static", 256)
    assert len(openvino["sweep"]) == 5
    validate(outcome.result)
    text = shown(outcome.result)
    assert "openvino: best of its shapes is static x256: sorted x8 10/s" in text
    assert "everyone runs the same 512 texts" in text


def test_ratios_are_of_the_time_a_text_takes(
    fake_worker: FakeWorker, document: Callable[..., Any], tmp_path: Path
) -> None:
    slow = document(step_seconds=(2.0, 2.0, 2.0))
    # A batch twice as large in four times the time is half as fast.
    slow["work"] = {key: value * 2 for key, value in slow["work"].items()}
    acts = {f"openvino/{process}": {"document": slow} for process in range(2)}
    result = run_bench(OPTIONS, out=tmp_path, command=fake_worker(acts)).result
    ratios = {one["baseline"].split()[3]: one for one in result.document()["comparisons"]}
    assert ratios["openvino"]["ratio"] == pytest.approx({"median": 2.0, "low": 2.0, "high": 2.0})
    assert ratios["experiment-padded"]["ratio"]["median"] == pytest.approx(1.0)
    assert result.targets[3].relative.median == pytest.approx(0.5)
    text = shown(result)
    assert "2.00x" in text
    assert "auto has 1.00 times (1.00 to 1.00) the speed of the best baseline, experiment-padded padded x8" in text


def test_a_baseline_that_is_not_installed_is_listed_with_its_reason(
    fake_worker: FakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda _: None)
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker())
    assert outcome.code == VALID
    openvino = outcome.result.document()["targets"][3]
    assert openvino["status"] == "unavailable"
    assert not openvino["valid"]
    assert outcome.result.document()["valid"]
    validate(outcome.result)
    assert "unavailable: cpu forward sorted openvino x8: openvino not installed; get it by" in shown(outcome.result)


@pytest.mark.parametrize("when", ["sweep", "0"])
def test_a_baseline_that_can_not_run_is_listed_with_its_reason(
    fake_worker: FakeWorker, tmp_path: Path, when: str
) -> None:
    refusal = {"document": {"error": {"message": "no such primitive", "scope": "target"}}, "code": 2}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker({f"openvino/{when}": refusal}))
    assert outcome.code == VALID
    openvino = outcome.result.document()["targets"][3]
    assert (openvino["status"], openvino["reasons"]) == ("unavailable", ["no such primitive"])
    assert len(outcome.result.document()["comparisons"]) == 2
    validate(outcome.result)


def test_a_baseline_that_dies_is_a_failed_target(fake_worker: FakeWorker, tmp_path: Path) -> None:
    acts = {"openvino/sweep": {"code": 1}, "openvino/0": {"code": 1, "print": "segmentation fault"}}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker(acts))
    assert outcome.code == FAILED
    assert outcome.result.document()["targets"][3]["status"] == "failed"
    assert len(outcome.result.document()["comparisons"]) == 2


def test_without_our_own_side_there_is_no_comparison(fake_worker: FakeWorker, tmp_path: Path) -> None:
    refusal = {"document": {"error": {"message": "kernel 'auto' isn't built", "scope": "target"}}, "code": 2}
    acts = {"packed/sweep": refusal, "packed/0": refusal, "packed/1": refusal}
    with pytest.raises(UserError, match="kernel 'auto' isn't built"):
        run_bench(OPTIONS, out=tmp_path / "r.json", command=fake_worker(acts))
    assert not (tmp_path / "r.json").exists()


def test_what_concerns_the_end_to_end_run_ends_it_at_the_first_sweep(fake_worker: FakeWorker, tmp_path: Path) -> None:
    refusal = {"document": {"error": {"message": "no such model", "scope": "run"}}, "code": 2}
    with pytest.raises(UserError, match="no such model"):
        run_bench(OPTIONS, out=tmp_path / "r.json", command=fake_worker({"packed/sweep": refusal}))


def test_other_answers_make_a_baseline_invalid(
    fake_worker: FakeWorker, document: Callable[..., Any], tmp_path: Path
) -> None:
    wrong = {"document": document(probe={"0": [1.0, 2.0], "1": [3.0, 4.1]})}
    acts = {"openvino/0": wrong, "openvino/1": wrong}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker(acts))
    assert outcome.code == INVALID
    assert "its logits differ" in outcome.result.document()["targets"][3]["reasons"][0]
    assert [one["valid"] for one in outcome.result.document()["comparisons"]] == [True, True, False]
    assert "INVALID openvino" in shown(outcome.result)


def test_other_texts_make_a_baseline_invalid_whatever_its_batch_size(
    fake_worker: FakeWorker, document: Callable[..., Any], tmp_path: Path
) -> None:
    other = {"document": document(data=document()["data"] | {"sha256": "d" * 64})}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker({"openvino/0": other, "openvino/1": other}))
    assert outcome.result.targets[3].reasons == ["its texts are not those of cpu forward packed auto x512"]


def test_the_matrix_units_rate_is_shown_where_a_backend_measures_it(
    fake_worker: FakeWorker, document: Callable[..., Any], tmp_path: Path
) -> None:
    unit = {"unit": "AMX", "dtype": "float32", "fed_from": "L2", "tflops": 0.08, "threads": 2}
    peaks = document()["peaks"] | {"unit": unit}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker({"default": {"document": document(peaks=peaks)}}))
    entry = outcome.result.document()["targets"][0]
    assert entry["share_of_peak"]["unit"] == pytest.approx(entry["figures"]["model_tflops"]["median"] / 0.08)
    validate(outcome.result)
    text = shown(outcome.result)
    assert "its AMX unit fed from L2 with 2 threads: 0.08 TFLOP/s" in text
    assert "50.0%" in text


def test_a_kernel_may_beat_a_librarys_product_and_not_the_unit(
    fake_worker: FakeWorker, document: Callable[..., Any], tmp_path: Path
) -> None:
    fast = {"step_seconds": (0.05, 0.05, 0.05)}

    def code(tflops: float | None) -> int:
        unit = tflops and {"unit": "AMX", "dtype": "float32", "fed_from": "L2", "tflops": tflops, "threads": 2}
        peaks = document()["peaks"] | {"unit": unit or None}
        made = {"default": {"document": document(peaks=peaks, **fast)}}
        return run_bench(OPTIONS, out=tmp_path, command=fake_worker(made)).code

    assert code(None) == INVALID
    assert code(4.0) == VALID
    assert code(2.0) == INVALID


def test_a_real_sweep_times_each_shape_and_keeps_those_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, model="random:tiny", dtypes=("float32",), texts=16, threads=1)
    plan: Plan = make_plan(options)
    candidates = plan.candidates[2]
    found = sweep(options, candidates).sweep
    assert [(one.layout, one.batch_size) for one in found] == [("sorted", 8), ("sorted", 32), ("sorted", 64)]
    assert all(one.samples_per_second > 0 for one in found)


def test_a_kernel_that_does_not_exist_is_refused_by_the_backend_that_has_others(tmp_path: Path) -> None:
    options = Options(model="random:tiny", kernels=("fast",), workloads=("forward",), layouts=("packed",), processes=1)
    with pytest.raises(
        UserError, match="--kernel 'fast' does not exist on backend cpu; allowed are auto, native, portable"
    ):
        run_bench(options, out=tmp_path / "r.json")
