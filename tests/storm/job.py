"""The run that the storm hits, in its variants, and the folders that a worker keeps for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.small_job import write_dataset
from support.tiny_models import write_models

from .process import Ended, start

SETTINGS: dict[str, Any] = {
    "dataset_id": "data",
    "model_name": "random:tiny",
    "dtype": "float32",
    "max_length": 32,
    "mlp_hidden_size": 16,
    "batch_size": 4,
    "num_epochs": 2,
    "learning_rate": 0.01,
    "lr_scheduler_type": "cosine",
    "save_strategy": "step",
    "steps_freq": 2,
    "val_steps_freq": 3,
    "run_name": "run",
    "threads": 1,
}
# 26 texts in batches of 4: seven steps an epoch, the last of them smaller.
TEXTS = {"train": 26, "test": 12}
BEGIN = ("train", "job.yaml")
GO_ON = ("train", "--resume", "runs/run")
# What a scheduler repeats.
AGAIN = ("train", "job.yaml", "--resume-or-start")


@dataclass(frozen=True)
class Variant:
    """A way to train. `processes` is how many train it together."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    processes: int = 1


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("cached"),
        Variant("streamed", {"feature_cache": False}),
        Variant("whole", {"freeze_encoder": False}),
        Variant("accumulation", {"batch_size": 2, "gradient_accumulation_steps": 3}),
        Variant("keep-one", {"keep_last_n": 1, "keep_best_n": 0}),
        Variant("no-optimizer", {"save_optim": False}),
        Variant("remote", {"sync_to_storage": True, "remote_path": "remote"}),
        Variant("adapters", {"freeze_encoder": False, "lora": {"rank": 2}}),
        Variant("pretrained", {"model_name": "model"}),
        Variant("two", {"process_timeout": 20}, processes=2),
    )
}


class Home:
    """A worker's folder: `folder` is where commands run, states of it are kept beside it and put back.

    A state is always put back under the path it was made at, for runs hold absolute paths. What doesn't, all workers
    share in `shared`.
    """

    def __init__(self, root: Path, variant: Variant, shared: Path) -> None:
        self.variant = variant
        self.root = root / variant.name
        self.shared = shared / variant.name
        self.folder = self.root / "here"
        self.run = self.folder / "runs" / "run"

    def clear(self) -> None:
        """Puts back what a user has before the first command: the data and the configuration."""
        shutil.rmtree(self.folder, ignore_errors=True)
        write_dataset(self.folder / "data", **TEXTS)
        if self.variant.settings.get("model_name") == "model":
            shutil.copytree(_model(self.shared), self.folder / "model")
        lines = [f"{key}: {json.dumps(value)}" for key, value in (SETTINGS | self.variant.settings).items()]
        (self.folder / "job.yaml").write_text("\n".join(lines) + "\n")

    def state(self, name: str, make: Callable[[], object]) -> None:
        """Puts the state `name` back; the first time, `make` makes it from a clear folder."""
        kept = self.root / "states" / name
        if not kept.exists():
            self.clear()
            make()
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.folder, kept, symlinks=True)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(kept, self.folder, symlinks=True, dirs_exist_ok=True)

    def completed(self) -> None:
        """The state of an undisturbed run that is complete."""
        self.state("completed", lambda: self.must(BEGIN))

    def stopped(self) -> None:
        """The state of a run that was stopped at its half."""
        self.state("stopped", lambda: self.must((*BEGIN, "--set", "stop_at_step=7")))

    def must(self, arguments: Sequence[str]) -> Ended:
        """Runs a command that has to succeed."""
        ended = self.isotrain(arguments)
        if ended.code != 0:
            raise RuntimeError(f"isotrain {' '.join(arguments)} ended with {ended.code}: {ended.err or ended.out}")
        return ended

    def isotrain(self, arguments: Sequence[str], prepare: Callable[[], None] = lambda: None) -> Ended:
        """Runs a command to its end: training in as many processes as the variant says, all else in one."""
        processes = self.variant.processes if arguments[0] == "train" else 1
        return start(arguments, self.folder, processes=processes, prepare=prepare).end()


def _model(shared: Path) -> Path:
    """A tiny pretrained model's folder."""
    folders = shared / "models"
    if not folders.exists():
        write_models(folders)
    return folders / "bert"
