"""Runs of users' own workloads: the shipped examples, and small ones that tests write themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isotrain.albert_core.config.load import as_set

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "workloads"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))

# A line fitted with dropout, by four batches.
LINE = """\
import torch
from torch import nn


class Line:
    def model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))

    def batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(5, 3, generator=generator) for _ in range(4)]

    def loss(self, model, batch):
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()
"""


def write_workload(folder: Path, text: str = LINE) -> str:
    """Writes a workload's file into `folder` and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "own.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def own_settings(workload: str, folder: Path, **overrides: Any) -> list[str]:
    """A short float32 run of a workload as ``key=value`` strings, with runs under `folder`."""
    values = {
        "workload": workload,
        "dtype": "float32",
        "steps_freq": 1,
        "num_epochs": 1,
        "threads": 1,
        "project_dir": str(folder / "runs"),
    } | overrides
    return [as_set(key, value) for key, value in values.items()]
