"""The work of one step: texts, tokens, matmul FLOPs (rule 10) and the bytes that it must move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...albert_core.model.head import ClassificationHead
from ...backends import CastPolicy
from ...kernels.weights import EncoderConfig
from ..work import flops, traffic
from .document import Work
from .texts import BenchBatch


def work_per_step(
    config: EncoderConfig,
    head: ClassificationHead,
    batches: Sequence[BenchBatch],
    workload: str,
    kernel: str,
    policy: CastPolicy,
    *,
    skips_padding: bool = False,
) -> Work:
    """Mean work of one step over the batches.

    A step on cached features computes no tokens. It counts the tokens of the texts that its features represent.

    Args:
        kernel: The kernel that ran. The transformers module and a training step compute the last layer in full, the
            others only for [CLS].
        skips_padding: Whether the kernel doesn't compute padding.
    """
    pieces = []
    for batch in batches:
        size, lengths = len(batch.rows), batch.lengths.tolist()
        computed = lengths if workload == "head_step" or skips_padding else batch.computed.tolist()
        useful, hardware = _flops(config, head, workload, lengths, computed, kernel)
        pieces.append(
            Piece(
                samples=size,
                real_tokens=sum(lengths),
                padded_tokens=sum(computed),
                model_flops=useful,
                hardware_flops=hardware,
                moved_bytes=_bytes(config, head, workload, sum(computed), size, policy),
            )
        )
    return total(pieces, len(batches))


class Piece(NamedTuple):
    """A part of some work; see `Work`."""

    samples: float = 0
    real_tokens: float = 0
    padded_tokens: float = 0
    model_flops: float = 0
    hardware_flops: float = 0
    moved_bytes: float = 0


def total(pieces: Iterable[Piece], parts: int = 1) -> Work:
    """The sum of `pieces` over `parts`."""
    return Work(
        **{name: sum(values) / parts for name, values in zip(Piece._fields, zip(*pieces, strict=True), strict=True)}
    )


def _flops(
    config: EncoderConfig,
    head: ClassificationHead,
    workload: str,
    lengths: Sequence[int],
    computed: Sequence[int],
    kernel: str,
) -> tuple[int, int]:
    """Model and hardware FLOPs of a step on one batch."""
    shape = (*_head_shape(head), len(lengths))
    useful = flops.encoder_flops(config, lengths)
    first_only = kernel != "transformers" and workload != "full_step"
    hardware = flops.encoder_flops(config, computed, first_only)
    forward = flops.head_forward_flops(*shape)
    trained = forward + flops.head_backward_flops(*shape)
    match workload:
        case "forward":
            return useful + forward, hardware + forward
        case "train_step":
            return useful + trained, hardware + trained
        case "head_step":
            return trained, trained
        case "full_step":
            return flops.training_flops(useful + forward), flops.training_flops(hardware + forward)
    raise AssertionError(f"no workload is called {workload}")


def _bytes(
    config: EncoderConfig, head: ClassificationHead, workload: str, tokens: int, sequences: int, policy: CastPolicy
) -> int:
    shape = _head_shape(head)
    on_head = traffic.head_bytes(*shape, sequences, trained=workload != "forward")
    match workload:
        case "forward" | "train_step":
            return on_head + traffic.forward_bytes(config, tokens, sequences, policy.param, policy.compute)
        case "head_step":
            return on_head
        case "full_step":
            return on_head + traffic.whole_model_bytes(config, tokens, policy.compute)
    raise AssertionError(f"no workload is called {workload}")


def _head_shape(head: ClassificationHead) -> tuple[int, int, int]:
    """Widths of the features, the hidden layer and the output."""
    return head.hidden.in_features, head.hidden.out_features, head.output.out_features
