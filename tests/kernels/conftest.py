"""Encoders with seeded random weights, and transformers' own forward as the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from isotrain.kernels.packed import PackedBatch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

ALBERT = {"vocab_size": 1000, "embedding_size": 128, "max_position_embeddings": 512}
TINY = ALBERT | {
    "embedding_size": 32,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}
ARCHITECTURES = {
    "albert-base": ALBERT
    | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    "albert-large": ALBERT
    | {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24},
    "albert-tiny": TINY,
    "albert-grouped": TINY | {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    "albert-one-layer": TINY | {"num_hidden_layers": 1},
    "bert-small": {
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "max_position_embeddings": 512,
    },
}


@pytest.fixture(scope="session")
def build() -> Callable[..., torch.nn.Module]:
    """build(architecture, **changes): a transformers module whose every tensor matters to the result."""
    built: dict[tuple[object, ...], torch.nn.Module] = {}

    def _build(architecture: str, **changes: object) -> torch.nn.Module:
        key = (architecture, *sorted(changes.items()))
        if key not in built:
            settings = ARCHITECTURES[architecture] | changes
            if architecture.startswith("albert"):
                module = AlbertModel(AlbertConfig(**settings), add_pooling_layer=False)
            else:
                module = BertModel(BertConfig(**settings), add_pooling_layer=False)
            built[key] = _fill(module, seed=7).eval()
        return built[key]

    return _build


def _fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights of a trained model's spread; biases and norms away from the 0 and 1 that would hide a dropped one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_norm = "LayerNorm" in name or "layer_norm" in name
            if is_norm and name.endswith("weight"):
                parameter.copy_(1.0 + 0.2 * torch.randn(parameter.shape, generator=generator))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., PackedBatch]:
    """make_batch(lengths, vocab_size, pairs=False): random ids; `pairs` adds token types, 0s and then 1s."""

    def _make(lengths: Sequence[int], vocab_size: int = 1000, pairs: bool = False, seed: int = 3) -> PackedBatch:
        rng = np.random.default_rng(seed)
        ids = [rng.integers(0, vocab_size, length).tolist() for length in lengths]
        types = [[0] * (length // 2) + [1] * (length - length // 2) for length in lengths]
        return PackedBatch.from_lists(ids, types if pairs else None)

    return _make


@pytest.fixture(scope="session")
def judge() -> Callable[[torch.nn.Module, PackedBatch], torch.Tensor]:
    """judge(module, batch): transformers' last_hidden_state[:, 0] as float32, padded to the longest and masked."""

    def _judge(module: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
        padded = batch.to_padded()
        with torch.no_grad():
            output = module(
                input_ids=padded.input_ids,
                attention_mask=padded.attention_mask,
                token_type_ids=padded.token_type_ids,
            )
        return output.last_hidden_state[:, 0].float()

    return _judge


@pytest.fixture(scope="session")
def text_lengths() -> Callable[[int], list[int]]:
    """text_lengths(n): token counts spread like those of short questions (mean about 16, up to about 100)."""

    def _lengths(count: int) -> list[int]:
        rng = np.random.default_rng(11)
        return np.clip(np.exp(rng.normal(2.6, 0.55, count)).astype(int), 3, 98).tolist()

    return _lengths
