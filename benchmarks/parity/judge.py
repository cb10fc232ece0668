"""The verdict on a trace: is it as near to float64 as its arithmetic allows (rules 12 to 14 of measuring)?

One rule applies to every quantity: the candidate's root mean square error against the float64 trace must not exceed m
times that of the error budgets plus a floor of a few units in the last place. Error budgets are draws of the same
arithmetic on the host. The largest error must also not be far above the error budgets' largest, since a mean hides one
wrong element. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ... import UserError
from ...albert_core.terminal.invocation import command
from ...kernels.words import count
from ..outcome.parity import LayerError, Shown
from .bands import (
    COARSE,
    COARSE_FACTOR,
    FACTOR,
    Check,
    bias_corrections,
    mean_so_far,
    rms,
    series_checks,
    tensor_checks,
)
from .details import details, distances
from .evaluations import accuracy_check, loss_checks, metric_checks
from .head_checks import GIVEN, feature_checks, head_checks
from .trace import DRAWS, SERIES, Trace

# Above so many times the allowed error, drift becomes divergence.
DIVERGED = 10.0
# The most quantities that are named beside the first one outside its band.
NAMED = 6

PASS: Literal["pass"] = "pass"
DRIFT: Literal["drift"] = "drift"
DIVERGED_VERDICT: Literal["diverged"] = "diverged"
REFUSED: Literal["refused"] = "refused"
FAILED: Literal["failed"] = "failed"
LOCAL: Literal["local"] = "local"
ACCUMULATED: Literal["accumulated"] = "accumulated"
# Places of faults other than layers, and what to do about them.
HEAD, HEAD_ITSELF = "head, loss or optimizer", "head, loss or optimizer, by itself"
ELSEWHERE = "outside of the layers, loss or optimizer"
FEATURES, EVALUATION = "features", "evaluation"
# A module's output of fewer elements is judged by its largest error: a few draws of their mean may be close by chance.
LEAST_ELEMENTS = 64
ADVICE = {
    HEAD: "look at the head, the loss or the optimizer",
    HEAD_ITSELF: "given the reference's features it errs, too: look at the head, the loss or the optimizer",
    ELSEWHERE: "look at what the module computes outside of its layers, at the loss or the optimizer",
    FEATURES: "the features differ that the head was given: look at the feature cache, the batches or the encoder",
    EVALUATION: "its logits are, too: look at how an evaluation's figures are computed",
}


@dataclass(frozen=True)
class Judgement:
    """The verdict, the first place outside its band, and what tables and charts show."""

    verdict: Literal["pass", "drift", "diverged", "refused"]
    reasons: list[str]
    first_step: int | None = None
    layer: str | None = None
    cause: Literal["local", "accumulated"] | None = None
    worst: float = 0.0
    details: Shown | None = None


def judge(reference: Trace, candidate: Trace, error_budgets: Sequence[Trace]) -> Judgement:
    """Judges `candidate` against the float64 `reference` by the `error_budgets` of the candidate's arithmetic.

    A candidate with other weights, batches or another recipe gets the verdict "refused". If its training could not
    continue, it has diverged, and is judged up to its last step.

    Raises:
        UserError: The reference is no float64 trace, or there are too few error budgets.
    """
    if reference.header.policy.compute != "float64":
        raise UserError(
            f"the reference {reference.label} computes in {reference.header.policy.label}; only a float64 trace "
            "judges: record one with --dtype float64"
        )
    promised = candidate.header.error_budget
    wanted = DRAWS if promised.draws else 1
    if len(error_budgets) < wanted:
        raise UserError(
            f"the reference has {len(error_budgets)} of {wanted} draws of the error budget "
            f"{promised.label!r}, by which {candidate.label} is measured; add them with "
            f"`{command('parity', 'error-budget', 'REFERENCE', 'CANDIDATE')}`"
        )
    if candidate.header.ended is not None:
        came = candidate.steps, len(candidate.header.metrics)
        reference, *error_budgets = (trace.until(*came) for trace in (reference, *error_budgets))
    differing = differences(reference, candidate)
    for error_budget in error_budgets:
        wrong = differences(reference, error_budget)
        if error_budget.header.error_budget.label != candidate.header.error_budget.label:
            wrong.append(f"it is a draw of {error_budget.header.error_budget.label!r}")
        if not all(np.isfinite(array).all() for array in error_budget.arrays.values()):
            wrong.append("it holds NaN or inf")
        if wrong:
            differing.append(
                f"the error budget {error_budget.folder.name} is none for it ({wrong[0]}); record it again"
            )
    if differing:
        return Judgement(REFUSED, differing)
    m = COARSE_FACTOR if _coarse(candidate) else FACTOR
    series = {name: series_checks(name, name, reference, candidate, error_budgets, m) for name in SERIES}
    logits = _logit_checks(reference, candidate, error_budgets, m)
    layers = _layer_checks(reference, candidate, error_budgets, m)
    allowed = [check.allowed for check in logits[::2]]
    features = feature_checks(reference, candidate, error_budgets, m)
    head = head_checks(reference, candidate, error_budgets, m)
    right = accuracy_check(reference, candidate, allowed)
    if reference.of_module:
        metrics = loss_checks(reference, candidate, error_budgets, m, [check.allowed for check in series["loss"]])
        logits = logits if reference.probe_logits[0].size >= LEAST_ELEMENTS else logits[1::2]
    else:
        metrics = metric_checks(reference, candidate, allowed[1:])
    checks = [*logits, *(check for found in series.values() for check in found), *features, *head, *right]
    checks += [check for check in metrics if check.allowed != float("inf")]
    checks += [check for entry in layers for check in (*entry.cumulative, *entry.local)]
    ended = candidate.header.ended
    if ended is not None:
        # A trace doesn't contain what ended the run, and everything in it may be right.
        checks.append(Check("the evaluation's loss", candidate.steps, float("inf"), 0.0))
    shown = details(
        reference,
        candidate,
        [check.allowed for check in series["loss"]],
        allowed[-1],
        [entry.figures for entry in layers],
        metrics,
        checks,
    )
    found = _verdict(checks, layers, shown, reference.of_module)
    if ended is not None:
        found.reasons.append(f"training could not continue beyond step {ended.step}: {ended.reason}")
    return found


def differences(reference: Trace, candidate: Trace) -> list[str]:
    """What makes two traces incomparable: recipe, initial weights, probe texts, batches, or a reference with NaN.

    NaN in the candidate is no difference but a divergence.
    """
    ours, theirs = reference.header, candidate.header
    found = _other_evaluations(reference, candidate)
    for key, value in ours.recipe.items():
        # A key that only one side has, from another version, can't be compared.
        if theirs.recipe.get(key, value) != value:
            found.append(f"{key} is {value} in the reference and {theirs.recipe[key]} in {candidate.label}")
    for key, words in (("weights_sha256", "initial weights"), ("probe_sha256", "probe texts")):
        one, other = getattr(ours, key), getattr(theirs, key)
        if one != other:
            found.append(f"the {words} differ ({key} {one[:12]}, {other[:12]})")
    if reference.steps != candidate.steps:
        found.append(f"the reference has {count(reference.steps, 'step')}, {candidate.label} {candidate.steps}")
    for step, (one, other) in enumerate(zip(ours.batches, theirs.batches, strict=False), start=1):
        if one != other:
            found.append(f"the batches differ from step {step} on (sha256 {one[:12]}, {other[:12]})")
            break
    for name, array in reference.arrays.items():
        if not np.isfinite(array).all():
            found.append(f"the reference has NaN or inf in {name}: it judges nothing")
        elif name in candidate.arrays and not found and _shape(name, candidate.arrays[name]) != _shape(name, array):
            found.append(f"{name} is {candidate.arrays[name].shape} in {candidate.label}, not {array.shape}")
    if ours.layers != theirs.layers:
        found.append(f"the layers are called in another order in {candidate.label}")
    replayed, states = ([one.shape for one in arrays] for arrays in (candidate.replays, reference.states[1:]))
    if replayed and theirs.replayed_sha256 != reference.states_sha256():
        found.append(
            f"{candidate.label} replayed other hidden states than this reference's; record it with --replay-from"
        )
    if replayed and replayed != states and not found:
        found.append(f"the replay is {replayed} in {candidate.label}, not {states}")
    return found


def _shape(name: str, array: np.ndarray) -> tuple[int, ...]:
    """The shape that must be equal on all sides: for the head's replay and its features, without their length."""
    return array.shape[1:] if name.startswith(("head_", "features", "probe_features")) else array.shape


