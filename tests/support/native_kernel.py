"""What tests of the native CPU kernel share: its instruction sets, and the masks that it draws."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from isotrain.kernels.cpu.library import EMULATED_ISA, ISAS, best_isa, native


def isas() -> list[str]:
    """Every instruction set of bfloat16 products that runs here, and the AMX code over plain memory."""
    library = native().library
    names = (*ISAS["bfloat16"], EMULATED_ISA)
    return [name for name in names if library is not None and library.isotrain_cpu_has(name.encode())]


def factors(key: int, rate: float, site: int, row: int, columns: int) -> torch.Tensor:
    """What dropout multiplies one row's values by, float32 [columns]."""
    found = torch.zeros((columns + 15) // 16 * 16)
    library: Any = native().library
    draw = library.isotrain_cpu_probe_dropout
    draw.argtypes = (
        ctypes.c_char_p,
        ctypes.c_uint64,
        ctypes.c_float,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_void_p,
    )
    assert draw((best_isa() or "").encode(), key, rate, site, row, len(found), found.data_ptr())
    return found[:columns]
