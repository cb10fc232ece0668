"""Matmul FLOPs from shapes (rule 10): a multiply-add is 2, everything that is no matrix product is not counted.

Two counts, and both are printed:

* *model*: a frozen forward of the real tokens alone whose last layer computes keys and values of all tokens
  and everything else of [CLS] alone, plus the head. That is the least work known that gives the job's result, so it
  is the same number for every layout and kernel, and model FLOP/s compare them fairly.
* *hardware*: what the layout and kernel really executed, padding and a full last layer included. It may be
  compared with the device's peak, and can't exceed it.

`6N` formulas don't apply: ALBERT runs one layer many times, and a frozen encoder has no backward pass.
Where the whole model is trained, useful is three times the least forward pass, hardware three times the executed one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...kernels.weights import EncoderConfig


def encoder_flops(config: EncoderConfig, lengths: Sequence[int], cls_only_last: bool = True) -> int:
    """Matmul FLOPs of one frozen forward over sequences of these lengths (tokens computed, padding included).

    `cls_only_last`: the last layer computes everything but keys and values of the first token alone, as this
    project's kernels do; transformers' modules compute all of it.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    tokens = sum(lengths)
    projection = 2 * tokens * config.embedding_size * hidden if config.kind == "albert" else 0

    def layer_flops(rows: int, scores: int) -> int:
        """`rows` tokens that are computed and `scores` (query, key) pairs; keys and values are of all tokens."""
        key_value = 2 * tokens * hidden * 2 * hidden
        query_and_output = 2 * rows * hidden * 2 * hidden
        feed_forward = 2 * rows * hidden * inner * 2
        attention = 2 * scores * hidden * 2
        return key_value + query_and_output + feed_forward + attention

    full = layer_flops(tokens, sum(length * length for length in lengths))
    last = layer_flops(len(lengths), tokens) if cls_only_last else full
    return projection + (config.num_layers - 1) * full + last


def head_forward_flops(hidden_size: int, mlp_hidden_size: int, num_labels: int, sequences: int) -> int:
    """Matmul FLOPs of the head's two linear layers on one feature row a sequence."""
    return 2 * sequences * mlp_hidden_size * (hidden_size + num_labels)


def head_backward_flops(hidden_size: int, mlp_hidden_size: int, num_labels: int, sequences: int) -> int:
    """Matmul FLOPs of the head's backward pass: both weight gradients, and the output layer's input gradient.

    The hidden layer has no input gradient: the encoder is frozen.
    """
    weights = head_forward_flops(hidden_size, mlp_hidden_size, num_labels, sequences)
    return weights + 2 * sequences * mlp_hidden_size * num_labels


def training_flops(forward: int) -> int:
    """Matmul FLOPs of forward and backward where everything is trained, from those of the forward pass.

    Every product then has two gradients of its own size, for every factor is a weight or depends on one, the
    embeddings included.
    """
    return 3 * forward
