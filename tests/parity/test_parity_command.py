"""`isotrain parity` as its users run it: whole comparisons, traces from elsewhere, and candidates that fail."""

from __future__ import annotations

import html
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from isotrain import RunError, UserError
from isotrain.benchmarks.harness import answer as answers
from isotrain.benchmarks.harness.runner import Ended
from isotrain.benchmarks.parity import worker
from isotrain.benchmarks.parity.run import why_ended
from isotrain.benchmarks.parity.seeds import equivalence
from support import forks
from support.command import Invoke, one_line_error
from support.parity_job import SETTINGS, sets_of

SCHEMA = Path(__file__).resolve().parents[2] / "benchmarks" / "schema" / "parity-2.json"

SMALL = SETTINGS | {"model_name": "random:tiny", "num_epochs": 1}


def isotrain(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ["-c", "from isotrain.cli.main import main; main()", "parity", *arguments]
    return forks.run(words, cwd=folder, env=os.environ | {"COLUMNS": "200"} | environment, forking=True)


def options() -> list[str]:
    return [part for item in sets_of(SMALL) for part in ("--set", item)]


def read(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text())
    jsonschema.validate(result, json.loads(SCHEMA.read_text()))
    return result


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference and a float32 trace, recorded one by one as on two machines."""
    folder = tmp_path_factory.mktemp("traces")
    for name, chosen in (("reference", ["--dtype", "float64"]), ("here", ["--dtype", "float32"])):
        replay = [] if name == "reference" else ["--replay-from", "reference"]
        done = isotrain("record", "quickstart", *options(), *chosen, *replay, "--out", name, "--json", folder=folder)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert document["schema"] == "isotrain.parity-record/1"
        assert (document["trace"], document["ended"]) == (name, None)
    return folder


@pytest.mark.slow
def test_one_command_does_it_all_and_keeps_what_a_dead_candidate_leaves(tmp_path: Path) -> None:
    sides = ["cpu:float32", "cpu:float32+weight_decay=0.5", "tt:lofi+bfp_bf4", "cuda:99:bfloat16", "tt:float16"]
    arguments = [part for side in sides for part in ("--candidate", side)]
    done = isotrain("quickstart", *options(), *arguments, "--out", "out", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    found = {one["label"]: one for one in read(tmp_path / "out" / "parity.json")["candidates"]}
    assert found["cpu:float32"]["verdict"] == "pass"
    refused = found["cpu:float32+weight_decay=0.5"]
    assert refused["verdict"] == "refused"
    assert "weight_decay is 0.01 in the reference and 0.5" in refused["reasons"][0]
    emulated = found["tt-emulated:lofi+bfp_bf4"]
    assert emulated["verdict"] == "pass"
    assert emulated["emulated"]
    assert found["cuda:99:bfloat16"]["verdict"] == "failed"
    assert "can't run here" in found["cuda:99:bfloat16"]["reasons"][0]
    assert found["tt-emulated:float16"]["verdict"] == "failed"
    assert "tt-emulated:lofi+bfp_bf4" in done.stdout
    assert "\ntt-emulated:lofi+bfp_bf4: " in done.stderr
    assert "random weights" in done.stdout


@pytest.mark.parametrize("flag", ["--candidate", "--backend"])
@pytest.mark.parametrize(
    ("side", "missing"), [("cuda:99", "backend 'cuda' can't run here"), ("tt:hardware", "hardware can't run here")]
)
def test_a_device_that_is_not_here_is_said_before_the_reference_runs(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, side: str, missing: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("isotrain.backends.tt.stacks.CARD_FOLDER", tmp_path / "none")
    one_line_error(invoke("parity", "quickstart", flag, side), missing)
    assert not (tmp_path / "parity").exists()


def test_traces_from_elsewhere(traces: Path) -> None:
    done = isotrain("compare", "reference", "here", "--out", "result.json", folder=traces)
    assert done.returncode == 0, done.stderr + done.stdout
    (candidate,) = read(traces / "result.json")["candidates"]
    assert candidate["verdict"] == "pass"
    assert candidate["draws"] == 3
    assert candidate["layers"][1]["local_relative_l2"] is not None
    assert candidate["metrics"][0]["accuracy"] == candidate["metrics"][0]["reference_accuracy"]
    assert candidate["metrics"][0]["allowed_loss"] < 1e-4
    judged = {check["quantity"].partition(",")[0] for check in candidate["checks"]}
    assert judged >= {
        "loss", "grad_norm", "update_norm", "logits", "features", "loss given the reference's features",
        "logits given the reference's features", "training's right answers so far", "the evaluation's f1_macro",
    }  # fmt: skip


def test_a_candidate_that_reports_other_figures_than_its_logits_say_is_outside(traces: Path) -> None:
    shutil.copytree(traces / "here", traces / "boasting")
    header = json.loads((traces / "boasting" / "trace.json").read_text())
    header["metrics"][-1] |= {"loss": 0.01, "accuracy": 0.99}
    (traces / "boasting" / "trace.json").write_text(json.dumps(header))
    done = isotrain(
        "compare", "reference", "boasting", "--out", "boast.json", "--html", "boast.html", folder=traces, COLUMNS="400"
    )
    assert done.returncode == 1, done.stderr
    (candidate,) = read(traces / "boast.json")["candidates"]
    assert (candidate["verdict"], candidate["place"]) == ("diverged", "evaluation")
    outside = {check["quantity"] for check in candidate["checks"] if check["ratio"] > 1}
    assert outside == {"the evaluation's loss", "the evaluation's accuracy"}
    assert "the evaluation's loss is off by" in done.stdout
    assert "outside, too: the evaluation's accuracy" in done.stdout
    page = html.unescape((traces / "boast.html").read_text())
    assert "the evaluation's accuracy" in page
    assert "may differ by" in page


def test_a_damaged_trace_leaves_the_others_their_verdict(traces: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "trace.json").write_text('{"schema": "isotrain.tr')
    done = isotrain("compare", "reference", "here", str(tmp_path / "broken"), "--out", "two.json", folder=traces)
    assert done.returncode == 2
    first, second = read(traces / "two.json")["candidates"]
    assert (first["verdict"], second["verdict"]) == ("pass", "refused")
    assert "truncated JSON" in second["reasons"][0]


def test_traces_of_one_label_are_told_apart(traces: Path) -> None:
    shutil.copytree(traces / "here", traces / "there")
    done = isotrain("compare", "reference", "here", "there", "--out", "same.json", folder=traces)
    assert done.returncode == 0, done.stdout
    assert [one["label"] for one in read(traces / "same.json")["candidates"]] == [
        "cpu:float32 [here]",
        "cpu:float32 [there]",
    ]


def test_draws_that_an_interruption_left_out_are_missed_and_made_up_for(traces: Path, tmp_path: Path) -> None:
    shutil.copytree(traces / "reference", tmp_path / "reference")
    shutil.copytree(traces / "here", tmp_path / "here")
    draws = tmp_path / "reference" / "error-budgets" / "ideal-float32"
    kept = (draws / "draw-0" / "trace.json").stat().st_mtime_ns
    shutil.rmtree(draws / "draw-2")
    done = isotrain("compare", "reference", "here", folder=tmp_path)
    assert done.returncode == 2
    assert "has 2 of 3 draws of the error budget 'ideal float32'" in " ".join(done.stdout.split())
    done = isotrain("error-budget", "reference", "here", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = {"schema": "isotrain.parity-error-budget/1", "reference": "reference", "draws": {"ideal float32": 3}}
    assert json.loads(done.stdout) == told
    assert (draws / "draw-0" / "trace.json").stat().st_mtime_ns == kept
    assert isotrain("compare", "reference", "here", folder=tmp_path).returncode == 0


def test_a_trace_of_another_seed_is_refused(traces: Path) -> None:
    done = isotrain("record", "quickstart", *options(), "--set", "seed=5", "--out", "other", folder=traces)
    assert done.returncode == 0, done.stderr
    done = isotrain("compare", "reference", "other", folder=traces)
    assert done.returncode == 2
    assert "seed is 23 in the reference and 5" in done.stdout
    again = isotrain(
        "record", "quickstart", *options(), "--set", "seed=5", "--replay-from", "reference", "--out", "no",
        folder=traces,
    )  # fmt: skip
    assert again.returncode == 2
    assert "other initial weights" in again.stderr
    assert not (traces / "no").exists()


def test_a_float32_trace_is_no_reference(traces: Path) -> None:
    done = isotrain("compare", "here", "reference", folder=traces)
    assert done.returncode == 2
    assert "only a float64 trace judges" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quickstart", "--candidate", "gpu:float32"], "backend 'gpu' does not exist"),
        (["quickstart", "--candidate", "cpu:float32", "--candidate", "cpu:float32"], "given twice"),
        (["quickstart", "--candidate", "cpu:float32", "--seeds", "3"], "at least 5"),
        (["quickstart", "--candidate", "cpu:float32", "--python", "xla"], "BACKEND=PATH"),
        (["quickstart", "--candidate", "cpu:float32+learning_rat=1"], "learning_rate"),
        (["nothing", "--candidate", "cpu:float32"], "does not exist"),
        (["compare", "nothing", "here"], "is no trace"),
        (["record", "quickstart", "--steps", "-1", "--out", "x"], "out of range"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = isotrain(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_candidate_that_hangs_is_ended_and_quoted(tmp_path: Path) -> None:
    """A stand-in interpreter plays the candidate's environment."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho loading the plugin >&2\nexec sleep 600\n")
    script.chmod(0o755)
    done = isotrain(
        "quickstart", *options(), "--candidate", "xla:float32", "--python", f"xla={script}", "--time-limit", "20",
        "--out", "out", folder=tmp_path,
    )  # fmt: skip
    (candidate,) = read(tmp_path / "out" / "parity.json")["candidates"]
    assert done.returncode == 2
    assert "time limit of 20 s" in candidate["reasons"][0]
    assert "loading the plugin" in candidate["reasons"][0]


def test_half_a_reason_of_a_candidate_that_died_is_no_error_of_the_comparison(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("out of memory\n")
    (tmp_path / "reason").write_text('{"error": "the dev')
    ended = Ended(-9, 1.0, False, tmp_path / "log")
    reason = why_ended(ended, tmp_path / "reason", 60.0)
    assert reason.startswith("was killed by signal 9 and left half an error; its last words:")
    assert "out of memory" in reason


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_a_worker_says_what_was_refused_before_and_after_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def refuse(spec: worker.RecordSpec) -> worker.Recorded:
        raise kind("other initial weights; record both from the same seed")

    spec = worker.RecordSpec(config=None, jobs=[], replay_from=None, steps=None, result=str(tmp_path / "reason"))
    monkeypatch.setattr(answers, "end_with_parent", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(spec.model_dump_json()))
    assert answers.answer(worker.RecordSpec, refuse) == 2
    ended = Ended(2, 1.0, False, tmp_path / "log")
    assert why_ended(ended, tmp_path / "reason", 60.0) == "other initial weights; record both from the same seed"


@pytest.mark.slow
def test_a_candidate_runs_in_its_own_environment(tmp_path: Path) -> None:
    """The interpreter of another environment, played by a script that says so and goes on with this one's."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/used\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    done = isotrain(
        "quickstart", *options(), "--candidate", "tt:hifi4", "--candidate", "cpu:float32", "--python", f"tt={script}",
        "--out", "out", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert [one["verdict"] for one in read(tmp_path / "out" / "parity.json")["candidates"]] == ["pass", "pass"]
    assert (tmp_path / "used").read_text().splitlines() == ["-m isotrain.benchmarks.parity.worker"]


def test_equivalence_is_shown_not_assumed() -> None:
    reference = [0.90, 0.91, 0.89, 0.90, 0.92]
    near = [value + shift for value, shift in zip(reference, (1e-3, -1e-3, 2e-3, 0, -2e-3), strict=True)]
    far = [value - 0.05 for value in reference]
    wide = [value + shift for value, shift in zip(reference, (0.03, -0.03, 0.02, -0.02, 0.01), strict=True)]
    verdicts = [equivalence("x", reference, values, 0.01).verdict for values in (near, far, wide)]
    assert verdicts == ["equivalent", "different", "no decision"]


def test_traces_that_are_there_are_used_again(tmp_path: Path) -> None:
    command = ["quickstart", *options(), "--steps", "3", "--out", "kept"]
    first = isotrain(*command, "--candidate", "cpu:float32", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    recorded = (tmp_path / "kept" / "reference" / "trace.json").stat().st_mtime_ns
    again = isotrain(*command, "--candidate", "cpu:float32", "--candidate", "cpu:bfloat16", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    lines = again.stderr.splitlines()
    assert [line for line in lines if "kept from before" in line] == [
        "cpu:float64: kept from before",
        "cpu:float32: kept from before",
    ]
    assert (tmp_path / "kept" / "reference" / "trace.json").stat().st_mtime_ns == recorded
    one_line_error(
        (lambda done: (done.returncode, done.stdout, done.stderr))(
            isotrain(*command, "--set", "seed=5", "--candidate", "cpu:float32", folder=tmp_path)
        ),
        "has a trace of cpu:float64 with other settings, data or weights; choose another folder",
    )
    # The pattern names the logs and notes beside the traces, too.
    candidates = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "kept" / "candidates").glob("*"))
    assert len(candidates) > 2
    for named in (candidates, ["kept/candidates"]):
        judged = isotrain("compare", "kept/reference", *named, "--json", folder=tmp_path)
        assert judged.returncode == 0, judged.stderr
        labels = [one["label"] for one in json.loads(judged.stdout)["candidates"]]
        assert labels == ["cpu:bfloat16", "cpu:float32"]


def test_a_changed_code_or_data_file_is_no_reason_to_use_a_trace(tmp_path: Path) -> None:
    from isotrain.benchmarks.parity.run import _files, _hash
    from isotrain.benchmarks.parity.worker import Job, RecordSpec

    data = tmp_path / "data.csv"
    data.write_text("text,label\na,b\n")
    job = Job(label="cpu", sets=[f"dataset_id={data}"], out=str(tmp_path / "out"))
    spec = RecordSpec(config="quickstart", jobs=[job], replay_from=None, steps=3, result="")
    before = _hash(spec, sys.executable, None)
    assert _hash(spec, sys.executable, None) == before
    assert _hash(spec.model_copy(update={"steps": 4}), sys.executable, None) != before
    data.write_text("text,label\na,c,\n")
    assert _hash(spec, sys.executable, None) != before
    kernels = Path(worker.__file__).parents[2] / "kernels"
    assert any(name.endswith("kernels/reference.py") for name, *_ in _files(kernels))


def test_progress_has_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    advance = worker.PipeReporter(stream, "draw 1 of 3, ").phase("step")
    for done in range(1, 1001):
        now[0] = float(done)
        advance(done, 1000)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "draw 1 of 3, step 5 of 1,000, about 17 min left"
    # A line after at least 5 s and at least a tenth of the time so far.
    assert 20 < len(lines) < 60


def test_the_time_left_leaves_out_the_first_steps_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    advance = worker.PipeReporter(stream).phase("step")
    for done, seconds in ((1, 60.0), (2, 66.0), (3, 72.0), (4, 78.0)):
        now[0] = seconds
        advance(done, 12)
    assert stream.getvalue().splitlines() == [
        "step 1 of 12",
        "step 3 of 12, about 54 s left",
    ]


def test_an_interrupted_comparison_says_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isotrain.benchmarks.parity import run as parity_run
    from isotrain.benchmarks.parity.sides import parse_side

    out = tmp_path / "out"
    comparison = parity_run.Comparison(
        "quickstart", parse_side("cpu:float64"), (parse_side("cpu:float32"),), out, again="isotrain parity again"
    )

    def interrupted(*_: object) -> None:
        (out / "reference").mkdir(parents=True)
        (out / "reference" / "trace.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(parity_run, "_recorded", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"kept in .*out: reference; continue with: isotrain parity again$"):
        parity_run.run_parity(comparison, lambda _: None)
