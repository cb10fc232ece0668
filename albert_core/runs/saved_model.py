"""The trained weights as one file, which `predict` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ... import UserError, __version__
from ..config.parsing import parse_json
from ..terminal.invocation import command
from .checkpoint import serialized
from .files import make_folder, write_bytes
from .folder import RunFolder
from .manifest import MODEL, vouch, withdraw

FORMAT = "isotrain-model-1"
MODEL_FILE = "model.safetensors"

# One entry for the whole header: safetensors writes several in random order, and equal runs should give equal files.
HEADER_KEY = "isotrain"


def save_model(run: RunFolder, tensors: dict[str, torch.Tensor], belongs_to: dict[str, Any]) -> Path:
    """Writes ``model/model.safetensors``, completely or not at all, and adds it to the run's manifest.

    Args:
        tensors: The model's `state_dict`.
        belongs_to: Model, label and the run's identity, for the file's header.
    """
    make_folder(run.model)
    path = run.model / MODEL_FILE
    header = {"format": FORMAT, "isotrain": __version__, **belongs_to}
    # A completed run that is resumed writes it again, and the header may name the encoder by another path.
    withdraw(run.path, [MODEL])
    write_bytes(path, serialized(tensors, {HEADER_KEY: json.dumps(header)}))
    vouch(run.path, [MODEL])
    return path


def check_finished(run: RunFolder) -> None:
    """Raises UserError if the run has no final model."""
    if not (run.model / MODEL_FILE).is_file():
        resume = command("train", "--resume", str(run.path))
        raise UserError(f"run {str(run.path)!r} has no finished model; let it end (`{resume}`), or name a checkpoint")


def read_model(run: RunFolder) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the identity of a finished run. Raises UserError if they are missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = run.model / MODEL_FILE
    check_finished(run)
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(HEADER_KEY, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safetensors' file is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); resume the run or copy it again") from error
    header = parse_json(written, path, "give the folder of a run of this version")
    if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("identity"), dict):
        raise UserError(f"{path} is no isotrain model of format {FORMAT!r}; give the folder of a run of this version")
    return tensors, header["identity"]
