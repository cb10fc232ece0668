"""Each of the 41 parameters of the Banking77 experiment does what its name says: one test a key, by its effect."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.kernels.install import install_hint
from safetensors.torch import load_file
from support.small_job import losses, metrics, write_dataset

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]


def checkpoints(result: TrainResult) -> list[str]:
    return sorted(path.name for path in result.run.checkpoints.glob("step-*"))


def steps(result: TrainResult) -> list[int]:
    return [int(name.removeprefix("step-")) for name in checkpoints(result)]


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.run.model / "model.safetensors")


def test_dataset_id(configure: Configure, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", train=36, test=12)
    assert open_job(configure(dataset_id=str(other)).config).train_tokens.num_texts == 36
    assert open_job(configure().config).train_tokens.num_texts == 90


def test_model_name(configure: Configure, minilm_folder: Path) -> None:
    job = open_job(configure(model_name=str(minilm_folder)).config)
    assert (job.encoder.config.model_type, job.encoder.random) == ("bert", False)
    assert open_job(configure().config).encoder.random


def test_max_length(configure: Configure) -> None:
    assert open_job(configure(max_length=5).config).train_tokens.lengths.max() == 5
    with pytest.raises(UserError, match="at most 512"):
        open_job(configure(max_length=513).config)


def test_num_labels(run: Run, configure: Configure) -> None:
    assert weights(run(num_labels=9))["output.weight"].shape[0] == 9
    assert weights(run())["output.weight"].shape[0] == 6, "from the data when absent"
    with pytest.raises(UserError, match="num_labels: 6"):
        open_job(configure(num_labels=5).config)
    with pytest.raises(UserError, match=r"1,000,000 labels needs at least 8,000 GB.*; lower mlp_hidden_size"):
        open_job(configure(num_labels=1_000_000, mlp_hidden_size=1_000_000).config)


def test_mlp_hidden_size(run: Run) -> None:
    assert weights(run(mlp_hidden_size=24))["hidden.weight"].shape == (24, 64)


def test_dtype(run: Run) -> None:
    exact, rounded = run(dtype="torch.float32"), run(dtype="torch.bfloat16")
    assert losses(exact) != losses(rounded)
    summary = json.loads(rounded.run.summary.read_text())
    assert summary["dtype"].startswith("bfloat16")


def test_learning_rate(run: Run) -> None:
    assert {item["learning_rate"] for item in metrics(run(learning_rate=7e-4)) if "train/loss" in item} == {7e-4}


def test_weight_decay(run: Run) -> None:
    plain, decayed = run(weight_decay=0.0), run(weight_decay=5.0)
    assert weights(decayed)["hidden.weight"].norm() < 0.95 * weights(plain)["hidden.weight"].norm()


def test_batch_size(run: Run) -> None:
    assert run(batch_size=30).total_steps == 2 * 3
    assert run(batch_size=8).total_steps == 2 * 12


def test_gradient_accumulation_steps(run: Run) -> None:
    assert run(gradient_accumulation_steps=3).total_steps == 2 * 4


def test_gradient_checkpointing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Recomputing runs each layer a second time in backward, and leaves the losses as they are.
    from transformers.models.albert.modeling_albert import AlbertLayer

    calls = []
    forward = AlbertLayer.forward
    monkeypatch.setattr(AlbertLayer, "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    common = {"freeze_encoder": False, "max_steps": 2, "save_strategy": "no", "steps_freq": 1}
    plain = run(**common)
    without = len(calls)
    calls.clear()
    recomputed = run(gradient_checkpointing=True, **common)
    assert len(calls) == without + 2 * 3, "2 steps x 3 layers"
    assert losses(plain) == losses(recomputed)


def test_num_epochs(run: Run) -> None:
    assert run(num_epochs=3).total_steps == 3 * 12


def test_optim(run: Run) -> None:
    assert losses(run(optim="sgd")) != losses(run(optim="adamw_torch"))


def test_log_level(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run(log_level="INFO")
    assert "features of the frozen encoder ready" in capfd.readouterr().err
    quiet = run(log_level="ERROR")
    assert capfd.readouterr().err == ""
    assert "feature cache on" in (quiet.run.path / "train.log").read_text(), "the file has everything"
    run(log_level="DEBUG")
    assert "checkpoint" in capfd.readouterr().err


@pytest.fixture
def offline_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture
def spied_wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the run hands to wandb, without a wandb process."""
    wandb = pytest.importorskip("wandb")
    seen: dict[str, Any] = {"log": [], "artifacts": []}

    class FakeRun:
        name = "fake"
        id = "0"

        def __init__(self, options: dict[str, Any]) -> None:
            self.summary: dict[str, Any] = {}
            folder = Path(options["dir"], "wandb", f"offline-run-{self.id}", "files")
            folder.mkdir(parents=True)
            self.dir = str(folder)

        def log(self, values: dict[str, Any], **options: Any) -> None:
            seen["log"].append((values.get("step"), values))

        def define_metric(self, *args: Any, **options: Any) -> None: ...

        def log_artifact(self, artifact: Any, **options: Any) -> None:
            seen["artifacts"].append(artifact)

        def finish(self, **options: Any) -> None:
            seen["finished"] = options

    def init(**options: Any) -> FakeRun:
        seen["init"] = options
        return FakeRun(options)

    monkeypatch.setattr(wandb, "init", init)
    return seen


