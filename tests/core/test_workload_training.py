"""A user's own workload trains by the loop that trains texts: the same steps, resumes, files and refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import isotrain
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.best import Best
from isotrain.albert_core.config.keys import OF_TEXTS, Keys
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.runs.folder import RunFolder
from isotrain.backends import get_backend
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.reports.html.loading import load_results
from safetensors.torch import load_file
from support.command import Invoke, one_line_error
from support.small_job import losses, metrics
from support.workloads import EXAMPLES, LINE, NAMES, own_settings, write_workload

Run = Callable[..., TrainResult]

EVALUATE = """
    def evaluate(self, model, batches):
        return {}
"""
OWN_FIGURES = "(lambda loss: {'loss': loss, 'rough': 1 / loss})(sum(self.loss(model, one).item() for one in batches))"

# What a workload's run reads of the configuration; `OF_TEXTS` is the rest.
SHARED = """
dtype learning_rate weight_decay gradient_accumulation_steps num_epochs optim log_level use_wandb wandb_project
wandb_run_name wandb_tags wandb_watch_mode wandb_log_freq model_to_wandb steps_freq epoch_freq resume_from_checkpoint
resume_option checkpoint_path checkpoint_metric checkpoint_metric_mode keep_last_n keep_best_n save_strategy project_dir
save_optim storage_backend sync_to_storage load_from_storage remote_path seed deterministic framework use_tt
val_steps_freq parallelism_strategy mesh_shape mesh_axis_names backend run_name workload sharding strict_dtype
eval_on_start early_stopping_patience early_stopping_threshold lr_scheduler_type lr_scheduler_kwargs warmup_steps
warmup_ratio no_decay stop_on_collapse max_grad_norm adam_beta1 adam_beta2 adam_epsilon momentum max_steps stop_at_step
threads process_timeout chart use_tensorboard trackers torch_compile
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Trains a workload, by default the line with dropout; `resume` is a run to go on with."""

    def start(workload: str | None = None, resume: RunFolder | None = None, **overrides: Any) -> TrainResult:
        observer = overrides.pop("observer", None)
        spec = workload or write_workload(tmp_path)
        return train(load_config(None, own_settings(spec, tmp_path, **overrides)), resume=resume, observer=observer)

    return start


def lines(result: TrainResult) -> list[dict[str, Any]]:
    """What metrics.jsonl says, times aside."""
    return [{name: value for name, value in line.items() if "second" not in name} for line in metrics(result)]


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.run.model / "model.safetensors")


def same(one: TrainResult, other: TrainResult) -> None:
    assert lines(one) == lines(other)
    found, wanted = weights(one), weights(other)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("backend", ["cpu", "tt-emulated"])
@pytest.mark.parametrize("name", NAMES)
def test_each_example_trains(run: Run, name: str, backend: str) -> None:
    result = run(str(EXAMPLES / f"{name}.py"), backend=backend, max_steps=3)
    assert (result.status, [step for step, _ in losses(result)]) == ("completed", [1, 2, 3])
    found = [loss for _, loss in losses(result)]
    assert all(0 < loss < 10 for loss in found)
    assert len(set(found)) == 3
    evaluated = "evaluate" in (EXAMPLES / f"{name}.py").read_text()
    assert ("eval/loss" in result.metrics) == evaluated
    assert json.loads(result.run.summary.read_text())["emulated"] == (backend != "cpu")


@pytest.mark.parametrize("name", ["dropout", "lora_gpt", "small_convnet"])
def test_a_resume_is_bit_exact(run: Run, name: str) -> None:
    # 8 to 12 batches: the last step of an epoch has fewer than 3, and the run is cut within the second epoch.
    keys = {"gradient_accumulation_steps": 3, "num_epochs": 3, "max_grad_norm": 1.0}
    spec = str(EXAMPLES / f"{name}.py")
    straight = run(spec, run_name="straight", **keys)
    cut = run(spec, run_name="cut", stop_at_step=5, **keys)
    assert (cut.status, cut.step) == ("stopped", 5)
    same(run(spec, resume=cut.run, **keys), straight)


class Ahead(CpuBackend):
    """Copies a step ahead, as a GPU does, and counts what it copied."""

    copied = 0

    def prefetch(self, batches: Iterable[Any]) -> Iterator[Any]:
        ahead: deque[Any] = deque()
        for batch in batches:
            Ahead.copied += len(batch)
            ahead.append([tensor.clone() for tensor in batch])
            if len(ahead) == 2:
                yield ahead.popleft()
        yield from ahead


def test_batches_are_copied_ahead_and_a_resume_is_exact(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The batches draw from the generator that dropout draws from.
    spec = write_workload(tmp_path, LINE.replace(", generator=generator", "") + EVALUATE.format(OWN_FIGURES))
    keys = {"gradient_accumulation_steps": 3, "num_epochs": 3}
    straight = run(spec, run_name="straight", **keys)
    monkeypatch.setattr("isotrain.albert_core.loop.workload.job.get_backend", lambda *_: Ahead())
    ahead = run(spec, run_name="ahead", **keys)
    # Three epochs of training and three evaluations of four batches.
    assert Ahead.copied == 24
    same(ahead, straight)
    cut = run(spec, run_name="cut", stop_at_step=3, **keys)
    same(run(spec, resume=cut.run, **keys), straight)


class Interrupting:
    """An observer that sends Ctrl-C's signal after the third step."""

    def started(self, training: Any) -> None: ...

    def stepped(self, training: Any, window: Any, sums: torch.Tensor) -> None:
        if training.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def evaluated(self, training: Any, epoch: int) -> None: ...


