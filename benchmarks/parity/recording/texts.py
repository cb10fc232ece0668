"""Observes a run on texts: the states between an encoder's layers, the head by itself, and logits."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from ....albert_core.config.schema import TrainConfig
from ....albert_core.features.compute import token_batch
from ....albert_core.features.source import module_layer_states
from ....albert_core.loop.build import Training, text_job
from ....albert_core.loop.job import TextJob, trains_on_features
from ....albert_core.model.whole import WholeModel
from ....albert_core.tasks.multi_label import boundary
from ....albert_core.tokens.order import Window
from ....kernels.packed import PackedBatch, PaddedBatch
from ...outcome.trace_header import Evaluation, Split, TraceHeader
from ..evaluations import moves, number_moves, question_moves, set_moves
from ..trace import HEAD_SERIES, HEAD_STEPS, Trace
from .observe import PROBE_TEXTS, HeadInputs, Steps, batch_hash, on_host, probe, trained
from .recipe import recipe_of
from .recorder import Advance, Recorder

# The hidden states of so many first texts of the evaluation split are kept.
STATE_TEXTS = 8


class TextRecorder(Recorder):
    """Observes a run on texts. On a reference's features, the head is observed by itself, too."""

    def __init__(self, label: str, reference: Trace | None, advance: Advance | None = None) -> None:
        super().__init__(label, reference, advance)
        self.inputs: HeadInputs | None = None
        self.head_steps: Steps | None = None

    def started(self, training: Training) -> None:
        job = text_job(training)
        self.begin(training)
        states = _LayerStates(training)
        self.header = self._header(job, states.kernel)
        self.check_reference("evaluation texts", "data, tokenizer and max_length")
        self.arrays["states"] = states.run()
        if self.reference is not None:
            self.arrays["replay"] = states.run(self.reference.arrays["states"][:-1])
        self._watch_the_head()
        self._probe()
        job.backend.step_boundary()

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        if self.head_steps is not None:
            self.head_steps.add(training, window, sums)
        if self.inputs is not None:
            self.inputs.stepped(window)
        super().stepped(training, window, sums)

    def window(self, window: Window) -> tuple[str, int]:
        rows = self.training.stream.order()[window.micro_batches[0][0] : window.micro_batches[-1][1]]
        return batch_hash(text_job(self.training).train_tokens, rows), len(rows)

    def evaluated(self, training: Training, epoch: int) -> None:
        figures = {key.removeprefix("eval/"): value for key, value in training.state.last_evaluation.items()}
        assert self.header.evaluation is not None, "a header of this version has it"
        # The others, such as the best threshold, don't depend on the logits in a way that can be judged.
        judged = {"loss", *self.header.evaluation.moves}
        named: dict[str, Any] = {name: float(value) for name, value in figures.items() if name in judged}
        self.metrics.append(Evaluation(epoch=epoch + 1, step=training.state.step, **named))
        self._probe()

    def trace(self, config: TrainConfig, failure: str = "") -> Trace:
        trace = super().trace(config, failure)
        if self.inputs is not None:
            trace.arrays.update(self.inputs.arrays(self.training))
        if self.head_steps is not None:
            trace.arrays.update(self._own_head(self.head_steps))
        return trace

    def _header(self, job: TextJob, kernel: str) -> TraceHeader:
        digest = hashlib.sha256(job.encoder.fingerprint.encode())
        for weight in on_host(trained(self.training)):
            # As float32, so that a float64 run with the same initial head has the same hash.
            digest.update(weight.to(torch.float32).contiguous().numpy().tobytes())
        store = job.test_tokens
        return self.make_header(
            job,
            kernel=kernel,
            layout=job.layout,
            weights_sha256=digest.hexdigest(),
            probe_sha256=batch_hash(store, np.arange(min(PROBE_TEXTS, store.num_texts))),
            recipe=recipe_of(job.config, self.training.total_steps, num_labels=job.num_labels),
            evaluation=_evaluation(job),
        )

    def _watch_the_head(self) -> None:
        """Keeps the inputs of a head on features. For a whole model, only a reference keeps them for replays."""
        job, model = text_job(self.training), self.training.model
        frozen = trains_on_features(job.config)
        # The clipped gradient of a whole model's head depends on the encoder, too.
        separable = job.task.on_features and (frozen or job.config.max_grad_norm is None)
        if frozen or (separable and self.reference is None):
            self.inputs = HeadInputs(self.training)
        if separable and self.reference is None:
            head: Any = model if frozen else model.head
            self.head_steps = Steps(self.training, list(head.parameters()))

    def _own_head(self, steps: Steps) -> dict[str, np.ndarray]:
        """The head's part of this run, with which replays of the head are compared."""
        found = steps.arrays()
        evaluations = sum(entry.step <= HEAD_STEPS for entry in self.metrics)
        return {
            **{f"head_{name}": found[name][:HEAD_STEPS] for name in HEAD_SERIES},
            "head_logits": np.stack(self.outputs[: evaluations + 1]),
        }

    def _probe(self) -> None:
        inputs, logits = probe(self.training)
        self.outputs.append(logits)
        if self.inputs is not None:
            self.inputs.probed(inputs, len(logits))