def _other_evaluations(reference: Trace, candidate: Trace) -> list[str]:
    """What makes the evaluations of two traces incomparable, as far as both say it."""
    found = []
    ours, theirs = (trace.header.evaluation for trace in (reference, candidate))
    if ours is not None and theirs is not None and (ours.rows, ours.sha256) != (theirs.rows, theirs.sha256):
        found.append(
            f"the evaluation splits differ ({count(ours.rows, 'row')}, {theirs.rows} in {candidate.label}; "
            f"sha256 {ours.sha256[:12]}, {theirs.sha256[:12]})"
        )
    entries = zip(reference.header.metrics, candidate.header.metrics, strict=False)
    for number, (one, other) in enumerate(entries, start=1):
        if one.figures.keys() != other.figures.keys():
            names = ", ".join(sorted(one.figures.keys() ^ other.figures.keys()))
            found.append(f"evaluation {number} has not the same figures on both sides ({names})")
        elif (one.epoch, one.step) != (other.epoch, other.step):
            found.append(
                f"evaluation {number} is after step {one.step} in the reference, and in {candidate.label} after "
                f"{other.step}"
            )
    if len(reference.header.metrics) != len(candidate.header.metrics):
        found.append(
            f"the reference has {len(reference.header.metrics)} evaluations, {candidate.label} "
            f"{len(candidate.header.metrics)}"
        )
    betas = candidate.header.adam_on_device
    asked = [reference.header.recipe.get(key) for key in ("adam_beta1", "adam_beta2")]
    if betas is not None and None not in asked and list(betas) != asked:
        found.append(f"Adam's betas are {asked} in the reference and {list(betas)} on the device of {candidate.label}")
    if reference.header.dropout_off != candidate.header.dropout_off:
        found.append(f"only one of the reference and {candidate.label} had dropout to switch off: their models differ")
    return found


