"""Whole models that the native kernel trains: which runs it takes, and that modules would make nearly the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.features.compute import token_batch
from isotrain.albert_core.features.source import module_layer_states
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.build import Training
from isotrain.albert_core.loop.events import TrainingError
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.albert_core.model.whole import WholeModel
from isotrain.backends import get_backend
from isotrain.benchmarks.harness.texts import embedded_texts, make_batches
from isotrain.benchmarks.harness.work import work_per_step
from isotrain.benchmarks.harness.workloads import FullStep
from isotrain.benchmarks.harness.workloads import TrainedEncoder as BenchEncoder
from isotrain.kernels.cpu.library import why_not
from isotrain.kernels.cpu.trained_encoder import TrainedEncoder
from isotrain.kernels.cpu.training import TrainedLayers
from isotrain.kernels.packed import PackedBatch
from isotrain.kernels.weights import DropoutRates
from safetensors.torch import load_file, save_file
from support.command import Invoke
from support.small_job import losses, settings
from support.tiny_models import write_models
from transformers import AutoModel

Run = Callable[..., TrainResult]

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

# random:tiny is an ALBERT of a shape that the kernel takes.
WHOLE: dict[str, Any] = {
    "freeze_encoder": False,
    "dtype": "bfloat16",
    "learning_rate": 1e-3,
    "steps_freq": 1,
    "threads": 1,
    "max_steps": 6,
}


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of such a shape that drops values."""
    return write_models(tmp_path_factory.mktemp("dropping"), dropout=0.1, hidden_size=64)["bert"]


def log_of(result: TrainResult) -> str:
    return (result.run.path / "train.log").read_text()


def weights_of(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.run.model / "model.safetensors")


def test_losses_are_as_near_to_float32_as_those_of_the_module(run: Run) -> None:
    exact, native, module = (
        run(run_name=name, **WHOLE | {"max_steps": 20, "learning_rate": 3e-4} | keys)
        for name, keys in (
            ("exact", {"dtype": "float32"}),
            ("native", {}),
            ("module", {"kernel": "portable"}),
        )
    )
    assert "kernel native" in log_of(native)
    assert "kernel transformers" in log_of(module)
    assert "kernel transformers" in log_of(exact)
    expected, found, other = (np.array([loss for _, loss in losses(one)]) for one in (exact, native, module))
    assert len(expected) == 20
    assert np.ptp(expected) > 0.05, "losses that never move would prove nothing"
    distance, allowed = (float(np.sqrt(np.mean((one - expected) ** 2))) for one in (found, other))
    assert 0 < distance <= 1.5 * allowed
    for name, value in exact.metrics.items():
        assert native.metrics[name] == pytest.approx(value, abs=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_resume_is_bit_exact_with_dropout(run: Run, dropping: Path, checkpointing: bool) -> None:
    keys = WHOLE | {
        "model_name": str(dropping),
        "gradient_checkpointing": checkpointing,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 1.0,
        "max_steps": 4,
    }
    straight = run(run_name="straight", **keys)
    assert "kernel native" in log_of(straight)
    again = run(run_name="cut", resume=run(run_name="cut", stop_at_step=2, **keys).run, **keys)
    assert losses(again) == losses(straight)
    ours, theirs = weights_of(straight), weights_of(again)
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())


def test_recomputed_activations_change_no_bit_and_dropout_drops(run: Run, dropping: Path) -> None:
    keys = WHOLE | {"model_name": str(dropping), "max_steps": 3}
    kept, recomputed = (run(run_name=f"{value}", gradient_checkpointing=value, **keys) for value in (False, True))
    assert losses(recomputed) == losses(kept)
    other = run(run_name="seed", seed=1, **keys)
    assert losses(other) != losses(kept)


