"""Whether the logits of a target are right: judged by the float32 reference, kept in its result, compared by two.

Of a user's own module, they are the loss of a batch and a sample of the module's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..harness.document import Logits, Measured, Model, Policy
from ..harness.statistics import relative_distance
from .model import MeasuredTarget, Probe

# The largest relative L2 distance of a text's logits from the reference's, by compute dtype. Models of 3 to 12 layers
# reach 1e-6 in float32, 1e-2 in bfloat16 and 0.1 in int8. In float64, what remains is the rounding of the head, which
# is float32.
LARGEST_DISTANCE = {
    "float64": 5e-6,
    "float32": 1e-4,
    "bfloat16": 5e-2,
    "float16": 1e-2,
    "int8": 0.3,
    "float8_e4m3": 0.5,
}
# What is judged, by what, and of which inputs: for texts, and for a user's own module.
OF_TEXTS = ("logits", "transformers' module in float32", "text", "texts")
OF_MODULE = ("loss and outputs", "the same module on the host", "batch", "batches")
# Logits are kept with so many significant digits: one more than float32 has.
KEPT_DIGITS = 8


def limit(policy: Policy) -> float:
    return policy.largest_distance or LARGEST_DISTANCE[policy.compute]


def distances(expected: Logits, found: Logits) -> dict[str, float]:
    """The relative L2 distance of the logits of every text that both have."""
    return {text: relative_distance(expected[text], found[text]) for text in expected if text in found}


def kept(documents: Sequence[Measured]) -> Probe | None:
    """The logits that a result keeps: those of the process that is farthest from the reference."""
    judged = [(max(apart.values()), document) for document in documents if (apart := _apart(document))]
    if not judged:
        return None
    distance, farthest = max(judged, key=lambda one: one[0])
    logits = {
        text: [float(f"{value:.{KEPT_DIGITS}g}") for value in values]
        for text, values in farthest.probe.items()
        if all(map(math.isfinite, values))
    }
    return Probe(logits=logits, distance=distance if math.isfinite(distance) else None)


def wrong_answers(documents: Sequence[Measured]) -> str:
    """Which processes' logits are too far from the reference, and how far; empty if none is."""
    largest = [max(_apart(document).values(), default=0.0) for document in documents]
    allowed = limit(documents[0].policy)
    wrong = [process for process, distance in enumerate(largest) if distance > allowed]
    if not wrong:
        return ""
    apart = _apart(documents[max(wrong, key=lambda process: largest[process])])
    text = max(apart, key=lambda text: apart[text])
    which = f" (process {', '.join(str(process + 1) for process in wrong)})" if len(documents) > 1 else ""
    what, reference, one, _ = _words(documents[0].model)
    return (
        f"its {what} differ from those of {reference} by {apart[text]:.1e} in relative L2 "
        f"({one} {text}; at most {allowed:g}){which}"
    )


def unjudged(documents: Sequence[Measured]) -> bool:
    """Whether a process ran none of the texts that are judged."""
    return not all(_apart(document) for document in documents)


def answers_differ(old: MeasuredTarget, new: MeasuredTarget) -> str:
    """How far the logits of two results are apart, where that is too far; empty too where one of them kept none."""
    if old.probe is None or new.probe is None:
        return ""
    distance = max(distances(old.probe.logits, new.probe.logits).values(), default=0.0)
    allowed = max(limit(old.policy), limit(new.policy))
    if distance <= allowed:
        return ""
    what, _, _, inputs = _words(old.model)
    return f"its {what} of the same {inputs} differ by {distance:.1e} in relative L2 (at most {allowed:g})"


def _words(model: Model) -> tuple[str, str, str, str]:
    return OF_TEXTS if model.code_sha256 is None else OF_MODULE


def _apart(document: Measured) -> dict[str, float]:
    return distances(document.expected, document.probe)
