"""Features on disk: used when everything they follow from is the same, and never when it isn't."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.features.compute import cached_features
from isotrain.albert_core.loop.job import TextJob, open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.runs.array_cache import ArraySpec, load_arrays, publish_arrays
from support.small_job import losses, metrics

Configure = Callable[..., ResolvedConfig]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def features_of(job: TextJob) -> tuple[torch.Tensor, bool]:
    config = job.config
    return cached_features(
        job.frozen_encoder(),
        job.encoder.fingerprint,
        job.train_tokens,
        job.backend,
        job.policy,
        job.layout,
        config.max_length,
    )


def test_the_second_run_starts_training_at_once_with_the_same_bits(
    run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(run_name="first")
    assert "computed" in (first.run.path / "train.log").read_text()

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the encoder ran although its features are on the disk")

    monkeypatch.setattr("isotrain.albert_core.features.compute.compute_features", never)
    second = run(run_name="second")
    assert "from the disk" in (second.run.path / "train.log").read_text()
    assert losses(first) == losses(second)
    assert [m["eval/loss"] for m in metrics(first) if "eval/loss" in m] == [
        m["eval/loss"] for m in metrics(second) if "eval/loss" in m
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 24},
        {"dtype": "bfloat16", "kernel": "portable"},
        {"dtype": "int8", "kernel": "portable"},
        {"layout": "padded"},
        {"layout": "bucketed"},
        {"kernel": "transformers", "layout": "padded"},
        {"max_length": 6},
    ],
)
def test_what_changes_the_features_changes_the_key(configure: Configure, change: dict[str, Any]) -> None:
    assert features_of(open_job(configure().config))[1] is False
    assert features_of(open_job(configure().config))[1] is True
    assert features_of(open_job(configure(**change).config))[1] is False


def test_what_leaves_them_alone_leaves_the_key_alone(configure: Configure) -> None:
    features_of(open_job(configure().config))
    assert features_of(open_job(configure(learning_rate=1e-4, batch_size=3, mlp_hidden_size=4).config))[1] is True


def test_another_version_of_the_kernel_computes_anew(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    features_of(open_job(configure().config))
    monkeypatch.setattr("isotrain.kernels.packed.portable.PortableEncoder.version", "next")
    assert features_of(open_job(configure().config))[1] is False


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "manifest"])
def test_a_damaged_file_is_found_and_computed_anew(configure: Configure, cache: Path, damage: str) -> None:
    wanted, _ = features_of(open_job(configure().config))
    wanted = wanted.clone()
    (folder,) = cache.iterdir()
    file = folder / "features.npy"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-5] ^= 4
        file.write_bytes(bytes(data))
    elif damage == "cut":
        file.write_bytes(bytes(data[: len(data) // 2]))
    elif damage == "swap":
        np.save(file, np.zeros_like(np.load(file)))
    else:
        (folder / "manifest.json").write_text("{}")
    got, from_disk = features_of(open_job(configure().config))
    assert from_disk is False
    assert torch.equal(got, wanted)
    assert features_of(open_job(configure().config))[1] is True, "the new one took the damaged one's place"


def test_training_never_writes_to_the_file(configure: Configure, cache: Path) -> None:
    features_of(open_job(configure().config))
    (file,) = cache.glob("*/features.npy")
    before = file.read_bytes()
    mapped, from_disk = features_of(open_job(configure().config))
    assert from_disk
    mapped.zero_()
    assert file.read_bytes() == before


def test_a_full_disk_costs_a_warning_not_the_run(
    run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("isotrain.albert_core.runs.array_cache._write", full)
    result = run()
    assert result.status == "completed"
    assert "nothing is cached for the next run" in (result.run.path / "train.log").read_text()


def test_a_file_that_is_cut_short_while_it_is_written(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    specs = {"features": ArraySpec("float32", (None, 100))}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        published = publish_arrays(cache / "key", {"features": np.zeros((1000, 100), np.float32)}, specs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not published
    assert "nothing is cached for the next run" in caplog.text
    assert "is the disk full?" in caplog.text
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_beside_a_finished_entry_goes_when_it_is_read(tmp_path: Path) -> None:
    specs = {"features": ArraySpec("float32", (None, 2))}
    assert publish_arrays(tmp_path / "key", {"features": np.zeros((3, 2), np.float32)}, specs)
    program = "from isotrain.albert_core.runs.files import temporary_name; print(temporary_name('key'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (tmp_path / done.stdout.strip()).mkdir()
    assert load_arrays(tmp_path / "key", specs) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
