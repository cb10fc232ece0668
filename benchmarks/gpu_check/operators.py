"""Times the parts of a pass against their alternatives: the operators that `kernels.cuda.Operators` names, the matrix
products, and what small batches take with and without graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...albert_core.features.source import frozen_encoder
from ...albert_core.model.head import ClassificationHead
from ...albert_core.terminal.text import error_line
from ...backends import Backend
from ...kernels.packed import PackedBatch, PaddedBatch
from ...kernels.packed.portable import ACTIVATIONS
from ...kernels.weights import EncoderConfig
from .inputs import Inputs, block_seconds
from .result import Operator, Operators

Run = Callable[[], Any]

LEAST_SECONDS = 0.02


def time_operators(inputs: Inputs, compiled: bool, keep: Callable[[Operators], object]) -> Operators:
    """Median seconds per call of each way to do each part. Large batches have `batch_tokens` tokens.

    Args:
        compiled: Times the parts that torch.compile can do, with its way; else all parts, without it.
        keep: Called with the result so far after each part.
    """
    backend, config = inputs.backend, inputs.encoder.weights.config
    compiler = inputs.size.compiler if compiled else None
    lengths = np.sort(inputs.texts.lengths)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), inputs.size.batch_tokens)]
    rows = int(lengths.sum())
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, inputs.policy.compute)

    def values(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return backend.place(torch.randn(*shape, generator=generator).to(kind))

    parts: dict[str, Callable[[], dict[str, Run]]] = {
        "attention": lambda: _attention(backend, config, lengths, values(rows, 3 * config.hidden_size)),
        "residual and LayerNorm": lambda: _norm(config, values, rows, compiler),
        "bias and activation": lambda: _activation(config, values, rows, compiler),
        "matrix products": lambda: _products(config, values, rows),
        "forward of 8 texts": lambda: _small_forward(inputs),
        "head step of 8 texts": lambda: _head_step(backend, config.hidden_size, values),
    }
    found: dict[str, Operator] = {}
    for name, ways in parts.items():
        if compiled and name not in ("residual and LayerNorm", "bias and activation"):
            continue
        try:
            with backend.single_threaded() if "8 texts" in name else nullcontext():
                seconds = _timed(backend, ways(), inputs.size.rounds)
        except RuntimeError as error:
            seconds = {"all ways": f"unavailable: {error_line(error)}"}
        # Products of several shapes don't compete.
        found[name] = Operator(seconds=seconds, fastest="" if name == "matrix products" else fastest(seconds))
        keep(Operators(operators=found))
    return Operators(operators=found)


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


def _norm(
    config: EncoderConfig, values: Callable[..., torch.Tensor], rows: int, compiler: str | None
) -> dict[str, Run]:
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
    if compiler is not None:
        faster = torch.compile(plain, backend=compiler)
        ways["torch.compile"] = lambda: faster(residual, update)
    return ways


def _activation(
    config: EncoderConfig, values: Callable[..., torch.Tensor], rows: int, compiler: str | None
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
    if compiler is not None:
        faster = torch.compile(plain, backend=compiler)
        ways["torch.compile"] = lambda: faster(x)
    return ways


def _products(config: EncoderConfig, values: Callable[..., torch.Tensor], rows: int) -> dict[str, Run]:
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {"qkv": (hidden, 3 * hidden), "output": (hidden, hidden), "up": (hidden, inner), "down": (inner, hidden)}
    return {
        f"{name} {rows}x{width}x{out}": partial(functional.linear, values(rows, width), values(out, width))
        for name, (width, out) in shapes.items()
    }


def _small_forward(inputs: Inputs) -> dict[str, Run]:
    backend, batch = inputs.backend, inputs.packed(np.arange(8))
    given: dict[str, PackedBatch | PaddedBatch] = {"auto": batch, "portable": batch, "transformers": batch.to_padded()}
    return {
        kernel: partial(frozen_encoder(inputs.encoder, backend, inputs.policy, kernel), backend.place(layout))
        for kernel, layout in given.items()
    }


def _head_step(backend: Backend, hidden: int, values: Callable[..., torch.Tensor]) -> dict[str, Run]:
    features, labels = values(8, hidden, kind=torch.float32), backend.place(torch.arange(8))

    def steps() -> tuple[Callable[..., torch.Tensor], torch.optim.Optimizer]:
        head = backend.place(ClassificationHead(hidden, 256, 77))
        optimizer = torch.optim.AdamW(head.parameters(), 1e-4, **backend.adam_options())

        def step(inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            loss = functional.cross_entropy(head(inputs), wanted)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step, optimizer

    ways = {"plain": steps()[0], "backend": backend.capture_step(*steps())}
    return {name: partial(way, features, labels) for name, way in ways.items()}


def _timed(backend: Backend, ways: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Times blocks of the ways in turn, so that a drifting clock affects all alike."""
    results: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name, run in ways.items():
        try:
            # The first call compiles and the second captures.
            block_seconds(backend, run, 2)
            once = block_seconds(backend, run, 1)
        except Exception as error:  # noqa: BLE001 (compilers and libraries raise any error)
            results[name] = f"unavailable: {error_line(error)}"
            continue
        counts[name] = max(1, min(1000, int(LEAST_SECONDS / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in counts}
    for number in range(rounds):
        for name in list(counts) if number % 2 == 0 else list(counts)[::-1]:
            samples[name].append(block_seconds(backend, ways[name], counts[name]))
    return results | {name: median(values) for name, values in samples.items()}
