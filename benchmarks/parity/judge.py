"""The verdict on a trace: is it as near to float64 as its arithmetic promises (rules 12 to 14 of measuring)?

One rule for every quantity: the candidate's root mean square error against the float64 trace must not exceed m times
that of the yardsticks, which are draws of the same arithmetic on the host, plus a floor of a few units in the last
place. Beside it, the largest error may not be far more than the yardsticks' largest: a mean hides one wrong element.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import UserError
from .details import details, distances, rms
from .trace import DRAWS, SERIES, Trace

# m of rule 13: for float32 and float64, and for bfloat16, float16 and block formats.
FACTOR, COARSE_FACTOR = 2.0, 3.0
COARSE = ("bfloat16", "float16")
# The same for the largest single error, which varies more from draw to draw.
LARGEST_FACTOR = 4.0
# Units in the last place of float32 that are never held against anybody: losses are summed in it.
FLOOR_ULPS = 4.0
# What a device's float32 power may be off by: 4 units in the last place, as CUDA's own table of powf says.
POWER_ERROR = 4.0 * float(np.finfo(np.float32).eps)
# Steps of a series that are judged together: the error of one step alone may be next to nothing by luck.
WINDOW = 16
# So many times the allowed error is no drift any more.
DIVERGED = 10.0

PASS, DRIFT, DIVERGED_VERDICT, REFUSED, FAILED = "pass", "drift", "diverged", "refused", "failed"
LOCAL, ACCUMULATED = "local", "accumulated"


@dataclass(frozen=True)
class Check:
    """One quantity of one moment: its error against float64, what is allowed, and where it belongs.

    step: the optimizer step after which it was seen, 0 before the first. error and allowed: in the quantity's own unit.
    """

    quantity: str
    step: int
    error: float
    allowed: float

    @property
    def ratio(self) -> float:
        if not np.isfinite(self.error):
            return float("inf")
        return self.error / self.allowed if self.allowed > 0 else (0.0 if self.error == 0 else float("inf"))


@dataclass(frozen=True)
class Judgement:
    """The verdict with its first place outside the band, and everything a table or a chart of it shows."""

    verdict: str
    reasons: list[str]
    first_step: int | None = None
    repetition: str | None = None
    cause: str | None = None
    worst: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def judge(reference: Trace, candidate: Trace, yardsticks: Sequence[Trace]) -> Judgement:
    """`candidate` against the float64 `reference`, by the `yardsticks` of the candidate's arithmetic.

    A candidate of other weights, batches or recipe gets the verdict "refused", with what differs. One whose training
    could not go on is judged as far as it came, and has diverged. Raises UserError where the reference is no float64
    trace, or there are too few yardsticks.
    """
    if reference.header["policy"]["compute"] != "float64":
        raise UserError(
            f"the reference {reference.label} computes in {reference.header['policy']['label']}; only a float64 trace "
            "arbitrates: record one with --dtype float64"
        )
    promised = candidate.header["yardstick"]
    wanted = DRAWS if promised["draws"] else 1
    if len(yardsticks) < wanted:
        raise UserError(
            f"the reference has {len(yardsticks)} of {wanted} draws of the yardstick {promised['label']!r}, which "
            f"{candidate.label} is measured by; add them with `isotrain parity yardstick REFERENCE CANDIDATE`"
        )
    if candidate.header["ended"] is not None:
        came = candidate.steps, len(candidate.header["metrics"])
        reference, *yardsticks = (trace.until(*came) for trace in (reference, *yardsticks))
    differing = differences(reference, candidate)
    for yardstick in yardsticks:
        wrong = differences(reference, yardstick)
        if yardstick.header["yardstick"]["label"] != candidate.header["yardstick"]["label"]:
            wrong.append(f"it is a draw of {yardstick.header['yardstick']['label']!r}")
        if not all(np.isfinite(array).all() for array in yardstick.arrays.values()):
            wrong.append("it holds NaN or inf")
        if wrong:
            differing.append(f"the yardstick {yardstick.folder.name} is none for it ({wrong[0]}); record it again")
    if differing:
        return Judgement(REFUSED, differing)
    m = COARSE_FACTOR if _coarse(candidate) else FACTOR
    series = {name: _series_checks(name, reference, candidate, yardsticks, m) for name in SERIES}
    logits = _logit_checks(reference, candidate, yardsticks, m)
    repetitions = _repetition_checks(reference, candidate, yardsticks, m)
    checks = [*logits, *(check for found in series.values() for check in found)]
    checks += [check for entry in repetitions for check in (*entry.cumulative, *entry.local)]
    ended = candidate.header["ended"]
    if ended is not None:
        # Of what ends a run, it is what a trace doesn't hold; everything else of it may be right.
        checks.append(Check("the evaluation's loss", candidate.steps, float("inf"), 0.0))
    shown = details(
        reference,
        candidate,
        [check.allowed for check in series["loss"]],
        logits[-2].allowed,
        [entry.figures for entry in repetitions],
    )
    found = _verdict(checks, repetitions, shown)
    if ended is not None:
        found.reasons.append(f"training could not go on beyond step {ended['step']}: {ended['reason']}")
    return found


def differences(reference: Trace, candidate: Trace) -> list[str]:
    """What makes two traces incomparable: recipe, initial weights, probe texts, batches, or values that aren't finite.

    A series of NaN is no difference but a divergence; only what the reference holds must be finite.
    """
    found = []
    ours, theirs = reference.header, candidate.header
    for key, value in ours["recipe"].items():
        if theirs["recipe"].get(key) != value:
            found.append(f"{key} is {value} in the reference and {theirs['recipe'].get(key)} in {candidate.label}")
    for key, words in (("weights_sha256", "initial weights"), ("probe_sha256", "probe texts")):
        if ours[key] != theirs[key]:
            found.append(f"the {words} differ ({key} {ours[key][:12]}, {theirs[key][:12]})")
    if reference.steps != candidate.steps:
        found.append(f"the reference has {reference.steps} steps, {candidate.label} {candidate.steps}")
    for step, (one, other) in enumerate(zip(ours["batches"], theirs["batches"], strict=False), start=1):
        if one != other:
            found.append(f"the batches differ from step {step} on (sha256 {one[:12]}, {other[:12]})")
            break
    for name, array in reference.arrays.items():
        if not np.isfinite(array).all():
            found.append(f"the reference has NaN or inf in {name}: it arbitrates nothing")
        elif name in candidate.arrays and candidate.arrays[name].shape != array.shape and not found:
            found.append(f"{name} is {candidate.arrays[name].shape} in {candidate.label}, not {array.shape}")
    replayed, states = candidate.arrays.get("replay"), reference.arrays["states"]
    if replayed is not None and theirs["replayed_sha256"] != reference.states_sha256():
        found.append(
            f"{candidate.label} replayed other hidden states than this reference's; record it with --replay-from"
        )
    if replayed is not None and replayed.shape != states[1:].shape and not found:
        found.append(f"the replay is {replayed.shape} in {candidate.label}, not {states[1:].shape}")
    return found


@dataclass(frozen=True)
class _Repetition:
    """Hidden states behind one repetition: the error it came with, and the one it makes by itself (where replayed)."""

    name: str
    cumulative: list[Check]
    local: list[Check]
    figures: dict[str, Any]


def _coarse(candidate: Trace) -> bool:
    policy = candidate.header["policy"]
    return policy["compute"] in COARSE or policy["param"] in COARSE


def _allowed(m: float, yardsticks: Sequence[float], scale: float) -> float:
    """m times the yardsticks' errors taken together, and the floor at a quantity of this size."""
    return m * float(np.sqrt(np.mean(np.square(yardsticks)))) + FLOOR_ULPS * float(np.finfo(np.float32).eps) * scale


