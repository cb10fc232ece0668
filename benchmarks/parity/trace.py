"""A trace: what one training run did, step by step, as files that can be judged on any machine with any torch.

It is a folder with ``trace.json`` (which run, on which batches) and ``trace.safetensors`` (numbers). A float64
reference also contains the traces of error budgets in ``error-budgets/``. Only numpy is needed to read and write it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ... import UserError
from ...albert_core.config.parsing import read_json_object
from ...albert_core.runs.files import check_place, checksum, make_folders, published, sweep, write_bytes, write_json
from ...albert_core.terminal.text import quoted
from ...kernels.words import count
from ..outcome.load import problems
from ..outcome.trace_header import TraceHeader
from ..outcome.upgrade import schema_of, upgraded

SCHEMA = "isotrain.trace/2"
HEADER_FILE, TENSOR_FILE, ERROR_BUDGETS = "trace.json", "trace.safetensors", "error-budgets"
SERIES = ("loss", "grad_norm", "update_norm")
# Draws of an error budget. The errors of a single draw vary too much to judge by.
DRAWS = 3
# A replay of the head has these series, with the prefix "head_", for at most so many steps.
HEAD_SERIES = SERIES
HEAD_STEPS = 200
# The arrays of every trace.
ARRAYS = (*SERIES, "probe_logits")


@dataclass(frozen=True)
class Trace:
    """One run with S steps, E evaluations, P probe texts of C labels, R layers, and T tokens of width H.

    If training could not continue, header.ended has the step and the reason, and S and E are the numbers up to there.

    Attributes:
        arrays: float32, or float64 for a float64 run. Every trace has loss, grad_norm and update_norm [S]; probe_logits
            [E + 1, P, C], before the first step and after each evaluation; states [R + 1, T, H], the first layer's
            input and each layer's output before the first step. It may have replay [R, T, H], each layer applied to
            the reference's states; right [S], texts classified correctly in the step; features [F, H] and
            probe_features [1 or E + 1, P, H], the head's inputs for the texts of the first steps, in order, and for the
            probe texts; head_loss, head_grad_norm, head_update_norm [n] and head_logits [e, P, C] of the head trained
            on the reference's features, or in the reference, of the head in its own run.

            A run of a user's own module has the module's output in probe_logits, [E + 1, elements, 1]. Instead of
            states, it has state.0000, the first layer's input, and each layer's output from state.0001 on, in any
            shape; input.N, if a layer was given something else than the state before it; and instead of replay,
            replay.0001 and so on. header.layers names the layers.
    """

    header: TraceHeader
    arrays: dict[str, np.ndarray]
    folder: Path = field(default_factory=Path)

    @property
    def label(self) -> str:
        return self.header.label

    @property
    def steps(self) -> int:
        return len(self.loss)

    @property
    def loss(self) -> np.ndarray:
        return self.arrays["loss"]

    @property
    def probe_logits(self) -> np.ndarray:
        return self.arrays["probe_logits"]

    @property
    def of_module(self) -> bool:
        """Whether it is a run of a user's own module."""
        return self.header.layers is not None

    @property
    def states(self) -> Sequence[np.ndarray]:
        """The first layer's input and each layer's output. Empty for a module without layers."""
        return list(self.arrays["states"]) if "states" in self.arrays else self._numbered("state")

    @property
    def replays(self) -> Sequence[np.ndarray]:
        """Each layer applied to the reference's states. Empty without a replay."""
        return list(self.arrays["replay"]) if "replay" in self.arrays else self._numbered("replay")

    @property
    def layer_inputs(self) -> Sequence[np.ndarray]:
        """What each layer was given."""
        before = self.states[:-1]
        return [self.arrays.get(f"input.{number:04}", state) for number, state in enumerate(before, start=1)]

    def _numbered(self, kind: str) -> list[np.ndarray]:
        return [self.arrays[name] for name in sorted(self.arrays) if name.startswith(f"{kind}.")]

    def states_sha256(self) -> str:
        """A hash of the hidden states, by which a replay names them."""
        found = hashlib.sha256()
        for given in [self.arrays["states"]] if "states" in self.arrays else [*self.states[:1], *self.layer_inputs]:
            states = np.ascontiguousarray(given)
            found.update(f"{states.dtype.str}{states.shape}".encode() + states.tobytes())
        return found.hexdigest()

    def until(self, steps: int, evaluations: int) -> Trace:
        """A trace of the first `steps` steps and `evaluations` evaluations."""
        sizes = self.header.batch_sizes
        kept = {
            "batches": self.header.batches[:steps],
            "metrics": self.header.metrics[:evaluations],
            "batch_sizes": None if sizes is None else sizes[:steps],
        }
        series = {name: self.arrays[name][:steps] for name in (*SERIES, "right") if name in self.arrays}
        arrays = self.arrays | series | {"probe_logits": self.probe_logits[: evaluations + 1]}
        return Trace(self.header.model_copy(update=kept), arrays, self.folder)


