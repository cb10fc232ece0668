"""Times the parts of a pass against their alternatives: the operators that `kernels.cuda.Operators` names, the matrix
products, and what small batches take with and without graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...albert_core.features.source import frozen_encoder
from ...albert_core.model.head import ClassificationHead
from ...albert_core.terminal.text import error_line
from ...backends import Backend
from ...backends.host.choices import Run, timed_in_turns
from ...kernels.cuda.ways import activation_ways, attention_ways
from ...kernels.packed import PackedBatch, PaddedBatch
from ...kernels.weights import EncoderConfig
from .inputs import Inputs
from .result import Operator, Operators

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
        "attention": lambda: dict(attention_ways(values(rows, 3 * config.hidden_size), lengths, config.num_heads)),
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
                seconds = timed_in_turns(backend, ways(), inputs.size.rounds, LEAST_SECONDS)
        except RuntimeError as error:
            seconds = {"all ways": error_line(error)}
        seconds = {way: f"unavailable: {taken}" if isinstance(taken, str) else taken for way, taken in seconds.items()}
        # Products of several shapes don't compete.
        found[name] = Operator(seconds=seconds, fastest="" if name == "matrix products" else fastest(seconds))
        keep(Operators(operators=found))
    return Operators(operators=found)


def fastest(ways: dict[str, Any]) -> str:
    """The name of the fastest way, or an empty string if none ran."""
    ran = {name: seconds for name, seconds in ways.items() if isinstance(seconds, float)}
    return min(ran, key=lambda name: ran[name]) if ran else ""


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
    hidden, inner = config.hidden_size, config.intermediate_size
    x, weight, bias = values(rows, hidden), 0.05 * values(inner, hidden), values(inner)
    ways: dict[str, Run] = {**activation_ways(config.activation, x, weight, bias)}
    if compiler is not None:
        faster = torch.compile(ways["torch"], backend=compiler)
        ways["torch.compile"] = faster
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
