"""What the frozen encoder's kernel "auto" is made of on this GPU, by measuring. Not run by its authors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from ...kernels.cuda import Operators, PackedGpuEncoder
from ...kernels.cuda.encoder import CHUNK_TOKENS
from ...kernels.cuda.support import why_no_flash
from ...kernels.cuda.ways import EPILOGUES, Ways, activation_ways, attention_ways, exact_activation, exact_attention
from ...kernels.packed import PackedBatch, PortableEncoder
from ...kernels.weights import EncoderWeights
from ..host.choices import LARGEST_DISTANCE, Choice, Way

# Rows of a measurement, enough to keep every multiprocessor busy, and tokens of its texts where they don't matter.
ROWS, TEXT_TOKENS = 16384, 32
# Mean tokens of the texts for which attention is measured.
LENGTHS = (16, 64, 256, 512)
# The first is the default. Smaller chunks keep more of what a layer reads again in the cache.
CHUNKS = (CHUNK_TOKENS, CHUNK_TOKENS // 2, CHUNK_TOKENS // 4)


@dataclass(frozen=True)
class EncoderChoices:
    """The choices for one encoder. `encoder` has the default operators and no runner."""

    encoder: PackedGpuEncoder
    weights: EncoderWeights
    compute: torch.dtype
    choose: Callable[[Choice], str]

    def made(self) -> tuple[Operators, int] | None:
        """The fastest operators and tokens of a chunk; None if an operator computes right in no way."""
        config = self.weights.config
        operators = Operators()
        if not why_no_flash(config, self.compute):
            # From long texts to short ones, of which flash attention gains least.
            for length in reversed([length for length in LENGTHS if length <= config.max_positions]):
                way = self.choose(self._attention(length))
                if not way:
                    return None
                if way != "flash":
                    break
                operators = replace(operators, flash_from=length)
        operators = replace(operators, activation=self.choose(self._activation()))
        if not operators.activation:
            return None
        operators = replace(operators, residual=self.choose(self._residual(operators)))
        chunk = self.choose(self._chunk(operators)) if operators.residual else ""
        return (operators, int(chunk)) if chunk else None

    @property
    def _dtype(self) -> str:
        return str(self.compute).removeprefix("torch.")

    @property
    def _model(self) -> str:
        config = self.weights.config
        return (
            f"{len(config.weights_of_layer)} layers of {config.hidden_size} and {config.intermediate_size}, "
            f"{config.num_heads} heads, {config.activation}, {self._dtype}"
        )

    def _attention(self, length: int) -> Choice:
        config = self.weights.config
        heads = config.num_heads

        @cache
        def inputs() -> tuple[torch.Tensor, np.ndarray]:
            lengths = np.sort(_lengths(ROWS, length, config.max_positions))
            return self._values(int(lengths.sum()), 3 * config.hidden_size), lengths

        return self._choice(
            "attention",
            f"{heads} heads of {config.head_size}, {self._dtype}, texts of {length} tokens",
            ("triton", "flash"),
            lambda: attention_ways(*inputs(), heads),
            lambda: exact_attention(*inputs(), heads),
        )

    def _activation(self) -> Choice:
        config = self.weights.config
        kind = config.activation

        @cache
        def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            layer = self.weights.layers[0]
            weight, bias = layer.ffn_weight.to(self.compute), layer.ffn_bias.to(self.compute)
            return self._values(ROWS, config.hidden_size), weight.contiguous(), bias.contiguous()

        return self._choice(
            "activation",
            f"{kind} of {config.hidden_size} to {config.intermediate_size}, {self._dtype}",
            ("triton", "torch", *(("epilogue",) if kind in EPILOGUES else ())),
            lambda: activation_ways(kind, *inputs()),
            lambda: exact_activation(kind, *inputs()),
        )

    def _residual(self, operators: Operators) -> Choice:
        kinds = ("float32",) if self.compute == torch.float32 else ("float32", "compute")
        return self._whole("residual", ROWS, {kind: (replace(operators, residual=kind), ROWS) for kind in kinds})

    def _chunk(self, operators: Operators) -> Choice:
        return self._whole("chunk", max(CHUNKS), {str(tokens): (operators, tokens) for tokens in CHUNKS})

    def _whole(self, name: str, tokens: int, ways: dict[str, tuple[Operators, int]]) -> Choice:
        """A choice that only whole forward passes decide."""
        config = self.weights.config

        @cache
        def batch() -> PackedBatch:
            rng = np.random.default_rng(0)
            lengths = _lengths(tokens, TEXT_TOKENS, config.max_positions)
            rows = [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]
            return PackedBatch.from_lists(rows).to(self.weights.device)

        def exact() -> torch.Tensor:
            return PortableEncoder(self.weights.to(dtype=torch.float32), chunk_tokens=ROWS)(batch())

        used = ways[next(iter(ways))][0].differences()
        return self._choice(
            name,
            ", ".join((self._model, *used)),
            tuple(ways),
            lambda: {way: partial(self.encoder.changed(*made), batch()) for way, made in ways.items()},
            exact,
        )

    def _choice(
        self, name: str, shape: str, names: Iterable[str], ways: Callable[[], Ways], exact: Callable[[], torch.Tensor]
    ) -> Choice:
        built = cache(ways)

        def build(way: str) -> Way:
            return Way(built()[way])

        return Choice(name, shape, {way: partial(build, way) for way in names}, exact, LARGEST_DISTANCE[self._dtype])

    def _values(self, *shape: int) -> torch.Tensor:
        generator = torch.Generator(self.weights.device).manual_seed(0)
        return torch.randn(shape, generator=generator, device=self.weights.device).to(self.compute)


def _lengths(tokens: int, mean: int, longest: int) -> np.ndarray:
    """Lengths of about `tokens` tokens, int64 [B]: three in turns, which have this mean if they may be that long."""
    each = np.clip([mean, mean - mean // 2, mean + mean // 2], 1, longest)
    return np.resize(each, max(1, tokens // mean)).astype(np.int64)
