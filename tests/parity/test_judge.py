"""The verdict on traces made by hand: where it begins, what it names, what it refuses, and what it may not overlook."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from isotrain import UserError
from isotrain.benchmarks.parity.judge import Judgement, judge
from isotrain.benchmarks.parity.trace import Trace
from support.parity_traces import NOISE, STEPS, exact, header, noisy


def verdict(candidate: Trace, reference: Trace | None = None) -> Judgement:
    return judge(reference or exact(), candidate, [noisy(seed) for seed in (1, 2, 3)])


def changed(trace: Trace, name: str, place: Any, by: float) -> Trace:
    array = trace.arrays[name].copy()
    array[place] += by
    return replace(trace, arrays=trace.arrays | {name: array})


def test_rounding_like_the_yardsticks_passes() -> None:
    found = verdict(noisy(9))
    assert (found.verdict, found.reasons, found.first_step) == ("pass", [], None)
    assert 0 < found.worst <= 1


def test_twice_the_allowed_error_drifts_and_a_hundred_times_diverges() -> None:
    assert verdict(noisy(9, 6.5 * NOISE)).verdict == "drift"
    assert verdict(noisy(9, 300 * NOISE)).verdict == "diverged"


def test_the_first_step_outside_is_named() -> None:
    found = verdict(changed(noisy(9), "loss", slice(17, None), 0.1))
    assert (found.verdict, found.first_step, found.repetition) == ("diverged", 18, None)
    assert "loss is off" in found.reasons[0]
    assert "head, the loss or the optimizer" in found.reasons[1]


@pytest.mark.parametrize("name", ["grad_norm", "update_norm"])
def test_norms_are_judged_like_the_loss(name: str) -> None:
    assert verdict(changed(noisy(9), name, 5, 0.1)).first_step == 6


def test_bias_corrections_in_float32_are_allowed_for_where_the_device_makes_them() -> None:
    """A step's update may be off by what 1 - beta^t loses, and a later one by less; no more than that."""
    update = exact().arrays["update_norm"]
    errors = 1e-7 * update / (1 - 0.999 ** np.arange(1, STEPS + 1))
    reference = exact()
    yardsticks = [noisy(seed, 1e-9) for seed in (1, 2, 3)]

    def found(scale: float, betas: list[float] | None) -> str:
        candidate = noisy(9, 1e-9, adam_on_device=betas)
        arrays = candidate.arrays | {"update_norm": update + scale * errors}
        return judge(reference, replace(candidate, arrays=arrays), yardsticks).verdict

    assert found(0.1, [0.9, 0.999]) == "pass"
    assert found(0.1, None) != "pass"
    assert found(100.0, [0.9, 0.999]) != "pass"


def test_one_wrong_element_is_no_average() -> None:
    """Its error vanishes in the mean over the tensor, and in the correlation."""
    found = verdict(changed(noisy(9), "states", (2, 3, 4), 100 * NOISE))
    assert found.verdict != "pass"
    assert "largest error" in found.reasons[0]
    logits = changed(noisy(9), "probe_logits", (1, 2, 3), 100 * NOISE)
    assert verdict(logits).verdict != "pass"
    assert verdict(logits).details["probe"]["pcc"] > 0.9999


def test_a_repetitions_own_error_is_told_from_what_it_was_given() -> None:
    wrong = noisy(9)
    for place in (2, 3):
        wrong = changed(wrong, "states", place, 0.01)
    assert (verdict(wrong).repetition, verdict(wrong).cause) == ("repetition 2", "accumulated")
    local = changed(wrong, "replay", 1, 0.01)
    assert (verdict(local).repetition, verdict(local).cause) == ("repetition 2", "local")
    arrays = {name: array for name, array in wrong.arrays.items() if name != "replay"}
    unknown = verdict(replace(wrong, arrays=arrays))
    assert (unknown.repetition, unknown.cause) == ("repetition 2", None)


@pytest.mark.parametrize("value", [0.01, np.nan])
def test_a_repetition_that_errs_by_itself_alone_does_not_pass(value: float) -> None:
    found = verdict(changed(noisy(9), "replay", 1, value))
    assert (found.repetition, found.cause) == ("repetition 2", "local")
    assert found.verdict != "pass"