def test_ctrl_c_leaves_a_run_that_resumes_exactly(run: Run) -> None:
    straight = run(run_name="straight", num_epochs=2)
    cut = run(run_name="cut", num_epochs=2, observer=Interrupting())
    assert (cut.status, cut.step) == ("stopped", 2)
    same(run(resume=cut.run, num_epochs=2), straight)


def test_batches_that_draw_from_global_generators_leave_training_s_alone(run: Run, tmp_path: Path) -> None:
    # A DataLoader draws a seed from torch's generator in each iteration, as dropout does.
    loading = "return torch.utils.data.DataLoader(torch.ones(4, 3), batch_size=1)"
    text = LINE.replace("return [torch.randn(5, 3, generator=generator) for _ in range(4)]", loading)
    drawing = write_workload(tmp_path / "drawing", text)
    plain = write_workload(tmp_path / "plain", text.replace(loading, "return list(torch.ones(4, 1, 3))"))
    straight = run(drawing, run_name="straight", num_epochs=2)
    cut = run(drawing, run_name="cut", num_epochs=2, stop_at_step=3)
    same(run(drawing, resume=cut.run, num_epochs=2), straight)
    assert losses(run(plain, num_epochs=2)) == losses(straight)


def test_the_steps_are_those_of_a_plain_loop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = EXAMPLES / "small_convnet.py"
    result = run(str(file), num_epochs=2, gradient_accumulation_steps=3)
    found = importlib.util.spec_from_file_location("plain_convnet", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    workload = module.SmallConvNet()
    model = workload.model(23)
    optimizer = workload.optimizer(model.parameters())
    schedule = workload.schedule(optimizer, 6)
    expected, rates = [], []
    for epoch in range(2):
        batches = workload.batches(23 + epoch)
        for start in range(0, len(batches), 3):
            window = batches[start : start + 3]
            values = [workload.loss(model, batch)[0] for batch in window]
            loss = torch.stack(values).mean()
            optimizer.zero_grad()
            loss.backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
            expected.append(loss.item())
    logged = [line for line in metrics(result) if "train/loss" in line]
    assert [line["train/loss"] for line in logged] == pytest.approx(expected, abs=1e-5)
    assert [line["learning_rate"] for line in logged] == pytest.approx(rates)
    assert all(0 <= line["train/accuracy"] <= 1 for line in logged)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weights(result)[name], weight, rtol=0, atol=1e-4, msg=name)
    model.eval()
    assert result.metrics["eval/loss"] == pytest.approx(workload.evaluate(model, [])["loss"], abs=1e-4)