class _LayerStates:
    """The hidden states of the first evaluation texts, layer by layer, before the first step."""

    def __init__(self, training: Training) -> None:
        job = text_job(training)
        self.backend, self.policy = job.backend, job.policy
        store = job.test_tokens
        rows = np.arange(min(STATE_TEXTS, store.num_texts))
        model = training.model
        trained = model.trained if isinstance(model, WholeModel) else None
        layout = "bucketed" if isinstance(model, WholeModel) and trained is None else job.layout
        self.batch: PackedBatch | PaddedBatch = token_batch(store, rows, layout, job.config.max_length)
        if trained is not None:
            self.encoder: Any = trained
            self.kernel = f"{trained.name} {trained.version}, trained"
        elif isinstance(model, WholeModel):
            self.encoder = model.encoder
            mode = job.config.torch_compile
            self.kernel = f"transformers, trained{f', torch.compile {mode}' if mode else ''}"
        else:
            self.encoder = job.frozen_encoder()
            self.kernel = f"{self.encoder.name} {self.encoder.version}"

    def run(self, given: np.ndarray | None = None) -> np.ndarray:
        """The states of real tokens, in the order of the texts, [R + 1, T, H], or for a replay [R, T, H]."""
        batch = self.backend.place(self.batch)
        inputs = None if given is None else [self._placed(state) for state in given]
        if isinstance(self.encoder, torch.nn.Module):
            assert isinstance(batch, PaddedBatch), "modules of whole models take padded batches"
            with self.backend.autocast(self.policy):
                states = module_layer_states(self.encoder, batch, inputs)
        else:
            states = self.encoder.layer_states(batch, inputs)
        self.backend.synchronize(*states)
        return np.stack([self._real(state.detach().cpu()) for state in states])

    def _placed(self, state: np.ndarray) -> torch.Tensor:
        flat = torch.from_numpy(state)
        if isinstance(self.batch, PaddedBatch):
            mask = self.batch.attention_mask.bool()
            padded = flat.new_zeros(*mask.shape, flat.shape[-1])
            padded[mask] = flat
            flat = padded
        wide = torch.float64 if self.policy.accumulate == "float64" else torch.float32
        return self.backend.place(flat.to(wide))

    def _real(self, state: torch.Tensor) -> np.ndarray:
        if isinstance(self.batch, PaddedBatch):
            state = state[self.batch.attention_mask.bool()]
        return state.to(torch.float64 if self.policy.accumulate == "float64" else torch.float32).numpy()


def _evaluation(job: TextJob) -> Split:
    """The evaluation split: its rows, their hash, and how much one answer can change each figure."""
    store = job.test_tokens
    rows = store.num_texts
    match job.task.answer:
        case "number":
            moved = number_moves(rows)
        case "above":
            moved = set_moves(rows, store.labels.sum(axis=0).tolist())
        case "largest" if job.task.on_features:
            moved = moves(rows, np.bincount(store.labels, minlength=job.num_labels).tolist())
        case _:
            moved = question_moves([bool(given) for given in job.dataset.test.answers])
    return Split(
        rows=rows,
        sha256=batch_hash(store, np.arange(rows)),
        moves=moved,
        answer=job.task.answer,
        boundary=boundary(job.config),
    )
