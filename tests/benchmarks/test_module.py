"""A user's own module as a target of `isotrain bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.bench import run_bench
from isotrain.benchmarks.harness import module, worker
from isotrain.benchmarks.harness.document import Measured
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.plan import Options, TargetSpec, make_plan
from isotrain.benchmarks.harness.runner import WorkerRun
from isotrain.benchmarks.outcome.build import build_result
from isotrain.benchmarks.outcome.model import Bench
from isotrain.benchmarks.regression.compare import Asked, compare_files
from isotrain.benchmarks.regression.history import load_history
from isotrain.benchmarks.reports.csv_markdown import rows
from isotrain.benchmarks.reports.html.write import write_report
from isotrain.benchmarks.reports.views.bench import bench_view
from isotrain.benchmarks.work.counted import count_step
from isotrain.cli.commands.bench import bench
from support import own_modules
from support.generic_cost import cost_targets
from support.workloads import NAMES as EXAMPLE_NAMES
from support.workloads import PEAKS, check_measured
from torch import nn
from typer import Typer
from typer.testing import CliRunner

OWN = Path(own_modules.__file__)
NAMES = ("TinyGPT", "Convolution", "Dropped", "Ragged")


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks that cost nothing to measure, and no suspicion of a late fence, which other work causes in tiny blocks."""
    monkeypatch.setattr("isotrain.benchmarks.harness.measure.LARGEST_LATE_SHARE", 100.0)
    monkeypatch.setattr(
        "isotrain.benchmarks.harness.peaks.measure_peaks",
        lambda _, dtype, **__: PEAKS.model_copy(update={"dtype": dtype}),
    )


def options_of(name: str, backends: tuple[str, ...] = ("cpu",), **changes: Any) -> Options:
    given: dict[str, Any] = {"workloads": ("forward", "full_step"), "dtypes": ("float32",), "processes": 1} | changes
    return Options(backends, model=f"{OWN}:{name}", module=True, blocks=2, seconds=0.02, **given)


def measure(options: Options) -> Bench:
    """A result by workers that run in this process."""
    plan = make_plan(options)
    runs = [WorkerRun(index, 0, 1.0, worker.run(options, spec)) for index, spec in enumerate(plan.targets)]
    # What makes tiny steps unsteady is not the subject here.
    return build_result(plan, runs, describe(), paired=True)


def reasons(result: Bench) -> list[str]:
    return [reason for target in result.targets for reason in target.reasons]


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_measured_on_two_devices(name: str) -> None:
    result = measure(options_of(name, ("cpu", "tt-emulated")))
    assert [target.label for target in result.targets] == [
        f"{backend} {workload} {name}" for backend in ("cpu", "tt-emulated") for workload in ("forward", "full_step")
    ]
    assert reasons(result) == []
    forward, step, emulated, _ = result.measured
    assert len({target.model.sha256 for target in result.measured}) == 1
    assert len({target.data.sha256 for target in result.measured}) == 1
    assert step.work.hardware_flops > 2 * forward.work.hardware_flops
    assert forward.work.samples == 4
    assert forward.probe is not None
    assert 0 <= (forward.probe.distance or 0.0) < 1e-5 < (emulated.probe.distance or 0.0)
    assert emulated.share_of_peak is None
    assert forward.share_of_peak is not None
    assert len(step.processes[0].losses) == 5
    assert forward.model.label == f"{name} (own_modules.py, weights of seed 23)"


@pytest.mark.parametrize("backend", ["cpu", "tt-emulated"])
@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_each_example_is_measured(monkeypatch: pytest.MonkeyPatch, name: str, backend: str) -> None:
    check_measured(name, backend, monkeypatch)


def test_a_profile_names_the_parts_of_a_step(tmp_path: Path) -> None:
    options = options_of("TinyGPT", workloads=("full_step",), profile=1)
    profile = worker.run(options, make_plan(options).targets[0], trace=str(tmp_path / "trace.json.gz")).profile
    assert profile is not None
    assert [cost.name for cost in profile.ranges] == ["copy", "loss", "backward", "optimizer", "fence"]


