"""Two processes that measure in turns: one runs a block while the other waits, and a lost one is noticed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from isotrain.benchmarks.harness import measure as measuring
from isotrain.benchmarks.harness.measure import Budget, Measurement, measure
from isotrain.benchmarks.harness.turns import ALONE, Partner, Turns

pytestmark = pytest.mark.core


class Counting:
    """A target whose steps take a virtual millisecond times `cost`, and say who ran them to `journal`."""

    classes = (0,)

    def __init__(self, name: str, cost: int, journal: list[str]) -> None:
        self.name, self.cost, self.journal, self.now, self.cpu = name, cost, journal, 0, 0

    def begin(self) -> None:
        self.journal.append(self.name)

    def step(self, index: int) -> None:
        self.now += self.cost * 1_000_000
        self.cpu += 2 * self.cost * 1_000_000

    def fence(self) -> None: ...

    def read(self) -> list[str]:
        return []

    def compile_count(self) -> int:
        return 0

    def measured(self, turns: Turns) -> Measurement:
        return measure(self, Budget(4, 0.1, 1.0), lambda: self.now, turns=turns, cpu_clock=lambda: self.cpu)


@pytest.fixture(autouse=True)
def _same_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads share the collector, which processes don't."""
    monkeypatch.setattr(measuring, "_collector_frozen", nullcontext)


def test_blocks_run_in_the_order_of_the_turns_and_are_of_equal_steps() -> None:
    journal: list[str] = []
    with Partner() as first, Partner() as second, ThreadPoolExecutor(2) as pool:
        before = pool.submit(Counting("before", 1, journal).measured, Turns(first.ends))
        after = pool.submit(Counting("after", 2, journal).measured, Turns(second.ends))
        for partner in (first, second):
            partner.wait()
        assert journal == []
        assert first.warm_up() == (25, 4)
        assert set(journal) == {"before"}
        assert second.warm_up() == (12, 4)
        for partner in (first, second):
            partner.settle(25, 4)
        journal.clear()
        order = [first, second, second, first] * 2
        for partner in order:
            partner.run_block()
        for partner in (first, second):
            partner.finish()
    assert journal == ["before", "after", "after", "before"] * 2
    assert before.result().steps_per_block == after.result().steps_per_block == 25
    assert before.result().step_seconds == pytest.approx([1e-3] * 4)
    assert after.result().step_seconds == pytest.approx([2e-3] * 4)
    assert after.result().cpu_step_seconds == pytest.approx([4e-3] * 4)


def test_a_worker_waits_for_its_turn_without_using_a_cpu() -> None:
    """Its thread sleeps in a read: not one block has begun before it may."""
    journal: list[str] = []
    with Partner() as partner, ThreadPoolExecutor(1) as pool:
        turns = Turns(partner.ends)
        measured = pool.submit(Counting("one", 1, journal).measured, turns)
        partner.wait()
        partner.warm_up()
        partner.settle(25, 1)
        journal.clear()
        used = os.times()
        threading.Event().wait(0.3)
        assert os.times().user - used.user < 0.2
        assert journal == []
        partner.run_block()
        partner.finish()
        assert len(measured.result().blocks) == 1
    assert 0.25 < turns.waited < 30
    assert ALONE.waited == 0.0


def test_a_worker_hears_at_its_end_what_its_partner_found() -> None:
    with Partner() as partner:
        turns = Turns(partner.ends)
        for told in ('{"of": "a peak"}', ""):
            partner.finish(told)
            turns.finish()
            assert turns.told == told
    ALONE.finish()
    assert ALONE.told == ""


def test_a_worker_that_is_gone_is_noticed_by_its_parent() -> None:
    with Partner() as partner:
        partner.inherited()
        with pytest.raises(EOFError):
            partner.wait()
        with pytest.raises(EOFError):
            partner.run_block()
        assert partner.lost


def test_a_parent_that_is_gone_is_noticed_by_the_worker() -> None:
    partner = Partner()
    turns = Turns(partner.ends)
    with partner:
        pass
    with pytest.raises(EOFError), turns.block():
        pytest.fail("it is nobody's turn")