def test_each_group_of_parameters_has_its_own_rate(run: Run, tmp_path: Path) -> None:
    own = """
    def optimizer(self, parameters):
        weights = [one for one in parameters if one.dim() == 2]
        biases = [one for one in parameters if one.dim() == 1]
        return torch.optim.SGD([{"params": weights, "lr": 0.1}, {"params": biases, "lr": 0.0}])

    def schedule(self, optimizer, steps):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
"""
    result = run(write_workload(tmp_path, LINE + own))
    assert [line["learning_rate"] for line in metrics(result)] == [0.1, 0.05, 0.025, 0.0125]
    torch.manual_seed(23)
    first = torch.nn.Linear(3, 4)
    assert torch.equal(weights(result)["0.bias"], first.bias)
    assert not torch.equal(weights(result)["0.weight"], first.weight)


def test_an_endless_stream_is_read_as_far_as_the_steps_go(run: Run, tmp_path: Path) -> None:
    endless = """
class Endless:
    def __init__(self, seed):
        self.seed = seed

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield torch.randn(5, 3, generator=generator)
"""
    text = LINE.replace("return [torch.randn(5, 3, generator=generator) for _ in range(4)]", "return Endless(seed)")
    spec = f"{write_workload(tmp_path, text + endless)}:Line"
    straight = run(spec, run_name="straight", max_steps=6, gradient_accumulation_steps=2)
    assert len(losses(straight)) == 6
    cut = run(spec, run_name="cut", max_steps=6, gradient_accumulation_steps=2, stop_at_step=4)
    same(run(spec, resume=cut.run, max_steps=6, gradient_accumulation_steps=2), straight)


def test_tied_weights_and_masks_of_minus_infinity_are_kept(run: Run, tmp_path: Path) -> None:
    tied = """
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.other.weight = self.one.weight
        self.register_buffer("mask", torch.full((3,), -torch.inf))

    def forward(self, batch):
        return self.other(self.one(batch)).masked_fill(self.mask.isfinite(), 0)
"""
    model = "return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))"
    spec = f"{write_workload(tmp_path, LINE.replace(model, 'return Tied()') + tied)}:Line"
    straight = run(spec, run_name="straight", num_epochs=2)
    cut = run(spec, run_name="cut", num_epochs=2, stop_at_step=3)
    same(run(spec, resume=cut.run, num_epochs=2), straight)
    assert torch.equal(weights(straight)["one.weight"], weights(straight)["other.weight"])


def test_float64_trains_in_float64(run: Run) -> None:
    exact, rounded = run(dtype="float64"), run()
    assert weights(exact)["0.weight"].dtype == torch.float64
    got, want = losses(exact), losses(rounded)
    assert got != want
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in want], abs=1e-5)


def test_a_compiled_step_has_the_losses_of_a_plain_one(run: Run, tmp_path: Path) -> None:
    spec = write_workload(tmp_path, LINE.replace("Dropout(0.2)", "Tanh()"))
    counted = [get_backend("cpu").compile_count()]
    plain = run(spec)
    counted.append(get_backend("cpu").compile_count())
    compiled = run(spec, torch_compile="default")
    counted.append(get_backend("cpu").compile_count())
    assert counted[0] == counted[1] < counted[2]
    assert [loss for _, loss in losses(compiled)] == pytest.approx([loss for _, loss in losses(plain)], abs=1e-5)
    assert compiled.run.identity()["torch_compile"] == "default"


def test_every_key_is_one_of_texts_or_of_both() -> None:
    assert sorted((*OF_TEXTS, *SHARED.split())) == sorted(Keys.model_fields)


@pytest.mark.parametrize("key", ["batch_size=4", "model_name=random:tiny", "head=pooler_linear", "lora.rank=4"])
def test_keys_of_texts_are_refused_by_name(key: str) -> None:
    name = key.partition("=")[0].partition(".")[0]
    with pytest.raises(UserError, match=rf"^{name} is for training on texts.*drop it"):
        load_config(None, ["workload=own.py", key])


