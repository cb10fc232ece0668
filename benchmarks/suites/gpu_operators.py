"""Times the operators of the GPU encoder against their alternatives.

`kernels.cuda.Operators` names those in use. This measures what its defaults should be on a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...backends import Backend
from ...kernels.packed.portable import ACTIVATIONS
from ...kernels.weights import EncoderConfig

Run = Callable[[], Any]

LEAST_SECONDS = 0.02


def time_operators(
    backend: Backend, config: EncoderConfig, lengths: np.ndarray, dtype: torch.dtype, rounds: int, compiled: bool
) -> dict[str, dict[str, Any]]:
    """Median seconds per call of each way to compute attention, residual + LayerNorm and bias + activation.

    Args:
        lengths: Tokens of each sequence.

    Returns:
        By operator and way, the seconds, or the reason that the way can't run here.
    """
    rows = int(lengths.sum())
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return backend.place(torch.randn(*shape, generator=generator).to(kind))

    tables = {
        "attention": _attention(backend, config, lengths, values(rows, 3 * config.hidden_size)),
        "residual and LayerNorm": _norm(config, values, rows, compiled),
        "bias and activation": _activation(config, values, rows, compiled),
    }
    return {name: _timed(backend, ways, rounds) for name, ways in tables.items()}


def fastest(ways: dict[str, Any]) -> str:
    """The name of the fastest way, or an empty string if none ran."""
    ran = {name: seconds for name, seconds in ways.items() if isinstance(seconds, float)}
    return min(ran, key=lambda name: ran[name]) if ran else ""


def _attention(backend: Backend, config: EncoderConfig, lengths: np.ndarray, qkv: torch.Tensor) -> dict[str, Run]:
    edges = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    bounds = backend.place(torch.from_numpy(edges))
    starts, ends = (backend.place(torch.from_numpy(np.repeat(part, lengths))) for part in (edges[:-1], edges[1:]))
    query, key, value = qkv.split(config.hidden_size, dim=1)
    longest = int(lengths.max())

    def ours() -> torch.Tensor:
        from ...kernels.cuda import triton_kernels

        return triton_kernels.attention(query, key, value, starts, ends, config.num_heads)

    def flash() -> torch.Tensor:
        from ...kernels.cuda.encoder import flash_attention

        q, k, v = (part.unflatten(1, (config.num_heads, -1)) for part in (query, key, value))
        return flash_attention(q, k, v, bounds, bounds, longest, longest)

    return {"triton": ours, "flash": flash}


def _norm(config: EncoderConfig, values: Callable[..., torch.Tensor], rows: int, compiled: bool) -> dict[str, Run]:
    width = config.hidden_size
    residual, update, bias = values(rows, width, kind=torch.float32), values(rows, width), values(width)
    weight, shift = (values(width, kind=torch.float32) for _ in range(2))

    def plain(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = functional.layer_norm(x + y + bias, (width,), weight, shift, config.layer_norm_eps)
        return out, out.to(y.dtype)

    def ours() -> Any:
        from ...kernels.cuda import triton_kernels

        return triton_kernels.add_norm(residual, update, bias, weight, shift, config.layer_norm_eps)

    ways: dict[str, Run] = {"triton": ours, "torch": lambda: plain(residual, update)}
    if compiled:
        faster = torch.compile(plain)
        ways["torch.compile"] = lambda: faster(residual, update)
    return ways


def _activation(
    config: EncoderConfig, values: Callable[..., torch.Tensor], rows: int, compiled: bool
) -> dict[str, Run]:
    """The feed-forward's first product and its activation, since some ways are a part of the product."""
    hidden, inner = config.hidden_size, config.intermediate_size
    x, weight, bias = values(rows, hidden), 0.05 * values(inner, hidden), values(inner)
    function = ACTIVATIONS[config.activation]

    def plain(rows: torch.Tensor) -> torch.Tensor:
        return function(functional.linear(rows, weight, bias))

    def ours() -> torch.Tensor:
        from ...kernels.cuda import triton_kernels

        product = functional.linear(x, weight)
        return triton_kernels.bias_activation_(product, bias, triton_kernels.ACTIVATIONS[config.activation])

    ways: dict[str, Run] = {"triton": ours, "torch": lambda: plain(x)}
    if config.activation in ("gelu_new", "gelu_pytorch_tanh"):
        ways["epilogue"] = lambda: torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    if compiled:
        faster = torch.compile(plain)
        ways["torch.compile"] = lambda: faster(x)
    return ways


def _timed(backend: Backend, ways: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Times blocks of the ways in turn, so that a drifting clock affects all alike."""
    results: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name, run in ways.items():
        try:
            run()
            once = block_seconds(backend, run, 1)
        except Exception as error:  # noqa: BLE001 (compilers and libraries raise any error)
            results[name] = f"unavailable: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        counts[name] = max(1, min(1000, int(LEAST_SECONDS / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in counts}
    for number in range(rounds):
        for name in list(counts) if number % 2 == 0 else list(counts)[::-1]:
            samples[name].append(block_seconds(backend, ways[name], counts[name]))
    return results | {name: median(values) for name, values in samples.items()}


def block_seconds(backend: Backend, run: Run, count: int) -> float:
    """Mean seconds of `count` calls before one fence."""
    backend.synchronize()
    begin = time.perf_counter_ns()
    for _ in range(count):
        run()
    backend.step_boundary()
    backend.synchronize()
    return (time.perf_counter_ns() - begin) / 1e9 / count
