"""The C interface of the native CPU kernel: loading, argument types, available instruction sets."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from ..native import NativeLibrary, load

INTERFACE = 6

# By what they multiply, fastest first.
ISAS = {"bfloat16": ("amx_bf16", "avx512_bf16"), "int8": ("amx_int8", "avx512_vnni")}
# The AMX code over plain memory, for tests. They are never chosen automatically.
EMULATED_ISA, EMULATED_INT8_ISA = "amx_emulated", "amx_int8_emulated"

_POINTER = ctypes.c_void_p


class Shape(ctypes.Structure):
    """`struct Shape` of native/api.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("hidden", "intermediate", "heads", "embedding", "vocab", "positions")),
        *((name, ctypes.c_int32) for name in ("types", "activation", "project", "layers", "num_layers")),
        ("block_tokens", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


class Embedding(ctypes.Structure):
    """`struct Embedding` of native/common.h."""

    _fields_ = (
        ("width", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("eps", "rate")),
        ("key", ctypes.c_uint64),
        ("tokens", ctypes.c_int64),
        *((name, _POINTER) for name in ("word", "position", "type", "norm_weight", "norm_bias")),
        *((name, _POINTER) for name in ("ids", "positions", "types")),
    )


class EmbeddingGradients(ctypes.Structure):
    """`struct EmbeddingGradients` of native/common.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("word", "position", "type", "norm_weight", "norm_bias")),
        ("padding", ctypes.c_int64),
    )


class TrainingBatch(ctypes.Structure):
    """`struct Batch` of native/train_api.cpp."""

    _fields_ = (
        ("cu_seqlens", _POINTER),
        ("sequences", ctypes.c_int64),
        ("key", ctypes.c_uint64),
        *((name, ctypes.c_float) for name in ("attention_dropout", "attention_output_dropout", "output_dropout")),
        ("keep", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class HeadTensors(ctypes.Structure):
    """`struct HeadTensors` of native/head_step.h."""

    _fields_ = (
        ("features", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("labels", ctypes.c_int32),
        ("weight", _POINTER * 4),
        ("moment", _POINTER * 4),
        ("square", _POINTER * 4),
        ("step", _POINTER * 4),
    )


class AdamSettings(ctypes.Structure):
    """`struct AdamSettings` of native/head_step.h."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
        ("decoupled", ctypes.c_int32),
    )


@cache
def native() -> NativeLibrary:
    """The library with the argument types of its functions declared."""
    found = load("cpu", INTERFACE)
    library = found.library
    if library is not None:
        library.isotrain_cpu_has.argtypes = (ctypes.c_char_p,)
        library.isotrain_cpu_create.argtypes = (
            ctypes.c_char_p,
            ctypes.POINTER(Shape),
            ctypes.POINTER(_POINTER),
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_char_p,
            ctypes.c_size_t,
        )
        library.isotrain_cpu_create.restype = _POINTER
        library.isotrain_cpu_destroy.argtypes = (_POINTER,)
        library.isotrain_cpu_destroy.restype = None
        batch = (*(_POINTER,) * 5, ctypes.c_int64, ctypes.c_int)
        error = (ctypes.c_char_p, ctypes.c_size_t)
        library.isotrain_cpu_encode.argtypes = (*batch, _POINTER, *error)
        library.isotrain_cpu_watch.argtypes = (*batch, *(_POINTER,) * 3, *error)
        library.isotrain_cpu_embed.argtypes = (ctypes.c_char_p, ctypes.POINTER(Embedding), _POINTER)
        library.isotrain_cpu_embed_backward.argtypes = (
            ctypes.c_char_p,
            ctypes.POINTER(Embedding),
            _POINTER,
            ctypes.POINTER(EmbeddingGradients),
        )
        library.isotrain_cpu_train_create.argtypes = (
            ctypes.c_char_p,
            ctypes.POINTER(Shape),
            ctypes.POINTER(ctypes.c_int32),
            *error,
        )
        library.isotrain_cpu_train_create.restype = _POINTER
        library.isotrain_cpu_train_tape.restype = _POINTER
        for name in ("isotrain_cpu_train_destroy", "isotrain_cpu_train_destroy_tape"):
            getattr(library, name).argtypes = (_POINTER,)
            getattr(library, name).restype = None
        library.isotrain_cpu_train_forward.argtypes = (*(_POINTER,) * 8, *error)
        library.isotrain_cpu_train_backward.argtypes = (_POINTER, _POINTER, ctypes.c_int, *(_POINTER,) * 3, *error)
        library.isotrain_cpu_head_workspace.argtypes = (ctypes.POINTER(HeadTensors), ctypes.c_int)
        library.isotrain_cpu_head_workspace.restype = ctypes.c_size_t
        library.isotrain_cpu_head_step.argtypes = (
            ctypes.POINTER(HeadTensors),
            _POINTER,
            _POINTER,
            ctypes.c_int,
            ctypes.c_float,
            ctypes.POINTER(AdamSettings),
            _POINTER,
            _POINTER,
        )
        library.isotrain_cpu_unit_rate.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_double)
        library.isotrain_cpu_unit_rate.restype = ctypes.c_double
        library.isotrain_cpu_vectors.restype = ctypes.c_char_p
        library.isotrain_cpu_multiply_add_rate.argtypes = (ctypes.c_double,)
        library.isotrain_cpu_multiply_add_rate.restype = ctypes.c_double
    return found


def best_isa(dtype: str = "bfloat16") -> str | None:
    """The fastest instruction set of the native kernel for products of `dtype` that runs here, or None."""
    library = native().library
    if library is None:
        return None
    return next((isa for isa in ISAS[dtype] if library.isotrain_cpu_has(isa.encode())), None)


def multiplied(isa: str) -> str:
    """What an instruction set of the native kernel multiplies."""
    return "int8" if isa in (*ISAS["int8"], EMULATED_INT8_ISA) else "bfloat16"


def why_not() -> str | None:
    """Why the native kernel can't run here and what to do about it, or None if it can."""
    found = native()
    if found.library is None:
        return found.reason
    if best_isa() is None:
        return "the native kernel needs AMX or AVX512-BF16, and this processor has neither: use kernel portable"
    return None


def unit_rate(isa: str, working_set_bytes: int, seconds: float = 0.5) -> float:
    """Operations/s of one thread's register blocks of `isa`, their operands fed from `working_set_bytes` of memory.

    Only the sums of one block are written, so this bounds every product that streams its operands from there.
    """
    library = native().library
    return 0.0 if library is None else library.isotrain_cpu_unit_rate(isa.encode(), working_set_bytes, seconds)


def vectors() -> str | None:
    """The name of the processor's widest float32 vectors; None without AVX2 and FMA or the native library."""
    library = native().library
    name = None if library is None else library.isotrain_cpu_vectors()
    return None if name is None else name.decode()


def multiply_add_rate(seconds: float = 0.5) -> float:
    """Operations/s of one thread's float32 multiply-adds whose operands stay in registers: no product exceeds it.

    0 where `vectors` is None.
    """
    library = native().library
    return 0.0 if library is None else library.isotrain_cpu_multiply_add_rate(seconds)


def second_level_cache_bytes() -> int:
    """Size of a core's second-level cache according to the system, or 1 MiB if unknown."""
    try:
        size = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError):
        size = 0
    if size <= 0:
        path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
        text = path.read_text().strip() if path.exists() else ""
        size = int(text[:-1]) * 1024 if text.endswith("K") and text[:-1].isdecimal() else 0
    return size if size > 0 else 2**20
