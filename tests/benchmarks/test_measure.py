"""The measuring core on devices of known behaviour, with a virtual clock: a faulty device must not pass as valid."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import pytest
from isotrain.benchmarks.harness import measure as measuring
from isotrain.benchmarks.harness.measure import Budget, Measurement, measure
from isotrain.benchmarks.harness.statistics import bounds, growth, resampled_medians
from isotrain.benchmarks.harness.turns import Turns
from isotrain.benchmarks.outcome.steadiness import steadiness

MS = 1_000_000


def busy(milliseconds: int) -> Callable[[int, int], int]:
    """Every step takes the device as long."""

    def work(step: int, index: int) -> int:
        return milliseconds * MS

    return work


class FakeDevice:
    """An asynchronous device: a step is queued in 0.1 ms and done when the queue is; the fence waits for it.

    `work(step number, batch index)` gives the nanoseconds a step keeps the device busy.
    """

    def __init__(self, work: Callable[[int, int], int], classes: Sequence[int] = (0,)) -> None:
        self.work, self.classes = work, classes
        self.now = self.done_at = 0
        self.steps = self.compiles = self.pending = 0
        self.fenced_steps: list[int] = []
        self.collector_enabled: set[bool] = set()

    def clock(self) -> int:
        return self.now

    def begin(self) -> None:
        self.pending = 0

    def step(self, index: int) -> None:
        self.now += MS // 10
        self.done_at = max(self.done_at, self.now) + self.work(self.steps, index)
        self.steps += 1
        self.pending += 1
        self.collector_enabled.add(gc.isenabled())

    def fence(self) -> None:
        self.now = max(self.now, self.done_at)
        self.fenced_steps.append(self.pending)

    def read(self) -> list[str]:
        self.now = max(self.now, self.done_at) + MS // 100
        return []

    def compile_count(self) -> int:
        return self.compiles

    def measured(self, blocks: int = 9, seconds: float = 1.0, warmup_seconds: float = 1.0) -> Measurement:
        return measure(self, Budget(blocks, seconds, warmup_seconds), clock=self.clock)


def test_the_time_of_an_asynchronous_device_is_its_work_not_its_launch() -> None:
    measured = FakeDevice(busy(5)).measured()
    assert measured.reasons == measured.warnings == ()
    assert measured.warm_up.steady
    assert measured.warm_up.steps >= 10
    assert measured.step_seconds == pytest.approx([5e-3] * 9, rel=0.03)
    assert len(measured.blocks) == 9
    assert sum(measured.blocks) / 1e9 == pytest.approx(1.0, rel=0.1)


def test_one_fence_follows_each_block_of_k_steps() -> None:
    device = FakeDevice(busy(5))
    measured = device.measured()
    assert device.fenced_steps.count(measured.steps_per_block) >= 9
    assert measured.steps_per_block > 10


class EarlyFence(FakeDevice):
    """Returns from its fence at once, as a device does that was asked to wait for the wrong thing."""

    def fence(self) -> None:
        self.fenced_steps.append(self.pending)


def test_a_fence_that_returns_early_is_caught() -> None:
    measured = EarlyFence(busy(5)).measured()
    assert any("fence returned before the work was done" in reason for reason in measured.reasons)


class LossOnlyFence(FakeDevice):
    """A lazy device whose fence was given the loss: a third of the work, backward and update, is left to do."""

    def fence(self) -> None:
        self.now = max(self.now, (self.now + 2 * self.done_at) // 3)


def test_a_fence_on_the_loss_alone_is_caught() -> None:
    measured = LossOnlyFence(busy(5)).measured()
    assert any("fence returned before the work was done" in reason for reason in measured.reasons)


class Compiling(FakeDevice):
    """Compiles, for 500 ms, at the given steps."""

    def __init__(self, at: Callable[[int], bool], **options: Sequence[int]) -> None:
        super().__init__(self._work, **options)
        self.at = at

    def _work(self, step: int, index: int) -> int:
        if not self.at(step):
            return 5 * MS
        self.compiles += 1
        return 505 * MS


def test_a_late_compilation_is_awaited_and_shown_as_its_own_phase() -> None:
    measured = Compiling(lambda step: step in (0, 7)).measured(warmup_seconds=10.0)
    assert measured.reasons == ()
    assert measured.warm_up.compiles == 1
    assert measured.phases["first_step"] == pytest.approx(0.505, rel=0.01)
    assert measured.phases["later_compiles"] == pytest.approx(0.505, rel=0.01)
    assert measured.step_seconds == pytest.approx([5e-3] * 9, rel=0.03)


def test_warm_up_goes_on_for_five_steps_after_the_last_compilation() -> None:
    """Also when the compilation is too short to show in the times."""

    def work(step: int, index: int) -> int:
        device.compiles += step in (0, 9, 12)
        return 5 * MS

    device = FakeDevice(work)
    assert device.measured(warmup_seconds=10.0).warm_up.steps == 12 + 5


class Scattering(FakeDevice):
    """Every fence waits for other work: some milliseconds, whatever the block's length."""

    def __init__(self, milliseconds: int, step: int = 1) -> None:
        super().__init__(busy(step))
        self.milliseconds, self.generator = milliseconds, np.random.default_rng(3)

    def fence(self) -> None:
        super().fence()
        if self.pending > 5:
            self.now += int(self.generator.integers(self.milliseconds * MS))


