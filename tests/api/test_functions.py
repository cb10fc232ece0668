"""The Python functions: the same results as the commands, typed, and shown in a notebook."""

from __future__ import annotations

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import isotrain
import pytest
from isotrain import UserError
from support import own_modules
from support.workloads import LINE, write_workload

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "python"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> isotrain.Run:
    folder = tmp_path_factory.mktemp("runs")
    return isotrain.train("quickstart", model_name="random:tiny", max_steps=4, project_dir=folder, backend="cpu")


def test_a_run_is_trained_and_opened_again(run: isotrain.Run) -> None:
    assert run.status == "completed"
    assert (run.step, run.total_steps) == (4, 4)
    assert run.config.model_name == "random:tiny"
    assert 0.0 <= run.metrics["accuracy"] <= 1.0
    again = isotrain.load_run(run.path)
    assert again == run
    assert [row["step"] for row in again.evaluations()] == [4]
    assert "random weights" in run.label


def test_answers_are_those_of_the_command(run: isotrain.Run, capsys: pytest.CaptureFixture[str]) -> None:
    from isotrain.cli.main import main

    texts = ["I lost my card", "What is the exchange rate?"]
    with pytest.raises(SystemExit):
        main(["predict", str(run.path), *texts, "--json"])
    printed = json.loads(capsys.readouterr().out)["predictions"]
    answers = [{**one.asked(), **one.answer()} for one in isotrain.predict(run.path, texts)]
    assert answers == printed
    assert list(run.predict(texts)) == isotrain.predict(run, texts)


def test_the_notebook_shows_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "results.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    shown = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        *lines, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(lines, []), "cell", "exec"), names)
        assert isinstance(last, ast.Expr)
        shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    run, answers, measured, compared = shown
    assert len(answers) == 2
    assert isinstance(measured, isotrain.BenchResult)
    assert [target.kernel for target in measured.targets] == ["auto"]
    assert measured.path is None
    assert isinstance(compared, isotrain.ParityResult)
    assert compared.passed
    assert compared.path == Path("traces") / "parity.json"
    for result, words in ((run, "completed, step 6 of 6"), (measured, "samples/s"), (compared, "Loss parity")):
        assert words in str(result)
        assert not [line for line in str(result).splitlines() if line != line.rstrip()]
        page = result._repr_html_()
        assert page.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
        assert "random weights" in page
    page = isotrain.report(tmp_path, tmp_path / "report.html")
    assert "Do the losses agree?" in page.read_text()


def test_wrong_input_is_one_line(run: isotrain.Run, tmp_path: Path) -> None:
    for what, words in (
        (lambda: isotrain.train(), "train got no configuration"),
        (lambda: isotrain.train("quickstart", learning_rate="fast"), "(train())"),
        (lambda: isotrain.train("quickstart", leaning_rate=1e-3), "did you mean 'learning_rate'?"),
        (lambda: isotrain.train("quickstart", tt={"speed": 3}), "tt.speed"),
        (lambda: isotrain.load_run(tmp_path), "is not a run folder"),
        (lambda: isotrain.bench("random:tiny", colour="red"), "bench got colour='red'"),
        (lambda: isotrain.bench("random:tiny", backend="gpu"), "gpu"),
        (lambda: isotrain.parity("quickstart", "cpu:float32", reference="cpu:float32"), "only float64 judges"),
        (lambda: isotrain.report(tmp_path), "nothing under"),
        (lambda: run.predict([""]), "text 1 of 1 is empty"),
    ):
        with pytest.raises(UserError) as caught:
            what()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_names_are_seen_without_loading_torch() -> None:
    program = "import sys, isotrain; print(sorted(set(isotrain.__all__) - set(dir(isotrain))), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]


SCRIPT = """
from functools import partial
from pathlib import Path
from typing import Any
import torch
import isotrain
from torch import nn

run: isotrain.Run = isotrain.train("quickstart", num_epochs=1)
rate: float = run.metrics["accuracy"]
where: Path = isotrain.report("results", out="page.html")
result: isotrain.BenchResult = isotrain.bench(backend=["cpu", "tt"], layout="packed")
ok: bool = result.valid and isotrain.parity("quickstart", ["cpu:bfloat16"]).passed
compared: isotrain.ParityResult = isotrain.parity(Path("my_model.py:Mine"), "cpu:float32", steps=None, out="traces")
verdicts: list[str] = [one.verdict for one in compared.candidates]
page: str = compared._repr_html_()
backend: isotrain.Backend = isotrain.get_backend("cpu")
session: isotrain.Session = backend.session(nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1))


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = model(batch).mean()
    return value


class Mine:
    def model(self, seed: int) -> nn.Module:
        return nn.Linear(2, 2)

    def batches(self, seed: int) -> list[torch.Tensor]:
        return [torch.ones(3, 2)]

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return loss(model, batch)


mine: isotrain.Workload = Mine()
mean: torch.Tensor = session.step(loss, torch.ones(3, 2))
answers = [one.answer() for one in isotrain.load_run("runs/x").predict(["a text"])]
"""