def test_sharding_is_for_workloads() -> None:
    with pytest.raises(UserError, match="sharding: fsdp is for a workload"):
        load_config(None, ["sharding=fsdp"])


@pytest.mark.parametrize("key", ["learning_rate", "weight_decay", "warmup_ratio"])
def test_keys_that_the_workload_s_own_methods_replace_are_refused(run: Run, key: str) -> None:
    with pytest.raises(UserError, match=rf"{key} is set, and .*small_convnet.py:\d+ has its own .*; drop {key}"):
        run(str(EXAMPLES / "small_convnet.py"), **{key: 0.5})


def test_a_figure_of_ones_own_makes_a_checkpoint_best(run: Run, tmp_path: Path) -> None:
    spec = write_workload(tmp_path, LINE + EVALUATE.format(OWN_FIGURES))
    keys = {"checkpoint_metric": "eval/rough", "checkpoint_metric_mode": "min", "num_epochs": 4, "keep_last_n": 1}
    result = run(spec, **keys, learning_rate=0.05)
    found = [line for line in metrics(result) if "eval/rough" in line]
    best = min(found, key=lambda line: line["eval/rough"])
    assert result.best_by == Best("eval/rough", "min")
    assert (result.best["step"], result.best["eval/rough"]) == (best["step"], best["eval/rough"])
    assert best["step"] < 16
    assert result.best_checkpoint == f"step-{best['step']:08d}"
    stopped = run(spec, **keys | {"num_epochs": 9, "early_stopping_patience": 2}, learning_rate=0.05)
    assert "eval/rough has not improved in 2 evaluations" in stopped.early_stop


NAMED_LIKE_OURS = """{
            "loss": 1.0, "pearson": 0.1, "spearman": 0.2, "subset_accuracy": 0.3, "exact_match": 0.4, "my_own": 0.5
        }"""