def test_short_blocks_that_scatter_are_timed_again_and_longer_but_not_for_ever() -> None:
    scattering, calm = (Scattering(milliseconds).measured(seconds=0.45) for milliseconds in (20, 1))
    assert calm.warnings == ()
    assert scattering.steps_per_block == pytest.approx(2 * calm.steps_per_block, abs=2)
    assert re.match(r"blocks of \d\d ms scattered by \d\d%: timed again 2 times as long$", scattering.warnings[0])
    assert len(scattering.blocks) == 9
    assert sum(scattering.blocks) < 4 * 0.45e9
    assert Scattering(200).measured(seconds=9.0).warnings == (), "a block is long enough"


def test_blocks_that_take_turns_keep_the_length_that_both_have(monkeypatch: pytest.MonkeyPatch) -> None:
    lengthened = Scattering(20).measured(seconds=0.45)
    monkeypatch.setattr(Turns, "shared", True)
    kept = Scattering(20).measured(seconds=0.45)
    assert kept.warnings == ()
    assert 2 * kept.steps_per_block == lengthened.steps_per_block


def test_a_block_is_at_least_20_ms_long_within_limits() -> None:
    assert FakeDevice(busy(1)).measured(seconds=0.09).steps_per_block == pytest.approx(20 / 1.0, abs=2)
    assert FakeDevice(busy(1)).measured(seconds=0.009).steps_per_block == pytest.approx(4 / 1.0, abs=1)


def test_what_lengthened_blocks_find_is_kept_from_the_first_ones() -> None:
    class Poisoned(Scattering):
        def read(self) -> list[str]:
            return ["a NaN"] if 200 < self.steps < 300 and not super().read() else []

    assert Poisoned(20).measured(seconds=0.45).reasons == ("a NaN",)


@pytest.mark.parametrize("every", [3, 40, 150])
def test_a_compilation_inside_a_timed_block_makes_the_result_invalid(every: int) -> None:
    measured = Compiling(lambda step: step % every == 0).measured()
    assert any("compilations inside the timed region" in reason for reason in measured.reasons)


def test_every_shape_is_seen_before_the_first_block_even_without_a_budget() -> None:
    seen: set[int] = set()

    def first_time(step: int, index: int) -> int:
        if index in seen:
            return 5 * MS
        seen.add(index)
        device.compiles += 1
        return 400 * MS

    device = FakeDevice(first_time, classes=(0, 1, 2, 3))
    measured = device.measured(warmup_seconds=0.0)
    assert measured.reasons == ()
    assert any("warm-up cut by budget" in warning for warning in measured.warnings)


def test_blocks_of_unequal_batches_are_whole_passes_and_equal_work() -> None:
    def work(step: int, index: int) -> int:
        return (5 * MS, 10 * MS, 20 * MS)[index]

    device = FakeDevice(work, classes=(0, 1, 2))
    measured = device.measured(blocks=5, seconds=1.0)
    assert measured.steps_per_block % 3 == 0
    assert max(measured.blocks) == pytest.approx(min(measured.blocks), rel=0.02)
    assert measured.step_seconds[0] == pytest.approx(35e-3 / 3, rel=0.05)


