"""Exports, loaded by the programs they are for and judged by what the run itself predicts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import isotrain
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.inference import export
from isotrain.albert_core.inference.export import INPUTS, ExportError, export_run, trained_model
from isotrain.albert_core.inference.logits import difference
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.names import RANDOM_ARCHITECTURES
from isotrain.albert_core.model.transformers_module import fuse_activations
from isotrain.cli.main import main
from isotrain.kernels.install import install_hint
from safetensors.torch import load_file
from support.small_job import metrics

Run = Callable[..., TrainResult]
Inputs = dict[str, torch.Tensor]

TEXTS = [
    "lost my card",
    "what is the fee for a transfer abroad",
    "hi",
    "the branch near me is closed, when does it open",
]
WHOLE = {"freeze_encoder": False, "learning_rate": 1e-3, "threads": 1}


def by_transformers(folder: Path) -> Callable[[Inputs], torch.Tensor]:
    """As the documentation tells users to: AutoModel, and the head by hand."""
    from transformers import AutoModel

    encoder, head = AutoModel.from_pretrained(folder).eval(), load_file(folder / "head.safetensors")

    def logits(inputs: Inputs) -> torch.Tensor:
        features = encoder(**inputs).last_hidden_state[:, 0]
        if "pooler.weight" in head:
            hidden = torch.tanh(features @ head["pooler.weight"].T + head["pooler.bias"])
        else:
            hidden = torch.nn.functional.gelu(features @ head["hidden.weight"].T + head["hidden.bias"])
        return hidden @ head["output.weight"].T + head["output.bias"]

    return logits


def by_transformers_spans(folder: Path) -> Callable[[Inputs], torch.Tensor]:
    """The same for questions, whose head is one layer over every token."""
    from transformers import AutoModel

    encoder, head = AutoModel.from_pretrained(folder).eval(), load_file(folder / "head.safetensors")
    return lambda inputs: encoder(**inputs).last_hidden_state @ head["output.weight"].T + head["output.bias"]


def by_torch_export(folder: Path) -> Callable[[Inputs], torch.Tensor]:
    program = torch.export.load(folder / "model.pt2").module()
    return lambda inputs: program(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])


def by_onnx(folder: Path) -> Callable[[Inputs], torch.Tensor]:
    from onnx.reference import ReferenceEvaluator

    graph = ReferenceEvaluator(str(folder / "model.onnx"))
    return lambda inputs: torch.from_numpy(graph.run(None, {name: part.numpy() for name, part in inputs.items()})[0])


def by_auto_model(folder: Path, prepare: Callable[[Any], None] = lambda _: None) -> Callable[[Inputs], torch.Tensor]:
    """The whole model, by the Auto class of what it answers; `prepare` gets it before it answers."""
    from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

    isotrain.register_models()
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    spans = architecture.endswith("QuestionAnswering")
    model, report = (AutoModelForQuestionAnswering if spans else AutoModelForSequenceClassification).from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False
    )
    assert not any(report.values()), "every weight is found, and none is left over"
    prepare(model)

    def logits(inputs: Inputs) -> torch.Tensor:
        output = model(**inputs)
        return torch.stack((output.start_logits, output.end_logits), -1) if spans else output.logits

    return logits


@pytest.fixture(scope="module", autouse=True)
def _two_layers() -> Iterator[None]:
    """A program of two layers shows what one of three does, and is traced sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RANDOM_ARCHITECTURES["tiny"], "num_hidden_layers", 2)
        yield


LOADERS = {
    "transformers": by_auto_model,
    "safetensors": by_transformers,
    "torch-export": by_torch_export,
    "onnx": by_onnx,
}


@pytest.fixture
def needs(request: pytest.FixtureRequest) -> None:
    if request.getfixturevalue("form") == "onnx":
        pytest.importorskip("onnxscript", reason="needs the extra onnx: pip install -e '.[onnx]'")