def test_one_line_says_why_the_module_is_trained(run: Run, configure: Callable[..., ResolvedConfig]) -> None:
    reasons = {
        "it multiplies bfloat16 only, and dtype is float32": {"dtype": "float32"},
        "trains no adapters": {"lora": {"rank": 2}},
    }
    for number, (reason, keys) in enumerate(reasons.items()):
        text = log_of(run(run_name=str(number), **WHOLE | {"max_steps": 1} | keys))
        assert "kernel transformers" in text
        assert len([line for line in text.splitlines() if reason in line]) == 1
        with pytest.raises(UserError, match=reason):
            run(run_name=f"{number}-native", kernel="native", **WHOLE | keys)
    text = log_of(run(run_name="bucketed", layout="bucketed", **WHOLE | {"max_steps": 1}))
    assert "bucketed layout, kernel transformers" in text
    for keys in ({"layout": "bucketed"}, {"torch_compile": "default"}):
        with pytest.raises(UserError, match="kernel: native trains whole models on packed batches"):
            configure(kernel="native", **WHOLE | keys)


def test_a_shape_that_it_does_not_support_trains_the_module(run: Run, dropping_model: Path) -> None:
    keys = WHOLE | {"model_name": str(dropping_model), "max_steps": 1}
    text = log_of(run(**keys))
    assert "hidden_size 32 (it must be a multiple of 64" in text
    assert "kernel transformers" in text
    with pytest.raises(UserError, match="kernel native can't run: it does not support hidden_size 32"):
        run(run_name="native", kernel="native", **keys)


class Poison:
    """Spoils one weight before the first step."""

    def __init__(self, name: str, value: float) -> None:
        self.name, self.value = name, value

    def started(self, training: Training) -> None:
        parameters = dict(training.model.named_parameters())
        found = next(parameter for name, parameter in parameters.items() if self.name in name)
        with torch.no_grad():
            found.view(-1)[0] = self.value

    def stepped(self, *_: Any) -> None: ...

    def evaluated(self, *_: Any) -> None: ...


SPOILED = ("attention.query.weight", "ffn_output.bias", "LayerNorm.weight", "position_embeddings")


