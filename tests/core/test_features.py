"""Batches ahead of their use: the same texts, whatever range is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.features.compute import TokenBatches
from isotrain.albert_core.loop.job import TextJob, open_job
from isotrain.backends.cpu import CpuBackend
from support.small_job import losses


class EagerBackend(CpuBackend):
    """Prepares two batches ahead, as a device with asynchronous copies does; counts what it prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared = 0

    def prefetch(self, batches: Iterable[Any]) -> Iterator[Any]:
        ahead = []
        for batch in batches:
            self.prepared += 1
            ahead.append(self.place(batch))
            if len(ahead) == 3:
                yield ahead.pop(0)
        yield from ahead


@pytest.fixture
def job(configure: Callable[..., ResolvedConfig]) -> TextJob:
    return open_job(configure().config)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_any_sequence_of_ranges_gives_its_own_texts(layout: str, job: TextJob) -> None:
    store = job.train_tokens
    order = np.random.default_rng(0).permutation(store.num_texts)
    source = TokenBatches(store, EagerBackend(), layout, 32, rows=8)
    source.start_epoch(order)
    in_order = [(start, min(start + 8, len(order))) for start in range(0, len(order), 8)]
    for start, stop in [*in_order, (0, 8), (8, 16), (3, 5), (5, 7), (7, 9), (40, 48), (48, 50), in_order[-1]]:
        batch, labels = source.batch(start, stop)
        ids = [store.ids[store.offsets[i] : store.offsets[i + 1]].tolist() for i in order[start:stop]]
        packed = batch if layout == "packed" else batch.to_packed()
        assert packed.input_ids.tolist() == [token for text in ids for token in text]
        assert labels.tolist() == store.labels[order[start:stop]].tolist()
    source.start_epoch(order[::-1])
    assert source.batch(0, 8)[1].tolist() == store.labels[order[::-1][:8]].tolist()


def test_a_pass_in_order_prepares_each_batch_once(job: TextJob) -> None:
    backend = EagerBackend()
    source = TokenBatches(job.train_tokens, backend, "packed", 32, rows=8)
    source.start_epoch(np.arange(job.train_tokens.num_texts))
    for count, start in enumerate(range(0, job.train_tokens.num_texts, 8), start=1):
        source.batch(start, min(start + 8, job.train_tokens.num_texts))
        assert backend.prepared == min(count + 2, -(-job.train_tokens.num_texts // 8))


def test_streamed_training_does_not_depend_on_what_is_prepared_ahead(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(feature_cache=False, gradient_accumulation_steps=2, run_name="plain")
    monkeypatch.setattr("isotrain.albert_core.loop.job.get_backend", lambda *_: EagerBackend())
    ahead = run(feature_cache=False, gradient_accumulation_steps=2, run_name="ahead")
    assert plain.metrics == ahead.metrics
    assert losses(plain) == losses(ahead)
