"""The work of an end-to-end run (texts, tokens, FLOPs, bytes), and the measured limits of its device.

``python -m isotrain.benchmarks.end_to_end.work`` reads its specification from stdin, after the runs. It opens the
configuration of a finished run and makes its batches again with the functions that training uses. The experiment's
loops record the shapes of the batches that they timed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

from ...albert_core.config.load import load_config
from ...albert_core.config.schema import TrainConfig
from ...albert_core.features.compute import batches_by_length
from ...albert_core.loop.job import TextJob, open_job
from ...kernels.packed import PaddedBatch
from ...kernels.weights import EncoderConfig
from ..harness.answer import answer
from ..harness.document import ChoiceMade, Device, KernelUsed, Policy, Work
from ..harness.peaks import measure_peaks
from ..harness.work import Piece, total
from ..outcome.end_to_end import Counted, TimedLoop
from ..work import flops, traffic
from .specs import CountSpec

Head = tuple[int, int, int]


def count(spec: CountSpec) -> Counted:
    """Counts the work of a run and of the whole runs of loops, and measures the peaks of the device.

    One of the copies is as large as what a batch or a step moves on average.

    Raises:
        UserError: The run's configuration can't be opened any more.
    """
    if spec.threads is not None:
        import torch

        torch.set_num_threads(spec.threads)
    job = open_job(load_config(Path(spec.run) / "config.yaml").config)
    encoder = job.frozen_encoder()
    config = job.encoder.weights.config
    head = (config.hidden_size, job.config.mlp_hidden_size, job.num_labels)
    pieces = list(run_pieces(job, head, encoder.skips_padding, encoder.name != "transformers"))
    own = total(pieces)
    loops = [loop_work(config, head, processes, job.config, spec.dtype) for processes in spec.loops]
    return Counted(
        work=own,
        # It is the same job, so its model FLOPs are the same for every side.
        loops=[loop.model_copy(update={"model_flops": own.model_flops}) for loop in loops],
        peaks=measure_peaks(job.backend, job.policy.compute, step_bytes=own.moved_bytes / len(pieces)),
        device=Device.of(job.backend.info()),
        policy=Policy.of(job.policy),
        kernel=KernelUsed(
            name=encoder.name,
            version=encoder.version,
            choices=[ChoiceMade.of(chosen) for chosen in job.backend.choices()],
        ),
    )


def run_pieces(job: TextJob, head: Head, skips_padding: bool, cls_only_last: bool) -> Iterator[Piece]:
    """The work of each batch of features, of each epoch's steps and of each evaluation.

    Features are computed once per text. Its tokens are counted each time that it is trained on or evaluated.
    """
    config, epochs = job.config, job.config.num_epochs
    encoder = job.encoder.weights.config
    for store in (job.train_tokens, job.test_tokens):
        for rows, batch in batches_by_length(store, job.backend, job.layout, config.max_length):
            real = store.lengths[rows].tolist()
            padded = isinstance(batch, PaddedBatch) and not skips_padding
            computed = [batch.input_ids.shape[1]] * batch.input_ids.shape[0] if padded else real
            yield Piece(
                padded_tokens=sum(computed),
                model_flops=flops.encoder_flops(encoder, real),
                hardware_flops=flops.encoder_flops(encoder, computed, cls_only_last),
                moved_bytes=traffic.forward_bytes(
                    encoder, sum(computed), len(computed), job.policy.param, job.policy.compute
                ),
            )
    for store, size, trained in (
        (job.train_tokens, config.batch_size, True),
        (job.test_tokens, config.eval_batch_size, False),
    ):
        batches, tokens = ceil(store.num_texts / size), int(store.lengths.sum())
        useful = _head_flops(head, store.num_texts, trained=trained)
        # With static shapes, the last batch is padded with rows.
        filled = batches * size if job.backend.static_shapes is not None else store.num_texts
        for _ in range(epochs):
            yield Piece(
                samples=store.num_texts,
                real_tokens=tokens,
                model_flops=useful,
                hardware_flops=_head_flops(head, filled, trained=trained),
                moved_bytes=batches * traffic.head_bytes(*head, filled // batches, trained=trained),
            )


def loop_work(config: EncoderConfig, head: Head, processes: Sequence[TimedLoop], run: TrainConfig, dtype: str) -> Work:
    """The work of an end-to-end run of the experiment's loop, extrapolated from the batches that were timed.

    The encoder runs at every step and computes its last layer in full.
    """
    first = processes[0]
    pieces = []
    for timed, batches, trained in (
        ([batch for one in processes for batch in one.step_batches], first.steps_per_epoch, True),
        ([batch for one in processes for batch in one.validation_batches], first.validation_batches_per_epoch, False),
    ):
        for batch in timed:
            size, padded = batch.texts, batch.texts * batch.length
            encoder = flops.encoder_flops(config, [batch.length] * size, cls_only_last=False)
            hardware = encoder + _head_flops(head, size, trained=trained)
            times = run.num_epochs * batches / len(timed)
            pieces.append(
                Piece(
                    samples=times * size,
                    real_tokens=times * batch.real_tokens,
                    padded_tokens=times * padded,
                    # The caller replaces it with the job's own.
                    model_flops=times * hardware,
                    hardware_flops=times * hardware,
                    moved_bytes=times
                    * (
                        traffic.forward_bytes(config, padded, size, dtype, dtype)
                        + traffic.head_bytes(*head, size, trained=trained)
                    ),
                )
            )
    return total(pieces)


def _head_flops(head: Head, sequences: int, *, trained: bool) -> int:
    forward = flops.head_forward_flops(*head, sequences)
    return forward + flops.head_backward_flops(*head, sequences) if trained else forward


if __name__ == "__main__":
    sys.exit(answer(CountSpec, count))
