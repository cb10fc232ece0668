"""The fewest bytes that one step must move between memory and the matrix units: the denominator of its intensity.

This is a documented model, not a measurement. It counts only compulsory traffic, and each byte once:

* Weights: every distinct matrix once per forward pass, in its stored dtype (ALBERT's shared layer once in all), and the
  rows of the embedding tables for the computed tokens.
* Activations: every layer's input and output. What is between them is assumed to stay on the chip.
* A backward pass reads the weights once more, and writes and reads each gradient once. For each layer, the forward pass
  writes and the backward pass reads the input, query, key, value, context, the normalised attention output and the
  feed-forward's inner state. The rest is recomputed, as in flash attention.
* Adam reads and writes the parameters and both moments in float32.

Fewer bytes would need the work of several steps on the chip at once. So the attainable rate at this intensity is the
highest possible for the job, and no kernel's own traffic improves its share. It is the operational intensity of
Williams, Waterman and Patterson ("Roofline", CACM 52(4), 2009) for a cache that holds the internals of one layer.
"""

from __future__ import annotations

from ...kernels.weights import EncoderConfig

SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "float8_e4m3": 1}
FLOAT32, INT64 = 4, 8
# Adam reads and writes a parameter and its two moments.
UPDATE_PASSES = 6


def layer_parameters(config: EncoderConfig) -> int:
    """Parameters of one layer: four square projections, two feed-forward matrices, their biases, two norms."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden


def shared_parameters(config: EncoderConfig) -> int:
    """Parameters that every forward pass reads in full: distinct layers, the projection and the embeddings' norm."""
    projection = (config.embedding_size + 1) * config.hidden_size if config.kind == "albert" else 0
    distinct = len(set(config.weights_of_layer))
    return distinct * layer_parameters(config) + projection + 2 * config.embedding_size


def encoder_parameters(config: EncoderConfig) -> int:
    """All parameters of the encoder, including the embedding tables."""
    rows = config.vocab_size + config.max_positions + config.type_vocab_size
    return shared_parameters(config) + rows * config.embedding_size


def head_parameters(hidden_size: int, mlp_hidden_size: int, num_labels: int) -> int:
    return (hidden_size + 1) * mlp_hidden_size + (mlp_hidden_size + 1) * num_labels


def forward_bytes(config: EncoderConfig, tokens: int, sequences: int, param: str, compute: str) -> int:
    """Bytes of one frozen forward pass over `tokens` computed tokens, from ids to float32 features."""
    # Matrices of 8 bits are stored so; the tables never are.
    stored = compute if SIZES[compute] == 1 else param
    weights = shared_parameters(config) * SIZES[stored] + tokens * config.embedding_size * SIZES[param]
    states = 2 * config.num_layers * tokens * config.hidden_size * SIZES[compute]
    return weights + states + tokens * INT64 + sequences * config.hidden_size * FLOAT32


def head_bytes(hidden_size: int, mlp_hidden_size: int, num_labels: int, sequences: int, *, trained: bool) -> int:
    """Bytes of the float32 head on features [sequences, hidden]: up to the logits, or if trained, of a fused step."""
    parameters = head_parameters(hidden_size, mlp_hidden_size, num_labels)
    features = sequences * hidden_size * FLOAT32
    if not trained:
        return features + (parameters + sequences * num_labels) * FLOAT32
    return features + sequences * INT64 + UPDATE_PASSES * parameters * FLOAT32


def whole_model_bytes(config: EncoderConfig, tokens: int, compute: str) -> int:
    """Bytes of an optimizer step of the encoder over `tokens` computed tokens, with float32 master weights."""
    # Read forward and backward, gradient written and read, update.
    weights = (2 + 2 + UPDATE_PASSES) * encoder_parameters(config) * FLOAT32
    kept = config.num_layers * tokens * (6 * config.hidden_size + config.intermediate_size) * SIZES[compute]
    return weights + 2 * kept + tokens * INT64
