"""The verdict on traces made by hand: where it begins, what it names, what it refuses, and what it may not overlook."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from isotrain import UserError
from isotrain.benchmarks.parity.head_checks import unjudged
from isotrain.benchmarks.parity.judge import Judgement, judge
from isotrain.benchmarks.parity.trace import Trace
from support.parity_traces import NOISE, STEPS, TEXTS, WIDTH, exact, header, noisy, with_header

pytestmark = pytest.mark.core


def verdict(candidate: Trace, reference: Trace | None = None) -> Judgement:
    return judge(reference or exact(), candidate, [noisy(seed) for seed in (1, 2, 3)])


def changed(trace: Trace, name: str, place: Any, by: float) -> Trace:
    array = trace.arrays[name].copy()
    array[place] += by
    return replace(trace, arrays=trace.arrays | {name: array})


def test_rounding_like_the_error_budgets_passes() -> None:
    found = verdict(noisy(9))
    assert (found.verdict, found.reasons, found.first_step) == ("pass", [], None)
    assert 0 < found.worst <= 1


def test_twice_the_allowed_error_drifts_and_a_hundred_times_diverges() -> None:
    assert verdict(noisy(9, 6.5 * NOISE)).verdict == "drift"
    assert verdict(noisy(9, 300 * NOISE)).verdict == "diverged"


def test_the_first_step_outside_is_named() -> None:
    found = verdict(changed(noisy(9), "loss", slice(17, None), 0.1))
    assert (found.verdict, found.first_step, found.layer) == ("diverged", 18, None)
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
    error_budgets = [noisy(seed, 1e-9) for seed in (1, 2, 3)]

    def found(scale: float, betas: list[float] | None) -> str:
        candidate = noisy(9, 1e-9, adam_on_device=betas)
        arrays = candidate.arrays | {"update_norm": update + scale * errors}
        return judge(reference, replace(candidate, arrays=arrays), error_budgets).verdict

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
    assert verdict(logits).details.probe.pcc > 0.9999


def test_a_layers_own_error_is_told_from_what_it_was_given() -> None:
    wrong = noisy(9)
    for place in (2, 3):
        wrong = changed(wrong, "states", place, 0.01)
    assert (verdict(wrong).layer, verdict(wrong).cause) == ("layer 2", "accumulated")
    local = changed(wrong, "replay", 1, 0.01)
    assert (verdict(local).layer, verdict(local).cause) == ("layer 2", "local")
    arrays = {name: array for name, array in wrong.arrays.items() if name != "replay"}
    unknown = verdict(replace(wrong, arrays=arrays))
    assert (unknown.layer, unknown.cause) == ("layer 2", None)


@pytest.mark.parametrize("value", [0.01, np.nan])
def test_a_layer_that_errs_by_itself_alone_does_not_pass(value: float) -> None:
    found = verdict(changed(noisy(9), "replay", 1, value))
    assert (found.layer, found.cause) == ("layer 2", "local")
    assert found.verdict != "pass"


def test_a_replay_of_another_shape_is_refused() -> None:
    short = noisy(9)
    arrays = short.arrays | {"replay": short.arrays["replay"][:-1]}
    assert "replay is" in verdict(replace(short, arrays=arrays)).reasons[0]


def test_foreign_draws_are_no_error_budget() -> None:
    """Not of another arithmetic, another run, or not finite: each would widen the band."""
    other = noisy(2, error_budget={"label": "ideal float16", "backend": "ideal", "dtype": "float16", "draws": True})
    for draw in (other, noisy(2, probe_sha256="c" * 64), changed(noisy(2), "states", (0, 0, 0), np.inf)):
        found = judge(exact(), noisy(9), [noisy(1), noisy(3), draw])
        assert found.verdict == "refused"
        assert "is none for it" in found.reasons[0]


def test_a_loss_that_is_not_finite_has_diverged_where_it_began() -> None:
    found = verdict(changed(noisy(9), "loss", slice(11, None), np.nan))
    assert (found.verdict, found.first_step) == ("diverged", 12)
    assert "not finite at step 12" in found.reasons[0]
    assert found.details.series.loss[11:] == [None] * (STEPS - 11)


def ended(trace: Trace, steps: int, evaluations: int) -> Trace:
    """`trace` as a run that could not go on after `steps` steps leaves it."""
    cut = trace.until(steps, evaluations)
    return with_header(cut, ended={"step": steps, "reason": "the loss is nan by step 20"})


def test_a_run_that_could_not_go_on_has_diverged_where_it_left_the_band() -> None:
    found = verdict(ended(changed(noisy(9), "loss", slice(14, None), np.nan), 20, 0))
    assert (found.verdict, found.first_step) == ("diverged", 15)
    assert len(found.details.series.loss) == len(found.details.series.loss_low) == 20
    assert found.details.metrics == []


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
    candidate = noisy(9, batches=header().batches[:20])
    short = replace(candidate, arrays=candidate.arrays | {name: candidate.arrays[name][:20] for name in ("loss",)})
    assert "30 steps" in " ".join(verdict(short).reasons)


def test_a_reference_with_nan_judges_nothing() -> None:
    found = verdict(noisy(9), changed(exact(), "loss", 3, np.nan))
    assert found.verdict == "refused"
    assert "judges nothing" in found.reasons[0]


def test_only_float64_judges_and_never_without_a_error_budget() -> None:
    with pytest.raises(UserError, match="only a float64 trace"):
        verdict(noisy(9), noisy(4))
    for draws in ([], [noisy(1), noisy(2)]):
        with pytest.raises(UserError, match=f"has {len(draws)} of 3 draws of the error budget 'ideal bfloat16'"):
            judge(exact(), noisy(9), draws)


def evaluation(**changes: float) -> list[dict[str, float]]:
    return [{"epoch": 1, "step": STEPS, "accuracy": 0.5, "loss": 1.0} | changes]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": 0.01, "accuracy": 0.99}, "the evaluation's"),
        ({"loss": 1.01}, "the evaluation's loss"),
        ({"accuracy": 0.99}, "the evaluation's accuracy"),
        ({"accuracy": float("nan")}, "the evaluation's accuracy is not finite"),
        ({"loss": float("inf")}, "the evaluation's loss is not finite"),
    ],
)
def test_figures_of_an_evaluation_that_its_logits_do_not_explain(changes: dict[str, float], words: str) -> None:
    found = verdict(noisy(9, metrics=evaluation(**changes)))
    assert found.verdict != "pass"
    assert words in found.reasons[0]
    assert "how an evaluation's figures are computed" in found.reasons[1]
    assert (found.first_step, found.layer, found.details.place) == (STEPS, None, "evaluation")
    (shown,) = found.details.metrics
    assert shown.reference_loss == 1.0
    assert 0 < shown.allowed_loss < 1e-2
    assert max(check.ratio or 99 for check in found.details.checks) > 1


def test_a_figure_may_differ_by_what_the_logits_error_makes_of_it() -> None:
    assert verdict(noisy(9, metrics=evaluation(loss=1.0 + NOISE))).verdict == "pass"
    split = {"rows": 3080, "sha256": "e" * 64, "moves": {"accuracy": 1 / 3080}}
    reference = with_header(exact(), evaluation=split)
    for changed_answers, expected in ((1, "pass"), (40, "drift")):
        candidate = noisy(9, evaluation=split, metrics=evaluation(accuracy=0.5 + changed_answers / 3080))
        assert verdict(candidate, reference).verdict == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": evaluation(f1=0.5)}, "has not the same figures on both sides (f1)"),
        ({"metrics": evaluation(step=STEPS - 1)}, f"is after step {STEPS} in the reference, and in device:bfloat16"),
        ({"evaluation": {"rows": 76, "sha256": "e" * 64, "moves": {}}}, "the evaluation splits differ (77 rows, 76"),
        ({"dropout_off": True}, "had dropout to switch off"),
        ({"adam_on_device": [0.9, 0.99]}, "Adam's betas are [0.9, 0.999] in the reference and [0.9, 0.99]"),
    ],
)
def test_other_evaluations_and_optimizers_are_refused(changes: dict[str, Any], words: str) -> None:
    split = {"rows": 77, "sha256": "e" * 64, "moves": {}}
    recipe = header().recipe | {"adam_beta1": 0.9, "adam_beta2": 0.999}
    reference = with_header(exact(), evaluation=split, recipe=recipe)
    draws = [noisy(seed, recipe=recipe) for seed in (1, 2, 3)]
    found = judge(reference, noisy(9, **{"recipe": recipe} | changes), draws)
    assert found.verdict == "refused"
    assert words in " ".join(found.reasons)


def with_head(trace: Trace, noise: float = 0.0, seed: int = 0) -> Trace:
    """`trace` with a head that was replayed: in its own dtype, its errors are far smaller than the encoder's."""
    generator = np.random.default_rng(seed)
    source = exact().arrays
    arrays = {f"head_{name}": source[name] for name in ("loss", "grad_norm", "update_norm")}
    arrays |= {"head_logits": source["probe_logits"]}
    arrays = {name: array + noise * generator.standard_normal(array.shape) for name, array in arrays.items()}
    rows = np.random.default_rng(1).standard_normal((16 * STEPS, WIDTH))
    given = {"features": rows, "probe_features": rows[None, :TEXTS], "right": np.full(STEPS, 8.0)}
    spread = NOISE if noise else 0.0
    for name in ("features", "probe_features"):
        given[name] = given[name] + spread * generator.standard_normal(given[name].shape)
    return with_header(replace(trace, arrays=trace.arrays | arrays | given), batch_sizes=[16] * STEPS)