def test_use_wandb_offline_writes_a_run(run: Run, offline_wandb: None) -> None:
    result = run(use_wandb=True, max_steps=4)
    assert list(result.run.path.glob("wandb/offline-run-*/run-*.wandb"))


def test_use_wandb_not_installed_is_one_warning(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    real = builtins.__import__

    def without_wandb(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_wandb)
    result = run(use_wandb=True)
    assert result.status == "completed"
    warnings = [line for line in (result.run.path / "train.log").read_text().splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert install_hint("wandb") in warnings[0]


def test_wandb_project_run_name_and_tags(run: Run, spied_wandb: dict[str, Any]) -> None:
    run(use_wandb=True, wandb_project="p", wandb_run_name="n", wandb_tags=["a", "b"])
    assert spied_wandb["init"]["project"] == "p"
    assert spied_wandb["init"]["name"] == "n"
    assert list(spied_wandb["init"]["tags"]) == ["a", "b"]
    assert any("train/loss" in values for _, values in spied_wandb["log"])


def test_wandb_watch_mode_and_log_freq(run: Run, spied_wandb: dict[str, Any]) -> None:
    def watched() -> dict[int, set[str]]:
        logged = [values for _, values in spied_wandb["log"]]
        spied_wandb["log"].clear()
        kinds = {values["step"]: {name.partition("/")[0] for name in values if "/hidden." in name} for values in logged}
        return {step: found for step, found in kinds.items() if found}

    run(use_wandb=True, wandb_watch_mode="gradients", wandb_log_freq=7)
    assert watched() == {7: {"gradients"}, 14: {"gradients"}, 21: {"gradients"}}
    run(use_wandb=True, wandb_watch_mode="all", wandb_log_freq=17)
    assert watched() == {17: {"gradients", "parameters"}}
    run(use_wandb=True, wandb_watch_mode=None, wandb_log_freq=1)
    assert watched() == {}


def test_model_to_wandb(run: Run, spied_wandb: dict[str, Any]) -> None:
    run(use_wandb=True, model_to_wandb=False)
    assert spied_wandb["artifacts"] == []
    run(use_wandb=True, model_to_wandb=True)
    assert len(spied_wandb["artifacts"]) == 1


def test_steps_freq(run: Run) -> None:
    assert [step for step, _ in losses(run(steps_freq=5))] == [5, 10, 15, 20, 24]
    assert steps(run(steps_freq=10, save_strategy="step", keep_last_n=9, keep_best_n=0)) == [10, 20, 24]


def test_val_steps_freq(run: Run) -> None:
    evaluated = [item["step"] for item in metrics(run(val_steps_freq=10)) if "eval/loss" in item]
    assert evaluated == [10, 12, 20, 24]


def test_epoch_freq(run: Run) -> None:
    result = run(num_epochs=5, epoch_freq=2, keep_last_n=9)
    assert [item["step"] for item in metrics(result) if "eval/loss" in item] == [24, 48, 60]
    assert steps(result) == [24, 48, 60]


def test_resume_from_checkpoint_and_resume_option_last(run: Run) -> None:
    straight = run(run_name="straight")
    first = run(run_name="mine", stop_at_step=9)
    again = run(run_name="mine", resume_from_checkpoint=True, resume_option="last")
    assert again.run.path == first.run.path
    assert losses(again) == losses(straight)


def test_resume_without_a_run_name_takes_the_newest(run: Run) -> None:
    run(run_name="older", stop_at_step=4)
    newer = run(run_name="newer", stop_at_step=8)
    assert run(resume_from_checkpoint=True).run.path == newer.run.path


def test_resume_with_nothing_there_says_so(run: Run) -> None:
    with pytest.raises(UserError, match="no run under"):
        run(resume_from_checkpoint=True)


def test_resume_option_best(run: Run) -> None:
    common = {
        "run_name": "mine",
        "save_strategy": "step",
        "val_steps_freq": 4,
        "keep_last_n": 20,
        "learning_rate": 1e-3,
    }
    # The highest loss counts as best, so that the best is not the last.
    first = run(stop_at_step=20, checkpoint_metric_mode="max", **common)
    scored = {
        item["step"]: item["eval/loss"] for item in metrics(first) if "eval/loss" in item and item["step"] % 4 == 0
    }
    best = max(scored, key=lambda step: scored[step])
    assert best < 20
    run(resume_from_checkpoint=True, resume_option="best", checkpoint_metric_mode="max", **common)
    assert f"step-{best:08d} at step {best} of" in (first.run.path / "train.log").read_text()


def test_resume_option_path_and_checkpoint_path(run: Run) -> None:
    straight = run(run_name="straight")
    first = run(run_name="mine", save_strategy="step", keep_last_n=9, stop_at_step=14)
    chosen = first.run.checkpoints / "step-00000008"
    again = run(
        run_name="mine", resume_from_checkpoint=True, resume_option="path", checkpoint_path=str(chosen), keep_last_n=9
    )
    assert losses(again) == losses(straight)
    with pytest.raises(UserError, match="does not exist"):
        run(run_name="mine", resume_from_checkpoint=True, resume_option="path", checkpoint_path="absent")


@pytest.mark.parametrize(("metric", "mode"), [("eval/loss", "min"), ("eval/accuracy", "max"), ("eval/loss", "max")])
def test_checkpoint_metric_and_mode(run: Run, metric: str, mode: str) -> None:
    result = run(
        checkpoint_metric=metric,
        checkpoint_metric_mode=mode,
        save_strategy="step",
        val_steps_freq=4,
        keep_last_n=0,
        keep_best_n=1,
        learning_rate=0.3,
    )
    scored = {item["step"]: item[metric] for item in metrics(result) if "eval/loss" in item and item["step"] % 4 == 0}
    choose = min if mode == "min" else max
    assert steps(result) == [choose(scored, key=lambda step: (scored[step], -step if mode == "max" else step))]
    assert result.best[metric] == choose(scored.values())


@pytest.mark.parametrize(
    ("last", "best", "expected"), [(2, 0, [20, 24]), (0, 0, []), (1, 0, [24]), (9, 9, [4, 8, 12, 16, 20, 24])]
)
def test_keep_last_n(run: Run, last: int, best: int, expected: list[int]) -> None:
    assert steps(run(save_strategy="step", keep_last_n=last, keep_best_n=best)) == expected


def test_keep_best_n(run: Run) -> None:
    common = {"save_strategy": "step", "val_steps_freq": 4, "keep_last_n": 0, "learning_rate": 0.3}
    result = run(keep_best_n=2, **common)
    scored = {
        item["step"]: item["eval/loss"] for item in metrics(result) if "eval/loss" in item and item["step"] % 4 == 0
    }
    assert steps(result) == sorted(sorted(scored, key=lambda step: (scored[step], step))[:2])


def test_save_strategy(run: Run) -> None:
    assert steps(run(save_strategy="epoch", keep_last_n=9)) == [12, 24]
    assert steps(run(save_strategy="step", keep_last_n=9)) == [4, 8, 12, 16, 20, 24]
    assert steps(run(save_strategy="no")) == []


def test_project_dir(run: Run, tmp_path: Path) -> None:
    result = run(project_dir=str(tmp_path / "elsewhere" / "deep"))
    assert result.run.path.parent == tmp_path / "elsewhere" / "deep"


def test_save_optim(run: Run) -> None:
    common = {"save_strategy": "step", "keep_last_n": 9}

    def with_optimizer(result: TrainResult) -> list[str]:
        return sorted(path.parent.name for path in result.run.checkpoints.glob("step-*/optimizer.safetensors"))

    kept = run(save_optim=True, **common)
    assert with_optimizer(kept) == checkpoints(kept)
    dropped = run(save_optim=False, **common)
    assert with_optimizer(dropped) == []
    unfinished = run(save_optim=False, stop_at_step=10, run_name="unfinished", **common)
    assert with_optimizer(unfinished) == ["step-00000010"], "the newest is what a resume needs"
    assert losses(run(resume=unfinished.run, save_optim=False, **common)) == losses(kept)


@pytest.mark.parametrize("backend", ["local", "fsspec"])
def test_storage_keys(run: Run, tmp_path: Path, backend: str) -> None:
    """storage_backend, remote_path, sync_to_storage, load_from_storage."""
    remote = tmp_path / "remote"
    where = {"storage_backend": backend, "remote_path": str(remote) if backend == "local" else remote.as_uri()}
    straight = run(run_name="straight")
    assert not remote.exists()
    first = run(run_name="here", sync_to_storage=True, stop_at_step=9, **where)
    assert [path.name for path in remote.glob("step-*")] == ["step-00000009"]
    # Another machine: only the storage is there.
    again = run(run_name="there", resume_from_checkpoint=True, load_from_storage=True, **where)
    assert again.run.path != first.run.path
    assert weights(again).keys() == weights(straight).keys()
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(straight).items())


def test_a_checkpoint_that_was_not_copied_before_a_kill_is_copied_by_the_resume(run: Run, tmp_path: Path) -> None:
    where = {"sync_to_storage": True, "remote_path": str(tmp_path / "remote")}
    done = run(**where)
    newest = max(done.run.checkpoints.glob("step-*"))
    shutil.rmtree(tmp_path / "remote" / newest.name)
    run(resume=done.run, **where)
    assert max((tmp_path / "remote").glob("step-*")).name == newest.name


def test_storage_in_memory(run: Run) -> None:
    import fsspec

    run(sync_to_storage=True, storage_backend="fsspec", remote_path="memory://isotrain-keys", max_steps=4)
    assert fsspec.filesystem("memory").exists("/isotrain-keys/step-00000004/manifest.json")


def test_seed(run: Run) -> None:
    assert losses(run(seed=1)) != losses(run(seed=2))


def test_deterministic(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from isotrain.albert_core.loop import train as module

    step = module.optimizer_step
    monkeypatch.setattr(
        module, "optimizer_step", lambda *a: seen.append(torch.are_deterministic_algorithms_enabled()) or step(*a)
    )
    run(deterministic=True, max_steps=1)
    run(deterministic=False, max_steps=1)
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_framework(configure: Configure) -> None:
    assert configure(framework="pytorch").config.framework == "pytorch"
    with pytest.raises(UserError, match="framework"):
        configure(framework="jax")


def test_use_tt(run: Run) -> None:
    result = run(use_tt=True, max_steps=2)
    assert json.loads(result.run.summary.read_text())["backend"] == "tt-emulated"


def test_every_key_of_the_experiment_is_tested_here() -> None:
    listed = (Path(__file__).parent / "test_config.py").read_text().partition('KEYS = """')[2].partition('"""')[0]
    text = Path(__file__).read_text()
    assert [key for key in listed.split() if key not in text] == []
