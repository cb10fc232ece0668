"""Snapshots to save, and a way to compare what came back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain.albert_core.runs.checkpoint import Snapshot


def build_snapshot(step: int, metrics: dict[str, float] | None = None, width: int = 4) -> Snapshot:
    """A snapshot whose every value follows from `step`."""
    parameter = torch.nn.Parameter(torch.full((width, width), float(step)))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    return Snapshot(
        model={"head.weight": parameter},
        optimizer=optimizer.state_dict(),
        state_tensors={"rng.cpu": torch.Generator().manual_seed(step).get_state()},
        state={"position": step * 8},
        identity={"seed": 23, "encoder": "abc"},
        metrics=metrics or {},
        step=step,
        epoch=step // 10,
    )


@pytest.fixture
def make_snapshot() -> Callable[..., Snapshot]:
    return build_snapshot


def same(left: Any, right: Any) -> bool:
    """Equality down to types, bits, dtypes and the order of dict keys."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.fixture
def identical() -> Callable[[Any, Any], bool]:
    return same


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its content."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
