"""Reads the tensors of weight files, checkpoints and runs in any of their formats."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ... import UserError
from .checkpoint import MANIFEST as CHECKPOINT_MANIFEST
from .checkpoint import verify_checkpoint
from .manifest import CONFIG, MODEL, check_run
from .saved_model import MODEL_FILE


def weight_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, tensor) of every array in `path`, one at a time.

    Args:
        path: An .npz or .safetensors file, a save_pretrained folder (also sharded), a checkpoint, or a run (its
            finished model, else its last checkpoint).

    Raises:
        UserError: Anything else, a file that can't be read, or, in a checkpoint or a run, a file with other bytes than
            when it was written.
    """
    if path.suffix == ".npz" and path.is_file():
        yield from _npz(path)
        return
    for file in _safetensors_files(path):
        yield from _safetensors(file)


def _safetensors_files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if not path.is_dir():
        found = "no such file or folder" if not path.exists() else "of another kind"
        raise UserError(
            f"{str(path)!r} is {found}; give an .npz or .safetensors file, a checkpoint folder or a run folder"
        )
    if (path / CHECKPOINT_MANIFEST).is_file() and not (path / CONFIG).is_file():
        verify_checkpoint(path)
    shards = [shard for shard in sorted(path.glob("model*.safetensors")) if shard.is_file()]
    if shards:
        return shards
    model = path / MODEL
    if model.is_file():
        check_run(path, [MODEL], encoder=False)
        return [model]
    checkpoints = sorted(path.glob(f"checkpoints/step-*/{MODEL_FILE}"))
    if checkpoints:
        verify_checkpoint(checkpoints[-1].parent)
        return [checkpoints[-1]]
    raise UserError(
        f"folder {str(path)!r} holds no {MODEL_FILE}; give a folder that save_pretrained wrote, a checkpoint, or a run "
        "that has one"
    )


def _npz(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            _refuse_bomb(path, file.zip.infolist())
            for name in file.files:
                array = file[name]
                # numpy returns other kinds of files in the archive as bytes.
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    wide = np.float64 if array.itemsize > 4 else np.float32
                    yield name, torch.from_numpy(np.ascontiguousarray(array, dtype=wide))
    except UserError:
        raise
    # MemoryError: the header names a size that no file has.
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, MemoryError) as error:
        why = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(f"{path} is damaged or no .npz of plain arrays{why}; write it with numpy.savez") from error


def _refuse_bomb(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Weights hardly shrink: a small file that unpacks to gigabytes holds none."""
    unpacked, packed = sum(member.file_size for member in members), sum(member.compress_size for member in members)
    if unpacked > max(2**30, 100 * packed):
        raise UserError(f"{path} unpacks from {packed:,} to {unpacked:,} bytes; write true weights with numpy.savez")


def _safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); copy or save it again") from error
