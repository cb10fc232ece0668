"""Choices that are measured on the spot: what is chosen, what is kept, and what is never chosen."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain.backends.host import cache, choices
from isotrain.backends.host.choices import Choice, Chooser, Chosen, Way, timed_in_turns
from support.hosted_cuda import Told

DEVICE = {"name": "NVIDIA H200", "units": "132", "driver": "580.65", "torch": "2.11.0", "isotrain": "0.1"}
EXACT = torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    cache.warn_uncached.cache_clear()
    yield tmp_path / "cache" / "choices"
    cache.warn_uncached.cache_clear()


def choice(**results: Callable[[], torch.Tensor]) -> Choice:
    """A choice between ways that give these results; by default two right ones."""
    given = results or {"plain": lambda: EXACT * 1.001, "fused": lambda: EXACT * 1.0012}
    ways = {name: (lambda run=run: Way(run)) for name, run in given.items()}
    return Choice("attention", "12 heads of 64", ways, lambda: EXACT, 0.05)


def refuse(_: Mapping[str, Any]) -> dict[str, float | str]:
    raise AssertionError("measured again")


@pytest.mark.parametrize(
    ("seconds", "way"), [(0.5, "fused"), (0.96, "fused"), (0.98, "plain"), (1.0, "plain"), (2.0, "plain")]
)
def test_another_way_is_chosen_where_it_is_faster_than_measurements_differ_by(seconds: float, way: str) -> None:
    chosen = Chooser(DEVICE, Told(fused=seconds)).choose(choice())
    assert (chosen.way, chosen.seconds) == (way, {"plain": 1.0, "fused": seconds})
    assert chosen.line() == (
        f"attention of 12 heads of 64: {way} (measured; plain 1e+03 ms; fused {seconds * 1e3:.3g} ms)"
    )


def test_it_is_measured_once_and_kept(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    timer = Told(fused=0.5)
    with caplog.at_level(logging.INFO, "isotrain"):
        first = Chooser(DEVICE, timer)
        assert first.choose(choice()) == first.choose(choice())
    assert len(timer.timed) == 1
    assert [message.partition(":")[0] for message in caplog.messages] == ["chosen"]
    assert [path.suffix for path in folder.iterdir()] == [".json"], "no temporary file is left"
    later = Chooser(DEVICE, refuse)
    chosen = later.choose(choice())
    assert (chosen.way, chosen.source) == ("fused", "kept")
    assert later.kept() == [chosen]
    assert list(later.made.values()) == [chosen]


@pytest.mark.parametrize("part", list(DEVICE))
def test_another_device_driver_or_version_is_measured_anew(part: str) -> None:
    Chooser(DEVICE, Told(fused=0.5)).choose(choice())
    timer = Told(fused=2.0)
    other = Chooser({**DEVICE, part: "another"}, timer)
    assert other.kept() == []
    assert other.choose(choice()).way == "plain"
    assert timer.timed
    assert Chooser(DEVICE, refuse).choose(choice()).way == "fused"
    assert [chosen.way for chosen in other.kept()] == ["plain"]


def test_another_shape_or_other_ways_are_measured_anew() -> None:
    Chooser(DEVICE, Told(fused=0.5)).choose(choice())
    timer = Told(fused=2.0)
    chooser = Chooser(DEVICE, timer)
    given = choice()
    wider = Choice(given.name, "16 heads of 64", given.ways, given.exact, given.largest_distance)
    assert chooser.choose(wider).way == "plain"
    assert Chooser(DEVICE, timer).choose(choice(plain=lambda: EXACT, third=lambda: EXACT)).way == "plain"
    assert len(timer.timed) == 2


def fails() -> torch.Tensor:
    raise AssertionError


def spoilt() -> torch.Tensor:
    return torch.tensor([1.0, torch.nan, 3.0])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (fails, "AssertionError"),
        (spoilt, "its result is off by nan"),
        (lambda: EXACT.flip(0), "off by 0.76"),
        # Far nearer than any bound of the dtype, and yet much farther than the way that is there already.
        (lambda: EXACT * 1.02, "off by 0.02, and at most 0.005"),
        (lambda: EXACT[:2], "size of tensor"),
    ],
)
def test_a_way_that_fails_or_is_wrong_is_never_chosen(wrong: Callable[[], torch.Tensor], why: str) -> None:
    timer = Told(fused=1e-9)
    chosen = Chooser(DEVICE, timer).choose(choice(plain=lambda: EXACT * 1.001, fused=wrong))
    assert chosen.way == "plain"
    assert why in chosen.refused["fused"]
    assert timer.timed == [], "there is nothing to compare it with"
    assert Chooser(DEVICE, refuse).choose(choice(plain=lambda: EXACT, fused=wrong)).way == "plain"


@pytest.mark.parametrize("wrong", [fails, spoilt])
def test_the_first_way_has_to_be_right_too(wrong: Callable[[], torch.Tensor]) -> None:
    chosen = Chooser(DEVICE, Told()).choose(choice(plain=wrong, fused=lambda: EXACT, third=lambda: EXACT))
    assert chosen.way == "fused"
    none = Chooser(DEVICE, Told()).choose(choice(plain=wrong, other=spoilt))
    assert none.way == ""
    assert "no way" in none.line()


def test_a_way_that_fails_while_it_is_timed_is_not_chosen() -> None:
    chosen = Chooser(DEVICE, Told(fused="CUDA error: out of memory")).choose(choice())
    assert (chosen.way, chosen.refused) == ("plain", {"fused": "CUDA error: out of memory"})
    told = Told(plain="no memory", fused="no memory")
    assert Chooser({**DEVICE, "name": "L4"}, told).choose(choice()).way == ""


KEPT: dict[str, Any] = {
    "device": DEVICE,
    "chosen": {
        "name": "attention",
        "shape": "12 heads of 64",
        "way": "fused",
        "seconds": {"fused": 0.1},
        "refused": {},
        "source": "measured",
    },
}


def spoil(**parts: Any) -> bytes:
    return json.dumps(KEPT | {"chosen": KEPT["chosen"] | parts}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        json.dumps(KEPT).encode()[:-9],
        json.dumps({"device": DEVICE}).encode(),
        json.dumps(KEPT | {"device": {"name": "another"}}).encode(),
        spoil(way="warp"),
        spoil(way=3),
        spoil(shape="another"),
        spoil(seconds={"fused": "fast"}),
        spoil(seconds=None),
        spoil(refused={"plain": 1}),
        spoil(more=1),
    ],
)
def test_a_damaged_record_is_measured_again_and_mended(content: bytes, folder: Path) -> None:
    Chooser(DEVICE, Told(fused=0.5)).choose(choice())
    (record,) = folder.iterdir()
    record.write_bytes(content)
    timer = Told(fused=0.5)
    assert Chooser(DEVICE, timer).choose(choice()).way == "fused"
    assert timer.timed
    assert Chooser(DEVICE, refuse).choose(choice()).source == "kept"


def test_the_damage_that_is_tried_is_the_only_one(folder: Path) -> None:
    Chooser(DEVICE, Told(fused=0.5)).choose(choice())
    (record,) = folder.iterdir()
    record.write_bytes(spoil())
    assert Chooser(DEVICE, refuse).choose(choice()).seconds == {"fused": 0.1}


def unmakable(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.parent.write_text("a file")


def unwritable(folder: Path, patch: pytest.MonkeyPatch) -> None:
    del folder
    patch.setattr(choices.os, "access", lambda *_: False)


@pytest.mark.parametrize("prepare", [unmakable, unwritable])
def test_without_a_cache_nothing_is_measured_and_all_processes_choose_alike(
    prepare: Callable[[Path, pytest.MonkeyPatch], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepare(folder, monkeypatch)
    for _ in range(2):
        chosen = Chooser(DEVICE, refuse).choose(choice())
        assert (chosen.way, chosen.source) == ("plain", choices.UNMEASURED)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("nothing is cached for the next run")


def test_a_decision_that_cannot_be_kept_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(choices, "publish", full)
    assert Chooser(DEVICE, Told(fused=0.5)).choose(choice()).way == "plain"
    assert "No space left on device" in caplog.text


def test_of_two_processes_the_first_decides_for_both() -> None:
    def other_is_first(ways: Mapping[str, Any]) -> dict[str, float | str]:
        assert Chooser(DEVICE, Told(fused=2.0)).choose(choice()).way == "plain"
        return dict.fromkeys(ways, 1.0) | {"fused": 0.5}

    assert Chooser(DEVICE, other_is_first).choose(choice()).way == "plain"


def test_with_too_little_memory_for_measuring_the_first_way_is_taken_and_nothing_kept(folder: Path) -> None:
    def too_much() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    given = choice()
    chosen = Chooser(DEVICE, refuse).choose(Choice(given.name, given.shape, given.ways, too_much, 0.05))
    assert (chosen.way, chosen.source) == ("plain", "not measured, for CUDA out of memory. Tried to allocate 9 GiB")
    assert list(folder.iterdir()) == []


def test_a_single_way_is_not_measured(folder: Path) -> None:
    chosen = Chooser(DEVICE, refuse).choose(choice(plain=fails))
    assert chosen == Chosen("attention", "12 heads of 64", "plain", source="the only way")
    assert not folder.exists()


class Clocked:
    """A device whose work takes as long as it is told, by a clock of its own that slows down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.queued = 0, 0
        self.slower = 1.0
        monkeypatch.setattr(choices.time, "perf_counter_ns", lambda: self.now)

    def runs(self, nanoseconds: int) -> Callable[[], None]:
        def run() -> None:
            # Work is queued. Only a fence waits for it.
            self.queued += int(nanoseconds * self.slower)
            self.slower *= 1.001

        return run

    def step_boundary(self) -> None:
        pass

    def synchronize(self) -> None:
        self.now += self.queued
        self.queued = 0


def test_times_are_of_work_that_is_done_and_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Clocked(monkeypatch)

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal instruction\nstack")

    ways = {"a": device.runs(4_000_000), "b": device.runs(4_100_000), "broken": broken}
    found = timed_in_turns(device, ways)
    assert found["broken"] == "CUDA error: an illegal instruction"
    a, b = found["a"], found["b"]
    assert isinstance(a, float)
    assert isinstance(b, float)
    assert 4e-3 < a < b < 4.5e-3
    assert b / a == pytest.approx(4.1 / 4, rel=5e-3), "the clock's drift is no difference between the two"
