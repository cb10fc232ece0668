"""The order of texts: every one once an epoch, the same for the same seed, restorable anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from isotrain import UserError
from isotrain.albert_core.tokens.order import BUCKETS, BatchStream, bucket_length, epoch_order, padded_length

pytestmark = pytest.mark.core


def test_an_epoch_uses_every_text_once_and_drops_no_partial_batch() -> None:
    stream = BatchStream(num_samples=21, batch_size=4, accumulation=2, seed=1)
    windows = list(stream.windows())
    ranges = [bounds for window in windows for bounds in window.micro_batches]
    assert [stop - start for start, stop in ranges] == [4, 4, 4, 4, 4, 1]
    assert [window.num_samples for window in windows] == [8, 8, 5]
    assert len(windows) == stream.steps_per_epoch == 3
    assert sorted(stream.order().tolist()) == list(range(21))
    assert stream.epoch == 1
    assert stream.position == 0


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    np.random.seed(0)
    first = epoch_order(50, seed=3, epoch=2)
    np.random.rand(7)
    assert np.array_equal(first, epoch_order(50, seed=3, epoch=2))
    assert not np.array_equal(first, epoch_order(50, seed=3, epoch=3))
    assert not np.array_equal(first, epoch_order(50, seed=4, epoch=2))


def test_the_order_is_the_same_on_every_platform() -> None:
    # NumPy promises PCG64's stream; this is the one that checkpoints written today rely on.
    assert epoch_order(8, seed=23, epoch=0).tolist() == [2, 3, 6, 5, 7, 0, 1, 4]


@pytest.mark.parametrize("stop_after", range(1, 7))
def test_a_restored_stream_goes_on_with_the_same_windows(stop_after: int) -> None:
    whole = BatchStream(21, 4, 2, seed=1)
    expected = [window for _ in range(2) for window in whole.windows()]
    first = BatchStream(21, 4, 2, seed=1)
    seen = []
    while len(seen) < stop_after:
        for window in first.windows():
            seen.append(window)
            if len(seen) == stop_after:
                state = first.state(window)
                break
    second = BatchStream(21, 4, 2, seed=1)
    second.restore(state)
    while second.epoch < 2:
        seen.extend(second.windows())
    assert seen == expected


@pytest.mark.parametrize(
    ("layout", "lengths"), [("padded", [100, 100, 100]), ("bucketed", [8, 64, 100]), ("dynamic", [8, 56, 100])]
)
def test_a_padded_layout_chooses_a_length(layout: str, lengths: list[int]) -> None:
    assert [padded_length(longest, layout, 100) for longest in (1, 49, 97)] == lengths


def test_a_position_of_other_data_is_refused() -> None:
    with pytest.raises(UserError, match="lies outside"):
        BatchStream(10, 2, 1, seed=0).restore({"epoch": 0, "position": 10})


def test_empty_data_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        BatchStream(0, 2, 1, seed=0)


def test_buckets_hold_their_texts_and_never_exceed_the_maximum() -> None:
    for longest in range(1, 129):
        assert longest <= bucket_length(longest, 128) <= 128
    assert bucket_length(100, 100) == 100
    assert {bucket_length(longest, 512) for longest in range(1, 513)} == set(BUCKETS)
