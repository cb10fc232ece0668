"""The baselines of `full_step`: transformers' Trainer makes the same steps in its own loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import LoadedEncoder, load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.backends import get_backend
from isotrain.benchmarks.harness import worker
from isotrain.benchmarks.harness.baseline import BaselineStep
from isotrain.benchmarks.harness.plan import Options, TargetSpec
from isotrain.benchmarks.harness.texts import Texts, embedded_texts, make_batches
from isotrain.benchmarks.harness.workloads import FullStep, TrainedEncoder

pytest.importorskip("accelerate", reason="Trainer needs accelerate, of the extra dev")
trainer = pytest.importorskip("isotrain.benchmarks.baselines.trainer")

LABELS = 7
Make = Callable[[str], BaselineStep]


@pytest.fixture(scope="module")
def albert() -> LoadedEncoder:
    return load_encoder("random:tiny", 0)


@pytest.fixture(scope="module")
def texts() -> Texts:
    return embedded_texts(16, 64, 30000, LABELS, seed=3)


def head(albert: LoadedEncoder) -> ClassificationHead:
    return ClassificationHead(albert.config.hidden_size, 16, LABELS, seed=1)


@pytest.fixture
def make(albert: LoadedEncoder, texts: Texts) -> Make:
    """`make(kind)` builds the step of a class of `baselines.trainer`."""

    def build(kind: str) -> BaselineStep:
        backend = get_backend("cpu")
        policy = backend.cast_policy("float32")
        loop = getattr(trainer, kind)(albert.module(), head(albert), backend, policy)
        return BaselineStep(backend, loop, head(albert), make_batches(texts, 4, "dynamic", 64, multiple=1), texts)

    return build


def losses(workload: FullStep, steps: int = 8) -> list[float]:
    """The mean losses of some steps."""
    with workload.context():
        workload.begin()
        for step in range(steps):
            workload.step(step % len(workload.batches))
        workload.fence()
        assert workload.read() == []
    return workload.losses(torch.stack(workload._results))


def test_trainer_makes_the_steps_that_we_make(make: Make, albert: LoadedEncoder, texts: Texts) -> None:
    backend = get_backend("cpu")
    encoder = TrainedEncoder(
        load_encoder("random:tiny", 0).module(), backend.cast_policy("float32"), "transformers", ""
    )
    ours = FullStep(backend, encoder, head(albert), make_batches(texts, 4, "dynamic", 64), texts)
    theirs = make("TrainerLoop")
    expected = losses(ours)
    before = threading.active_count()
    assert losses(theirs) == pytest.approx(expected, rel=1e-5)
    assert max(expected) / min(expected) > 1.05, "losses that stay as they are would prove nothing"
    assert theirs.problems() == []
    assert theirs.kernel()[0] == "transformers.Trainer"
    assert "accelerate" in theirs.encoder.notes[0]
    assert threading.active_count() == before, "the loop has ended"


def test_the_compiled_trainer_compiles_before_it_is_seen_steady(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that needs no C++ compiler."""
    expected = losses(make("TrainerLoop"))
    monkeypatch.setattr(trainer.CompiledTrainerLoop, "compiler", "eager")
    compiled = make("CompiledTrainerLoop")
    before = compiled.compile_count()
    assert losses(compiled) == pytest.approx(expected, rel=1e-5)
    after = compiled.compile_count()
    assert after > before
    losses(compiled)
    assert compiled.compile_count() == after
    assert "torch.compile by eager" in compiled.encoder.notes[0]


def test_a_trainer_that_fails_says_why_in_one_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make("TrainerLoop")

    def fail(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such primitive\nand more")

    monkeypatch.setattr(workload.encoder.model.head, "forward", fail)
    with pytest.raises(UserError, match=r"^transformers.Trainer can't run here: RuntimeError: no such primitive$"):
        losses(workload)


def test_a_dtype_that_trainer_lacks_on_the_host_is_refused(albert: LoadedEncoder) -> None:
    backend = get_backend("cpu")
    with pytest.raises(UserError, match="is set up for float32 and bfloat16; it can't be compared in float64"):
        trainer.TrainerLoop(albert.module(), head(albert), backend, backend.cast_policy("float64"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_target_of_trainer_is_valid_and_leaves_nothing(
    dtype: str, albert: LoadedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = Options(model="random:tiny", dtypes=(dtype,), blocks=2, seconds=0.05, num_labels=LABELS, seed=0)
    document = worker.run(options, TargetSpec("cpu", "full_step", "dynamic", "trainer", 4, baseline=True))
    assert document.reasons == []
    assert document.model.sha256 == albert.fingerprint
    assert document.kernel.name == "transformers.Trainer"
    assert len(document.losses) > 0
    assert document.probe.keys() == document.expected.keys()
    assert list(tmp_path.iterdir()) == []
