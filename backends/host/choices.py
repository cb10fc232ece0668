"""Choices measured on the spot: which of several ways to compute one thing is fastest on this device.

A way is chosen only if it computes right. The decision is kept in the cache, so that every later process makes the
same one. If it can't be kept, nothing is measured: processes that chose differently would differ in their bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from ...kernels.words import first_line
from .cache import cache_folder, publish, warn_uncached

if TYPE_CHECKING:
    import torch

log = logging.getLogger("isotrain")

Run = Callable[[], Any]

# Raise it when the same ways should be measured again.
FORMAT = 2
# Another way than the first must save this share of its time, which is more than repeated measurements differ by.
LEAST_GAIN = 0.03
# The most that a right result may differ from float32's, as relative L2 distance, by the dtype of products.
LARGEST_DISTANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
# A way may be so many times as far as the first one, which may be near by chance: at least by the second's share.
FARTHEST, NEAR = 1.5, 0.1
ROUNDS = 5
# A timed block of calls lasts at least this long.
LEAST_SECONDS = 0.01
MOST_CALLS = 1000
LONGEST_REASON = 200
MEASURED, KEPT = "measured", "kept"
UNMEASURED = "not measured, for nothing is cached"


@dataclass(frozen=True)
class Way:
    """One way to compute something.

    Attributes:
        run: What is timed.
        result: What is compared with the exact result; by default what `run` returns.
    """

    run: Run
    result: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True)
class Choice:
    """Something that can be computed in several ways.

    Attributes:
        name: What is chosen, such as "attention".
        shape: The class of shapes that the decision holds for, in words.
        ways: By name, what builds each way. The first is taken where nothing is measured.
        exact: Computes the result in a wider dtype.
        largest_distance: The most that a result may differ from it, as relative L2 distance.
    """

    name: str
    shape: str
    ways: Mapping[str, Callable[[], Way]]
    exact: Callable[[], torch.Tensor]
    largest_distance: float


@dataclass(frozen=True)
class Chosen:
    """How a choice was made.

    Attributes:
        way: The chosen one. Empty if none computed right.
        seconds: Of each way that computed right.
        refused: By way, why it could not be chosen.
        source: "measured", "kept" by an earlier measurement, or why it was not measured.
    """

    name: str
    shape: str
    way: str
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    source: str = UNMEASURED

    def line(self) -> str:
        """It in one line, for logs and tables."""
        found = [f"{way} {seconds * 1e3:.3g} ms" for way, seconds in self.seconds.items()]
        found += [f"{way}: {why}" for way, why in self.refused.items()]
        return f"{self.name} of {self.shape}: {self.way or 'no way'} ({'; '.join((self.source, *found))})"


class Fenced(Protocol):
    """The part of a backend that timing needs."""

    def synchronize(self) -> None: ...

    def step_boundary(self) -> None: ...


def block_seconds(backend: Fenced, run: Run, calls: int) -> float:
    """Mean seconds of `calls` calls before one fence."""
    backend.synchronize()
    begin = time.perf_counter_ns()
    for _ in range(calls):
        run()
    backend.step_boundary()
    backend.synchronize()
    return (time.perf_counter_ns() - begin) / 1e9 / calls


def timed_in_turns(
    backend: Fenced, ways: Mapping[str, Run], rounds: int = ROUNDS, least_seconds: float = LEAST_SECONDS
) -> dict[str, float | str]:
    """Median seconds per call of each way, or why it can't run.

    Blocks of the ways take turns, so that a drifting clock affects all alike.
    """
    found: dict[str, float | str] = {}
    calls: dict[str, int] = {}
    for name, run in ways.items():
        try:
            # The first call compiles and the second captures.
            block_seconds(backend, run, 2)
            once = block_seconds(backend, run, 1)
        except Exception as error:  # noqa: BLE001 (compilers and libraries raise any error)
            found[name] = first_line(error)[:LONGEST_REASON]
            continue
        calls[name] = max(1, min(MOST_CALLS, int(least_seconds / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 == 0 else list(calls)[::-1]:
            samples[name].append(block_seconds(backend, ways[name], calls[name]))
    return found | {name: median(values) for name, values in samples.items()}


class Chooser:
    """Makes the choices of one device.

    Args:
        device: What the decisions depend on besides the choice: the device's name, its driver, versions.
        timed: Median seconds of each way, or why it can't run.
    """

    def __init__(
        self, device: Mapping[str, str], timed: Callable[[Mapping[str, Run]], Mapping[str, float | str]]
    ) -> None:
        self._device, self._timed = dict(device), timed
        self.made: dict[tuple[str, str], Chosen] = {}

    def choose(self, choice: Choice) -> Chosen:
        """Decides, by an earlier decision or by measuring."""
        known = self.made.get((choice.name, choice.shape))
        if known is None:
            known = self.made[choice.name, choice.shape] = self._decided(choice)
            log.log(logging.INFO if known.source == MEASURED else logging.DEBUG, "chosen: %s", known.line())
        return known

    def kept(self) -> list[Chosen]:
        """All decisions in the cache that hold on this device."""
        folder = cache_folder("choices")
        found = [self._read(path) for path in sorted(folder.glob("*.json"))] if folder is not None else []
        return [chosen for chosen in found if chosen is not None]

    def _decided(self, choice: Choice) -> Chosen:
        first = Chosen(choice.name, choice.shape, next(iter(choice.ways)))
        if len(choice.ways) == 1:
            return replace(first, source="the only way")
        folder = cache_folder("choices")
        if folder is None:
            return first
        path = folder / f"{self._digest(choice)}.json"
        kept = self._kept(path, choice)
        if kept is not None:
            return kept
        if not os.access(folder, os.W_OK):
            warn_uncached(f"{folder} can't be written")
            return first
        try:
            measured = self._measured(choice)
        except RuntimeError as error:
            # Such as too little memory, which may be another time's trouble only.
            return replace(first, source=f"not measured, for {first_line(error)}")
        try:
            if self._kept(path, choice) is None:
                path.unlink(missing_ok=True)
            publish(path, json.dumps({"device": self._device, "chosen": asdict(measured)}, indent=2).encode())
        except FileExistsError:
            # Another process was first. All must choose alike.
            return self._kept(path, choice) or first
        except OSError as error:
            warn_uncached(f"{folder}: {error.strerror}")
            return first
        return measured

    def _digest(self, choice: Choice) -> str:
        key = [FORMAT, sorted(self._device.items()), choice.name, choice.shape, list(choice.ways)]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    def _kept(self, path: Path, choice: Choice) -> Chosen | None:
        """The decision in a file of the cache, if it is one of this choice."""
        found = self._read(path)
        if found is None or (found.name, found.shape) != (choice.name, choice.shape):
            return None
        return found if found.way in ("", *choice.ways) else None

    def _read(self, path: Path) -> Chosen | None:
        """What a file of the cache says, if it is whole and of this device."""
        try:
            found = json.loads(path.read_bytes())
            chosen = Chosen(**{**found["chosen"], "source": KEPT})
            texts = (chosen.name, chosen.shape, chosen.way, *chosen.refused.values())
            whole = all(isinstance(text, str) for text in texts)
            whole &= all(isinstance(taken, float) for taken in chosen.seconds.values())
            return chosen if whole and found["device"] == self._device else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def _measured(self, choice: Choice) -> Chosen:
        exact = choice.exact()
        most = choice.largest_distance
        runs: dict[str, Run] = {}
        refused: dict[str, str] = {}
        for name, build in choice.ways.items():
            try:
                way = build()
                distance = _distance((way.result or way.run)(), exact)
            except Exception as error:  # noqa: BLE001 (compilers and libraries raise any error)
                refused[name] = first_line(error)[:LONGEST_REASON]
                continue
            # NaN is a difference, too.
            if not distance <= most:
                refused[name] = f"its result is off by {distance:.2g}, and at most {most:.2g} is right"
                continue
            if not runs:
                most = min(most, max(FARTHEST * distance, NEAR * most))
            runs[name] = way.run
        timed = self._timed(runs) if len(runs) > 1 else {}
        refused |= {name: taken for name, taken in timed.items() if isinstance(taken, str)}
        seconds = {name: taken for name, taken in timed.items() if isinstance(taken, float)}
        right = [name for name in runs if name not in refused]
        return Chosen(choice.name, choice.shape, _fastest(right, seconds), seconds, refused, MEASURED)


def _fastest(right: Sequence[str], seconds: Mapping[str, float]) -> str:
    """The fastest of the ways that compute right, if it is much faster than the first of them."""
    usual = next(iter(right), "")
    best = min(right, key=lambda name: seconds.get(name, 0.0), default="")
    return best if seconds and seconds[best] <= (1.0 - LEAST_GAIN) * seconds[usual] else usual


def _distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The relative L2 distance."""
    wide, wanted = found.detach().double(), exact.detach().double()
    return float((wide - wanted).norm() / wanted.norm())
