"""Every published recipe in a card's emulated arithmetic: near the host's losses, its answers and exports labelled."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import isotrain.configs
import numpy as np
import pytest
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.tasks.squad_score import normalised, token_f1
from isotrain.cli.main import main
from support.small_job import losses
from support.small_recipes import OTHERWISE, RECIPES, STEPS, recipe_settings

Command = Callable[..., str]

# Of a step's loss, relative to float32's on the host: more than float32's own rounding, for the arithmetic is another;
# and less than what the matrix unit reads of float32 (10 bits of mantissa), or of a frozen encoder's bfloat16, adds up
# to in as many steps. Measured: 1.6e-4 to 9.2e-4, and 1.4e-3 to 3.4e-3.
ROUNDING, FLOAT32, BFLOAT16 = 2e-5, 2e-3, 1e-2
FROZEN = ("banking77", "quickstart", "similarity", "topics")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command that is to succeed, where no card is; what it printed."""
    monkeypatch.setattr("isotrain.backends.tt.stacks.CARD_FOLDER", tmp_path / "none")

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        return out

    return run


def train_emulated(command: Command, recipe: str, folder: Path, **keys: Any) -> Path:
    """A recipe's run on the emulation, at the precision that is the default: HiFi4, float32 destination."""
    settings = recipe_settings(recipe, folder, run_name="tt", **keys)
    out = command("train", recipe, "--backend", "tt", *(f"--set={setting}" for setting in settings))
    assert "on tt-emulated" in out
    return folder / "runs" / "tt"


def held_out(run: Path) -> Path:
    """The file that a run was evaluated on."""
    data = Path(load_config(run / "config.yaml").config.dataset_id)
    (file,) = (path for path in data.iterdir() if path.stem != "train")
    return file


def official_score(file: Path, predictions: dict[str, str]) -> tuple[float, float]:
    """Exact match and F1 as SQuAD's own evaluation goes about it: the file's questions one by one, looked up by id."""
    questions = [
        question
        for article in json.loads(file.read_text())["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    exact = overlap = 0.0
    for question in questions:
        given, said = [answer["text"] for answer in question["answers"]], predictions[question["id"]]
        exact += max(normalised(said) == normalised(text) for text in given)
        overlap += max(token_f1(said, text) for text in given)
    return 100 * exact / len(questions), 100 * overlap / len(questions)


def test_no_recipe_is_left_out() -> None:
    packaged = {path.stem for path in Path(isotrain.configs.__file__).parent.glob("*.yaml")}
    assert packaged == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_losses_are_the_hosts_to_the_cards_precision(command: Command, tmp_path: Path, recipe: str) -> None:
    def on_host(name: str, **keys: object) -> np.ndarray:
        return np.array(losses(train(load_config(recipe, recipe_settings(recipe, tmp_path, run_name=name, **keys)))))

    run = train_emulated(command, recipe, tmp_path)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    got = np.array([(line["step"], line["train/loss"]) for line in lines if "train/loss" in line])
    want, untrained = on_host("host"), on_host("still", learning_rate=1e-12)
    assert len(got) == STEPS
    assert np.array_equal(got[:, 0], want[:, 0])
    worst, learnt = (np.abs(part[:, 1] / want[:, 1] - 1).max() for part in (got, untrained))
    assert ROUNDING < worst < (BFLOAT16 if recipe in FROZEN else FLOAT32)
    assert learnt > 0.05, "a run that learns nothing would pass as well"


@pytest.mark.parametrize("recipe", ["banking77_lora", "mrpc", "squad", "subj"])
def test_a_recipes_run_answers_as_it_was_evaluated_and_says_what_it_ran_on(
    command: Command, tmp_path: Path, recipe: str
) -> None:
    run = train_emulated(command, recipe, tmp_path)
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    assert {line["device"] for line in lines} == {"tt-emulated"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["emulated"] is True
    assert summary["backend"] == "tt-emulated"
    asked = held_out(run)
    out = tmp_path / ("answers.json" if recipe == "squad" else "answers.csv")
    assert "on tt-emulated" in command("predict", run, "--file", asked, "--out", out)
    found = [line for line in lines if "eval/loss" in line][-1]
    if recipe == "squad":
        files = [out, run / "predictions.json", run / "nbest_predictions.json"]
        answers, evaluated, n_best = (json.loads(file.read_text()) for file in files)
        assert answers == evaluated
        assert answers["device"] == n_best["device"] == "tt-emulated"
        score = official_score(asked, answers)
        assert score == official_score(asked, {name: answers[name] for name in answers if name != "device"})
        assert score == (found["eval/exact_match"], found["eval/f1"])
        assert score[1] > 0
        return
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["device"] for row in rows} == {"tt-emulated"}
    right = [row["predicted_label"] == row["label"] for row in rows]
    assert np.mean(right) == pytest.approx(found["eval/accuracy"])


@pytest.mark.parametrize("recipe", ["banking77", "banking77_lora", "mrpc", "squad"])
def test_a_recipes_export_is_the_model_without_the_emulation(command: Command, tmp_path: Path, recipe: str) -> None:
    """`isotrain export` loads what it wrote by transformers and compares the logits, to 1e-5."""
    run = train_emulated(command, recipe, tmp_path)
    assert "on tt-emulated" in command("export", run, "--format", "safetensors", "--out", tmp_path / "exported")
    record = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert "tt-emulated" in json.dumps(record)


def test_a_whole_models_label_names_no_format_of_frozen_weights(command: Command, tmp_path: Path) -> None:
    def label(recipe: str) -> str:
        (tmp_path / recipe).mkdir()
        run = train_emulated(
            command, recipe, tmp_path / recipe, tt={"weight_dtype": "bfp_bf8", "math_fidelity": "lofi"}
        )
        return json.loads((run / "summary.json").read_text())["dtype"]

    assert "frozen weights bfp_bf8" in label("banking77")
    whole = label("mrpc")
    assert "tt-emulated lofi" in whole
    assert "weights" not in whole


@pytest.mark.parametrize("recipe", OTHERWISE)
def test_a_whole_recipe_trains_frozen_and_a_frozen_one_whole(command: Command, tmp_path: Path, recipe: str) -> None:
    keys = OTHERWISE[recipe]
    run = train_emulated(command, recipe, tmp_path, **keys)
    host = train(load_config(recipe, recipe_settings(recipe, tmp_path, run_name="host", **keys)))
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    got = np.array([line["train/loss"] for line in lines if "train/loss" in line])
    worst = np.abs(got / np.array(losses(host))[:, 1] - 1).max()
    assert ROUNDING < worst < 2 * BFLOAT16