@dataclass(frozen=True)
class _Layer:
    """The checks of one layer's output: of the accumulated error, and of its own error if it was replayed."""

    name: str
    cumulative: list[Check]
    local: list[Check]
    figures: LayerError


def _coarse(candidate: Trace) -> bool:
    policy = candidate.header.policy
    return policy.compute in COARSE or policy.param in COARSE


def _logit_checks(reference: Trace, candidate: Trace, error_budgets: Sequence[Trace], m: float) -> list[Check]:
    steps = [0, *(entry.step for entry in reference.header.metrics)]
    exact = reference.probe_logits
    corrections = np.concatenate(
        ([0.0], mean_so_far(bias_corrections(candidate.header.adam_on_device, candidate.steps)))
    )
    checks = []
    for index, step in enumerate(steps):
        checks += tensor_checks(
            "output" if reference.of_module else "logits",
            step,
            exact[index],
            candidate.probe_logits[index],
            [error_budget.probe_logits[index] for error_budget in error_budgets],
            m,
            float(corrections[step]) * np.abs(exact[index] - exact[0]),
        )
    return checks


def _layer_checks(reference: Trace, candidate: Trace, error_budgets: Sequence[Trace], m: float) -> list[_Layer]:
    exact = reference.states
    names = reference.header.layers or range(1, len(exact))
    replayed = all(trace.replays for trace in (candidate, *error_budgets))
    entries = []
    for index, state in enumerate(exact):
        name = f"layer {names[index - 1]}" if index else "input of the layers" if reference.of_module else "embedding"
        found = candidate.states[index]
        drawn = [error_budget.states[index] for error_budget in error_budgets]
        cumulative = tensor_checks(name, 0, state, found, drawn, m)
        local, own = [], None
        if index == 0:
            local, own = cumulative, found
        elif replayed:
            own = candidate.replays[index - 1]
            others = [error_budget.replays[index - 1] for error_budget in error_budgets]
            local = tensor_checks(f"{name} alone", 0, state, own, others, m)
        scale = max(rms(state), 1e-300)
        relative, most = distances(state, found)
        own_relative, own_most = (None, None) if own is None else distances(state, own)
        figures = LayerError(
            name=name,
            relative_l2=relative,
            max_abs=most,
            allowed=cumulative[0].allowed / scale,
            local_relative_l2=own_relative,
            local_max_abs=own_most,
            local_allowed=None if own is None else local[0].allowed / scale,
        )
        entries.append(_Layer(name, cumulative, local, figures))
    return entries


