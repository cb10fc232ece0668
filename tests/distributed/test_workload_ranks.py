"""Several processes train a user's workload, with whole models or with shares of one: the losses of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.processes.ranks import Ranks, joined
from isotrain.albert_core.processes.sharding import layers_of, part_like, shard, whole
from isotrain.albert_core.runs.folder import RunFolder
from safetensors.torch import load_file
from support.processes import end, start
from support.workloads import EXAMPLES, LINE, own_settings, write_workload
from torch import distributed, nn

pytestmark = pytest.mark.xdist_group("processes")

JOB = Path(__file__).parent.parent / "support" / "ranks_job.py"
# Twelve batches, so that the last step of an epoch has two of five: the processes' shares are not alike.
STEPS = {"gradient_accumulation_steps": 5, "num_epochs": 3, "max_grad_norm": 0.5, "weight_decay": 0.01}
GPT = {"workload": str(EXAMPLES / "lora_gpt.py"), "learning_rate": 1e-2, **STEPS}
# Its own optimizer has momentum and no Adam, which would train as well by gradients of twice the size.
IMAGES = {"workload": str(EXAMPLES / "small_convnet.py"), "gradient_accumulation_steps": 3, "num_epochs": 3}
SHARDED = {"sharding": "fsdp"}
# The loss uses the model's parts, not its forward, and not all of them.
PARTS = LINE.replace("model(batch)", "model[2](model[0](batch))").replace("nn.Dropout(0.2)", "nn.Linear(9, 9)")


def job(folder: Path, name: str, resume: str | None = None, **keys: Any) -> dict[str, Any]:
    sets = own_settings(keys.pop("workload"), folder, run_name=name, **keys)
    return {"sets": sets, "resume": str(folder / "runs" / resume) if resume else None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workloads")


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    """The runs of two processes, by name under ``runs/``."""
    parts = {"workload": write_workload(folder, PARTS), "gradient_accumulation_steps": 2, "num_epochs": 3}
    alone(folder, "parts-1", **parts)
    jobs = [
        job(folder, "parts-none", **parts),
        job(folder, "gpt-none", **GPT),
        job(folder, "gpt-fsdp", **GPT, **SHARDED),
        job(folder, "images-none", **IMAGES),
        job(folder, "images-fsdp", **IMAGES, **SHARDED),
        *(job(folder, f"cut-{sharding}", **GPT, sharding=sharding, stop_at_step=4) for sharding in ("none", "fsdp")),
        *(
            job(folder, f"cut-{sharding}", resume=f"cut-{sharding}", **GPT, sharding=sharding)
            for sharding in ("none", "fsdp")
        ),
        job(folder, "two-then-one", **GPT, **SHARDED, stop_at_step=4),
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    for code, output in end(start(2, str(JOB), str(folder / "jobs.json"), str(folder / "results.json"))):
        assert code == 0, output
    return folder / "runs"


def losses(run: Path) -> list[float]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in read if "train/loss" in line]


def alone(folder: Path, name: str, resume: RunFolder | None = None, **keys: Any) -> TrainResult:
    return train(load_config(None, job(folder, name, **keys)["sets"]), resume=resume)


def near(first: Path, second: Path) -> None:
    """The same losses and weights, to 1e-5 in float32."""
    assert losses(second) == pytest.approx(losses(first), abs=1e-5)
    assert len(losses(first)) > 5
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        # A process counts its own batches only.
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
@pytest.mark.parametrize(("name", "keys"), [("gpt", GPT), ("images", IMAGES)])
def test_two_processes_have_the_losses_of_one(
    folder: Path, together: Path, name: str, keys: dict[str, Any], sharding: str
) -> None:
    run = folder / "runs" / f"{name}-1"
    if not run.exists():
        alone(folder, f"{name}-1", **keys)
    near(run, together / f"{name}-{sharding}")
    log = (together / f"{name}-{sharding}" / "train.log").read_text()
    held = "a part of the weights" if sharding == "fsdp" else "all weights"
    assert f"2 processes share the {keys['gradient_accumulation_steps']} batches of each step; each holds {held}" in log


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_resume_of_two_processes_is_bit_exact(together: Path, sharding: str) -> None:
    straight, cut = together / f"gpt-{sharding}", together / f"cut-{sharding}"
    assert losses(cut) == losses(straight)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (cut, straight))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_one_process_goes_on_where_two_with_shares_stopped(folder: Path, together: Path) -> None:
    result = alone(folder, "two-then-one", resume=RunFolder(together / "two-then-one"), **GPT, **SHARDED)
    near(together / "gpt-fsdp", result.run.path)


def test_a_loss_may_use_parts_of_the_model(together: Path) -> None:
    near(together / "parts-1", together / "parts-none")


def test_shared_out_weights_are_put_together_again() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ModuleList([nn.Linear(5, 5), nn.ModuleList([nn.Linear(5, 2)])]))
    assert [type(part) for part in layers_of(model)] == [nn.Linear, nn.Linear]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        shard(model, layers_of(model), 1)
        for name, part in model.state_dict().items():
            assert hasattr(part, "full_tensor"), name
            assert torch.equal(whole(part), before[name]), name
            assert torch.equal(whole(part_like(before[name] + 1, part)), before[name] + 1), name
    finally:
        distributed.destroy_process_group()
    assert whole(before["0.bias"]) is part_like(before["0.bias"], before["0.weight"]) is before["0.bias"]


def test_a_step_of_one_batch_cannot_be_shared() -> None:
    config = load_config(None, ["workload=own.py"]).config
    refused = pytest.raises(UserError, match="gradient_accumulation_steps 1 can't be shared by 2 processes; raise it")
    with refused, joined(Ranks(0, 2), "cpu", config.shared, timeout=1):
        pytest.fail("nothing to share")
