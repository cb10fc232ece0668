"""The matrix unit in C++ (kernels/tt/native), or the numpy model if it wasn't built."""

from __future__ import annotations

import ctypes
import logging
from functools import cache

import numpy as np
import torch

from ... import UserError
from ..native import NativeLibrary, load
from . import model

log = logging.getLogger("isotrain")

INTERFACE = 2
ENGINES = ("avx512", "avx2", "portable", "numpy")
# Multiply-adds below which starting a thread costs more than it saves.
SMALL_PRODUCT = 1 << 17
OPERATIONS = ("add", "subtract", "multiply")
ARCHITECTURES = ("wormhole", "blackhole")


@cache
def library() -> NativeLibrary:
    """The extension with the argument types of its functions declared, or the reason why there is none."""
    found = load("tt", INTERFACE)
    if found.library is not None:
        pointer, size, number, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p
        found.library.isotrain_tt_engine.argtypes = (text,)
        found.library.isotrain_tt_engine.restype = text
        found.library.isotrain_tt_matmul.argtypes = (*(pointer, size) * 3, *(number,) * 7, text)
        found.library.isotrain_tt_elementwise.argtypes = (*(pointer,) * 3, size, *(number,) * 4, text)
    return found


def serves(x: torch.Tensor) -> bool:
    """Whether the extension exists and `x` is on the host, where it computes."""
    return x.is_cpu and library().library is not None


def engines() -> list[str]:
    """The engines that run here, fastest first. ``numpy`` always does."""
    found = library().library
    if found is None:
        return ["numpy"]
    return [name for name in ENGINES[:-1] if _engine(found, name) == name] + ["numpy"]


def matmul(
    in0: torch.Tensor,
    in1: torch.Tensor,
    fidelity: str,
    *,
    fp32_dest: bool,
    arch: str = "wormhole",
    dst: torch.Tensor | None = None,
    engine: str = "",
    threads: int | None = None,
) -> torch.Tensor:
    """The contents of Dst after in0 [m, k] @ in1 [k, n], bit for bit: float32 [m, n] on the host.

    Args:
        fidelity: lofi, hifi2, hifi3 or hifi4.
        dst: The previous contents of Dst (None: zeros).
        engine: One of ENGINES. By default the fastest.
        threads: By default torch's own number. The result doesn't depend on it.

    Raises:
        UserError: Shapes don't fit, or the engine doesn't run here.
    """
    if in0.ndim != 2 or in1.ndim != 2 or in0.shape[1] != in1.shape[0]:
        raise UserError(f"in0 {tuple(in0.shape)} and in1 {tuple(in1.shape)} must be matrices of [m, k] and [k, n]")
    if fidelity not in model.PHASES:
        raise UserError(f"math_fidelity {fidelity!r} is unknown; allowed are {', '.join(model.PHASES)}")
    if arch not in ARCHITECTURES:
        raise UserError(f"arch {arch!r} is unknown; allowed are {', '.join(ARCHITECTURES)}")
    a, b = bits(in0), bits(in1)
    out = np.zeros((a.shape[0], b.shape[1]), np.uint32) if dst is None else bits(dst).copy()
    native = _chosen(engine)
    if native is None:
        return values(model.matmul(a, b, fidelity, fp32_dest, arch, out))
    status = native.isotrain_tt_matmul(
        a.ctypes.data,
        a.strides[0] // 4,
        b.ctypes.data,
        b.strides[0] // 4,
        out.ctypes.data,
        out.strides[0] // 4,
        *a.shape,
        b.shape[1],
        model.PHASES[fidelity],
        fp32_dest,
        arch == "wormhole",
        threads or (torch.get_num_threads() if a.size * b.shape[1] > SMALL_PRODUCT else 1),
        engine.encode(),
    )
    if status:
        raise MemoryError("the matrix unit's emulation ran out of memory")
    return values(out)


def elementwise(
    operation: str,
    a: torch.Tensor,
    b: torch.Tensor,
    fidelity: str = "hifi4",
    *,
    fp32_dest: bool,
    arch: str = "wormhole",
    engine: str = "",
) -> torch.Tensor:
    """The contents of Dst, zero before, after a + b, a - b (ELWADD) or a * b (ELWMUL, a in SrcA): float32 on the host.

    `operation` is add, subtract or multiply. a and b are float32 of one shape. The other arguments are those of
    `matmul`.
    """
    if a.shape != b.shape or operation not in OPERATIONS:
        raise UserError(f"{operation!r} of {tuple(a.shape)} and {tuple(b.shape)}: one shape, {', '.join(OPERATIONS)}")
    x, y = bits(a.contiguous()), bits(b.contiguous())
    native = _chosen(engine)
    if native is None:
        out = np.zeros_like(x)
        if operation != "multiply":
            return values(model.elwadd(x, y, out, fp32_dest, subtract=operation == "subtract", arch=arch))
        for phase in range(model.PHASES[fidelity]):
            out = model.elwmul(x, y, out, phase, fp32_dest, arch)
        return values(out)
    out = np.empty_like(x)
    native.isotrain_tt_elementwise(
        x.ctypes.data,
        y.ctypes.data,
        out.ctypes.data,
        x.size,
        OPERATIONS.index(operation),
        model.PHASES[fidelity],
        fp32_dest,
        arch == "wormhole",
        engine.encode(),
    )
    return values(out)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """uint32 patterns of a float32 tensor with contiguous rows. Shares memory if possible."""
    host = tensor.detach().to("cpu", torch.float32)
    if host.stride(-1) != 1 or (host.ndim == 2 and host.stride(0) < host.shape[1]):
        host = host.contiguous()
    return host.numpy().view(np.uint32)


def values(patterns: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(patterns.view(np.float32))


def _chosen(engine: str) -> ctypes.CDLL | None:
    """The extension that runs `engine` ("": the fastest), None for numpy's model. Raises UserError for another one."""
    native = library().library
    if native is None and not engine:
        _say_slow()
    elif engine != "numpy" and (native is None or (engine and _engine(native, engine) != engine)):
        raise UserError(f"engine {engine!r} doesn't run here; these do: {', '.join(engines())}")
    return None if engine == "numpy" else native


def _engine(native: ctypes.CDLL, name: str) -> str:
    return (native.isotrain_tt_engine(name.encode()) or b"").decode()


@cache
def _say_slow() -> None:
    log.warning("exact TT arithmetic runs on the numpy model, some hundred times slower: %s", library().reason)