def _series_checks(name: str, reference: Trace, candidate: Trace, yardsticks: Sequence[Trace], m: float) -> list[Check]:
    """A check a step: the error over the last WINDOW steps against the yardsticks' largest over any window so far.

    The first steps are held against the whole first window: a few draws of one number may all be near by luck.
    """
    exact = reference.arrays[name]
    errors = _windowed(candidate.arrays[name] - exact)
    drawn = np.stack([_windowed(yardstick.arrays[name] - exact) for yardstick in yardsticks])
    together = np.maximum.accumulate(np.sqrt(np.mean(np.square(drawn), axis=0)))
    together = np.maximum(together, together[min(WINDOW, len(exact)) - 1])
    # A learning rate of 0 moves nothing: the floor is that of the series, not of the step.
    scale = float(np.abs(exact).max())
    corrections = _bias_corrections(candidate)
    if name == "update_norm":
        floors = _windowed(corrections * exact)
    else:
        floors = _mean_so_far(corrections) * np.maximum.accumulate(np.abs(exact - exact[0]))
    return [
        Check(
            name, step + 1, float(errors[step]), _allowed(m, [float(together[step])], scale) + m * float(floors[step])
        )
        for step in range(len(exact))
    ]


def _bias_corrections(candidate: Trace) -> np.ndarray:
    """The relative error of each step's update by Adam's bias corrections, [S]: 0 where the host makes them in float64.

    On a device they are float32: 1 - beta^t loses what beta^t's last place is worth, and the update is the moment over
    1 - beta1^t, over the square root of another moment over 1 - beta2^t (Kingma & Ba 2014).
    """
    steps = np.arange(1, candidate.steps + 1)
    betas = candidate.header["adam_on_device"]
    if betas is None:
        return np.zeros(len(steps))
    first, second = (1.0 - beta**steps for beta in betas)
    return POWER_ERROR * (1.0 / first + 0.5 / second)


def _mean_so_far(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values) / np.arange(1, len(values) + 1)


