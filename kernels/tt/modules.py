"""Modules of any kind in the emulated device's arithmetic: what their forward pass calls is computed by it instead.

A module's operations are met where torch's own functions are called. That serves transformers' modules, packed batches
and a user's own module alike, and leaves the loss alone that is computed outside. Parts that torch computes in one call
of its own, such as nn.MultiheadAttention and einsum, aren't seen: `UnknownOperations` names them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..ideal import RoundedResults
from .arithmetic import Arithmetic
from .autograd import TtAdd, TtEmbedding, TtFork, TtFunction, TtLayerNorm, TtLinear, TtMatmul, TtSoftmax, linear_result
from .formats import host_convert

# The most negative finite bfloat16, which stands for a masked score: no vector shows what the device makes of -inf.
MASKED = -3.3895313892515355e38


class EmulatedOperations(TorchFunctionMode):
    """A context in which float32 tensors are the device's bfloat16 ones, and its arithmetic computes on them.

    Operands are rounded to bfloat16 where they are read, and results are bfloat16 values in float32 tensors. Other
    functions compute in float32.

    Args:
        arithmetic: How products are computed.
        float32: The operations that stay in float32: linear, matmul, softmax, layer_norm, activation, add, embedding.
    """

    def __init__(self, arithmetic: Arithmetic, float32: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.arithmetic, self.float32 = arithmetic, float32
        self._rest: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        emulated = _EMULATED.get(func)
        result = NotImplemented if emulated is None else emulated(self, *args, **(kwargs or {}))
        return self.unknown(func, *args, **(kwargs or {})) if result is NotImplemented else result

    def unknown(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function that the emulation doesn't compute."""
        return func(*args, **kwargs)

    def run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Calls `func` in this context."""
        result: torch.Tensor = self.__torch_function__(func, (), args, kwargs)
        return result

    def takes(self, operation: str, *operands: Any) -> bool:
        """Whether the device's arithmetic computes `operation` of these operands."""
        return operation not in self.float32 and all(
            isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.ndim > 0 and x.numel() > 0 for x in operands
        )

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as one operation reads it, bfloat16. Gradients of several reads are added by the device."""
        if x.is_leaf or not torch.is_grad_enabled():
            return x.to(torch.bfloat16)
        version, rest = self._rest.get(x, (None, None))
        if rest is None or version != x._version:
            rest = x.to(torch.bfloat16)
        now, rest = TtFork.apply(rest, self.arithmetic)
        self._rest[x] = (x._version, rest)
        return now


class UnknownOperations(EmulatedOperations):
    """All operations in the device's arithmetic. What the emulation doesn't know of them and rounds is in `names`."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__(arithmetic)
        self.names: dict[str, None] = {}

    def unknown(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with RoundedResults() as rounded:
            result = func(*args, **kwargs)
        if rounded.any:
            self.names[func.__name__.strip("_").removesuffix("_forward")] = None
        return result


def active() -> EmulatedOperations | None:
    """The context that is in force."""
    mode = torch.overrides._get_current_function_mode()
    return mode if isinstance(mode, EmulatedOperations) else None


def emulate_modules(module: nn.Module, arithmetic: Arithmetic, float32: frozenset[str] = frozenset()) -> nn.Module:
    """Makes every nn.Linear in `module` compute by `TtLinear`, and returns `module`. Parameters stay where they are.

    Everything else (activations, loss) stays torch's own, except in the context `EmulatedOperations`.

    Args:
        module: On the host.
        arithmetic: How products are computed.
        float32: With "linear" in it, linear layers stay torch's own.
    """
    for part in module.modules():
        # Set on the layer itself, which others may hold.
        if isinstance(part, nn.Linear) and "linear" not in float32:
            vars(part)["forward"] = _emulated_linear(part, arithmetic)
        elif _is_new_gelu(part):
            vars(part)["forward"] = _emulated_gelu(part)
    return module


def plain_modules(module: nn.Module) -> nn.Module:
    """Makes `module` compute as torch does again (undoes `emulate_modules`), and returns `module`.

    A copy of an emulated module always needs this, because its layers would use the original's weights.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear) or _is_new_gelu(part):
            vars(part).pop("forward", None)
    return module


def _is_new_gelu(part: nn.Module) -> bool:
    """Whether it is transformers' GELU in single steps, for which the device has one function."""
    kind = getattr(sys.modules.get("transformers.activations"), "NewGELUActivation", None)
    return kind is not None and isinstance(part, kind)


def _emulated_linear(layer: nn.Linear, arithmetic: Arithmetic) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if active() is not None:
            return functional.linear(x, layer.weight, layer.bias)
        if torch.is_grad_enabled():
            found: torch.Tensor = TtLinear.apply(x, layer.weight, layer.bias, arithmetic)
            return found
        return linear_result(x, layer.weight, layer.bias, arithmetic)

    return forward


def _emulated_gelu(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if active() is not None:
            return functional.gelu(x, approximate="tanh")
        found: torch.Tensor = type(layer).forward(layer, x)
        return found

    return forward


def _linear(mode: EmulatedOperations, input: Any, weight: Any, bias: Any = None) -> Any:
    given = [part for part in (input, weight, bias) if part is not None]
    # torch's own error says which shapes don't fit.
    if not mode.takes("linear", *given) or weight.ndim != 2 or input.shape[-1] != weight.shape[1]:
        return NotImplemented
    return TtLinear.apply(mode.read(input), weight, bias, mode.arithmetic).to(torch.float32)


def _matmul(mode: EmulatedOperations, input: Any, other: Any, *, out: Any = None) -> Any:
    if out is not None or not mode.takes("matmul", input, other) or min(input.ndim, other.ndim) < 2:
        return NotImplemented
    if input.shape[-1] != other.shape[-2]:
        return NotImplemented
    a, b = mode.read(input), mode.read(other)
    if b.ndim == 2:
        product = TtMatmul.apply(a.flatten(0, -2), b, mode.arithmetic).view(*a.shape[:-1], b.shape[-1])
    else:
        leading = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        product = TtMatmul.apply(a.expand(*leading, *a.shape[-2:]), b.expand(*leading, *b.shape[-2:]), mode.arithmetic)
    return product.to(torch.float32)


def _add(mode: EmulatedOperations, input: Any, other: Any, *, alpha: Any = 1, out: Any = None) -> Any:
    return _sum(mode, input, other, alpha, out, subtract=False)


def _subtract(mode: EmulatedOperations, input: Any, other: Any, *, alpha: Any = 1, out: Any = None) -> Any:
    return _sum(mode, input, other, alpha, out, subtract=True)


def _sum(mode: EmulatedOperations, input: Any, other: Any, alpha: Any, out: Any, subtract: bool) -> Any:
    if alpha != 1 or out is not None or not mode.takes("add", input, other):
        return NotImplemented
    return TtAdd.apply(mode.read(input), mode.read(other), mode.arithmetic, subtract).to(torch.float32)


def _in_place(operation: Callable[..., Any]) -> Callable[..., Any]:
    def run(mode: EmulatedOperations, input: Any, *args: Any, **kwargs: Any) -> Any:
        result = operation(mode, input, *args, **kwargs)
        return result if result is NotImplemented else input.copy_(result)

    return run


def _softmax(
    mode: EmulatedOperations, input: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None, *, out: Any = None
) -> Any:
    if dim is None or not isinstance(_stacklevel, int) or dtype not in (None, torch.float32) or out is not None:
        return NotImplemented
    if isinstance(input, torch.Tensor) and input.dtype == torch.float32:
        input = input.clamp(min=MASKED) if input.numel() and float(input.detach().min()) < MASKED else input
    if not mode.takes("softmax", input):
        return NotImplemented
    found = TtSoftmax.apply(mode.read(input).transpose(dim, -1), mode.arithmetic)
    return found.transpose(dim, -1).to(torch.float32)


def _layer_norm(
    mode: EmulatedOperations, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if len(normalized_shape) != 1:
        return NotImplemented
    weight = torch.ones(tuple(normalized_shape)) if weight is None else weight
    bias = torch.zeros(tuple(normalized_shape)) if bias is None else bias
    if not mode.takes("layer_norm", input, weight, bias):
        return NotImplemented
    parts = mode.read(input), mode.read(weight), mode.read(bias)
    return TtLayerNorm.apply(*parts, eps, mode.arithmetic).to(torch.float32)


def _function(name: str) -> Callable[..., Any]:
    def run(mode: EmulatedOperations, input: Any, inplace: bool = False, *, out: Any = None) -> Any:
        if inplace or out is not None or not mode.takes("activation", input):
            return NotImplemented
        return TtFunction.apply(mode.read(input), name, mode.arithmetic).to(torch.float32)

    return run


def _gelu(mode: EmulatedOperations, input: Any, *, approximate: str = "none") -> Any:
    return _function("gelu_tanh" if approximate == "tanh" else "gelu")(mode, input)


def _embedding(
    mode: EmulatedOperations,
    input: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    del norm_type
    if max_norm is not None or scale_grad_by_freq or sparse or not mode.takes("embedding", weight):
        return NotImplemented
    return TtEmbedding.apply(input, weight, padding_idx, mode.arithmetic).to(torch.float32)


def _attention(
    mode: EmulatedOperations,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """torch's scaled_dot_product_attention, composed as by a compiler without a fused kernel."""
    if query.dtype != torch.float32 or mode.float32 >= {"matmul", "softmax"}:
        return NotImplemented
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    factor = torch.tensor(query.shape[-1] ** -0.5 if scale is None else scale)
    if "matmul" not in mode.float32:
        factor = host_convert(factor, "bfloat16")
    scores = mode.run(torch.matmul, query, key.transpose(-1, -2)) * factor
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, MASKED)
    elif attn_mask is not None:
        scores = scores + attn_mask.clamp(min=MASKED)
    shares = functional.dropout(mode.run(functional.softmax, scores, dim=-1), dropout_p)
    return mode.run(torch.matmul, shares, value)


_EMULATED: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm), _matmul),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__), _add),
    **dict.fromkeys((torch.sub, torch.subtract, torch.Tensor.sub, torch.Tensor.__sub__), _subtract),
    **dict.fromkeys((torch.Tensor.add_, torch.Tensor.__iadd__), _in_place(_add)),
    **dict.fromkeys((torch.Tensor.sub_, torch.Tensor.__isub__), _in_place(_subtract)),
    **dict.fromkeys((functional.softmax, torch.softmax, torch.Tensor.softmax), _softmax),
    functional.layer_norm: _layer_norm,
    functional.gelu: _gelu,
    functional.silu: _function("silu"),
    **dict.fromkeys((torch.tanh, torch.Tensor.tanh), _function("tanh")),
    **dict.fromkeys((torch.sigmoid, torch.Tensor.sigmoid), _function("sigmoid")),
    functional.embedding: _embedding,
    functional.scaled_dot_product_attention: _attention,
}
