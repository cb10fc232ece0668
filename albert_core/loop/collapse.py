"""Whether a run has collapsed: a model that had learned something is back at guessing, and mostly stays there.

ALBERT is known for it: fine-tuning at a rate that other encoders take leads, after a good first epoch, to a state in
which every text gets one answer and the gradient no longer tells texts apart (Mosbach et al. 2021, 2006.04884, describe
it for BERT, RoBERTa and ALBERT). The loss then stands at what the labels' frequencies alone would give.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

# As shares of the chance loss: below the first a model has learned, above the second it guesses.
LEARNED, GUESSING = 0.9, 0.97
# Log lines in a row that it takes to believe one or the other: a line is the mean of a few batches.
LEARNED_LINES, GUESSING_LINES = 3, 5
# A split on which one label gets this share of the predictions is told one thing.
CONSTANT = 0.995
# How far from its median over the latest lines a gradient's norm must be, and for how many lines.
NORM_RATIO, NORM_LINES, NORM_HISTORY = 1e3, 3, 10


@dataclass
class CollapseWatch:
    """What the log lines and evaluations of a run have said so far; plain values, so that a checkpoint holds it.

    chance: the loss of a model that knows the labels' frequencies alone, in nats; None where a task has no such figure.
    reason: why the run counts as collapsed, "" while it doesn't; step: when that was first seen.
    """

    chance: float | None = None
    learned: bool = False
    low_lines: int = 0
    high_lines: int = 0
    constant_evaluations: int = 0
    norms: list[float] = field(default_factory=list)
    odd_norms: int = 0
    reason: str = ""
    step: int = -1

    def after_log(self, step: int, loss: float, gradient_norm: float | None) -> bool:
        """Takes in a log line: the mean training loss since the last one, and the newest gradient's norm.

        True where this line is the first that shows a collapse.
        """
        reason = ""
        if self.chance is not None:
            self.low_lines = self.low_lines + 1 if loss < LEARNED * self.chance else 0
            self.high_lines = self.high_lines + 1 if loss >= GUESSING * self.chance else 0
            self.learned = self.learned or self.low_lines >= LEARNED_LINES
            if self.learned and self.high_lines >= GUESSING_LINES:
                reason = f"the training loss is back at the chance level ({loss:.4f}, chance is {self.chance:.4f})"
        if gradient_norm is not None:
            reason = reason or self._odd_norm(loss, gradient_norm)
        return self._found(step, reason)

    def after_evaluation(self, step: int, training_loss: float, metrics: dict[str, float]) -> bool:
        """Takes in an evaluation and the mean training loss since the one before. True as in `after_log`.

        Loss alone is no sign here, for a model that fits its training texts too well has a high one as well.
        """
        share = metrics.get("eval/largest_share", 0.0)
        # Where all texts really have one label, telling it is right.
        constant = share >= CONSTANT and metrics.get("eval/accuracy", 0.0) < CONSTANT
        self.constant_evaluations = self.constant_evaluations + 1 if constant else 0
        reason = ""
        # A first epoch may end before anything is learned; a second one that does is no start any more.
        if constant and (self.learned or self.constant_evaluations > 1):
            reason = f"{share:.1%} of the predictions are one label (accuracy {metrics['eval/accuracy']:.4f})"
        elif self.chance is not None and self.learned:
            worst = min(training_loss, metrics["eval/loss"])
            if worst >= GUESSING * self.chance:
                reason = f"training and evaluation loss are back at the chance level ({self.chance:.4f})"
        return self._found(step, reason)

    def _odd_norm(self, loss: float, norm: float) -> str:
        """Why the gradient's norm says that training broke down; "" where it doesn't.

        A model that fits its texts has small gradients too, so a vanished one counts only while the loss is high.
        """
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        usual = statistics.median(self.norms) if len(self.norms) == NORM_HISTORY else None
        exploded = usual is not None and norm > NORM_RATIO * usual
        unfit = self.chance is not None and loss > self.chance / 2
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
