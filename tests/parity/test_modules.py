"""Parity of a user's own module: right runs pass, planted faults are caught, and bad input is one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.benchmarks.parity.head_checks import unjudged
from isotrain.benchmarks.parity.judge import Judgement, judge
from isotrain.benchmarks.parity.trace import Trace, read_trace, write_trace
from support import forks
from support.command import one_line_error
from support.faults import F32, Fault, planted
from support.module_faults import B16, MODULE_FAULTS
from support.parity_job import ParityJob
from support.tables import show
from support.workloads import EXAMPLES, LINE, NAMES, write_workload

OF_OPTIMIZER = ("learning_rate", "weight_decay", "lr_scheduler_type", "warmup_ratio", "warmup_steps")


@pytest.fixture(scope="module")
def decoder() -> ParityJob:
    return ParityJob({"workload": str(EXAMPLES / "lora_gpt.py")})


def judged(job: ParityJob, settings: dict[str, Any]) -> Judgement:
    candidate = job.record("candidate", **settings)
    return judge(job.reference, candidate, job.error_budgets(candidate))


def of_text(folder: Path, text: str = LINE, **overrides: Any) -> ParityJob:
    return ParityJob({"workload": write_workload(folder, text)}, num_epochs=1, **overrides)


def test_a_trace_names_the_module_its_layers_and_its_batches(decoder: ParityJob, tmp_path: Path) -> None:
    reference = decoder.reference
    assert (reference.header.model, reference.header.layers) == ("lora_gpt", ["blocks.0", "blocks.1"])
    assert [state.shape for state in reference.states] == [(4, 32, 32)] * 3
    assert (reference.steps, len(set(reference.header.batches))) == (12, 12)
    assert reference.header.batch_sizes == [8] * 12
    # Logits of 4 texts of 32 characters, before and after training.
    assert reference.probe_logits.shape[:1] == (2,)
    assert [entry.step for entry in reference.header.metrics] == [12]
    write_trace(reference, tmp_path / "trace")
    assert read_trace(tmp_path / "trace").states_sha256() == reference.states_sha256()


@pytest.mark.parametrize("settings", [F32, B16, F32 | {"backend": "tt-emulated"}], ids=["float32", "bfloat16", "tt"])
def test_right_runs_of_a_decoder_pass(decoder: ParityJob, settings: dict[str, Any]) -> None:
    found = judged(decoder, settings)
    assert found.verdict == "pass", found.reasons
    quantities = {check.quantity.partition(",")[0] for check in found.details.checks}
    assert quantities >= {"loss", "grad_norm", "update_norm", "output", "the evaluation's loss"}
    assert [layer.name for layer in found.details.layers] == ["input of the layers", "layer blocks.0", "layer blocks.1"]
    assert all(layer.local_relative_l2 is not None for layer in found.details.layers)


@pytest.mark.parametrize("fault", MODULE_FAULTS, ids=lambda fault: fault.name)
def test_planted_faults_of_a_decoder_are_caught(decoder: ParityJob, fault: Fault) -> None:
    rows = []
    for size in fault.sizes:
        with planted(fault, size):
            candidate = decoder.record("faulty", **fault.settings)
        found = judge(decoder.reference, candidate, decoder.error_budgets(candidate))
        rows.append((size, found))
        if size in fault.required:
            assert found.verdict != "pass", f"{fault.name} of {size} {fault.unit} was not caught"
    columns = ("fault", "size", "must", "verdict", "error / allowed", "first step", "where")
    show("parity: planted faults of a decoder", columns, [
        (fault.name, f"{size:g} {fault.unit}".strip(), "caught" if size in fault.required else "-", found.verdict,
         f"{found.worst:.2g}", found.first_step, f"{found.layer or '-'} {found.cause or ''}".strip())
        for size, found in rows
    ])  # fmt: skip
    if fault.where is not None:
        layer = rows[0][1].layer
        assert (layer or "") == (f"layer {fault.where}" if fault.where else "")
        assert rows[0][1].cause == ("local" if fault.where else None)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", NAMES)
def test_right_runs_of_modules_raise_no_alarm(name: str, seed: int) -> None:
    # It has an optimizer and a schedule of its own.
    own = dict.fromkeys(OF_OPTIMIZER) if name == "small_convnet" else {}
    job = ParityJob({"workload": str(EXAMPLES / f"{name}.py")}, seed=seed, **own)
    found = {settings["dtype"]: judged(job, settings) for settings in (F32, B16)}
    show("parity: right runs of modules", ("module", "seed", "dtype", "error / allowed", "largest in"), [
        (name, seed, dtype, f"{one.worst:.2f}", max(one.details.checks, key=lambda check: check.ratio).quantity)
        for dtype, one in found.items()
    ])  # fmt: skip
    assert {dtype: one.reasons for dtype, one in found.items()} == {"float32": [], "bfloat16": []}


MODULE = """\
import torch
from torch import nn
from torch.nn.functional import dropout


