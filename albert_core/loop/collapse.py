"""Detects a collapse: a model that had learned something guesses again, and usually keeps guessing.

ALBERT is known for it. With a learning rate that other encoders tolerate, fine-tuning can end up, after a good first
epoch, in a state where every text gets the same answer and the gradient no longer tells texts apart. Mosbach et al.
2021 (2006.04884) describe it for BERT, RoBERTa and ALBERT. The loss is then what the label frequencies alone would
give.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

# Shares of the way from the least loss to the chance loss: a model below the first has learned, one above the second
# guesses.
LEARNED, GUESSING = 0.9, 0.97
# Log lines in a row before either is believed, since one line is the mean of only a few batches.
LEARNED_LINES, GUESSING_LINES = 3, 5
# From this share of predictions with the same label on, the model counts as constant.
CONSTANT = 0.995
# How far a gradient's norm must be from its recent median, for how many lines, and over how many the median is taken.
NORM_RATIO, NORM_LINES, NORM_HISTORY = 1e3, 3, 10


@dataclass
class CollapseWatch:
    """What the log lines and evaluations of a run have shown so far. It holds plain values, so that a checkpoint can.

    Attributes:
        chance: The loss, in nats, of a model that knows only the label frequencies. None if the task has no such
            figure.
        least: The smallest loss that a model can have, in nats. Label smoothing raises it above 0, and often close to
            `chance`.
        reason: Why the run counts as collapsed, or "".
        step: When the collapse was first seen.
    """

    chance: float | None = None
    least: float = 0.0
    learned: bool = False
    low_lines: int = 0
    high_lines: int = 0
    constant_evaluations: int = 0
    norms: list[float] = field(default_factory=list)
    odd_norms: int = 0
    reason: str = ""
    step: int = -1

    def after_log(self, step: int, loss: float, gradient_norm: float | None) -> bool:
        """Records a log line.

        Args:
            step: The optimizer step.
            loss: The mean training loss since the previous line, in nats.
            gradient_norm: The norm of the newest gradient, if known.

        Returns:
            Whether this line is the first to show a collapse.
        """
        reason = ""
        if self.chance is not None:
            self.low_lines = self.low_lines + 1 if loss < self._at(LEARNED, self.chance) else 0
            self.high_lines = self.high_lines + 1 if loss >= self._at(GUESSING, self.chance) else 0
            self.learned = self.learned or self.low_lines >= LEARNED_LINES
            if self.learned and self.high_lines >= GUESSING_LINES:
                reason = f"the training loss is back at the chance level ({loss:.4f}, chance is {self.chance:.4f})"
        if gradient_norm is not None:
            reason = reason or self._odd_norm(loss, gradient_norm)
        return self._found(step, reason)

    def after_evaluation(self, step: int, training_loss: float, metrics: dict[str, float]) -> bool:
        """Records an evaluation and the mean training loss since the previous one.

        A high evaluation loss alone is no sign of collapse, because a model that overfits has one too.

        Returns:
            Whether this evaluation is the first to show a collapse.
        """
        share = metrics.get("eval/largest_share", 0.0)
        # If nearly all texts really have one label, predicting it is right.
        constant = share >= CONSTANT and metrics.get("eval/accuracy", 0.0) < CONSTANT
        self.constant_evaluations = self.constant_evaluations + 1 if constant else 0
        reason = ""
        # A first epoch may end before anything is learned. A second constant evaluation is a collapse.
        if constant and (self.learned or self.constant_evaluations > 1):
            reason = f"{share:.1%} of the predictions are one label (accuracy {metrics['eval/accuracy']:.4f})"
        elif self.chance is not None and self.learned:
            worst = min(training_loss, metrics["eval/loss"])
            if worst >= self._at(GUESSING, self.chance):
                reason = f"training and evaluation loss are back at the chance level ({self.chance:.4f})"
        return self._found(step, reason)

    def _at(self, share: float, chance: float) -> float:
        """The loss at `share` of the way from the least loss to `chance`."""
        return self.least + share * (chance - self.least)

    def _odd_norm(self, loss: float, norm: float) -> str:
        """Says why the gradient's norm shows that training broke down, or "".

        A model that fits its texts has small gradients too. A vanished gradient therefore counts only while the loss is
        high.
        """
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        usual = statistics.median(self.norms) if len(self.norms) == NORM_HISTORY else None
        exploded = usual is not None and norm > NORM_RATIO * usual
        unfit = self.chance is not None and loss > self._at(0.5, self.chance)
        vanished = usual is not None and norm < usual / NORM_RATIO and unfit
        if not (exploded or vanished):
            self.odd_norms = 0
            self.norms = [*self.norms, norm][-NORM_HISTORY:]
            return ""
        self.odd_norms += 1
        if self.odd_norms < NORM_LINES:
            return ""
        return f"the gradient has {'exploded' if exploded else 'vanished'} (norm {norm:.3g}, usually {usual:.3g})"

    def _found(self, step: int, reason: str) -> bool:
        if not reason or self.reason:
            return False
        self.reason, self.step = reason, step
        return True