@pytest.mark.parametrize("name", SPOILED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_ends_the_run(
    configure: Callable[..., ResolvedConfig], name: str, value: float
) -> None:
    with pytest.raises(TrainingError):
        train(configure(**WHOLE), observer=Poison(name, value))


def train_by_command(invoke: Invoke, keys: Sequence[str], *more: str) -> tuple[int, str, str]:
    return invoke("train", "quickstart", *(f"--set={key}" for key in keys), *more)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("strategy", "step", "said", "kept"),
    [
        ("step", 3, "by step 3: the gradient's norm is", ["step-00000001", "step-00000002"]),
        ("epoch", 14, "the loss is nan by step 15; weight", ["step-00000012"]),
    ],
)
def test_a_gradient_that_is_not_finite_ends_the_run_by_name_and_keeps_checkpoints(
    invoke: Invoke,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    strategy: str,
    step: int,
    said: str,
    kept: list[str],
) -> None:
    backward, calls = TrainedLayers.backward, count(1)

    def spoiled(self: TrainedLayers, *arguments: Any) -> Any:
        embedded, gradients = backward(self, *arguments)
        if next(calls) == step:
            # After the projection's two: the weight of the first layer's queries.
            gradients[2][0, 0] = value
        return embedded, gradients

    own = {"run_name": "bad", "save_strategy": strategy, "max_steps": 20, "keep_last_n": 9}
    keys = settings(small_data, tmp_path, **WHOLE | {"kernel": "native"} | own)
    with monkeypatch.context() as patch:
        patch.setattr(TrainedLayers, "backward", spoiled)
        code, _, err = train_by_command(invoke, keys)
    assert code == 1, err
    assert said in err
    [line] = [line for line in err.splitlines() if line.startswith("isotrain: error: ")]
    if strategy == "step":
        assert "attention.query.weight is NaN or inf after step 3; earlier checkpoints" in line
    assert re.search(r"weight encoder\.\S+ is NaN or inf", line)
    folders = sorted((tmp_path / "runs" / "bad" / "checkpoints").glob("step-*"))
    assert [folder.name for folder in folders] == kept
    for folder in folders:
        assert all(bool(torch.isfinite(one).all()) for one in load_file(folder / "model.safetensors").values())
    code, _, err = train_by_command(invoke, keys, "--resume", "runs/bad")
    assert code == 0, err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_a_weight_that_is_not_finite_is_refused_by_name(
    invoke: Invoke, small_data: Path, tmp_path: Path, value: float
) -> None:
    folder = write_models(tmp_path, hidden_size=64)["bert"]
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("1.attention.self.value.weight"))
    weights[name][3, 2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    keys = settings(small_data, tmp_path, **WHOLE | {"kernel": "native", "model_name": str(folder)})
    code, _, err = train_by_command(invoke, keys)
    assert code == 2, err
    assert err.splitlines()[-1].endswith(f"has NaN or inf in {name}; give an intact checkpoint")


def test_a_copy_of_the_model_trains_its_own_weights(configure: Callable[..., ResolvedConfig]) -> None:
    job = open_job(configure(**WHOLE).config)
    head = job.task.head(job.encoder.config.hidden_size, job.num_labels, job.config)
    model = WholeModel(job.encoder.module(), head, job.task.apply_head, job.backend, job.policy).train()
    assert model.kernel == "native"
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.encoder.parameters():
            parameter.mul_(1.5)
    batch = token_batch(job.train_tokens, np.arange(4), "packed", 32)
    before = model(batch)
    twin(batch).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert not torch.allclose(twin(batch), before)
    del twin
    assert torch.equal(model(batch), before)


def test_predictions_are_those_of_the_evaluation(run: Run) -> None:
    result = run(**WHOLE)
    predictor = load_predictor(result.run)
    assert isinstance(predictor.model, WholeModel)
    assert predictor.model.kernel == "native"


@pytest.mark.parametrize("kind", ["albert", "bert"])
def test_each_layer_of_a_replay_is_that_of_the_module(tmp_path: Path, kind: str) -> None:
    folder = write_models(tmp_path, hidden_size=64)[kind]
    module = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    batch = PackedBatch.from_lists([[2, 9, 8, 3], [2, 5, 3], [2, 7, 7, 12, 3]])
    trained = TrainedEncoder(weights_from_module(module, trained=True))
    exact = module_layer_states(module, batch.to_padded())
    real = batch.to_padded().attention_mask.bool()
    wanted = [state[real] for state in exact]
    for name, found, right in (
        ("on", trained.layer_states(batch), wanted),
        ("replayed", trained.layer_states(batch, wanted[:-1]), wanted[1:]),
    ):
        assert len(found) == len(right)
        for layer, (got, state) in enumerate(zip(found, right, strict=True)):
            assert (got - state).norm() < 0.01 * state.norm(), (name, layer)
    assert torch.equal(trained.layer_states(batch)[-1], trained(batch, DropoutRates()))


def test_a_step_of_the_bench_is_the_kernels_and_counts_every_layer_in_full() -> None:
    encoder, backend = load_encoder("random:tiny", 0), get_backend("cpu")
    config, policy = encoder.weights.config, backend.cast_policy("bfloat16")
    texts = embedded_texts(8, 32, config.vocab_size, 5, 0)
    batches = make_batches(texts, 8, "packed", 32)
    found = {}
    for kernel in ("auto", "transformers"):
        head = ClassificationHead(config.hidden_size, 16, 5, 0)
        runs = BenchEncoder(copy.deepcopy(encoder.module()), policy, kernel, "5")
        step = FullStep(backend, runs, head, batches, texts)
        results = [step.run(0) for _ in range(2)]
        work = work_per_step(config, head, batches, "full_step", step.kernel()[0], policy)
        found[step.kernel()[0]] = (results, work)
    assert found["native"][1] == found["transformers"][1]
    for ours, theirs in zip(found["native"][0], found["transformers"][0], strict=True):
        assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=5e-3)
