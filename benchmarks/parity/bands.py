"""How far from float64 a quantity may be: m times the error of the error budgets, plus a floor.

An error budget is a draw of the candidate's arithmetic on the host. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .trace import Trace

# m of rule 13: for float32 and float64, and for bfloat16, float16 and block formats.
FACTOR, COARSE_FACTOR = 2.0, 3.0
COARSE = ("bfloat16", "float16")
# The factor for the largest single error, which varies more from draw to draw.
LARGEST_FACTOR = 4.0
# The floor in units in the last place, by default of float32, in which losses are summed.
FLOOR_ULPS = 4.0
FLOAT32_EPS = float(np.finfo(np.float32).eps)
# The error of a device's float32 power: 4 units in the last place, as in CUDA's table of powf.
POWER_ERROR = 4.0 * FLOAT32_EPS
# Steps of a series that are judged together, since the error of a single step may be tiny by chance.
WINDOW = 16


@dataclass(frozen=True)
class Check:
    """The error of one quantity against float64 at one step, and the allowed error, both in the quantity's unit.

    `step` is the number of optimizer steps before it was observed.
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


def rms(values: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def floor(scale: float, eps: float = FLOAT32_EPS) -> float:
    """The error that is always allowed at a quantity of this size."""
    return FLOOR_ULPS * eps * scale


def _allowed(m: float, error_budgets: Sequence[float], scale: float, eps: float = FLOAT32_EPS) -> float:
    """m times the root mean square of the error budgets' errors, plus the floor at a quantity of this size."""
    return m * float(np.sqrt(np.mean(np.square(error_budgets)))) + floor(scale, eps)


def series_checks(
    name: str, words: str, reference: Trace, candidate: Trace, error_budgets: Sequence[Trace], m: float
) -> list[Check]:
    """One check per step of the series `name`, up to the candidate's last step.

    The error over the last WINDOW steps is compared with the error budgets' largest over any window so far. The first
    steps are compared with the whole first window, since a few draws of a single number may all be close by chance.

    Args:
        words: What the checks call the series.
    """
    found = candidate.arrays[name]
    exact = reference.arrays[name][: len(found)]
    errors = _windowed(found - exact)
    drawn = np.stack([_windowed(error_budget.arrays[name][: len(found)] - exact) for error_budget in error_budgets])
    together = np.maximum.accumulate(np.sqrt(np.mean(np.square(drawn), axis=0)))
    together = np.maximum(together, together[min(WINDOW, len(exact)) - 1])
    # A learning rate of 0 changes nothing, so the floor depends on the series and not on the step.
    scale = float(np.abs(exact).max())
    corrections = bias_corrections(candidate.header.adam_on_device, len(found))
    if name.endswith("update_norm"):
        floors = _windowed(corrections * exact)
    else:
        floors = mean_so_far(corrections) * np.maximum.accumulate(np.abs(exact - exact[0]))
    return [
        Check(
            words, step + 1, float(errors[step]), _allowed(m, [float(together[step])], scale) + m * float(floors[step])
        )
        for step in range(len(exact))
    ]


def bias_corrections(betas: Sequence[float] | None, steps: int) -> np.ndarray:
    """The relative error of each step's update due to Adam's bias corrections, [S].

    On a device they are float32, and 1 - beta^t has the error of beta^t's last place. The update is the first moment
    over 1 - beta1^t, divided by the square root of the second moment over 1 - beta2^t (Kingma & Ba 2014).

    Args:
        betas: Those of an Adam with its step counter on the device. None: the host computes in float64, the error is 0.
    """
    if betas is None:
        return np.zeros(steps)
    first, second = (1.0 - beta ** np.arange(1, steps + 1) for beta in betas)
    return POWER_ERROR * (1.0 / first + 0.5 / second)


def mean_so_far(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values) / np.arange(1, len(values) + 1)


def _windowed(errors: np.ndarray) -> np.ndarray:
    """The root mean square of each step's error and up to WINDOW - 1 errors before it, [S]."""
    squares = np.concatenate(([0.0], np.cumsum(np.square(errors))))
    steps = np.arange(1, len(errors) + 1)
    starts = np.maximum(0, steps - WINDOW)
    return np.sqrt(np.maximum(squares[steps] - squares[starts], 0.0) / (steps - starts))


def tensor_checks(
    quantity: str,
    step: int,
    exact: np.ndarray,
    found: np.ndarray,
    drawn: Sequence[np.ndarray],
    m: float,
    floor: np.ndarray | None = None,
    eps: float = FLOAT32_EPS,
) -> list[Check]:
    """Checks of a tensor's root mean square error and largest error.

    Args:
        drawn: The tensor from each error budget.
        floor: The additionally allowed error of each element.
        eps: The epsilon of the narrowest dtype that the tensor was in, for the error that is always allowed.
    """
    error = found - exact
    others = [draw - exact for draw in drawn]
    extra = np.zeros(1) if floor is None else floor
    largest = max(float(np.abs(other).max()) for other in others)
    most = LARGEST_FACTOR * m
    return [
        Check(
            quantity, step, rms(error), _allowed(m, [rms(other) for other in others], rms(exact), eps) + m * rms(extra)
        ),
        Check(
            f"{quantity}, largest error",
            step,
            float(np.abs(error).max()),
            _allowed(most, [largest], float(np.abs(exact).max()), eps) + most * float(extra.max()),
        ),
    ]
