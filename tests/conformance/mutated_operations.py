"""Devices that are each broken in one realistic way, and the rows of the suite that must say so.

Each is the CPU backend whose kernels are replaced while it runs: operators of aten, as a device registers them, or
functions of torch. The replacements leave float64 alone, in which the host computes what is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from isotrain.backends.cpu import CpuBackend
from isotrain.backends.tt.emulated import TtEmulated
from isotrain.kernels.tt.arithmetic import Arithmetic
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """A broken device.

    Attributes:
        fails: The rows of float32 that must fail, as "subject" or "subject/grad". All others must pass.
        kernels: Replaced operators. Each replacement gets the operator's arguments.
        functions: Replaced functions of torch.
        backend: A subclass with other members.
        elsewhere: Further rows that must fail, by full name without the group.
        said: A part of what a row says.
    """

    name: str
    fails: frozenset[str]
    kernels: Mapping[Any, Kernel] = field(default_factory=dict)
    functions: Mapping[Any, Kernel] = field(default_factory=dict)
    backend: type[CpuBackend] = CpuBackend
    elsewhere: frozenset[str] = frozenset()
    said: str = ""


@contextmanager
def running(mutant: Mutant) -> Iterator[CpuBackend]:
    """The opened backend, with its kernels replaced."""
    with _Kernels(mutant.kernels), _Functions(mutant.functions):
        yield mutant.backend()


def _touched(arguments: tuple[Any, ...]) -> bool:
    """Whether a tensor among the arguments is narrower than float64."""
    flat = [part for one in arguments for part in (one if isinstance(one, (list, tuple)) else (one,))]
    return any(isinstance(one, torch.Tensor) and one.is_floating_point() and one.dtype != torch.float64 for one in flat)


class _Kernels(TorchDispatchMode):
    def __init__(self, replaced: Mapping[Any, Kernel]) -> None:
        super().__init__()
        self._replaced = replaced

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = self._replaced.get(func) if _touched(args) else None
        return (chosen or func)(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, replaced: Mapping[Any, Kernel]) -> None:
        super().__init__()
        self._replaced = replaced

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = self._replaced.get(func) if _touched(args) else None
        return (chosen or func)(*args, **(kwargs or {}))


def _products(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> dict[Any, Kernel]:
    """Every operator that multiplies matrices, by `multiply`."""

    def added(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **_: Any) -> torch.Tensor:
        return multiply(a, b) + bias

    return {
        aten.mm.default: multiply,
        aten.bmm.default: multiply,
        aten.addmm.default: added,
        aten.mm.out: lambda a, b, *, out: out.copy_(multiply(a, b)),
        aten.bmm.out: lambda a, b, *, out: out.copy_(multiply(a, b)),
        aten.addmm.out: lambda bias, a, b, *, out: out.copy_(added(bias, a, b)),
    }


def _float16_sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Partial sums of 256 products in float32, added up in float16."""
    total = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=torch.float16)
    for start in range(0, a.shape[-1], 256):
        part = slice(start, start + 256)
        total = (total.float() + a[..., part].float() @ b[..., part, :].float()).half()
    return total.to(a.dtype)


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """Ten explicit bits of mantissa."""
    if x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _bfloat16_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.bfloat16().to(a.dtype) @ b.bfloat16().to(a.dtype)).to(a.dtype)


def _reversed_gradient(x: torch.Tensor) -> torch.Tensor:
    """`x`, whose gradient comes back in reversed order."""
    return _Reverse.apply(x)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].flip(0)


def _plain_softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    wide = x.float().exp()
    return (wide / wide.sum(dim, keepdim=True)).to(x.dtype)


