"""Factors that even out the inputs of 8-bit products: SmoothQuant (Xiao et al. 2023, 2211.10438, equation 4).

One scale rounds a row of activations, so a channel that is far larger than the others costs them their digits. Such
channels follow LayerNorm, as inputs of qkv and of the first feed-forward layer, and are the same in every text.
Dividing them by a factor by which the weight's columns are multiplied leaves the exact product as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..weights import EncoderWeights, LayerWeights
from .batch import PackedBatch
from .eight_bit import eight_bit_linear
from .portable import Linear, PortableEncoder, Smoothing

# The exponent of the activations' magnitude; the weight's is 1 less this. At 0.8, features of MiniLM with its real
# weights are a tenth nearer to float32's, but those of encoders whose large channels have large weights are farther
# than without factors.
ALPHA = 0.5
# Random token ids find the channels as well as texts do: on MiniLM, Banking77's training texts give the same error.
SEQUENCES, LENGTH = 4, 64
SMALLEST = 1e-5


def smoothing_of(weights: EncoderWeights) -> tuple[Smoothing, ...]:
    """The factors of each set of layer weights, float32 where the weights are, from magnitudes on random ids.

    They depend only on the weights rounded to bfloat16, so every kernel finds the same.
    """
    encoder = _Watching(weights.to("cpu", torch.bfloat16))
    shape = SEQUENCES, min(LENGTH, weights.config.max_positions)
    ids = torch.randint(weights.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    encoder.layer_states(PackedBatch.from_lists(ids.tolist()))
    return tuple(Smoothing(*(one.factors().to(weights.device) for one in pair)) for pair in encoder.inputs)


def eight_bit_options(dtype: str, weights: EncoderWeights) -> dict[str, Any]:
    """What a `PortableEncoder` of these weights takes to multiply in the 8-bit format `dtype`."""
    return {"make_linear": eight_bit_linear(dtype, weights.config), "smoothing": smoothing_of(weights)}


class _Watching(PortableEncoder):
    """Sees the inputs of each set of weights, in all its uses."""

    def __init__(self, weights: EncoderWeights) -> None:
        self.inputs: list[tuple[_Input, _Input]] = []
        super().__init__(weights)

    def _pack(self, layer: LayerWeights, smoothing: Smoothing | None) -> Any:
        packed = super()._pack(layer, smoothing)
        heads = torch.cat((layer.query_weight, layer.key_weight, layer.value_weight))
        qkv, ffn = _Input(packed.qkv, heads), _Input(packed.ffn, layer.ffn_weight)
        self.inputs.append((qkv, ffn))
        return replace(packed, qkv=qkv, ffn=ffn)


class _Input:
    """A linear layer that keeps the largest magnitude of each of its input's channels."""

    def __init__(self, linear: Linear, weight: torch.Tensor) -> None:
        self._linear = linear
        self._weight = weight.detach().abs().amax(0).float()
        self._input = torch.zeros_like(self._weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        # A word whose states overflow must not cost the other words their features.
        finite = x.isfinite().all(1, keepdim=True)
        self._input = torch.maximum(self._input, x.abs().where(finite, 0.0).amax(0))
        return self._linear(x)

    def factors(self) -> torch.Tensor:
        """Powers of two [channels], whose logarithms' mean is near 0."""
        of_input, of_weight = (values.clamp(min=SMALLEST).log2() for values in (self._input, self._weight))
        exponents = ALPHA * of_input - (1 - ALPHA) * of_weight
        return (exponents - exponents.mean()).round().exp2()