class Layer(nn.Module):
    def __init__(self, wide):
        super().__init__()
        self.linear = nn.Linear(wide, wide + 1)

    def forward(self, *, states):
        return self.linear(states).tanh(), None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Layer(3), Layer(4), Layer(5)])

    def forward(self, states):
        for part in self.parts:
            states = part(states=states)[0]
        return {"scores": states, "norm": states.norm()}


class Own:
    def model(self, seed):
        torch.manual_seed(seed)
        return Net()

    def batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(16, 3, generator=generator) for _ in range(4)]

    def loss(self, model, batch):
        return model(batch)["scores"].square().mean()
"""


def test_layers_of_several_widths_are_replayed(tmp_path: Path) -> None:
    """They take a keyword, return a tuple, and each has another width."""
    job = of_text(tmp_path, MODULE)
    assert job.reference.header.layers == ["parts.0", "parts.1", "parts.2"]
    assert [state.shape for state in job.reference.states] == [(16, 3), (16, 4), (16, 5), (16, 6)]
    found = judged(job, F32)
    assert found.verdict == "pass", found.reasons
    # The largest tensor that the module returns.
    assert job.reference.probe_logits.shape == (2, 16 * 6, 1)


def test_a_replay_sees_the_layer_that_errs(tmp_path: Path) -> None:
    job = of_text(tmp_path, MODULE)
    candidate = job.record("candidate", **F32)
    wrong = Trace(candidate.header, dict(candidate.arrays))
    for name in ("state.0002", "state.0003", "replay.0002"):
        wrong.arrays[name] = candidate.arrays[name] + 1e-3
    found = judge(job.reference, wrong, job.error_budgets(candidate))
    assert (found.layer, found.cause) == ("layer parts.1", "local")


def test_a_layer_that_is_called_twice_has_two_calls(tmp_path: Path) -> None:
    text = MODULE.replace("wide + 1", "wide").replace("[Layer(3), Layer(4), Layer(5)]", "[Layer(3)] * 2")
    job = of_text(tmp_path, text)
    assert job.reference.header.layers == ["parts.0", "parts.0 (call 2)"]
    assert judged(job, F32).verdict == "pass"


def test_a_module_without_layers_says_so(tmp_path: Path) -> None:
    text = MODULE.replace("nn.ModuleList([Layer(3), Layer(4), Layer(5)])", "Layer(3)").replace(
        "for part in self.parts:\n            states = part(states=states)[0]", "states = self.parts(states=states)[0]"
    )
    job = of_text(tmp_path, text)
    candidate = job.record("candidate", **F32)
    assert (job.reference.header.layers, job.reference.states) == ([], [])
    assert judge(job.reference, candidate, job.error_budgets(candidate)).verdict == "pass"
    (note,) = unjudged(job.reference, candidate)
    assert note.startswith("own has no layers to replay")


def test_a_module_that_returns_no_tensor_is_judged_by_its_loss(tmp_path: Path) -> None:
    text = MODULE.replace('return {"scores": states, "norm": states.norm()}', "self.kept = states").replace(
        'return model(batch)["scores"].square().mean()', "model(batch)\n        return model.kept.square().mean()"
    )
    job = of_text(tmp_path, text)
    assert job.reference.probe_logits.shape == (2, 1, 1)
    assert judged(job, F32).verdict == "pass"


def test_an_evaluation_of_the_users_own_is_shown_and_its_loss_judged() -> None:
    job = ParityJob({"workload": str(EXAMPLES / "hugging_face.py")}, num_epochs=1)
    candidate = job.record("candidate", **F32)
    budgets = job.error_budgets(candidate)
    found = judge(job.reference, candidate, budgets)
    assert found.verdict == "pass", found.reasons
    (shown,) = found.details.metrics
    assert shown.allowed_accuracy is None
    entry = candidate.header.metrics[-1].model_copy(update={"loss": candidate.header.metrics[-1].loss * 1.01})
    boasting = Trace(candidate.header.model_copy(update={"metrics": [entry]}), candidate.arrays)
    found = judge(job.reference, boasting, budgets)
    assert (found.verdict != "pass", found.details.place) == (True, "evaluation")


def test_dropout_is_off_and_random_numbers_that_stay_are_refused(tmp_path: Path) -> None:
    assert of_text(tmp_path / "off").reference.header.dropout_off
    text = MODULE.replace("self.linear(states)", "dropout(self.linear(states), 0.5, self.training)")
    with pytest.raises(UserError, match=r"own\.py:\d+: the loss draws random numbers although dropout layers are off"):
        of_text(tmp_path / "on", text)


def test_layers_that_are_none_are_refused(tmp_path: Path) -> None:
    text = MODULE + '\n    def layers(self, model):\n        return ["parts"]\n'
    with pytest.raises(UserError, match=r"own\.py:\d+: layers returned a str among them"):
        of_text(tmp_path, text)


def test_another_module_is_refused_not_compared(tmp_path: Path) -> None:
    job = of_text(tmp_path / "one", MODULE)
    job.settings |= {"workload": write_workload(tmp_path / "other", MODULE.replace(".tanh()", ".sin()"))}
    found = judged(job, F32)
    assert found.verdict == "refused"
    assert "workload_sha256" in found.reasons[0]
    job.settings |= {"workload": write_workload(tmp_path / "third", MODULE.replace("(seed)", "(seed + 1)"))}
    with pytest.raises(UserError, match="has other initial weights"):
        job.record("candidate", **F32)


def isotrain(folder: Path, candidate: str = "cpu:float32") -> tuple[int, str, str]:
    """`isotrain parity` of own.py in `folder`."""
    words = ["parity", "own.py:Own", "--candidate", candidate, "--out", "out"]
    done = forks.run(
        ["-c", "from isotrain.cli.main import main; main()", *words],
        cwd=folder, env=os.environ | {"COLUMNS": "200"}, forking=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_one_command_judges_a_module(tmp_path: Path) -> None:
    write_workload(tmp_path, MODULE)
    code, out, err = isotrain(tmp_path)
    assert code == 0, err
    assert "model Own; data batches of Own; same weights and batches for all" in out
    result = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert [one["verdict"] for one in result["candidates"]] == ["pass"]
    code, _, err = isotrain(tmp_path)
    assert code == 0
    assert err.count("kept from before") == 2
    write_workload(tmp_path, MODULE.replace(".tanh()", ".sin()"))
    one_line_error(isotrain(tmp_path), "has a trace of cpu:float64 with other settings, data or weights")


OF_MANY_OPERATIONS = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.attention = nn.Conv2d(1, 2, 3, padding=1), nn.MultiheadAttention(4, 2)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, images):
        rows = self.convolution(images).flatten(2).view(-1, 8, 4).relu()
        rows = rows + self.attention(self.norm(rows), rows, rows)[0]
        return self.head(torch.einsum("bij,bkj->bik", rows, rows) @ rows[:, :8])


class Own:
    def model(self, seed):
        torch.manual_seed(seed)
        return Net()

    def batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(6, 1, 4, 4, generator=generator) for _ in range(2)]

    def loss(self, model, batch):
        return model(batch).square().mean()
"""