def test_a_decoders_flops_are_those_of_its_matrix_products() -> None:
    forward, step = measure(options_of("TinyGPT")).measured
    tokens, width, length = 48, own_modules.WIDTH, own_modules.LENGTH
    linear = 2 * tokens * width * (2 * (3 * width + width + 8 * width) + own_modules.VOCABULARY)
    attention = 2 * 2 * 2 * 4 * length * length * width
    assert forward.work.hardware_flops == forward.work.model_flops == linear + attention
    # Backward has twice the products of a linear layer, and five of attention for the two of the forward pass.
    assert step.work.hardware_flops == 3 * linear + 3.5 * attention
    weights = sum(parameter.numel() for parameter in own_modules.Decoder().parameters())
    tables = width * (own_modules.VOCABULARY + length)
    assert forward.work.moved_bytes == 4 * (weights - tables) + 8 * tokens
    assert step.work.moved_bytes == 4 * (2 * (weights - tables) + (4 + 2 * 2) * weights) + 8 * tokens + 8 * len(
        list(own_modules.Decoder().parameters())
    )


def test_only_what_an_operation_reads_of_a_weight_is_moved() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.zeros(100, 4))
            self.unused = nn.Linear(50, 50)

    sliced = Sliced()
    counted = count_step(sliced, lambda: (sliced.places[:3] + 1).sum().backward())
    assert counted == (0, 3 * 4 * 4, 100 * 4 * 4)


def test_padding_that_is_told_makes_the_model_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    (forward,) = measure(options_of("Ragged", workloads=("forward",))).measured
    assert forward.work.model_flops == pytest.approx(forward.work.hardware_flops / 2)
    assert forward.work.real_tokens == pytest.approx(4 * (5 + 7 + 12) / 3 / 2, rel=0.1)
    assert forward.figures.real_tokens_per_second is not None
    (without,) = measure(options_of("TinyGPT", workloads=("forward",))).measured
    assert without.figures.real_tokens_per_second is None
    assert without.work.real_tokens is None


@pytest.mark.parametrize(
    ("method", "returned", "message"),
    [
        (
            "tokens",
            (5, 0),
            "tokens returned (5, 0); return the real tokens, at least 1, and no fewer that are computed",
        ),
        ("samples", 0, "samples returned 0; return at least 1"),
    ],
)
def test_what_a_batch_can_not_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch, method: str, returned: object, message: str
) -> None:
    monkeypatch.setattr(own_modules.TinyGPT, method, lambda *_: returned, raising=False)
    loaded = module.LoadedWorkload("T", "T", OWN, "0" * 64, own_modules.TinyGPT())
    monkeypatch.setattr(module, "load_workload", lambda _: loaded)
    with pytest.raises(UserError) as found:
        measure(options_of("TinyGPT", workloads=("forward",)))
    assert str(found.value).endswith(message)


@pytest.mark.parametrize("workload", ["forward", "full_step"])
def test_wrong_answers_are_invalid(monkeypatch: pytest.MonkeyPatch, workload: str) -> None:
    right = module.place_model

    def wrong(*given: Any) -> nn.Module:
        placed = right(*given)
        with torch.no_grad():
            placed.head.weight.mul_(1.1)
        return placed

    monkeypatch.setattr(module, "place_model", wrong)
    (reason,) = reasons(measure(options_of("TinyGPT", workloads=(workload,))))
    assert reason.startswith("its loss and outputs differ from those of the same module on the host by ")
    assert "(batch 0; at most 0.0001)" in reason