def test_figures_of_ones_own_keep_their_names_though_ours_had_them(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_workload(tmp_path, LINE + EVALUATE.format(NAMED_LIKE_OURS))
    keys = {"checkpoint_metric": "eval/spearman", "checkpoint_metric_mode": "min", "chart": ["eval/pearson"]}
    sets = own_settings("own.py", tmp_path, **keys, num_epochs=2, run_name="r")
    words = [word for one in sets[1:] for word in ("--set", one)]
    code, out, err = invoke("train", "own.py", *words, "--set", "stop_at_step=4")
    assert code == 0, err
    shown = [out]
    for command in (("train", "--resume", "runs/r", "--set", "stop_at_step=null"), ("show", "runs/r")):
        code, out, err = invoke(*command)
        assert code == 0, err
        shown.append(out)
    for out in shown:
        assert "best by spearman" in out
        assert all(
            f"eval/{name} " in out for name in ("pearson", "spearman", "subset_accuracy", "exact_match", "my_own")
        )
    for row in (*isotrain.load_run("runs/r").evaluations(), isotrain.load_run("runs/r").best):
        found = {name.removeprefix("eval/") for name in row}
        assert found >= {"pearson", "spearman", "subset_accuracy"}
        assert not found & {"pearsonr", "spearmanr", "accuracy"}
    assert "eval/pearson" in (tmp_path / "runs/r/chart.html").read_text()
    assert invoke("report", "runs", "--out", "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert all(f"eval {name}<" in page for name in ("exact_match", "my_own", "subset_accuracy"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["checkpoint_metric=eval/rough"], "'eval/rough' is a figure of your own; set checkpoint_metric_mode: min or"),
        (["checkpoint_metric=rough"], "'rough' is no figure of an evaluation; write eval/NAME"),
        (["checkpoint_metric=eval/"], "'eval/' is no figure of an evaluation; write eval/NAME"),
    ],
)
def test_what_can_not_be_a_figure_of_ones_own_is_refused(keys: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("own.py", keys)


def test_a_misspelt_figure_of_texts_is_refused() -> None:
    with pytest.raises(UserError, match=r"'eval/acuracy' does not exist; did you mean eval/accuracy\? allowed are"):
        load_config(None, ["checkpoint_metric=eval/acuracy"])


@pytest.mark.parametrize(
    "key", ["val_steps_freq=2", "early_stopping_patience=2", "chart=eval/loss", "lr_scheduler_type=greedy"]
)
def test_keys_of_evaluations_need_an_evaluate(run: Run, key: str) -> None:
    name, _, value = key.partition("=")
    with pytest.raises(UserError, match=rf"^{name} needs evaluations, and .*own.py has no evaluate; add it, or drop"):
        run(**{name: value})


def test_a_resume_with_a_changed_file_is_refused(run: Run, tmp_path: Path) -> None:
    cut = run(stop_at_step=2)
    changed = write_workload(tmp_path, LINE.replace("Dropout(0.2)", "Dropout(0.3)"))
    with pytest.raises(UserError, match=r"own.py has changed since run .* put the file back as it was"):
        run(changed, resume=cut.run)
    moved = write_workload(tmp_path / "elsewhere")
    assert run(moved, resume=cut.run).status == "completed"


def test_figures_of_a_step_may_differ_from_batch_to_batch(run: Run, tmp_path: Path) -> None:
    spec = write_workload(tmp_path, LINE.replace(".mean()", ".mean(), {f'above {float(batch[0, 0]) > 0}': 1.0}"))
    result = run(spec, gradient_accumulation_steps=4)
    (line,) = (line for line in metrics(result) if "train/loss" in line)
    assert line["train/above True"] + line["train/above False"] == 1.0


def test_the_command_trains_shows_and_reports(invoke: Invoke, tmp_path: Path) -> None:
    spec = f"{EXAMPLES / 'small_convnet.py'}:SmallConvNet"
    code, out, err = invoke("train", spec, "--set", "run_name=r", "--set", "num_epochs=1", "--set", "dtype=float32")
    assert code == 0, err
    assert "completed: SmallConvNet" in out
    assert f"bench {spec} --backend cpu" in out.partition("next:")[2]
    assert "predict" not in out
    code, out, err = invoke("show", "runs/r")
    assert (code, "completed: SmallConvNet" in out) == (0, True), err
    refused = (
        ["predict", "runs/r", "a text"],
        ["predict", "runs/r", "--csv", "x.csv"],
        ["export", "runs/r", "--format", "onnx"],
    )
    for words in refused:
        one_line_error(invoke(*words), "only runs on texts predict")
    (found,) = load_results(tmp_path / "runs").runs
    assert found.document.record.model == "SmallConvNet"
    assert {"loss", "accuracy"} <= found.document.evaluations.keys()
    recorded = json.loads((tmp_path / "runs/r/run.json").read_text())
    assert recorded["workload"]["spec"] == spec
    assert len(recorded["workload"]["sha256"]) == 64


def test_python_s_function_trains_a_workload_too(tmp_path: Path) -> None:
    done = isotrain.train(write_workload(tmp_path), num_epochs=1, dtype="float32", project_dir=tmp_path / "runs")
    assert (done.status, done.step, done.label, done.metrics) == ("completed", 4, "own", {})
    with pytest.raises(UserError, match="only runs on texts predict"):
        done.predict(["a text"])


def test_resume_or_start_goes_on_with_a_workload(invoke: Invoke, tmp_path: Path) -> None:
    words = ["train", write_workload(tmp_path), "--resume-or-start"]
    keys = [f"--set={key}" for key in ("run_name=r", "num_epochs=1", "dtype=float32", "stop_at_step=2")]
    assert invoke(*words, *keys)[0] == 0
    code, out, _ = invoke(*words, *keys[:-1])
    assert (code, "completed: own" in out) == (0, True)
    code, out, _ = invoke(*words, *keys[:-1])
    assert (code, "completed already" in out) == (0, True)