def beside_the_encoder(candidate: Trace) -> Judgement:
    return judge(with_head(exact()), candidate, [with_head(noisy(seed), 1e-7, seed) for seed in (1, 2, 3)])


@pytest.mark.parametrize("name", ["head_loss", "head_grad_norm", "head_update_norm"])
def test_a_heads_own_error_is_not_hidden_by_the_encoders(name: str) -> None:
    right = with_head(noisy(9), 1e-7, 9)
    assert beside_the_encoder(right).verdict == "pass"
    # As much as the encoder's rounding makes of it, and a hundred times what the head's own does.
    found = beside_the_encoder(changed(right, name, slice(7, None), NOISE))
    assert (found.verdict, found.first_step, found.layer, found.cause) == ("diverged", 8, None, None)
    assert "given the reference's features" in found.reasons[0]
    assert found.details.place == "head, loss or optimizer, by itself"


def test_a_replay_of_the_head_that_could_not_go_on_has_diverged() -> None:
    right = with_head(noisy(9), 1e-7, 9)
    short = {name: right.arrays[name][:5] for name in ("head_loss", "head_grad_norm", "head_update_norm")}
    found = beside_the_encoder(replace(right, arrays=right.arrays | short))
    assert (found.verdict, found.first_step) == ("diverged", 5)
    none = {name: right.arrays[name][:0] for name in short}
    assert beside_the_encoder(replace(right, arrays=right.arrays | none)).verdict == "diverged"