def write_trace(trace: Trace, folder: Path) -> None:
    """Writes the trace to the new folder `folder`, whole or not at all.

    Raises:
        UserError: The folder exists or can't be written.
    """
    from safetensors.numpy import save

    check_free(folder)
    make_folders(folder.parent, "--out")
    sweep(folder.parent)
    with published(folder) as partial:
        data = save({name: np.ascontiguousarray(array) for name, array in trace.arrays.items()})
        write_bytes(partial / TENSOR_FILE, data)
        digest = hashlib.sha256(data).hexdigest()
        write_json(partial / HEADER_FILE, {"schema": SCHEMA, **trace.header.document(), "tensors_sha256": digest})


def check_free(folder: Path) -> None:
    """Checks that `folder` can become a trace.

    Raises:
        UserError: It exists or can't be written.
    """
    if folder.exists():
        raise UserError(f"--out {str(folder)!r} exists already; traces are never written over: choose another name")
    check_place(folder, "--out")


def read_trace(folder: Path) -> Trace:
    """Reads and checks the trace in `folder`.

    Raises:
        UserError: It isn't a whole trace of this version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / HEADER_FILE).is_file():
        raise UserError(
            f"{str(folder)!r} is no trace: it has no {HEADER_FILE}; give what `isotrain parity record` wrote"
        )
    document = upgraded(read_json_object(folder / HEADER_FILE, "record the trace again", nan=True))
    schema = schema_of(document)
    if schema != SCHEMA:
        raise UserError(
            f"{folder / HEADER_FILE} has schema {quoted(schema)}, this version reads {SCHEMA}; record it again"
        )
    path = folder / TENSOR_FILE
    try:
        if checksum(path).sha256 != document.get("tensors_sha256"):
            raise UserError(f"{path} is not what was recorded: its checksum differs; copy or record it again")
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read ({error}); copy or record the trace again") from error
    try:
        trace = Trace(TraceHeader.model_validate(document), arrays, folder)
    except ValidationError as error:
        problem = problems(error)[0]
        raise UserError(f"trace {str(folder)!r}: {problem.place}: {problem.said.lower()}; record it again") from error
    _check(trace)
    return trace


def slug(text: str) -> str:
    """`text` as the name of a folder."""
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-.")


def error_budget_folders(reference: Path, label: str) -> list[Path]:
    """The draws of the error budget `label` in the reference's folder, in order."""
    # The second name is that of schema 1.
    folders = (reference / name / slug(label) for name in (ERROR_BUDGETS, "yardsticks"))
    return sorted(path.parent for folder in folders for path in folder.glob(f"*/{HEADER_FILE}"))


def check_reference(trace: Trace) -> None:
    """Checks that a reference can judge.

    Raises:
        UserError: Its training could not continue, or it contains NaN.
    """
    ended = trace.header.ended
    if ended is not None:
        raise UserError(
            f"the reference {trace.label} could not train beyond step {ended.step} ({ended.reason}): it "
            "judges nothing; lower learning_rate or set max_grad_norm"
        )
    if not all(np.isfinite(array).all() for array in trace.arrays.values()):
        raise UserError(f"the reference {trace.label} holds NaN or inf: it judges nothing; record it again")


