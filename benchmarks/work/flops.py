"""Matmul FLOPs from shapes (rule 10): a multiply-add counts 2, and only matrix products count.

There are two counts, and both are printed:

* *model*: the least known work that gives the job's result. A frozen forward pass computes only real tokens, and in the
  last layer only keys and values for all tokens and the rest for [CLS]; the head follows. It is the same number for
  every layout and kernel, so model FLOP/s compare them fairly.
* *hardware*: what the layout and kernel really executed, including padding and a full last layer. It is compared with
  the device's peak and can't exceed it.

`6N` formulas don't apply: ALBERT runs one layer many times, and a frozen encoder has no backward pass. If the whole
model is trained, model and hardware FLOPs are three times those of the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...kernels.weights import EncoderConfig


def encoder_flops(config: EncoderConfig, lengths: Sequence[int], cls_only_last: bool = True) -> int:
    """Matmul FLOPs of one frozen forward pass.

    Args:
        lengths: Computed tokens of each sequence, including padding.
        cls_only_last: Whether the last layer computes only keys and values for all tokens and the rest for [CLS], as
            this project's kernels do, unlike the modules of transformers.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    tokens = sum(lengths)
    projection = 2 * tokens * config.embedding_size * hidden if config.kind == "albert" else 0

    def layer_flops(rows: int, scores: int) -> int:
        """FLOPs for `rows` queries and `scores` (query, key) pairs, with keys and values for all tokens."""
        key_value = 2 * tokens * hidden * 2 * hidden
        query_and_output = 2 * rows * hidden * 2 * hidden
        feed_forward = 2 * rows * hidden * inner * 2
        attention = 2 * scores * hidden * 2
        return key_value + query_and_output + feed_forward + attention

    full = layer_flops(tokens, sum(length * length for length in lengths))
    last = layer_flops(len(lengths), tokens) if cls_only_last else full
    return projection + (config.num_layers - 1) * full + last


def head_forward_flops(hidden_size: int, mlp_hidden_size: int, num_labels: int, sequences: int) -> int:
    """Matmul FLOPs of the head's two linear layers on one feature row per sequence."""
    return 2 * sequences * mlp_hidden_size * (hidden_size + num_labels)


def head_backward_flops(hidden_size: int, mlp_hidden_size: int, num_labels: int, sequences: int) -> int:
    """Matmul FLOPs of the head's backward pass: both weight gradients, and the output layer's input gradient.

    The hidden layer needs no input gradient, since the encoder is frozen.
    """
    weights = head_forward_flops(hidden_size, mlp_hidden_size, num_labels, sequences)
    return weights + 2 * sequences * mlp_hidden_size * num_labels


def training_flops(forward: int) -> int:
    """Matmul FLOPs of forward and backward if everything is trained, from those of the forward pass.

    Each product then has two gradients that cost as much as it does, since every factor is a weight or depends on one.
    """
    return 3 * forward
