"""What an end-to-end run comes to: texts, tokens, FLOPs and bytes counted, and the device's own limits measured.

``python -m isotrain.benchmarks.end_to_end.work`` with its specification on stdin, after the runs. It opens a
finished run's own configuration and lays out its batches once more, with the functions that training uses, so that what
is counted is what was run. The experiment's loops say themselves how long the batches were that they timed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from ...albert_core.config.load import load_config
from ...albert_core.config.schema import TrainConfig
from ...albert_core.features.compute import batches_by_length
from ...albert_core.loop.job import Job, open_job
from ...kernels.packed import PaddedBatch
from ...kernels.weights import EncoderConfig
from ..harness.answer import answer
from ..harness.peaks import measure_peaks
from ..harness.work import QUANTITIES
from ..work import flops, traffic

Work = dict[str, float]
Head = tuple[int, int, int]


def count(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The work of the run in the folder `run`, and of the end-to-end runs that `loops` (lists of documents) are parts
    of.

    spec: run, loops, dtype (of the loops), threads. Raises UserError where the run's own configuration no longer opens.
    Also the peaks of the run's device, measured with copies as large as what a batch or a step moves on average.
    """
    if spec["threads"] is not None:
        import torch

        torch.set_num_threads(spec["threads"])
    job = open_job(load_config(Path(spec["run"]) / "config.yaml").config)
    encoder = job.frozen_encoder()
    config = job.encoder.weights.config
    head = (config.hidden_size, job.config.mlp_hidden_size, job.num_labels)
    pieces = list(run_pieces(job, head, encoder.skips_padding, encoder.name != "transformers"))
    own = added(pieces)
    loops = [loop_work(config, head, documents, job.config, spec["dtype"]) for documents in spec["loops"]]
    for loop in loops:
        # The same job: what it needs at least is one number for everyone.
        loop["model_flops"] = own["model_flops"]
    info = job.backend.info()
    return {
        "work": own,
        "loops": loops,
        "peaks": measure_peaks(job.backend, job.policy.compute, step_bytes=own["moved_bytes"] / len(pieces)).as_dict(),
        "device": info.as_dict(),
        "policy": {**job.policy.__dict__, "label": job.policy.label},
        "kernel": {"name": encoder.name, "version": encoder.version},
    }


def run_pieces(job: Job, head: Head, skips_padding: bool, cls_only_last: bool) -> Iterator[Work]:
    """The work of each of a run's batches of features, of each epoch's steps, and of each evaluation.

    Every text's features are computed once; its tokens are counted as often as it is trained on or evaluated.
    """
    config, epochs = job.config, job.config.num_epochs
    encoder = job.encoder.weights.config
    for store in (job.train_tokens, job.test_tokens):
        for rows, batch in batches_by_length(store, job.backend, job.layout, config.max_length):
            real = store.lengths[rows].tolist()
            padded = isinstance(batch, PaddedBatch) and not skips_padding
            computed = [batch.input_ids.shape[1]] * batch.input_ids.shape[0] if padded else real
            yield {
                "samples": 0,
                "real_tokens": 0,
                "padded_tokens": sum(computed),
                "model_flops": flops.encoder_flops(encoder, real),
                "hardware_flops": flops.encoder_flops(encoder, computed, cls_only_last),
                "moved_bytes": traffic.forward_bytes(
                    encoder, sum(computed), len(computed), job.policy.param, job.policy.compute
                ),
            }
    for store, size, trained in (
        (job.train_tokens, config.batch_size, True),
        (job.test_tokens, config.eval_batch_size, False),
    ):
        batches, tokens = ceil(store.num_texts / size), int(store.lengths.sum())
        useful = _head_flops(head, store.num_texts, trained=trained)
        # Where shapes are static, the last batch is filled up.
        filled = batches * size if job.backend.static_shapes is not None else store.num_texts
        for _ in range(epochs):
            yield {
                "samples": store.num_texts,
                "real_tokens": tokens,
                "padded_tokens": 0,
                "model_flops": useful,
                "hardware_flops": _head_flops(head, filled, trained=trained),
                "moved_bytes": batches * traffic.head_bytes(*head, filled // batches, trained=trained),
            }


def loop_work(
    config: EncoderConfig, head: Head, documents: Sequence[Mapping[str, Any]], run: TrainConfig, dtype: str
) -> Work:
    """An end-to-end run of the experiment's loop, extrapolated from the batches that its processes
    timed, as its seconds are.

    documents: what `blacksmith_loop` wrote. Its encoder runs at every step, with its last layer in full.
    """
    first = documents[0]
    total = dict.fromkeys(QUANTITIES, 0.0)
    for part, batches, trained in (
        ("step_batches", first["steps_per_epoch"], True),
        ("validation_batches", first["validation_batches_per_epoch"], False),
    ):
        timed = [one for document in documents for one in document[part]]
        for batch in timed:
            size, padded = batch["texts"], batch["texts"] * batch["length"]
            encoder = flops.encoder_flops(config, [batch["length"]] * size, cls_only_last=False)
            times = run.num_epochs * batches / len(timed)
            total["samples"] += times * size
            total["real_tokens"] += times * batch["real_tokens"]
            total["padded_tokens"] += times * padded
            total["hardware_flops"] += times * (encoder + _head_flops(head, size, trained=trained))
            total["moved_bytes"] += times * (
                traffic.forward_bytes(config, padded, size, dtype, dtype)
                + traffic.head_bytes(*head, size, trained=trained)
            )
    return total


def added(pieces: Sequence[Work]) -> Work:
    return {key: float(sum(piece[key] for piece in pieces)) for key in QUANTITIES}


def _head_flops(head: Head, sequences: int, *, trained: bool) -> int:
    forward = flops.head_forward_flops(*head, sequences)
    return forward + flops.head_backward_flops(*head, sequences) if trained else forward


if __name__ == "__main__":
    sys.exit(answer(count))