def _check(trace: Trace) -> None:
    """Checks what `judge` relies on."""
    where = str(trace.folder)
    if not trace.header.metrics and trace.header.ended is None:
        raise UserError(f"trace {where!r} holds no evaluation, and every run ends with one; record it again")
    missing = [name for name in (*ARRAYS, *(() if trace.of_module else ("states",))) if name not in trace.arrays]
    if missing:
        raise UserError(f"trace {where!r} lacks {', '.join(missing)}; record it again")
    foreign = [f"{name} of {array.dtype}" for name, array in trace.arrays.items() if array.dtype.kind != "f"]
    if foreign:
        raise UserError(f"trace {where!r} has {', '.join(foreign)}, not of float32 or float64; record it again")
    lengths = {name: trace.arrays[name].size if trace.arrays[name].ndim == 1 else -1 for name in SERIES}
    if len(set(lengths.values())) != 1 or not trace.loss.size:
        raise UserError(f"trace {where!r} has series of {lengths} steps, which must be one number; record it again")
    if len(trace.header.batches) != trace.steps:
        batches = count(len(trace.header.batches), "batch hash")
        raise UserError(f"trace {where!r} of {count(trace.steps, 'step')} has {batches}; record it again")
    beyond = [entry.step for entry in trace.header.metrics if not 0 <= entry.step <= trace.steps]
    if beyond:
        raise UserError(f"trace {where!r} has an evaluation at step {beyond[0]} of {trace.steps}; record it again")
    for name, dimensions in (("probe_logits", 1 + len(trace.header.metrics)), ("states", None)):
        array = trace.arrays.get(name)
        if array is not None and (array.ndim < 3 or not array.size or dimensions not in (None, len(array))):
            raise UserError(f"trace {where!r} has {name} of shape {array.shape}, which can't be; record it again")
    layers = len(trace.header.layers or ())
    states, replays = len(trace.states), len(trace.replays)
    if trace.of_module and (states != layers + (layers > 0) or replays not in (0, layers)):
        found = f"{count(states, 'state')} and {count(replays, 'replay')} of {count(layers, 'layer')}"
        raise UserError(f"trace {where!r} has {found}, which can't be; record it again")
    _check_head(trace)


def _check_head(trace: Trace) -> None:
    """Checks the arrays of the head, if there are any."""
    where, arrays, sizes = str(trace.folder), trace.arrays, trace.header.batch_sizes

    def refuse(name: str) -> None:
        if name in arrays:
            shape = arrays[name].shape
            raise UserError(f"trace {where!r} has {name} of shape {shape}, which can't be; record it again")

    if sizes is not None and len(sizes) != trace.steps:
        given = count(len(sizes), "batch size")
        raise UserError(f"trace {where!r} of {count(trace.steps, 'step')} has {given}; record it again")
    if arrays.get("right", trace.loss).shape != trace.loss.shape or ("right" in arrays and sizes is None):
        refuse("right")
    features, probes = arrays.get("features"), arrays.get("probe_features")
    if features is not None and (features.ndim != 2 or len(features) != sum((sizes or [])[:HEAD_STEPS])):
        refuse("features")
    if (features is None) != (probes is None):
        refuse("features" if probes is None else "probe_features")
    evaluations = 1 + len(trace.header.metrics)
    if probes is not None and (probes.ndim != 3 or len(probes) not in (1, evaluations)):
        refuse("probe_features")
    names = [f"head_{name}" for name in HEAD_SERIES]
    known = [arrays[name].shape for name in (*names, "head_logits") if name in arrays]
    if known and (len(known) != len(names) + 1 or len(set(known[:-1])) != 1 or len(known[0]) != 1):
        refuse(next(name for name in (*names, "head_logits") if name in arrays))
    if known and (arrays["head_logits"].ndim != 3 or not arrays["head_logits"].size):
        refuse("head_logits")
