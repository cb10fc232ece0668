"""Names that don't exist are refused before any process is started, with the nearest right one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.kernels.names import check_name
from support.command import Invoke, one_line_error

BENCH = ("bench", "--model", "random:tiny")
WHOLE = (*BENCH, "--workload", "end_to_end", "--dataset", "embedded:intents")
PARITY = ("parity", "quickstart")


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*BENCH, "--kernel", "natve"), ["--kernel 'natve'", "did you mean native?", "transformers"]),
        ((*BENCH, "--kernel", "triton"), ["--kernel 'triton' does not exist on backend cpu", "portable"]),
        ((*BENCH, "--backend", "tt", "--kernel", "native"), ["on backend tt", "allowed are auto, emulated"]),
        ((*BENCH, "--vs", "baselines", "--kernel", "natve"), ["did you mean native?"]),
        ((*BENCH, "--workload", "train_stp"), ["did you mean train_step?", "end_to_end"]),
        ((*BENCH, "--layout", "paded"), ["did you mean padded?"]),
        ((*BENCH, "--dtype", "bf16"), ["--dtype 'bf16'", "bfloat16"]),
        ((*BENCH, "--backend", "cdua"), ["--backend 'cdua'", "did you mean cuda?"]),
        ((*BENCH, "--backend", "cuda:one"), ["device number", "cuda:0"]),
        ((*BENCH, "--vs", "onnx"), ["--vs 'onnx'", "did you mean onnxruntime?"]),
        (("bench", "--model", "random:tinny"), ["--model 'random:tinny' is unknown", "random:tiny"]),
        (("bench", "--model", "./nothing"), ["--model './nothing'", "no config.json"]),
        (("bench", "--model", "no such/model/at/all"), ["--model", "neither a folder nor a Hub id"]),
        ((*BENCH, "--dataset", "embedded:intentss"), ["--dataset 'embedded:intentss' is unknown", "embedded:intents"]),
        ((*BENCH, "--dataset", "./nothing.csv"), ["--dataset './nothing.csv'", "nothing is there"]),
        ((*BENCH, "--dataset", "no such data"), ["--dataset", "neither an existing path nor a Hub id"]),
        ((*BENCH, "--dataset", "embedded:intents", "--tokenizer", "./no.json"), ["--tokenizer './no.json'"]),
        ((*BENCH, "--dataset", "embedded:intents", "--tokenizer", "no such one"), ["--tokenizer", "nor a Hub id"]),
        ((*WHOLE, "--model", "random:tinny"), ["--model 'random:tinny' is unknown"]),
        ((*BENCH, "--vs", "baselines", "--model", "random:tinny"), ["--model 'random:tinny' is unknown"]),
        ((*PARITY, "--candidate", "cpu:float32", "--set", "model_name=random:tinny"), ["model_name 'random:tinny'"]),
        ((*PARITY, "--candidate", "cpu:float32", "--set", "dataset_id=./none"), ["dataset_id './none'"]),
        (("train", "quickstart", "--set", "model_name=random:tinny"), ["model_name 'random:tinny' is unknown"]),
        (("train", "quickstart", "--set", f"run_name={'r' * 256}"), ["run_name", "256 bytes", "at most 255"]),
        (("train", "quickstart", "--set", f"run_name={'ä' * 128}"), ["run_name", "256 bytes"]),
        (("train", "quickstart", "--set", f"project_dir=a/{'r' * 300}/b"), ["project_dir", "300 bytes"]),
        ((*BENCH, "--set", "tt.arhc=wormhole"), ["tt.arhc", "did you mean"]),
        ((*BENCH, "--format", "tabel"), ["did you mean table?"]),
        ((*WHOLE, "--kernel", "natve"), ["did you mean native?"]),
        ((*WHOLE, "--backend", "cpuu"), ["did you mean cpu?"]),
        ((*WHOLE, "--dtype", "float23"), ["did you mean float32?"]),
        ((*WHOLE, "--processes", "0"), ["--processes 0 is out of range"]),
        ((*WHOLE, "--workload", "forward"), ["end_to_end has results of its own kind"]),
        ((*PARITY, "--candidate", "cpuu:float32"), ["'cpuu:float32'", "did you mean cpu?"]),
        ((*PARITY, "--candidate", "cpu:flaot32"), ["did you mean float32?"]),
        ((*PARITY, "--candidate", "tt:hifi5"), ["did you mean hifi"]),
        ((*PARITY, "--candidate", "cpu:float32+kernel=natve"), ["natve", "did you mean native?"]),
        (("history", ".", "--format", "jsn"), ["did you mean json?"]),
        (("train", "quickstart", "--backend", "cpuu"), ["did you mean cpu?"]),
        (("train", "quickstart", "--set", "kernel=natve"), ["did you mean native?"]),
        (("train", "quikstart"), ["did you mean quickstart?"]),
        (("show", ".", "--width", "1"), ["--width 1 is out of range"]),
        (("tt-estimate", "--card", "n510"), ["did you mean n150?"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_typo_costs_nothing(invoke: Invoke, arguments: tuple[str, ...], expected: list[str]) -> None:
    one_line_error(invoke(*arguments), *expected)
    assert list(Path.cwd().iterdir()) == []


def test_a_name_is_repeated_in_short_and_far_ones_get_no_hint() -> None:
    with pytest.raises(UserError) as caught:
        check_name("--kernel", "x" * 5000, ["native"])
    assert len(str(caught.value)) < 200
    assert "did you mean" not in str(caught.value)
    check_name("--kernel", "native", ["native"])


def test_a_refusal_names_the_option_that_was_given(invoke: Invoke, tmp_path: Path) -> None:
    one_line_error(invoke(*BENCH, "--dry-run", "--set", "lora.rank=8"), "only a backend's own options are set here")
    one_line_error(invoke(*BENCH, "--dry-run", "--set", "tt.foo=1"), "unknown key 'tt.foo'", "allowed in tt are")
    with pytest.raises(UserError, match=r"\(--model\)"):
        load_config(None, options={"model_name": "https://me:pass@host/"})