def test_a_slow_device_runs_one_step_a_block_and_says_that_it_took_longer() -> None:
    measured = FakeDevice(busy(2000)).measured(blocks=3, seconds=1.0)
    assert measured.steps_per_block == 1
    assert measured.warm_up.steps <= 2
    assert any("more than the 1 s planned" in warning for warning in measured.warnings)
    assert any("warm-up cut by budget" in warning for warning in measured.warnings)


def test_only_where_allowed_a_slow_device_runs_fewer_blocks_and_says_so() -> None:
    device = FakeDevice(busy(2000))
    measured = measure(device, Budget(5, 3.0, 1.0, least_blocks=2), clock=device.clock)
    assert len(measured.blocks) == 2
    assert any("2 blocks instead of 5" in warning for warning in measured.warnings)
    fast = FakeDevice(busy(5))
    assert len(measure(fast, Budget(5, 3.0, 1.0, least_blocks=2), clock=fast.clock).blocks) == 5


def test_a_device_that_grows_faster_is_warmed_up_until_it_no_longer_does() -> None:
    def work(step: int, index: int) -> int:
        return int(5 * MS * (1 + 3 * 0.9**step))

    measured = FakeDevice(work).measured(warmup_seconds=10.0)
    assert measured.warm_up.steps > 20
    assert measured.step_seconds[0] == pytest.approx(measured.step_seconds[-1], rel=0.03)


def test_a_device_that_throttles_half_way_is_flagged() -> None:
    def work(step: int, index: int) -> int:
        return 5 * MS if step < 110 else 8 * MS

    processes = [FakeDevice(work).measured().step_seconds for _ in range(3)]
    (reason,) = steadiness(processes, [False] * 3).reasons
    assert "slower than the first (process 1, 2, 3): the device throttled" in reason
    excused = steadiness(processes, [True] * 3)
    assert excused.reasons == []
    assert any("slower than the first" in warning for warning in excused.warnings)


def test_a_device_of_two_speeds_has_none() -> None:
    """A third of its blocks takes half as long again, at no time in particular."""

    class Fickle(FakeDevice):
        def __init__(self) -> None:
            super().__init__(lambda *_: 9 * MS if self.begun % 3 == 1 else 6 * MS)
            self.begun = 0

        def begin(self) -> None:
            super().begin()
            self.begun += 1

    processes = [Fickle().measured().step_seconds for _ in range(3)]
    (reason,) = steadiness(processes, [False] * 3).reasons
    assert "slower than the others (process 1, 2, 3): it has no speed, but two" in reason
    excused = steadiness(processes, [True] * 3)
    assert excused.reasons == []
    assert any("slower than the others" in warning for warning in excused.warnings)


def test_what_reading_finds_makes_the_result_invalid_once() -> None:
    class Poisoned(FakeDevice):
        def read(self) -> list[str]:
            super().read()
            return ["3 logits of 616 were NaN or infinite"]

    assert Poisoned(busy(5)).measured().reasons == ("3 logits of 616 were NaN or infinite",)


def test_a_clock_that_stands_still_is_no_measurement() -> None:
    device = FakeDevice(busy(5))
    measured = measure(device, Budget(2, 0.001, 0.0), clock=lambda: 0)
    assert any("clock stood still" in reason for reason in measured.reasons)


@pytest.mark.parametrize("at", [0, 3, 40])
def test_a_clock_that_goes_backwards_is_no_measurement(at: int) -> None:
    device = FakeDevice(busy(5))
    looks = iter(range(10**9))
    # Half a second back, once.
    measured = measure(device, Budget(9, 1.0, 1.0), clock=lambda: device.now - (MS * 500 if next(looks) > at else 0))
    assert any("went backwards" in reason for reason in measured.reasons)


class Lazy(FakeDevice):
    """Nothing runs before somebody asks for a value, and then only what that value depends on.

    A step's loss needs a third of its work; gradients and update, the rest, run for the parameters alone.
    """

    def __init__(self, fence_on: str) -> None:
        super().__init__(busy(0))
        self.fence_on = fence_on
        self.forward = self.update = 0

    def step(self, index: int) -> None:
        super().step(index)
        self.forward += 2 * MS
        self.update += 4 * MS

    def fence(self) -> None:
        super().fence()
        self._ask(self.fence_on)

    def read(self) -> list[str]:
        # The weights are read as well: see workloads.
        self._ask("parameters")
        return super().read()

    def _ask(self, what: str) -> None:
        self.now += self.forward
        self.forward = 0
        if what == "parameters":
            self.now += self.update
            self.update = 0