def test_outputs_are_judged_that_the_loss_does_not_show() -> None:
    model, (batch, *_) = own_modules.Decoder(), own_modules.TinyGPT().batches(1)
    found = module.answers(lambda given: (0.0 * model(given["ids"]).sum() + 2.0, {}), model, batch)
    assert found[0] == 2.0
    # 4 x 12 x 32 logits: every sixth of them.
    assert found[1:].tolist() == model(batch["ids"]).flatten()[::6].tolist()
    assert module.answers(lambda given: (given["ids"].sum(), {}), model, batch).shape == (1,)


def test_the_timed_loss_is_judged_and_not_only_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(_: CpuBackend, loss: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda batch: (1.5 * loss(batch)[0], {})

    monkeypatch.setattr(CpuBackend, "compile", compiled)
    (reason,) = reasons(measure(options_of("TinyGPT", workloads=("forward",))))
    assert reason.startswith("its loss and outputs differ")


def test_weights_and_batches_that_differ_between_processes_are_invalid() -> None:
    """As those of a module whose weights follow the order of a set of words, which no two processes share."""
    options = options_of("TinyGPT", workloads=("forward",), processes=2)
    plan = make_plan(options)
    first = worker.run(options, plan.targets[0])
    for part, what in (("model", "weights"), ("data", "data")):
        other = first.model_copy(update={part: getattr(first, part).model_copy(update={"sha256": "3" * 64})})
        runs = [WorkerRun(0, process, 1.0, document) for process, document in enumerate((first, other))]
        found = build_result(plan, runs, describe(), paired=True)
        assert reasons(found) == [f"its {what} differ from process to process"]


def test_a_step_that_does_nothing_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isotrain.backends.training.loss_scale.LossScale.step", lambda *_: None)
    assert "the trained weights never changed: the training steps did nothing" in reasons(
        measure(options_of("TinyGPT", workloads=("full_step",)))
    )


def test_nan_that_comes_later_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_modules.TinyGPT, "optimizer", lambda _, given: torch.optim.SGD(given, 1e30), raising=False)
    loaded = module.LoadedWorkload("T", "T", OWN, "0" * 64, own_modules.TinyGPT())
    monkeypatch.setattr(module, "load_workload", lambda _: loaded)
    found = reasons(measure(options_of("TinyGPT", workloads=("full_step",))))
    assert any("losses of" in reason and "NaN" in reason for reason in found)
    assert "the trained weights became NaN or infinite" in found


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., Path]:
    """Writes the same result, changed in its only target."""
    document = measure(options_of("TinyGPT", workloads=("forward",))).document()

    def write(name: str, **changes: Any) -> Path:
        (target,) = document["targets"]
        changed = document | {"targets": [target | {key: target[key] | value for key, value in changes.items()}]}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(changed), encoding="utf-8")
        return path

    return write


def test_only_results_of_one_module_are_compared(results: Callable[..., Path]) -> None:
    before = results("before")
    compare_files(before, results("same"))
    for part, name in (("model", "weights"), ("data", "batches")):
        with pytest.raises(UserError, match=rf"{part}\.sha256 differs"):
            compare_files(before, results(name, **{part: {"sha256": "1" * 64}}))
    after = results("file", model={"code_sha256": "2" * 64})
    with pytest.raises(UserError, match=r"module .* -> 222222222222, which decides speed; .* by --allow module"):
        compare_files(before, after)
    compare_files(before, after, asked=Asked(allow=["module"]))


def test_reports_and_histories_show_a_module(results: Callable[..., Path], tmp_path: Path) -> None:
    result = Bench.model_validate_json(results("first").read_text(encoding="utf-8"))
    results("second")
    shown = "\n".join(str(block) for block in bench_view(result))
    assert "model TinyGPT (own_modules.py, weights of seed 23); data batches of TinyGPT, 12 samples in" in shown
    (row,) = rows(result)
    assert row["target"] == "cpu forward TinyGPT"
    assert row["real_tokens_per_second_median"] == ""
    (course,) = load_history(tmp_path).courses
    assert len(course.points) == 2
    page = tmp_path / "report.html"
    write_report(tmp_path, page)
    assert f"forward of {OWN}:TinyGPT" in page.read_text(encoding="utf-8")