@pytest.mark.parametrize("betas", [None, [0.9, 0.999]])
def test_a_run_that_could_not_go_on_is_held_against_a_whole_replay_of_its_head(betas: list[float] | None) -> None:
    whole = with_head(noisy(9, adam_on_device=betas), 1e-7, 9)
    cut = ended(whole, 20, 0)
    rows = {"features": whole.arrays["features"][: 16 * 20]}
    assert (beside_the_encoder(replace(cut, arrays=cut.arrays | rows)).first_step) == 20


@pytest.mark.parametrize(("name", "place", "step"), [("features", (16 * 4, 3), 5), ("probe_features", (0, 1, 2), 0)])
def test_features_that_the_head_should_not_have_got(name: str, place: Any, step: int) -> None:
    found = beside_the_encoder(changed(with_head(noisy(9), 1e-7, 9), name, place, 100 * NOISE))
    assert (found.verdict, found.first_step, found.details.place) == ("drift", step, "features")
    assert "look at the feature cache" in found.reasons[1]


def test_right_answers_that_a_step_miscounts() -> None:
    found = beside_the_encoder(changed(with_head(noisy(9), 1e-7, 9), "right", slice(None), 4.0))
    assert found.verdict != "pass"
    assert "training's right answers so far" in found.reasons[0]


def test_what_an_earlier_version_did_not_record_is_not_held_against_anybody() -> None:
    """Of a trace without features and head, all else is judged, and a note says so."""
    old = noisy(9)
    found = judge(with_head(exact()), old, [with_head(noisy(seed), 1e-7, seed) for seed in (1, 2, 3)])
    assert found.verdict == "pass"
    assert "recorded by an earlier version" in " ".join(unjudged(with_head(exact()), old))
