"""Cuts the part of the golden vectors that lies here out of the full set: python select_vectors.py FULL_SET_FOLDER.

Names, shapes' meaning and bits are those of the full set; only rows, columns and instances are left out. Rows of a
product, a normalisation or a packer's input depend on nothing but themselves, and columns are kept 16 at a time.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def select(full: Path) -> None:
    host = dict(np.load(full / "ttnn_host_formats.npz"))
    _save("ttnn_host_formats.npz", host)

    mvmul = {name: values[:3] for name, values in np.load(full / "ttsim_mvmul.npz").items()}
    _save("ttsim_mvmul.npz", mvmul)

    matmul = {}
    for name, values in np.load(full / "ttsim_matmul.npz").items():
        deep = not name.startswith("k32_")
        rows, columns = (4, 16) if deep else (16, 16)
        matmul[name] = values[:rows] if name.endswith("_A") else values[:, :columns]
        if not name.endswith(("_A", "_B")):
            matmul[name] = values[:rows, :columns]
    _save("ttsim_matmul.npz", matmul)

    rest = {}
    for name, values in np.load(full / "ttsim_elw_mad_pack.npz").items():
        if name.startswith("elw_"):
            rest[name] = values[:4]
        elif name.startswith("pack_"):
            rest[name] = values[:48]
        elif name.startswith("mad_"):
            rest[name] = values[:512]
        elif name.startswith("erratum_"):
            rest[name] = values
    _save("ttsim_elw_mad_pack.npz", rest)

    linear = {}
    for name, values in np.load(full / "ttnn_sim_linear.npz").items():
        if name.endswith("_A"):
            linear[name] = values[:4]
        else:
            linear[name] = values[:4, :16] if name.endswith("_Y") else values[:, :16]
    _save("ttnn_sim_linear.npz", linear)

    ops = {}
    for name, values in np.load(full / "ttnn_sim_ops.npz").items():
        case, part = name.rsplit("_", 1)
        if case == "linear_gelu":
            ops[name] = values[:8, :16] if part == "Y" else values[:8] if part == "in0" else values[:, :16]
        elif case == "sdpa":
            ops[name] = values[:, :1]
        else:
            ops[name] = values if values.shape[0] == 1 else values[:8]
    _save("ttnn_sim_ops.npz", ops)

    unary = np.load(full / "ttnn_sim_unary_bf16_full.npz")
    digests = {
        name: np.frombuffer(hashlib.sha256(values.astype("<u2").tobytes()).digest(), np.uint8)
        for name, values in unary.items()
        if name not in ("x", "gelu_def")
    }
    _save("ttnn_sim_unary_sha256.npz", digests)


def _save(name: str, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(HERE / name, **arrays)


if __name__ == "__main__":
    select(Path(sys.argv[1]))
