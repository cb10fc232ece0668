"""The order of the training samples: a function of seed and epoch only, with a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ... import UserError
from ...kernels.words import count

# Sequence lengths that bucketed batches are padded to: few enough to compile each once, close enough to waste little.
BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

# Lengths of dynamic batches are multiples of it.
MULTIPLE = 8


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(num_samples)``, int64. NumPy's PCG64 gives the same one on every platform."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_samples)


# The label of a padding row, which losses ignore. Labels that are numbers have NaN there, since any number may be one.
IGNORED = -100


def bucket_length(longest: int, max_length: int, lengths: tuple[int, ...] = BUCKETS) -> int:
    """The length that a bucketed batch is padded to if its longest text has `longest` tokens."""
    return min(next((length for length in lengths if length >= longest), max_length), max_length)


def padded_length(longest: int, layout: str, max_length: int, multiple: int = MULTIPLE) -> int:
    """The length that a batch is padded to if its longest text has `longest` tokens.

    Args:
        layout: "padded", "bucketed" or "dynamic".
        multiple: Of dynamic lengths, unless that exceeds `max_length`.
    """
    match layout:
        case "padded":
            return max_length
        case "bucketed":
            return bucket_length(longest, max_length)
        case "dynamic":
            return min(-(-longest // multiple) * multiple, max_length)
    raise AssertionError(f"no padded layout is called {layout}")


def pad_rows(indices: np.ndarray, rows: int, filler: float) -> np.ndarray:
    """Appends rows of `filler` to `indices` (or labels of any width) until there are `rows`, in the same dtype."""
    return np.concatenate((indices, np.full((rows - len(indices), *indices.shape[1:]), filler, dtype=indices.dtype)))


def pad_labels(labels: np.ndarray, rows: int) -> np.ndarray:
    """Appends rows that losses ignore."""
    return pad_rows(labels, rows, np.nan if labels.dtype.kind == "f" else IGNORED)


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step, as (start, stop) ranges in the epoch's order."""

    epoch: int
    micro_batches: tuple[tuple[int, int], ...]

    @property
    def num_samples(self) -> int:
        """The samples in the window. Its loss is divided by this number, so that 4 x 2 samples equal 8."""
        return self.micro_batches[-1][1] - self.micro_batches[0][0]


class BatchStream:
    """Windows of micro-batches over epochs. `position` counts the samples of `epoch` already used.

    The last micro-batch of an epoch and the last window may be smaller. None is dropped. With `whole_windows` (if
    another number of micro-batches would need another program), the last window has as many as the others, with empty
    ones at its end.
    """

    def __init__(
        self, num_samples: int, batch_size: int, accumulation: int, seed: int, *, whole_windows: bool = False
    ) -> None:
        if num_samples < 1:
            raise UserError("the training split is empty; give data with at least one text")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.whole_windows = whole_windows
        self.epoch = 0
        self.position = 0

    @property
    def steps_per_epoch(self) -> int:
        per_window = self.batch_size * self.accumulation
        return -(-self.num_samples // per_window)

    def order(self) -> np.ndarray:
        """The order of the current epoch."""
        return epoch_order(self.num_samples, self.seed, self.epoch)

    def windows(self) -> Iterator[Window]:
        """The rest of the current epoch. `position` advances when the next window is requested.

        A state saved during a window, or right before its optimizer step, therefore restarts at the window. Its
        gradients are computed again, bit for bit, instead of being stored.
        """
        while self.position < self.num_samples:
            window = self._window_at(self.position)
            yield window
            self.position = window.micro_batches[-1][1]
        self.epoch += 1
        self.position = 0

    def state(self, window: Window | None = None) -> dict[str, int]:
        """The position after `window`, or the current one."""
        position = window.micro_batches[-1][1] if window else self.position
        done = position >= self.num_samples
        return {"epoch": self.epoch + done, "position": 0 if done else position}

    def restore(self, state: dict[str, int]) -> None:
        """Restores what `state` returned. Raises UserError if it doesn't fit this data."""
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < self.num_samples:
            raise UserError(
                f"the saved position {position} of epoch {epoch} lies outside this data of "
                f"{count(self.num_samples, 'text')}; resume with the data the checkpoint was written for"
            )
        self.epoch, self.position = epoch, position

    def _window_at(self, start: int) -> Window:
        ranges = []
        for _ in range(self.accumulation):
            stop = min(start + self.batch_size, self.num_samples)
            ranges.append((start, stop))
            start = stop
            if stop == self.num_samples and not self.whole_windows:
                break
        return Window(self.epoch, tuple(ranges))