WRONG = """
isotrain.report(3)
run.metric
result.valit
compared.pased
isotrain.parity("my_model.py:Mine", candidates=3)
session.stepp
backend.devise
number: int = session.step(loss, torch.ones(3, 2))
none: isotrain.Workload = object()
"""
# Nothing of them stands in the types of isotrain's own names, and reading them takes most of the time.
UNREAD = """
[mypy]
[mypy-transformers.*,datasets.*,peft.*,huggingface_hub.*,onnx.*,onnxscript.*,onnx_ir.*,matplotlib.*,rich.*,numpy.*]
follow_imports = skip
[mypy-torch._dynamo.*,torch._inductor.*,torch._functorch.*,torch.ao.*,torch.distributed.*,torch.distributions.*]
follow_imports = skip
[mypy-torch.export.*,torch.fx.*,torch.onnx.*,torch.testing.*]
follow_imports = skip
"""


def test_a_strict_type_checker_sees_all_of_it(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e '.[dev]'")
    (tmp_path / "script.py").write_text(SCRIPT + WRONG)
    (tmp_path / "mypy.ini").write_text(UNREAD)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "c")]
    # An editable install is found by a hook of the import system, which mypy doesn't run.
    (tmp_path / "path").mkdir()
    (tmp_path / "path/isotrain").symlink_to(Path(isotrain.__file__).parent)
    done = subprocess.run(
        [*command, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"MYPYPATH": str(tmp_path / "path")},
        check=False,
    )
    places = [line.split(": ")[0] for line in done.stdout.splitlines() if ": error: " in line]
    # Only the last lines of the script are wrong, and all of them.
    last = len((SCRIPT + WRONG).splitlines())
    wanted = range(last - len(WRONG.strip().splitlines()) + 1, last + 1)
    assert places == [f"script.py:{line}" for line in wanted], done.stdout + done.stderr


def test_the_examples_run(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "own_loop.py", "tt-emulated"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    losses = [float(line.split()[3]) for line in done.stdout.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < losses[0] / 2
    assert "emulated" in done.stdout
    assert (tmp_path / "own_loop.pt").is_file()
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) <= 40


def test_ones_own_module_is_measured_by_fifteen_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forked_children: None
) -> None:
    file = EXAMPLES / "own_module.py"
    assert len([line for line in file.read_text().splitlines() if line.strip()]) <= 15
    monkeypatch.setattr("isotrain.benchmarks.harness.plan.QUICK_SECONDS", 0.1)
    monkeypatch.setattr(sys, "argv", [str(file), "tt-emulated"])
    runpy.run_path(str(file), run_name="__main__")
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("tt-emulated", "full_step", "Tiny (own_module.py, weights of seed 23)"))


def test_bench_takes_a_workload_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Any] = []
    monkeypatch.setattr("isotrain.api.measuring.make_plan", lambda options: planned.append(options) or 1 / 0)
    module = f"{own_modules.__file__}:TinyGPT"
    for model, workloads in ((module, ("forward", "full_step")), ("random:tiny", ("forward", "train_step"))):
        with pytest.raises(ZeroDivisionError):
            isotrain.bench(model)
        assert (planned[-1].model, planned[-1].module, planned[-1].workloads) == (model, model == module, workloads)


def test_parity_judges_a_workload_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_children: None
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workload(tmp_path)
    compared = isotrain.parity("own.py:Line", ["cpu:float32", "tt"], steps=3, out="traces")
    assert isinstance(compared, isotrain.ParityResult)
    assert [(one.label, one.verdict) for one in compared.candidates] == [
        ("cpu:float32", "pass"),
        ("tt-emulated", "pass"),
    ]
    assert compared.passed
    assert json.loads(compared.path.read_text())["steps"] == compared.result.steps == 3
    assert "model Line; data batches of Line" in str(compared)
    assert "tt-emulated: emulated on the host, no card was run" in str(compared)
    page = compared._repr_html_()
    assert page.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert "Do the losses agree?" in page
    write_workload(tmp_path, LINE.replace(".mean()", ""))
    with pytest.raises(
        UserError, match=r"own\.py:14: loss returned a tensor of shape \(5, 1\), not a scalar"
    ) as caught:
        isotrain.parity("own.py:Line", "cpu:float32", out="others")
    assert "\n" not in str(caught.value)