def _verdict(checks: Sequence[Check], layers: Sequence[_Layer], shown: Shown, of_module: bool) -> Judgement:
    outside = [check for check in checks if not check.ratio <= 1.0]
    worst = max(check.ratio for check in checks)
    if not outside:
        return Judgement(PASS, [], worst=worst, details=shown)
    first = min(outside, key=lambda check: check.step)
    leader = max((check for check in outside if check.step == first.step), key=lambda check: check.ratio)
    layer: str | None = None
    cause: Literal["local", "accumulated"] | None = None
    for entry in layers:
        if any(not check.ratio <= 1.0 for check in (*entry.cumulative, *entry.local)):
            layer = entry.name
            if entry.local:
                cause = LOCAL if any(not check.ratio <= 1.0 for check in entry.local) else ACCUMULATED
            break
    when = "before the first step" if first.step == 0 else f"at step {first.step}"
    if np.isfinite(leader.error):
        reasons = [f"{leader.quantity} is off by {leader.error:.3g} {when}, {leader.allowed:.3g} is allowed"]
    else:
        reasons = [f"{leader.quantity} is not finite {when}"]
    place = layer or _place(outside, of_module)
    if layer is None:
        subject = "the layers" if of_module else "the encoder's layers"
        within = f"{subject} are within their band: " if layers else ""
        reasons.append(within + ADVICE[place])
    elif cause is None:
        reasons.append(f"{layer} is the first outside its band (without a replay: its own error, or what it got)")
    elif cause == LOCAL:
        reasons.append(f"{layer} is the first outside its band, and by itself: given the reference's input, too")
    else:
        reasons.append(f"{layer} is the first outside its band by what it was given: by itself it is within")
    others = dict.fromkeys(check.quantity.removesuffix(", largest error") for check in outside)
    others.pop(leader.quantity.removesuffix(", largest error"))
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        reasons.append(f"outside, too: {', '.join([*others][:NAMED])}{more}")
    verdict = DIVERGED_VERDICT if worst > DIVERGED else DRIFT
    return Judgement(verdict, reasons, first.step, layer, cause, worst, shown.model_copy(update={"place": place}))


def _place(outside: Sequence[Check], of_module: bool) -> str:
    """Where to look if all layers are within their bands."""
    quantities = {check.quantity for check in outside}
    if any(GIVEN in quantity for quantity in quantities):
        return HEAD_ITSELF
    if any(quantity.startswith("features") for quantity in quantities):
        return FEATURES
    if all(quantity.startswith("the evaluation's") for quantity in quantities):
        return EVALUATION
    return ELSEWHERE if of_module else HEAD