def _windowed(errors: np.ndarray) -> np.ndarray:
    """The root mean square of each step's error and of those up to WINDOW - 1 before it, [S]."""
    squares = np.concatenate(([0.0], np.cumsum(np.square(errors))))
    steps = np.arange(1, len(errors) + 1)
    starts = np.maximum(0, steps - WINDOW)
    return np.sqrt(np.maximum(squares[steps] - squares[starts], 0.0) / (steps - starts))


def _logit_checks(reference: Trace, candidate: Trace, yardsticks: Sequence[Trace], m: float) -> list[Check]:
    steps = [0, *(int(entry["step"]) for entry in reference.header["metrics"])]
    exact = reference.arrays["probe_logits"]
    corrections = np.concatenate(([0.0], _mean_so_far(_bias_corrections(candidate))))
    checks = []
    for index, step in enumerate(steps):
        checks += _tensor_checks(
            "logits",
            step,
            exact[index],
            candidate.arrays["probe_logits"][index],
            [yardstick.arrays["probe_logits"][index] for yardstick in yardsticks],
            m,
            float(corrections[step]) * np.abs(exact[index] - exact[0]),
        )
    return checks


def _tensor_checks(
    quantity: str,
    step: int,
    exact: np.ndarray,
    found: np.ndarray,
    drawn: Sequence[np.ndarray],
    m: float,
    floor: np.ndarray | None = None,
) -> list[Check]:
    """The mean error and the largest one of a tensor. `floor`: what each element may be off by besides."""
    error = found - exact
    others = [draw - exact for draw in drawn]
    extra = np.zeros(1) if floor is None else floor
    largest = max(float(np.abs(other).max()) for other in others)
    most = LARGEST_FACTOR * m
    return [
        Check(
            quantity,
            step,
            rms(error),
            _allowed(m, [rms(other) for other in others], rms(exact)) + m * rms(extra),
        ),
        Check(
            f"{quantity}, largest error",
            step,
            float(np.abs(error).max()),
            _allowed(most, [largest], float(np.abs(exact).max())) + most * float(extra.max()),
        ),
    ]


def _repetition_checks(reference: Trace, candidate: Trace, yardsticks: Sequence[Trace], m: float) -> list[_Repetition]:
    exact = reference.arrays["states"]
    replayed = "replay" in candidate.arrays and all("replay" in yardstick.arrays for yardstick in yardsticks)
    entries = []
    for index, state in enumerate(exact):
        name = "embedding" if index == 0 else f"repetition {index}"
        found = candidate.arrays["states"][index]
        drawn = [yardstick.arrays["states"][index] for yardstick in yardsticks]
        cumulative = _tensor_checks(name, 0, state, found, drawn, m)
        local, own = [], None
        if index == 0:
            local, own = cumulative, found
        elif replayed:
            own = candidate.arrays["replay"][index - 1]
            others = [yardstick.arrays["replay"][index - 1] for yardstick in yardsticks]
            local = _tensor_checks(f"{name} alone", 0, state, own, others, m)
        figures = {
            "name": name,
            **distances(state, found),
            "allowed": cumulative[0].allowed / max(rms(state), 1e-300),
            "local_relative_l2": None if own is None else distances(state, own)["relative_l2"],
            "local_max_abs": None if own is None else distances(state, own)["max_abs"],
            "local_allowed": None if own is None else local[0].allowed / max(rms(state), 1e-300),
        }
        entries.append(_Repetition(name, cumulative, local, figures))
    return entries


def _verdict(checks: Sequence[Check], repetitions: Sequence[_Repetition], shown: dict[str, Any]) -> Judgement:
    outside = [check for check in checks if not check.ratio <= 1.0]
    worst = max(check.ratio for check in checks)
    if not outside:
        return Judgement(PASS, [], worst=worst, details=shown)
    first = min(outside, key=lambda check: check.step)
    leader = max((check for check in outside if check.step == first.step), key=lambda check: check.ratio)
    repetition = cause = None
    for entry in repetitions:
        if any(not check.ratio <= 1.0 for check in (*entry.cumulative, *entry.local)):
            repetition = entry.name
            if entry.local:
                cause = LOCAL if any(not check.ratio <= 1.0 for check in entry.local) else ACCUMULATED
            break
    place = "before the first step" if first.step == 0 else f"at step {first.step}"
    if np.isfinite(leader.error):
        reasons = [f"{leader.quantity} is off by {leader.error:.3g} {place}, {leader.allowed:.3g} is allowed"]
    else:
        reasons = [f"{leader.quantity} is not finite {place}"]
    if repetition is None:
        reasons.append("the encoder's repetitions are within their band: look at the head, the loss or the optimizer")
    elif cause is None:
        reasons.append(f"{repetition} is the first outside its band (without a replay: its own error, or what it got)")
    elif cause == LOCAL:
        reasons.append(f"{repetition} is the first outside its band, and by itself: given the reference's input, too")
    else:
        reasons.append(f"{repetition} is the first outside its band by what it was given: by itself it is within")
    verdict = DIVERGED_VERDICT if worst > DIVERGED else DRIFT
    return Judgement(verdict, reasons, first.step, repetition, cause, worst, shown)
