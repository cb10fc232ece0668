"""Estimates what a Tenstorrent card could do at best, from published peaks and byte counts. Never a measurement.

peak = cores x 4.096 TFLOP/s x GHz / phases: a tile product of 32 x 32 x 32 takes 16 cycles per phase. The time of an
operation is the larger of its products at that peak and its bytes at the memory bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ... import UserError
from ..names import check_name
from ..weights import EncoderConfig
from .formats import TILE_BYTES
from .model import PHASES

TFLOPS_PER_CORE_AND_GHZ = 4.096


@dataclass(frozen=True)
class Card:
    """Published figures of a card: Tensix cores, clock in GHz, memory bandwidth in GB/s (10^9)."""

    name: str
    arch: str
    cores: int
    clock_ghz: float
    bandwidth_gbps: float


CARDS = {
    card.name: card
    for card in (
        Card("n150", "wormhole", 72, 1.0, 288.0),
        Card("n300", "wormhole", 2 * 64, 1.0, 576.0),
        Card("p150", "blackhole", 140, 1.35, 512.0),
    )
}


@dataclass(frozen=True)
class Estimate:
    """Seconds and the peak behind them. `bound` is "compute" or "memory". `assumptions` are printed with each."""

    card: Card
    math_fidelity: str
    weight_dtype: str
    peak_tflops: float
    compute_seconds: float
    memory_seconds: float
    bound: str
    tokens_per_second: float
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds)


def card_named(name: str, cores: int | None = None) -> Card:
    """A card of CARDS, optionally with another number of cores, since a firmware may enable fewer."""
    check_name("card", name, CARDS)
    if cores is not None and cores < 1:
        raise UserError(f"a card needs at least one core, not {cores}")
    return replace(CARDS[name], cores=cores or CARDS[name].cores)


def peak_tflops(card: Card, math_fidelity: str) -> float:
    """The matrix units' peak in TFLOP/s. Raises UserError for an unknown fidelity."""
    check_name("math_fidelity", math_fidelity, PHASES)
    return card.cores * TFLOPS_PER_CORE_AND_GHZ * card.clock_ghz / PHASES[math_fidelity]


def encoder_bytes(config: EncoderConfig, tokens: int, weight_dtype: str) -> int:
    """Bytes of memory traffic of one frozen forward pass.

    Every layer reads its weights once. Every operation reads its bfloat16 inputs and writes its outputs (GELU is fused
    into the product before it; attention is one operation).
    """
    check_name("weight_dtype", weight_dtype, TILE_BYTES)
    hidden, inner = config.hidden_size, config.intermediate_size
    weights = (4 * hidden * hidden + 2 * hidden * inner) * TILE_BYTES[weight_dtype] // 1024
    # Q, K, V: 1 + 3; attention: 3 + 1; its output: 1 + 1; two norms with their residuals: 2 + 1 each; FFN: 1 + 1.
    activations = tokens * (18 * hidden + 2 * inner) * 2
    return config.num_layers * (weights + activations)


def estimate_encoder(
    config: EncoderConfig, tokens: int, flops: int, card: Card, math_fidelity: str, weight_dtype: str
) -> Estimate:
    """The least time of one frozen forward pass over `tokens` tokens with `flops` operations in its products."""
    if tokens < 1:
        raise UserError(f"an estimate needs at least one token, not {tokens}")
    peak = peak_tflops(card, math_fidelity)
    compute = flops / (peak * 1e12)
    memory = encoder_bytes(config, tokens, weight_dtype) / (card.bandwidth_gbps * 1e9)
    return Estimate(
        card=card,
        math_fidelity=math_fidelity,
        weight_dtype=weight_dtype,
        peak_tflops=peak,
        compute_seconds=compute,
        memory_seconds=memory,
        bound="compute" if compute >= memory else "memory",
        tokens_per_second=tokens / max(compute, memory),
        assumptions=(
            f"{card.cores} cores at {card.clock_ghz:g} GHz, all busy at the published peak of {peak:.0f} TFLOP/s",
            f"memory at its published {card.bandwidth_gbps:g} GB/s; weights read once a layer, activations "
            "written and read between operations",
            "no time for launches, host transfers, LayerNorm, softmax or padding to tiles of 32",
            "an upper bound from data sheets: nothing here was measured",
        ),
    )