def test_a_replay_of_another_shape_is_refused() -> None:
    short = noisy(9)
    arrays = short.arrays | {"replay": short.arrays["replay"][:-1]}
    assert "replay is" in verdict(replace(short, arrays=arrays)).reasons[0]


def test_foreign_draws_are_no_yardstick() -> None:
    """Not of another arithmetic, another run, or not finite: each would widen the band."""
    other = noisy(2, yardstick={"label": "ideal float16", "backend": "ideal", "dtype": "float16", "draws": True})
    for draw in (other, noisy(2, probe_sha256="c" * 64), changed(noisy(2), "states", (0, 0, 0), np.inf)):
        found = judge(exact(), noisy(9), [noisy(1), noisy(3), draw])
        assert found.verdict == "refused"
        assert "is none for it" in found.reasons[0]


def test_a_loss_that_is_not_finite_has_diverged_where_it_began() -> None:
    found = verdict(changed(noisy(9), "loss", slice(11, None), np.nan))
    assert (found.verdict, found.first_step) == ("diverged", 12)
    assert "not finite at step 12" in found.reasons[0]
    assert found.details["series"]["loss"][11:] == [None] * (STEPS - 11)


def ended(trace: Trace, steps: int, evaluations: int) -> Trace:
    """`trace` as a run that could not go on after `steps` steps leaves it."""
    cut = trace.until(steps, evaluations)
    return replace(cut, header=cut.header | {"ended": {"step": steps, "reason": "the loss is nan by step 20"}})


def test_a_run_that_could_not_go_on_has_diverged_where_it_left_the_band() -> None:
    found = verdict(ended(changed(noisy(9), "loss", slice(14, None), np.nan), 20, 0))
    assert (found.verdict, found.first_step) == ("diverged", 15)
    assert len(found.details["series"]["loss"]) == len(found.details["series"]["loss_low"]) == 20
    assert found.details["metrics"] == []


def test_a_run_that_could_not_go_on_has_diverged_even_where_all_it_showed_was_right() -> None:
    found = verdict(ended(noisy(9), 20, 0))
    assert (found.verdict, found.first_step) == ("diverged", 20)


def test_a_replay_of_another_references_states_is_refused() -> None:
    other = changed(exact(), "states", (0, 0, 0), 1e-9)
    assert "replayed other hidden states" in " ".join(verdict(noisy(9, replayed_sha256=other.states_sha256())).reasons)
    draw = noisy(2, replayed_sha256=other.states_sha256())
    assert judge(exact(), noisy(9), [noisy(1), noisy(3), draw]).verdict == "refused"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": {"learning_rate": 2e-3, "seed": 1}}, "learning_rate is 0.001 in the reference and 0.002"),
        ({"weights_sha256": "c" * 64}, "initial weights differ"),
        ({"probe_sha256": "c" * 64}, "probe texts differ"),
        ({"batches": ["d" * 64] * STEPS}, "batches differ from step 1 on"),
    ],
)
def test_other_runs_are_refused_not_compared(changes: dict[str, Any], words: str) -> None:
    found = verdict(noisy(9, **changes))
    assert found.verdict == "refused"
    assert words in " ".join(found.reasons)


def test_another_length_is_refused() -> None:
    candidate = noisy(9, batches=header()["batches"][:20])
    short = replace(candidate, arrays=candidate.arrays | {name: candidate.arrays[name][:20] for name in ("loss",)})
    assert "30 steps" in " ".join(verdict(short).reasons)


def test_a_reference_with_nan_arbitrates_nothing() -> None:
    found = verdict(noisy(9), changed(exact(), "loss", 3, np.nan))
    assert found.verdict == "refused"
    assert "arbitrates nothing" in found.reasons[0]


def test_only_float64_arbitrates_and_never_without_a_yardstick() -> None:
    with pytest.raises(UserError, match="only a float64 trace"):
        verdict(noisy(9), noisy(4))
    for draws in ([], [noisy(1), noisy(2)]):
        with pytest.raises(UserError, match=f"has {len(draws)} of 3 draws of the yardstick 'ideal bfloat16'"):
            judge(exact(), noisy(9), draws)