@pytest.mark.parametrize(
    "job",
    [{"threads": 1}, WHOLE, {"threads": 1, "head": "pooler_linear", "head_dropout": 0.1}],
    ids=["head", "whole", "pooler"],
)
@pytest.mark.parametrize("form", list(LOADERS))
def test_an_export_answers_as_the_run_does(
    run: Run, tmp_path: Path, needs: None, form: str, job: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    trained = run(**job)
    assert metrics(trained)[-1]["eval/accuracy"] > 0.3, "answers of a model that tells nothing apart prove nothing"
    result = export_run(trained.run, form, tmp_path / "out")
    assert result.relative_l2 <= 1e-5
    names = json.loads((result.folder / "labels.json").read_text())
    inputs = AutoTokenizer.from_pretrained(result.folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = LOADERS[form](result.folder)(dict(inputs))
    best = torch.softmax(logits.double(), -1).max(-1)
    for index, expected in enumerate(load_predictor(trained.run).predict(TEXTS)):
        assert names[int(best.indices[index])] == expected.label
        assert float(best.values[index]) == pytest.approx(expected.probability, abs=1e-5)
    record = json.loads((result.folder / "export.json").read_text())
    assert "random weights" in record["model"]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("freeze_encoder", [False, True])
@pytest.mark.parametrize("form", list(LOADERS))
def test_an_export_answers_questions_as_the_run_does(
    run: Run, reading: dict[str, Any], tmp_path: Path, needs: None, form: str, freeze_encoder: bool
) -> None:
    """One window a question, whose best span is looked for here."""
    from transformers import AutoTokenizer

    trained = run(**reading | {"max_length": 96, "num_epochs": 4, "freeze_encoder": freeze_encoder})
    folder = export_run(trained.run, form, tmp_path / "out").folder
    question, context = "Where does Anna keep it?", "Anna keeps a violin in the cellar. Hugo keeps two keys in Room 12."
    (expected,) = load_predictor(trained.run).predict([question], [context])
    inputs = AutoTokenizer.from_pretrained(folder)(
        question, context, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=True
    )
    (offsets,), types = inputs.pop("offset_mapping").tolist(), inputs["token_type_ids"][0].tolist()
    load = by_transformers_spans if form == "safetensors" else LOADERS[form]
    with torch.no_grad():
        start, end = load(folder)(dict(inputs))[0].T.tolist()
    words = [place for place, kind in enumerate(types) if kind == 1 and offsets[place][1] > offsets[place][0]]
    spans = [(start[one] + end[two], one, two) for one in words for two in words if one <= two < one + 30]
    _, first, last = max(spans)
    assert context[offsets[first][0] : offsets[last][1]].strip() == expected.text


@pytest.mark.parametrize("head", ["mlp", "pooler_linear"])
@pytest.mark.parametrize("model", ["albert", "bert"])
def test_a_transformers_folder_is_the_whole_model(run: Run, tmp_path: Path, model: str, head: str) -> None:
    """Trained whole or by adapters, with more outputs than labels and a dropout of its own."""
    from support.tiny_models import write_models
    from transformers import AutoModelForSequenceClassification, pipeline

    job = {"model_name": str(write_models(tmp_path / "models")[model]), "head": head, "head_dropout": 0.25}
    lora = {"lora": {"rank": 2, "targets": ["query", "value"]}} if model == "albert" else {}
    if lora:
        pytest.importorskip("peft", reason="needs the extra lora")
    trained = run(**job, **WHOLE, **lora, num_labels=8)
    folder = export_run(trained.run, "transformers", tmp_path / "out").folder
    config = json.loads((folder / "config.json").read_text())
    # Without isotrain an unknown type is refused, where a known one would get a classifier of random weights.
    assert config["model_type"] == (f"isotrain_{model}_mlp" if head == "mlp" else model)
    names = json.loads((folder / "labels.json").read_text())
    assert list(config["id2label"].values()) == [*names, "unused-6", "unused-7"]
    assert config["problem_type"] == "single_label_classification"
    assert not list(folder.glob("*.py"))
    isotrain.register_models()
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).train()
    assert loaded.dropout.p == 0.25
    assert loaded(torch.ones(2, 3, dtype=torch.long), labels=torch.tensor([0, 7])).loss.isfinite()
    answers = pipeline("text-classification", str(folder), device="cpu")(TEXTS)
    for answer, expected in zip(answers, load_predictor(trained.run).predict(TEXTS), strict=True):
        assert (answer["label"], answer["score"]) == (expected.label, pytest.approx(expected.probability, abs=1e-5))


def as_trained(model: Any) -> None:
    """Rounds as in training: by its operators, and on weights that begin where any tensor does, not inside a file."""
    fuse_activations(model)
    for weight in model.parameters():
        weight.data = weight.data.clone()


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("model", ["albert", "bert"])
def test_logits_of_transformers_own_heads_have_the_same_bits(
    run: Run, reading: dict[str, Any], tmp_path: Path, model: str, reads: bool
) -> None:
    from support.tiny_models import write_models

    job = WHOLE | (reading if reads else {"head": "pooler_linear"}) | {"max_steps": 3}
    trained = run(model_name=str(write_models(tmp_path / "models")[model]), **job).run
    folder = export_run(trained, "transformers", tmp_path / "out").folder
    logits = by_auto_model(folder, as_trained)
    with torch.no_grad():
        apart = difference(
            trained_model(load_predictor(trained)), lambda *batch: logits(dict(zip(INPUTS, batch, strict=True))), 32
        )
    assert apart == (0.0, 0.0)


def test_the_hugging_face_folder_can_be_trained_on(run: Run, tmp_path: Path) -> None:
    first = run(run_name="first", **WHOLE)
    folder = export_run(first.run, "safetensors", tmp_path / "out").folder
    ours = load_file(first.run.model / "model.safetensors")
    for name, weight in load_encoder(str(folder)).module().state_dict().items():
        if weight.is_floating_point():
            assert torch.equal(weight, ours[f"encoder.{name}"])
    assert run(run_name="second", model_name=str(folder)).status == "completed"


def test_an_export_that_computes_something_else_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = run()
    write, load = export._WAYS["torch-export"]

    def damaged(model: Any, *rest: Any) -> None:
        # A mask that is not looked at: right for texts of one length, wrong beside longer ones.
        broken = export.trained_model(load_predictor(trained.run))
        forward = broken.encoder.forward
        broken.encoder.forward = lambda **inputs: forward(**inputs | {"attention_mask": None})
        write(broken, *rest)

    monkeypatch.setitem(export._WAYS, "torch-export", (damaged, load))
    with pytest.raises(ExportError, match="nothing was kept"):
        export_run(trained.run, "torch-export", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_bfloat16_run_is_exported_in_float32(run: Run, tmp_path: Path) -> None:
    folder = export_run(run(dtype="bfloat16").run, "safetensors", tmp_path / "out").folder
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32}
    assert json.loads((folder / "export.json").read_text())["trained_in"] == "bfloat16"


def test_an_int8_run_is_exported_in_float32_and_says_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The encoder's own weights and the head that was trained on int8 features, whose rounding stays behind."""
    from transformers import AutoTokenizer

    trained = run(dtype="int8", num_epochs=4)
    assert metrics(trained)[-1]["eval/accuracy"] > 0.3, "answers of a model that tells nothing apart prove nothing"
    folder = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(trained.run.path), "--format", "safetensors", "--out", str(folder)])
    assert not ended.value.code
    assert "trained in int8, exported in float32" in capsys.readouterr().out
    assert json.loads((folder / "export.json").read_text())["trained_in"] == "int8"
    exported = load_file(folder / "model.safetensors")
    for name, weight in load_predictor(trained.run).loaded.module().state_dict().items():
        if weight.is_floating_point():
            assert torch.equal(exported[name], weight)
    head = load_file(trained.run.model / "model.safetensors")
    for name, weight in load_file(folder / "head.safetensors").items():
        assert torch.equal(weight, head[name])
    own = load_predictor(trained.run).predict(TEXTS)
    inputs = dict(AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        best = torch.softmax(by_transformers(folder)(inputs).double(), -1).max(-1)
    apart = [abs(float(one) - other.probability) for one, other in zip(best.values, own, strict=True)]
    assert 1e-5 < max(apart) < 0.1, "near, and not the same"
    names = json.loads((folder / "labels.json").read_text())
    assert [names[int(index)] for index in best.indices] == [one.label for one in own]


def test_what_cannot_be_exported_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = run(stop_at_step=3)
    with pytest.raises(UserError, match="no finished model"):
        export_run(trained.run, "safetensors", tmp_path / "out")
    assert export_run(trained.run, "safetensors", tmp_path / "last", checkpoint="last").relative_l2 <= 1e-5
    for form, target, message in (
        ("pickle", "out", "transformers, safetensors, peft, torch-export, onnx"),
        ("safetensors", "last", "exists already"),
        ("safetensors", "absent/out", "no folder"),
    ):
        with pytest.raises(UserError, match=message):
            export_run(trained.run, form, tmp_path / target, checkpoint="last")
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"onnx, onnxscript, not installed: `{re.escape(install_hint('onnx'))}`"):
        export_run(trained.run, "onnx", tmp_path / "out", checkpoint="last")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_checked(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    trained = run()
    with pytest.raises(SystemExit) as ended:
        main(["export", str(trained.run.path), "--format", "torch-export"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "random weights" in said
    assert "relative L2" in said
    assert (trained.run.path / "export-torch-export" / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("model", "targets", "reads"),
    [("albert", ["query", "value"], False), ("bert", "all-linear", False), ("albert", ["ffn"], True)],
)
def test_peft_loads_the_adapters_onto_the_same_encoder(
    run: Run, reading: dict[str, Any], tmp_path: Path, model: str, targets: Any, reads: bool
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra lora")
    from support.tiny_models import write_models
    from transformers import AutoModel, AutoTokenizer

    base = write_models(tmp_path / "models")[model]
    job = (reading if reads else {}) | WHOLE | {"learning_rate": 1e-2, "lora": {"rank": 3, "targets": targets}}
    trained = run(model_name=str(base), **job)
    folder = tmp_path / "adapters"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(trained.run.path), "--format", "peft", "--out", str(folder)])
    assert not ended.value.code
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved
    assert all(name.startswith("base_model.model.") and ".lora_" in name for name in saved)
    assert any(bool(tensor.any()) for name, tensor in saved.items() if ".lora_B." in name)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["peft_type"], config["base_model_name_or_path"]) == (3, "LORA", str(base))

    plain = AutoModel.from_pretrained(base, add_pooling_layer=False)
    head = load_file(folder / "head.safetensors")
    merged = export_run(trained.run, "safetensors", tmp_path / "merged").folder
    adapted = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base, add_pooling_layer=False), folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = adapted(**inputs).last_hidden_state
        if reads:
            got = states @ head["output.weight"].T + head["output.bias"]
            wanted = by_transformers_spans(merged)(inputs)
        else:
            hidden = torch.nn.functional.gelu(states[:, 0] @ head["hidden.weight"].T + head["hidden.bias"])
            got = hidden @ head["output.weight"].T + head["output.bias"]
            wanted = by_transformers(merged)(inputs)
        unadapted = plain.eval()(**inputs).last_hidden_state
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert (states - unadapted).abs().max() > 1e-3, "adapters that change nothing prove nothing"
    if not reads:
        texts = [item.label_id for item in load_predictor(trained.run).predict(TEXTS)]
        assert got.argmax(dim=-1).tolist() == texts


def test_a_run_without_adapters_has_none_to_export(run: Run, tmp_path: Path) -> None:
    trained = run(threads=1)
    with pytest.raises(UserError, match=r"--format peft is for adapters .*; allowed for it are transformers, "):
        export_run(trained.run, "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()
