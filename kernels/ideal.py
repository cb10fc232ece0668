"""An encoder that rounds like a dtype and makes no other error: the error budget of parity.

Products have rounded operands and are summed in float32 or wider (of 8 bits, in float64). Every linear layer's result
is shifted by a random part of its last place before it is rounded (Parker 1997, Monte Carlo arithmetic). Several of
these encoders, each with its own generator, show how far apart correct implementations of the same numerics are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map_only

from .packed.eight_bit import FORMATS, eight_bit_linear
from .packed.portable import HOST_CHUNK_TOKENS, Linear, PortableEncoder, plain_linear
from .packed.smoothing import smoothing_of
from .weights import EncoderWeights

# Operations that move or choose values, or make new ones: they are exact in every arithmetic. A random one is no
# rounding. Names are without the underscore of operations in place.
_MOVES = frozenset(
    (
        *("_copy_from", "_local_scalar_dense", "_reshape_copy", "_to_copy", "_unsafe_index", "_unsafe_view"),
        *("alias", "cat", "clone", "constant_pad_nd", "contiguous", "copy", "detach", "diag_embed"),
        *("diagonal_copy", "embedding", "expand_copy", "fill", "flip", "gather", "im2col", "index", "index_copy"),
        *("index_fill", "index_put", "index_select", "lift_fresh", "masked_fill", "masked_scatter", "masked_select"),
        *("permute_copy", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d", "reflection_pad2d", "repeat"),
        *("replication_pad1d", "replication_pad2d", "roll", "scatter", "select_backward", "select_scatter"),
        *("slice_backward", "slice_copy", "slice_scatter", "sort", "split_with_sizes_copy", "stack", "take", "topk"),
        *("transpose_copy", "tril", "triu", "unfold_copy", "view_copy", "where", "zero"),
    )
)
_CHOICES = frozenset(
    (
        *("abs", "amax", "amin", "ceil", "clamp", "clamp_max", "clamp_min", "floor", "frac", "hardtanh"),
        *("heaviside", "kthvalue", "max", "max_pool2d_with_indices", "max_pool3d_with_indices", "maximum", "median"),
        *("min", "minimum", "mode", "nan_to_num", "neg", "relu", "round", "sgn", "sign", "threshold"),
        *("threshold_backward", "trunc"),
    )
)
_MAKES = (
    *("arange", "bernoulli", "empty", "eye", "exponential", "full", "linspace", "multinomial", "new_", "normal"),
    *("ones", "rand", "scalar_tensor", "uniform", "zeros"),
)


class IdealEncoder(PortableEncoder):
    """A frozen encoder on the host: ``encoder(batch)`` gives float32 features [sequences, hidden].

    The residual stream and LayerNorm are float32, or float64 if `compute` is float64 or of 8 bits.

    Args:
        param: The dtype that weights are rounded to.
        compute: The dtype of operands and results of linear layers: float32, bfloat16, float16 or float64. With int8 or
            float8_e4m3, results are rounded to `param`.
        seed: The seed of the random rounding.
    """

    name = "ideal"

    def __init__(self, weights: EncoderWeights, param: torch.dtype, compute: str, seed: int) -> None:
        smoothing = None
        if compute in FORMATS:
            narrow, wide, smoothing = param, torch.float64, smoothing_of(weights)
            exact_layer = eight_bit_linear(compute, weights.config, exact=True)
        else:
            narrow, exact_layer = getattr(torch, compute), plain_linear
            wide = torch.promote_types(narrow, torch.float32)
        generator = torch.Generator().manual_seed(seed)
        # Another seed gives other features, so it is part of every cache key.
        self.version = f"1-{seed}"

        def make_linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
            exact = exact_layer(weight, bias)
            return lambda x: randomly_rounded(exact(x.to(narrow).to(wide)), narrow, generator)

        rounded = weights.to("cpu", param).to("cpu", wide)
        super().__init__(rounded, wide, wide, HOST_CHUNK_TOKENS, make_linear, smoothing)


def randomly_rounded(values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """`values` times 1 + d, with d uniform within half an epsilon of `dtype`, rounded to it but in their own dtype."""
    noise = torch.rand(values.shape, generator=generator, dtype=values.dtype) - 0.5
    return (values * (1.0 + torch.finfo(dtype).eps * noise)).to(dtype).to(values.dtype)


def round_linears(module: nn.Module, generator: torch.Generator) -> None:
    """Makes every linear layer in `module` round its result at random, but inside `RandomRounding`, which does it.

    Gradients are not affected.
    """

    def rounded(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        del inputs
        if isinstance(_get_current_dispatch_mode(), RandomRounding):
            return output
        wide = output.detach().to(torch.promote_types(output.dtype, torch.float32))
        return output + (randomly_rounded(wide, output.dtype, generator).to(output.dtype) - output.detach())

    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(rounded)


class RandomRounding(TorchDispatchMode):
    """Rounds the result of each operation in the block at random, in the dtype that it has, forward and backward.

    These are products, convolutions, reductions and pointwise operations. What only moves, chooses or makes values is
    exact. A result of whole numbers is a count or a mask and stays as it is.
    """

    supports_higher_order_operators = True

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(func, torch._ops.OpOverload) or _is_exact(func):
            return result
        in_place = any(returned.alias_info is not None for returned in func._schema.returns)
        return tree_map_only(torch.Tensor, partial(self._rounded, in_place=in_place), result)

    def _rounded(self, value: torch.Tensor, in_place: bool) -> torch.Tensor:
        if not _has_fractions(value):
            return value
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        rounded = randomly_rounded(wide, value.dtype, self._generator).to(value.dtype)
        # The lowest finite value, which masks, would become -inf.
        rounded = torch.where(rounded.isfinite(), rounded, value)
        return value.copy_(rounded) if in_place else rounded


class RoundedResults(TorchDispatchMode):
    """Whether an operation in the block computes what `RandomRounding` would round: `any`."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(func, torch._ops.OpOverload) and not _is_exact(func):
            found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.any = self.any or any(map(_has_fractions, found))
        return result


def _has_fractions(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.layout == torch.strided and not bool((value == value.round()).all())


def _is_exact(func: torch._ops.OpOverload) -> bool:
    """Whether an operation computes nothing that is rounded: it views, moves, chooses or makes values."""
    name = func.overloadpacket.__name__.removesuffix("_")
    views = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
    return views or name in _MOVES or name in _CHOICES or name.startswith(_MAKES)