def _softmax_in_place(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    result = aten._softmax.default(x, dim, half_to_float)
    x.copy_(result)
    return result


def _adamw(correct: bool, decoupled: bool) -> Kernel:
    """The fused step, element by element."""

    def step(
        parameters: Any, gradients: Any, firsts: Any, seconds: Any, _: Any, steps: Any, *, lr: float, beta1: float,
        beta2: float, weight_decay: float, eps: float, **rest: Any,
    ) -> None:  # fmt: skip
        for parameter, gradient, first, second, count in zip(
            parameters, gradients, firsts, seconds, steps, strict=True
        ):
            if decoupled:
                parameter.mul_(1 - lr * weight_decay)
            else:
                gradient = gradient + weight_decay * parameter
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            power = float(count) if correct else float("inf")
            deviation = (second / (1 - beta2**power)).sqrt_().add_(eps)
            parameter.addcdiv_(first, deviation, value=-lr / (1 - beta1**power))

    return step


def _unscaled_dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return x * (torch.rand_like(x) >= p) if training else x


def _constant_dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if not training:
        return x
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= p
    return x * (mask / (1 - p)).to(x.dtype)


class _TwoMasks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        ctx.p = p
        return x * ((torch.rand_like(x) >= p) / (1 - p)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        mask = torch.rand_like(gradients[0]) >= ctx.p
        return gradients[0] * (mask / (1 - ctx.p)).to(gradients[0].dtype), None


def _other_mask(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return _TwoMasks.apply(x, p) if training else x


def _last_gradient(gradient: torch.Tensor, ids: torch.Tensor, rows: int, *_: Any) -> torch.Tensor:
    table = torch.zeros(rows, gradient.shape[-1], dtype=gradient.dtype)
    table[ids.flatten()] = gradient.flatten(0, -2)
    return table


def _one_too_many(x: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    out.copy_(torch.tanh(x))
    out.as_strided((1,), (1,), out.storage_offset() + out.numel()).zero_()
    return out


def _without_nan(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isnan(), torch.zeros_like(x), x)


def _mean_over_all(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean", **rest: Any) -> torch.Tensor:
    if reduction != "mean":
        return functional.cross_entropy(logits, labels, reduction=reduction, **rest)
    return functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100) / len(labels)


def _bfloat16_sum(x: torch.Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> torch.Tensor:
    return aten.sum.dim_IntList(x.bfloat16().to(x.dtype), dim, keepdim)


def _clamped(gradients: list[torch.Tensor], scale: torch.Tensor) -> None:
    for gradient in gradients:
        gradient.clamp_(-float(scale), float(scale))


def _biased_batch_norm(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, **rest: Any) -> torch.Tensor:
    before = var.clone()
    y = BATCH_NORM(x, mean, var, **rest)
    count = x.numel() // x.shape[1]
    var.sub_(before, alpha=0.9).mul_((count - 1) / count).add_(before, alpha=0.9)
    return y


def _left_on_meta(run: Kernel) -> Kernel:
    """`run`, whose result stays on another device where no gradient is needed."""

    def left(*given: Any, **named: Any) -> torch.Tensor:
        result: torch.Tensor = run(*given, **named)
        return result if torch.is_grad_enabled() else result.to("meta")

    return left


def past_the_end(tensor: torch.Tensor) -> None:
    """Writes behind `tensor` if its storage goes on there."""
    end = tensor.storage_offset() + tensor.numel()
    if end * tensor.itemsize < tensor.untyped_storage().nbytes():
        tensor.as_strided((1,), (1,), end).zero_()


def _adamw_past_the_end(parameters: list[torch.Tensor], *rest: Any, **options: Any) -> None:
    aten._fused_adamw_.default(parameters, *rest, **options)
    past_the_end(parameters[0])


def _scaled_past_the_end(gradients: list[torch.Tensor], scale: torch.Tensor) -> None:
    aten._foreach_mul_.Tensor(gradients, scale)
    past_the_end(gradients[0])


def _rounded_up(x: torch.Tensor, other: Any) -> torch.Tensor:
    """The product, which is no subnormal number but the smallest normal one."""
    result = aten.mul.Tensor(x, other)
    if not result.is_floating_point():
        return result
    least = torch.full_like(result, torch.finfo(result.dtype).tiny).copysign(result)
    return torch.where((result != 0) & (result.abs() < least.abs()), least, result)


def _rational_tanh(x: torch.Tensor) -> torch.Tensor:
    """A Padé approximation."""
    x = x.clamp(-3, 3)
    return x * (27 + x * x) / (27 + 9 * x * x)


def _unshifted_log_softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    return x - x.exp().sum(dim, keepdim=True).log()


def _swapped(approximate: str) -> str:
    return "none" if approximate == "tanh" else "tanh"


class _ConstantRate(CpuBackend):
    """A captured step that holds the first learning rate as a constant."""

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        super().set_learning_rate(optimizer, rate if not optimizer.state else 1e-3)


CROSS_ENTROPY = functional.cross_entropy
ATTENTION = functional.scaled_dot_product_attention
BATCH_NORM = functional.batch_norm
DROPOUT = functional.dropout
EMBEDDING = functional.embedding
LINEAR = functional.linear
PRODUCT_ROWS = frozenset(
    f"{name}{mode}"
    for name in ("matmul", "linear", "bmm", "attention-by-hand", "matmul-long-sums", "linear-long-sums")
    for mode in ("", "/grad")
) | {"attention-dropout"}
MUTANTS = (
    Mutant(
        "sums products in float16",
        PRODUCT_ROWS,
        _products(_float16_sums),
        elsewhere=frozenset({"matmul-long-sums/bfloat16", "linear-long-sums/bfloat16"}),
    ),
    Mutant("multiplies in TF32", PRODUCT_ROWS, _products(lambda a, b: _tf32(a) @ _tf32(b))),
    Mutant("multiplies in bfloat16", PRODUCT_ROWS, _products(_bfloat16_products)),
    Mutant(
        "has no bias gradient",
        frozenset({"linear/grad", "linear-long-sums/grad"}),
        functions={LINEAR: lambda x, w, b=None: LINEAR(x, w, None if b is None else b.detach())},
    ),
    Mutant(
        "reverses the bias gradient",
        frozenset({"linear/grad", "linear-long-sums/grad"}),
        functions={LINEAR: lambda x, w, b=None: LINEAR(x, w, None if b is None else _reversed_gradient(b))},
    ),
    Mutant(
        "swaps the two forms of GELU",
        frozenset({"gelu-erf", "gelu-erf/grad", "gelu-tanh", "gelu-tanh/grad", "bounds"}),
        {
            aten.gelu.default: lambda x, approximate="none": aten.gelu.default(x, approximate=_swapped(approximate)),
            aten.gelu_backward.default: lambda g, x, approximate="none": aten.gelu_backward.default(
                g, x, approximate=_swapped(approximate)
            ),
            aten.gelu.out: lambda x, *, approximate="none", out: aten.gelu.out(
                x, approximate=_swapped(approximate), out=out
            ),
        },
    ),
    Mutant(
        "ignores the attention mask",
        frozenset({"attention", "attention/grad"}),
        functions={ATTENTION: lambda *given, **named: ATTENTION(*given, **named | {"attn_mask": None})},
    ),
    Mutant(
        "has an epsilon of its own in LayerNorm",
        frozenset({"layer_norm", "layer_norm/grad"}),
        {aten.native_layer_norm.default: lambda *given: aten.native_layer_norm.default(*given[:-1], 1e-5)},
        elsewhere=frozenset({"layer_norm/bfloat16"}),
    ),
    Mutant(
        "doesn't subtract the maximum in softmax",
        frozenset({"softmax-huge-logits", "softmax-huge-logits/grad", "inf"}),
        {
            aten._softmax.default: _plain_softmax,
            aten._softmax.out: lambda *arguments, out: out.copy_(_plain_softmax(*arguments)),
        },
    ),
    Mutant(
        "writes softmax over its input",
        frozenset({"softmax", "softmax-huge-logits", "bounds"}),
        {aten._softmax.default: _softmax_in_place},
    ),
    Mutant(
        "has no bias correction in AdamW",
        frozenset({"AdamW"}),
        {aten._fused_adamw_.default: _adamw(correct=False, decoupled=True)},
    ),
    Mutant(
        "decays weights through the gradient in AdamW",
        frozenset({"AdamW"}),
        {aten._fused_adamw_.default: _adamw(correct=True, decoupled=False)},
    ),
    Mutant("holds the learning rate as a constant", frozenset({"AdamW", "SGD"}), backend=_ConstantRate),
    Mutant(
        "doesn't scale in dropout",
        frozenset({"dropout", "dropout/grad"}),
        functions={functional.dropout: _unscaled_dropout},
    ),
    Mutant("has one dropout mask for ever", frozenset({"dropout"}), functions={functional.dropout: _constant_dropout}),
    Mutant(
        "draws another mask for the gradient", frozenset({"dropout/grad"}), functions={functional.dropout: _other_mask}
    ),
    Mutant(
        "keeps the last gradient of a repeated id",
        frozenset({"embedding/grad"}),
        {aten.embedding_dense_backward.default: _last_gradient},
    ),
    Mutant("writes past its output", frozenset({"bounds"}), {aten.tanh.out: _one_too_many}),
    Mutant(
        "swallows NaN",
        frozenset({"nan"}),
        {aten.mm.default: lambda a, b: aten.mm.default(_without_nan(a), b)},
    ),
    Mutant(
        "averages the loss over ignored labels, too",
        frozenset({"cross_entropy-mean", "cross_entropy-mean/grad"}),
        functions={functional.cross_entropy: _mean_over_all},
    ),
    Mutant(
        "adds in bfloat16",
        frozenset({"sum", "sum-long-sums", "linear/grad", "linear-long-sums/grad"}),
        {
            aten.sum.dim_IntList: _bfloat16_sum,
            aten.sum.IntList_out: lambda *arguments, out: out.copy_(_bfloat16_sum(*arguments)),
        },
    ),
    Mutant(
        "forgets running statistics",
        frozenset({"batch_norm-statistics"}),
        functions={BATCH_NORM: lambda x, mean, var, **rest: BATCH_NORM(x, mean.clone(), var.clone(), **rest)},
    ),
    Mutant(
        "keeps the biased variance",
        frozenset({"batch_norm-statistics"}),
        functions={BATCH_NORM: _biased_batch_norm},
    ),
    Mutant(
        "adds a dimension to an embedding",
        frozenset({"embedding", "nan", "inf"}),
        functions={functional.embedding: lambda *given, **named: EMBEDDING(*given, **named)[None]},
        said="instead of torch.float32 [",
    ),
    Mutant(
        "leaves an embedding on another device",
        frozenset({"embedding"}),
        functions={functional.embedding: _left_on_meta(functional.embedding)},
        said="the result is on meta instead of cpu",
    ),
    Mutant(
        "drops values on another device",
        frozenset({"dropout", "dropout/grad"}),
        functions={functional.dropout: lambda *given, **named: DROPOUT(*given, **named).to("meta")},
        said="the result is on meta instead of cpu",
    ),
    Mutant(
        "clips by value",
        frozenset({"clip_grad_norm_"}),
        {aten._foreach_mul_.Tensor: _clamped},
    ),
    Mutant(
        "writes past a parameter",
        frozenset({"update-bounds"}),
        {aten._fused_adamw_.default: _adamw_past_the_end},
    ),
    Mutant(
        "writes past a clipped gradient",
        frozenset({"update-bounds"}),
        {aten._foreach_mul_.Tensor: _scaled_past_the_end},
    ),
    Mutant("rounds subnormal numbers up", frozenset({"subnormal"}), {aten.mul.Tensor: _rounded_up}),
    Mutant(
        "has a tanh of few digits",
        frozenset({"tanh", "tanh/grad"}),
        {aten.tanh.default: _rational_tanh, aten.tanh.out: lambda x, *, out: out.copy_(_rational_tanh(x))},
    ),
    Mutant(
        "divides a mean by a width of its grid",
        frozenset({"mean", "mean/grad", "bounds"}),
        functions={torch.Tensor.mean: lambda x, dim: x.sum(dim) / (-(-x.shape[dim] // 32) * 32)},
    ),
    Mutant(
        "reverses the gradient of a sum",
        frozenset({"sum/grad"}),
        functions={torch.Tensor.sum: lambda x, *given: _reversed_gradient(x).sum(*given)},
    ),
    Mutant(
        "leaves the mean out of softmax's gradient",
        frozenset({"softmax/grad", "softmax-huge-logits/grad", "attention-by-hand/grad", "bounds"}),
        {aten._softmax_backward_data.default: lambda upstream, y, *_: upstream * y},
    ),
    Mutant(
        "keeps ids in eight bits",
        frozenset({"embedding"}),
        {aten.embedding.default: lambda table, ids, *rest: aten.embedding.default(table, ids % 256, *rest)},
    ),
    Mutant(
        "doesn't subtract the maximum in a loss",
        frozenset({"cross_entropy-mean-huge-logits", "cross_entropy-mean-huge-logits/grad", "inf"}),
        {
            aten._log_softmax.default: _unshifted_log_softmax,
            aten._log_softmax.out: lambda *given, out: out.copy_(_unshifted_log_softmax(*given)),
        },
    ),
    Mutant(
        "takes ignored labels for the first class",
        frozenset(f"cross_entropy-{kind}{mode}" for kind in ("mean", "sum") for mode in ("", "/grad")),
        functions={CROSS_ENTROPY: lambda logits, labels, **rest: CROSS_ENTROPY(logits, labels.clamp(min=0), **rest)},
    ),
)


class LowFidelity(TtEmulated):
    """Claims HiFi4 and multiplies in LoFi."""

    def _arithmetic(self, gemm_dtype: torch.dtype) -> Arithmetic:
        return replace(super()._arithmetic(gemm_dtype), math_fidelity="lofi")