@pytest.mark.parametrize("candidate", ["tt", "tt:tt.emulate=all"])
def test_operations_that_an_error_budget_does_not_know_are_named(tmp_path: Path, candidate: str) -> None:
    write_workload(tmp_path, OF_MANY_OPERATIONS)
    code, out, err = isotrain(tmp_path, candidate)
    assert code == 0, out + err
    (line,) = (line for line in out.splitlines() if "doesn't know" in line)
    assert line.startswith("note: the error budget tt-emulated ")
    (judged,) = json.loads((tmp_path / "out" / "parity.json").read_text())["candidates"]
    assert judged["unknown"] == ["conv2d", "multi_head_attention", "einsum", "square", "mean"]
    assert ", ".join(judged["unknown"]) + " and has them in float32" in line


def test_an_error_budget_that_rounds_every_operation_has_nothing_to_name(decoder: ParityJob) -> None:
    candidate = decoder.record("candidate", **F32)
    assert [draw.header.unknown for draw in decoder.error_budgets(candidate)] == [[], [], []]


def test_a_fault_in_the_users_file_is_one_line(tmp_path: Path) -> None:
    write_workload(tmp_path, MODULE.replace("states.norm()", "states.missing()"))
    code, out, err = isotrain(tmp_path)
    progress, _, error = err.partition("\n")
    assert progress.startswith("cpu:float64: ")
    one_line_error((code, out, error), "own.py:23: loss raised AttributeError: 'Tensor' object has no")