APP = Typer()
APP.command()(bench)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(APP, list(arguments))


def test_the_plan_of_a_module_has_its_two_workloads() -> None:
    done = invoke(f"{OWN}:TinyGPT", "--backend", "cpu", "--backend", "tt-emulated", "--dry-run", "--processes", "1")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    for label in ("cpu forward TinyGPT", "cpu full_step TinyGPT", "tt-emulated full_step TinyGPT"):
        assert label in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "packed"], "--layout is for texts"),
        (["--model", "random:tiny"], "--model is for texts"),
        (["--max-length", "64"], "--max-length is for texts"),
        (["--vs", "baselines"], "--vs is for texts"),
        (["--workload", "head_step"], "--workload 'head_step' does not exist"),
        (["--workload", "end_to_end"], "--workload 'end_to_end' does not exist"),
    ],
)
def test_options_of_texts_are_refused(arguments: list[str], message: str) -> None:
    done = invoke(f"{OWN}:TinyGPT", "--dry-run", *arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_a_file_that_is_not_there_is_refused_before_any_process() -> None:
    assert "there is no file 'nowhere.py'" in str(invoke("nowhere.py:Mine").exception)


def test_a_bad_module_ends_the_run_with_its_line(tmp_path: Path) -> None:
    """Through a real process, as `isotrain bench` starts it."""
    (tmp_path / "broken.py").write_text(OWN.read_text(encoding="utf-8") + "\nraise OSError('no data')\n")
    options = replace(options_of("TinyGPT", ("cpu", "tt-emulated")), model=f"{tmp_path / 'broken.py'}:TinyGPT")
    lines = len(OWN.read_text(encoding="utf-8").splitlines()) + 2
    with pytest.raises(UserError, match=rf"broken\.py:{lines}: the import raised OSError: no data"):
        run_bench(options, write=False)


def test_an_operation_that_fails_on_the_device_alone_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = OWN.read_text(encoding="utf-8").replace(
        'logits, wanted = model(batch["ids"])', 'logits, wanted = model(far(batch["ids"]))'
    )
    # The first four calls are the host's: the loss is counted, repeated twice, and its answers are taken.
    text += "\ncalls = []\n\ndef far(ids):\n    calls.append(ids)\n    return ids + 1000 * (len(calls) > 4)\n"
    (tmp_path / "far_model.py").write_text(text, encoding="utf-8")
    options = replace(options_of("TinyGPT", workloads=("full_step",)), model="far_model.py:TinyGPT")
    with pytest.raises(UserError) as found:
        measure(options)
    # Of all lines of the file that led there, the last one.
    line = 1 + next(number for number, line in enumerate(text.splitlines()) if "self.tokens(ids)" in line)
    said = f"far_model.py:{line}: operation aten.embedding can't run on backend cpu (index out of range in self)"
    assert str(found.value).startswith(said)


def test_the_generic_path_makes_the_steps_of_alberts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two targets that tests/support/generic_cost.py compares, with a smaller model."""
    small = Options(model="random:tiny", dtypes=("float32",), blocks=2, seconds=0.02, max_length=32, batches=2)
    own, generic = cost_targets()
    measured = worker.run(small, own)

    def load(spec: str) -> Any:
        found = load_workload(spec)
        found.workload.options = small
        return found

    load_workload = module.load_workload
    monkeypatch.setattr(module, "load_workload", load)
    again = worker.run(small, generic)
    assert again.losses == pytest.approx(measured.losses, rel=1e-6)
    assert again.work.samples == measured.work.samples
    assert again.work.hardware_flops > 0


def test_a_target_of_a_module_is_a_spec_of_its_own() -> None:
    assert "module" not in TargetSpec("cpu", "forward", "packed", "auto", 8).as_dict()
    assert Measured.model_fields.keys() >= {"probe", "expected"}
