"""Several processes train one run: the losses of one process, exact resumes, and no process left waiting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import RunError, UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.processes import ranks
from isotrain.albert_core.processes.ranks import ALONE, Ranks, joined, launched
from isotrain.albert_core.runs.folder import RunFolder
from safetensors.torch import load_file
from support.processes import end, environment, start
from support.small_job import settings, write_dataset
from support.small_questions import write_questions
from support.small_tasks import write_scores, write_topics

JOB = Path(__file__).parent.parent / "support" / "ranks_job.py"
SMALL = {"threads": 1, "steps_freq": 1, "batch_size": 4, "gradient_accumulation_steps": 2, "num_epochs": 3}
# Momentum and no Adam: that would train as well by gradients of twice the size.
SGD = SMALL | {"optim": "sgd", "momentum": 0.9}
HEAD = SGD | {"learning_rate": 0.2, "weight_decay": 0.01, "max_grad_norm": 0.5}
WHOLE = SGD | {"learning_rate": 0.02, "freeze_encoder": False, "layout": "bucketed"}
PACKED = WHOLE | {"layout": "packed", "gradient_checkpointing": True}
# The native kernel, on a host that has one.
BFLOAT16 = PACKED | {"dtype": "bfloat16"}
WEIGHTED = HEAD | {"class_weights": [3, 1, 0.5, 1, 2, 1], "label_smoothing_factor": 0.1}
STREAMED = SGD | {"learning_rate": 0.2, "feature_cache": False, "layout": "padded"}
READING = SGD | {
    "task": "question_answering",
    "freeze_encoder": False,
    "max_length": 64,
    "doc_stride": 20,
    "learning_rate": 0.02,
}
SCORES = SGD | {"task": "regression", "learning_rate": 0.02}
TOPICS = SGD | {"task": "multi_label_classification", "learning_rate": 0.02, "freeze_encoder": False}
LORA = SMALL | {"freeze_encoder": False, "layout": "packed", "lora": {"rank": 2, "dropout": 0.2}, "learning_rate": 1e-2}

# 21 texts: the last window of an epoch is a micro-batch of 4 and one of 1, of which one process of two has none.
TRAIN, TEST = 21, 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    write_dataset(path / "data", train=TRAIN, test=TEST)
    write_questions(path / "question_answering", train=5, dev=3, sentences=6)
    write_scores(path / "regression", train=TRAIN, test=TEST)
    write_topics(path / "multi_label_classification", train=TRAIN, test=TEST)
    return path


def job(folder: Path, name: str, resume: str | None = None, **overrides: Any) -> dict[str, Any]:
    sets = settings(folder / overrides.get("task", "data"), folder, run_name=name, **overrides)
    return {"sets": sets, "resume": str(folder / "runs" / resume) if resume else None}


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    """The runs of two processes, by name under ``runs/``; starting processes is what takes time, so all in one go."""
    jobs = [
        job(folder, "head-2", **HEAD),
        job(folder, "whole-2", **WHOLE),
        job(folder, "packed-2", **PACKED),
        job(folder, "bfloat16-2", **BFLOAT16),
        job(folder, "weighted-2", **WEIGHTED),
        job(folder, "streamed-2", **STREAMED),
        job(folder, "reading-2", **READING),
        job(folder, "scores-2", **SCORES),
        job(folder, "topics-2", **TOPICS),
        job(folder, "lora-2", **LORA),
        job(folder, "lora-cut", **LORA, stop_at_step=2),
        job(folder, "lora-cut", resume="lora-cut", **LORA),
        job(folder, "two-then-one", **WHOLE, stop_at_step=2),
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    for code, output in end(start(2, str(JOB), str(folder / "jobs.json"), str(folder / "results.json"))):
        assert code == 0, output
    return folder / "runs"


def lines(run: Path) -> list[dict[str, float]]:
    """What metrics.jsonl says of training and evaluation, times aside."""
    kept = ("step", "epoch", "train/loss", "train/accuracy", "eval/loss", "eval/accuracy", "eval/f1_macro")
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: item[name] for name in kept if name in item} for item in read]


def alone(folder: Path, name: str, resume: RunFolder | None = None, **overrides: Any) -> TrainResult:
    return train(load_config(None, job(folder, name, **overrides)["sets"]), resume=resume)


def same_to_rounding(first: Path, second: Path, far: float = 1e-5) -> None:
    one, two = lines(first), lines(second)
    assert len(one) == len(two) > 3
    for expected, got in zip(one, two, strict=True):
        assert got == pytest.approx(expected, abs=far)
    assert abs(one[0]["train/loss"] - one[-2]["train/loss"]) > 0.01, "a job that learns nothing would prove nothing"
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=far, msg=name)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("head", HEAD),
        ("whole", WHOLE),
        ("packed", PACKED),
        ("bfloat16", BFLOAT16),
        ("weighted", WEIGHTED),
        ("streamed", STREAMED),
        ("reading", READING),
        ("scores", SCORES),
        ("topics", TOPICS),
    ],
)
def test_two_processes_have_the_losses_of_one(
    folder: Path, together: Path, name: str, overrides: dict[str, Any]
) -> None:
    one = alone(folder, f"{name}-1", **overrides)
    # A difference in float32 may round a weight to the next bfloat16.
    far = 1e-3 if name == "bfloat16" else 1e-5
    same_to_rounding(one.run.path, together / f"{name}-2", far)
    summary = json.loads((together / f"{name}-2" / "summary.json").read_text())
    assert summary["processes"] == 2
    for metric, value in one.metrics.items():
        assert summary[metric] == pytest.approx(value, abs=far), metric
    answers = [path / "predictions.json" for path in (one.run.path, together / f"{name}-2")]
    if name == "reading":
        assert answers[0].read_text() == answers[1].read_text()


def test_a_resume_of_two_processes_is_bit_exact(together: Path) -> None:
    assert lines(together / "lora-cut") == lines(together / "lora-2")
    straight, cut = (load_file(together / name / "model" / "model.safetensors") for name in ("lora-2", "lora-cut"))
    assert all(torch.equal(cut[name], weight) for name, weight in straight.items())


def test_one_process_goes_on_where_two_stopped(folder: Path, together: Path) -> None:
    result = alone(folder, "two-then-one", resume=RunFolder(together / "two-then-one"), **WHOLE)
    assert "resumed with 1 process, the checkpoint was written by 2" in (result.run.path / "train.log").read_text()
    same_to_rounding(alone(folder, "straight", **WHOLE).run.path, result.run.path)


def test_the_first_process_alone_writes(together: Path) -> None:
    for name in ("head-2", "whole-2"):
        steps = [item["step"] for item in lines(together / name) if "train/loss" in item]
        assert steps == sorted(set(steps)), "a line twice: two processes wrote it"
        log = (together / name / "train.log").read_text()
        assert log.count("2 processes share each batch of 4 texts") == 1
        assert not list((together / name).rglob("*.tmp"))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_a_partition(size: int) -> None:
    for start_, stop in ((0, 8), (3, 4), (5, 5), (7, 18)):
        shares = [Ranks(rank, size).share(start_, stop) for rank in range(size)]
        assert [index for share in shares for index in range(*share)] == list(range(start_, stop))
        lengths = [stop - start for start, stop in shares]
        assert max(lengths) - min(lengths) <= 1


def test_what_torchrun_says_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() == ALONE
    for name, value in environment(1, 2, 1234).items():
        monkeypatch.setenv(name, value)
    assert launched() == Ranks(rank=1, size=2, local_rank=1)
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(UserError, match="MASTER_PORT not set; start by torchrun"):
        launched()


@pytest.mark.parametrize(("backend", "batch_size", "message"), [("xla", 8, "one process"), ("cpu", 1, "raise it")])
def test_what_cannot_be_shared_is_refused(backend: str, batch_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message), joined(Ranks(0, 2), backend, ("batch_size", batch_size), timeout=1):
        pytest.fail("nothing to share")


@pytest.mark.parametrize(
    ("backend", "variables"),
    [("cpu", "GLOO_SOCKET_IFNAME names the"), ("cuda", "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the")],
)
def test_an_interface_that_leads_nowhere_names_its_variables(
    backend: str, variables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("unable to resolve the address of the interface")

    monkeypatch.setattr(ranks, "meet", lambda *_: None)
    monkeypatch.setattr(ranks.distributed, "init_process_group", refuses)
    with (
        pytest.raises(RunError, match=f"unable to resolve.*{variables} network interface"),
        joined(Ranks(0, 2), backend, ("batch_size", 8), timeout=1),
    ):
        pytest.fail("there is no group")


def test_each_process_takes_a_gpu_of_its_own() -> None:
    assert Ranks(3, 4, local_rank=1).backend("cuda") == "cuda:1"
    assert Ranks(1, 2, local_rank=1).backend("cpu") == "cpu"
    assert ALONE.backend("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="one device"):
        Ranks(1, 2, local_rank=1).backend("cuda:0")


def test_a_command_that_works_in_one_process_runs_once() -> None:
    first, second = end(start(2, "-m", "isotrain.cli", "config", "quickstart"))
    assert first[0] == second[0] == 0
    assert first[1].startswith("isotrain: this command works in one process; the others that were started with it end")
    assert "dataset_id" in first[1]
    assert second[1] == ""