def test_a_lazy_device_is_timed_by_its_parameters_and_caught_on_its_loss() -> None:
    sound = Lazy("parameters").measured()
    assert sound.reasons == ()
    assert sound.step_seconds == pytest.approx([6.1e-3] * 9, rel=0.01)
    assert any("fence returned before" in reason for reason in Lazy("loss").measured().reasons)


class CompilesAtStepSeven(FakeDevice):
    """A program for the seventh of a series of steps without a fence: a warm-up of single steps never meets it."""

    def __init__(self) -> None:
        super().__init__(self._work)

    def _work(self, step: int, index: int) -> int:
        self.compiles += self.pending == 6
        return 505 * MS if self.pending == 6 else 5 * MS


def test_a_device_that_compiles_at_the_seventh_step_of_a_block_is_caught() -> None:
    measured = CompilesAtStepSeven().measured()
    assert measured.steps_per_block > 7
    assert measured.warm_up.compiles == 0
    assert any("compilations inside the timed region" in reason for reason in measured.reasons)


def test_noise_of_a_known_distribution_is_covered_through_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 simulated runs of 3 processes of a device with a spread of 5 % a block and 3 % a process."""
    # A collection of all that torch holds takes longer than the simulation.
    monkeypatch.setattr(measuring, "_collector_frozen", nullcontext)
    monkeypatch.setattr(measuring, "LONGEST_PAUSE", 0.0)
    generator = np.random.default_rng(5)

    def process() -> list[float]:
        level = 100 * MS * np.exp(0.03 * generator.standard_normal())

        def work(step: int, index: int) -> int:
            return int(level * np.exp(0.05 * generator.standard_normal()))

        return FakeDevice(work).measured(seconds=0.5).step_seconds

    runs = np.log([[process() for _ in range(3)] for _ in range(200)])
    low, high = bounds(resampled_medians(runs, generator, 400))
    assert 0.91 <= ((low <= np.log(0.1001)) & (np.log(0.1001) <= high)).mean() <= 0.99


def test_energy_is_counted_block_by_block_outside_the_clock() -> None:
    device = FakeDevice(busy(5))

    def joules() -> float:
        device.now += 7 * MS
        return 0.02 * device.steps

    measured = measure(device, Budget(9, 1.0, 1.0), clock=device.clock, joules=joules)
    assert measured.joules == pytest.approx([0.02 * measured.steps_per_block] * 9)
    assert measured.step_seconds == pytest.approx([5e-3] * 9, rel=0.03)
    assert FakeDevice(busy(5)).measured().joules == ()


@pytest.mark.parametrize(("leak", "told"), [(100_000, 1), (0, 0)])
def test_a_leak_is_told_and_noise_is_none(leak: int, told: int) -> None:
    device, generator = FakeDevice(busy(5)), np.random.default_rng(3)

    def held() -> int:
        return 10**9 + leak * device.steps + int(generator.integers(0, 2**20))

    measured = measure(device, Budget(9, 1.0, 1.0), clock=device.clock, held=held)
    assert sum("memory grows by" in warning for warning in measured.warnings) == told
    assert measured.growth == (pytest.approx(leak, rel=0.05) if leak else None)


@pytest.mark.parametrize("held", [10**9, 10**10])
def test_a_leak_is_told_of_blocks_of_one_step(held: int) -> None:
    device, generator = FakeDevice(busy(2000)), np.random.default_rng(3)
    budget = Budget(9, 1.0, 1.0)
    measured = measure(
        device,
        budget,
        clock=device.clock,
        held=lambda: held + 100_000 * device.steps + int(generator.integers(0, 2**15)),
    )
    assert measured.steps_per_block == 1
    assert measured.growth == pytest.approx(100_000, rel=0.1)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("reach", [2**16, 2**18, 2**20])
def test_memory_that_wanders_is_no_leak(reach: int, steps: int) -> None:
    """Of 1,000 random walks of an allocator, up and down from block to block, few look like a leak."""
    generator = np.random.default_rng(5)
    walks = 10**9 + np.cumsum(generator.integers(-reach, reach, (1000, 9)), axis=1)
    assert sum(growth(walk.tolist(), steps) is not None for walk in walks) < 40


def test_the_collector_rests_while_blocks_are_timed_and_is_back_afterwards() -> None:
    device = FakeDevice(busy(50))
    device.measured()
    assert False in device.collector_enabled
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
