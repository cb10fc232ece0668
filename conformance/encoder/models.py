"""Encoders with random weights, small, and of both architectures."""

from __future__ import annotations

import math
from dataclasses import fields

import torch

from ...kernels.weights import EncoderConfig, EncoderWeights, LayerWeights, tensor_shapes
from ..common.texts import VOCABULARY

MAX_TOKENS = 512

# ALBERT projects small embeddings and repeats one layer, here with an odd number of heads. BERT does neither. The sizes
# are multiples of what matrix units take.
ALBERT = EncoderConfig("albert", VOCABULARY, 32, 192, 256, 3, MAX_TOKENS, 2, "gelu_new", 1e-12, (0, 0, 0))
BERT = EncoderConfig("bert", VOCABULARY, 64, 64, 128, 4, MAX_TOKENS, 2, "gelu", 1e-12, (0, 1, 2))
ARCHITECTURES = (ALBERT, BERT)


def random_weights(config: EncoderConfig, seed: int) -> EncoderWeights:
    """Random weights with which every tensor matters.

    Products keep the size of their input. Biases are not 0 and norms not 1. Embeddings are as small as in trained
    models, so that the first norm's epsilon matters, too.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = tensor_shapes(config)

    def draw(name: str) -> torch.Tensor:
        noise = torch.randn(shapes[name], generator=generator)
        if name.endswith("norm_weight"):
            return 1.0 + 0.2 * noise
        if name.endswith("bias"):
            return 0.1 * noise
        if name.endswith("embeddings"):
            return 0.02 * noise
        return noise / math.sqrt(shapes[name][1])

    projects = config.kind == "albert"
    return EncoderWeights(
        config=config,
        word_embeddings=draw("word_embeddings"),
        position_embeddings=draw("position_embeddings"),
        token_type_embeddings=draw("token_type_embeddings"),
        embedding_norm_weight=draw("embedding_norm_weight"),
        embedding_norm_bias=draw("embedding_norm_bias"),
        projection_weight=draw("projection_weight") if projects else None,
        projection_bias=draw("projection_bias") if projects else None,
        layers=tuple(
            LayerWeights(**{field.name: draw(field.name) for field in fields(LayerWeights)})
            for _ in range(1 + max(config.weights_of_layer))
        ),
    )
