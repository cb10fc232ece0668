"""An encoder that rounds like a dtype and makes no other error: the error budget of parity.

Products have rounded operands and are summed in float32 or wider. Every linear layer's result is shifted by a random
part of its last place before it is rounded (Parker 1997, Monte Carlo arithmetic). Several of these encoders, each with
its own generator, show how far apart correct implementations of the same numerics are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .packed.portable import HOST_CHUNK_TOKENS, Linear, PortableEncoder
from .weights import EncoderWeights


class IdealEncoder(PortableEncoder):
    """A frozen encoder on the host: ``encoder(batch)`` gives float32 features [sequences, hidden].

    The residual stream and LayerNorm are float32, or float64 if `compute` is.

    Args:
        param: The dtype that weights are rounded to.
        compute: The dtype of operands and results of linear layers: float32, bfloat16, float16 or float64.
        seed: The seed of the random rounding.
    """

    name = "ideal"

    def __init__(self, weights: EncoderWeights, param: torch.dtype, compute: torch.dtype, seed: int) -> None:
        wide = torch.promote_types(compute, torch.float32)
        generator = torch.Generator().manual_seed(seed)
        # Another seed gives other features, so it is part of every cache key.
        self.version = f"1-{seed}"

        def make_linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
            def linear(x: torch.Tensor) -> torch.Tensor:
                y = functional.linear(x.to(compute).to(wide), weight, bias)
                return randomly_rounded(y, compute, generator)

            return linear

        rounded = weights.to("cpu", param).to("cpu", wide)
        super().__init__(rounded, wide, wide, HOST_CHUNK_TOKENS, make_linear)


def randomly_rounded(values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """`values` times 1 + d, with d uniform within half an epsilon of `dtype`, rounded to it but in their own dtype."""
    noise = torch.rand(values.shape, generator=generator, dtype=values.dtype) - 0.5
    return (values * (1.0 + torch.finfo(dtype).eps * noise)).to(dtype).to(values.dtype)


def round_linears(module: nn.Module, generator: torch.Generator) -> None:
    """Makes every linear layer in `module` round its result at random. Gradients are not affected."""

    def rounded(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        del inputs
        wide = output.detach().to(torch.promote_types(output.dtype, torch.float32))
        return output + (randomly_rounded(wide, output.dtype, generator).to(output.dtype) - output.detach())

    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(rounded)
