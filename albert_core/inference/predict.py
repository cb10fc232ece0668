"""Answers for new texts, from a run's folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ... import UserError
from ...backends import Backend, FrozenEncoder, get_backend
from ...kernels.words import count
from ..config.best import Best
from ..config.load import load_config
from ..config.parsing import is_unicode
from ..config.schema import TrainConfig
from ..features.compute import batches_by_length, compute_features
from ..loop.job import (
    build_encoder,
    check_kept,
    frozen_encoder,
    layout_on,
    policy_on,
    trained_kernel,
    trains_on_features,
)
from ..model.encoder import LoadedEncoder, load_encoder, saved_encoder
from ..model.whole import WholeModel, load_trained_state
from ..runs.checkpoint import Snapshot, read_checkpoint
from ..runs.checkpoint_store import CheckpointStore
from ..runs.folder import RunFolder, check_predicts
from ..runs.history import best_evaluation
from ..runs.manifest import CONFIG, MODEL, ORIGIN, check_run
from ..runs.saved_model import check_finished, read_model
from ..tasks import TASKS, Prediction, Task
from ..tokens.store import TokenStore
from ..tokens.tokenizer import TextTokenizer, load_tokenizer

# Number of logits per pass of the head: 16 MB in float32, and several times that when probabilities are computed.
HEAD_OUTPUTS = 1 << 22

log = logging.getLogger("isotrain")


# Files that a run's manifest must cover, besides the weights.
NEEDED = (CONFIG, ORIGIN, "inputs.json", "tokenizer/tokenizer.json")


@dataclass
class Predictor:
    """A trained run, loaded.

    Attributes:
        label: The encoder's name. It says if the weights are random.
        loaded: The encoder that the run was trained on.
        recalled: What the task kept.
        progress: Called with the done and total number of a call's sequences, if set.
    """

    config: TrainConfig
    task: Task
    backend: Backend
    tokenizer: TextTokenizer
    loaded: LoadedEncoder
    recalled: Any
    model: nn.Module
    label: str
    encoder: FrozenEncoder | None
    layout: str
    num_outputs: int
    progress: Callable[[int, int], None] | None = None

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Sequence[Prediction]:
        """Answers in the order of `texts`, with second texts if the run was trained on pairs.

        Raises:
            UserError: A text is empty, or second texts are missing, too many or not expected.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(
                f"there are {count(len(texts), 'text')} and {count(len(pairs), 'second text')}; "
                "give each text its second"
            )
        for role, texts_of_role in (("text", texts), ("second text", pairs or ())):
            for number, text in enumerate(texts_of_role, start=1):
                if not text.strip():
                    raise UserError(f"{role} {number} of {len(texts)} is empty; give a text to predict")
                # What a shell passes for bytes in another encoding.
                if not is_unicode(text):
                    raise UserError(f"{role} {number} of {len(texts)} is not UTF-8: {text!r}; write it as UTF-8")
        if not texts:
            return []
        split = self.task.inputs(self.recalled, texts, pairs)
        store = self.task.tokenise(split, self.tokenizer, self.config, False, None)
        return self.task.answers(self.recalled, split, store, self.outputs(store), self.config)

    def outputs(self, store: TokenStore) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yields the head's outputs for every sequence, some at a time.

        Batches hold sequences of similar length and about as many tokens as the device prefers.

        Yields:
            Row numbers, int64 [n], and logits [n, ...] on the host.
        """
        length = self.config.max_length
        with torch.no_grad():
            if self.encoder is not None:
                features = compute_features(self.encoder, store, self.backend, self.layout, length, self.progress)
                size = max(1, HEAD_OUTPUTS // self.num_outputs)
                for start in range(0, store.num_texts, size):
                    part = features[start : start + size]
                    yield np.arange(start, start + len(part)), self.model(part).cpu()
                return
            for rows, batch in batches_by_length(store, self.backend, self.layout, length, self.progress):
                logits = self.model(batch)
                self.backend.step_boundary()
                yield rows, logits.cpu()[: len(rows)]


def load_predictor(
    run: RunFolder, backend: str | None = None, checkpoint: str | None = None, model_name: str | None = None
) -> Predictor:
    """Opens a run for prediction.

    Args:
        checkpoint: "last", "best" or a folder's path. Without it, the finished model is loaded.
        model_name: The encoder to load if the run has no copy of its own, instead of the configured one.

    Raises:
        UserError: The run is unfinished and no checkpoint is named, a file is damaged, or the encoder is not the one
            that the run was trained on.
    """
    check_predicts(run)
    if checkpoint is None:
        check_finished(run)
    check_run(run.path, NEEDED if checkpoint else (*NEEDED, MODEL), encoder=model_name is None)
    config = load_config(run.config, options={"model_name": model_name}).config
    metrics: Mapping[str, Any]
    if checkpoint is None:
        weights, identity = read_model(run)
        metrics = run.ended()
    else:
        option: Literal["last", "best", "path"] = (
            "last" if checkpoint == "last" else "best" if checkpoint == "best" else "path"
        )
        store = CheckpointStore.for_reading(run.checkpoints, config.best)
        saved = read_checkpoint(store.find(option, checkpoint))
        if option == "best":
            _say_if_not_held(run, config.best, saved)
        weights, identity, metrics = saved.model, saved.identity, saved.metrics
    task = TASKS[config.task]
    trained_for = identity.get("task", "a task that it doesn't name")
    if trained_for != task.name:
        raise UserError(
            f"{checkpoint or run.model} holds weights for {trained_for}, and run {str(run.path)!r} is one of "
            f"{task.name}; name a checkpoint of this run"
        )
    # Two recipes of one task may have weights of the same shapes, but unrelated labels.
    own = run.identity()
    if any(identity.get(key) != own.get(key) for key in ("train_data", "tokenizer", "labels")):
        raise UserError(
            f"{checkpoint or run.model} holds weights trained on other texts than run {str(run.path)!r}; name a "
            "checkpoint of this run"
        )
    opened = get_backend(backend or config.backend_name, config.backend_options)
    if model_name is None and run.encoder.is_dir():
        encoder = saved_encoder(run.encoder, config.model_name)
    else:
        encoder = load_encoder(config.model_name, config.seed)
    if encoder.fingerprint != identity.get("encoder"):
        raise UserError(
            f"run {str(run.path)!r} was trained on other weights than {config.model_name!r} holds now; "
            "name the encoder it was trained with by --model"
        )
    edited = [
        key for key in ("mlp_hidden_size", "freeze_encoder", "head_dtype") if identity.get(key) != getattr(config, key)
    ]
    if config.lora.rank and identity.get("lora") != config.lora.model_dump(mode="json"):
        edited.append("lora")
    if identity.get("head", "mlp") != config.head:
        edited.append("head")
    if edited:
        raise UserError(f"{run.config} was edited: its {', '.join(edited)} are not those of the weights; put them back")
    tokenizer = load_tokenizer(str(run.tokenizer), config.model_name, texts=None, vocab_size=encoder.config.vocab_size)
    check_kept(run, task, tokenizer, identity)
    head = task.head(encoder.config.hidden_size, identity["num_labels"], config).to(getattr(torch, config.head_dtype))
    policy = policy_on(opened, config)
    model: nn.Module = head
    on_features = trains_on_features(config)
    if not on_features:
        kernel = trained_kernel(config, layout_on(opened, config))
        model = WholeModel(build_encoder(encoder, config), head, task.apply_head, opened, policy, kernel)
    load_trained_state(model, weights)
    return Predictor(
        config=task.settled(config, {name: value for name, value in metrics.items() if isinstance(value, float)}),
        task=task,
        backend=opened,
        tokenizer=tokenizer,
        loaded=encoder,
        recalled=task.recall(run),
        model=opened.place(model).eval(),
        label=encoder.label + opened.on_caveat,
        encoder=frozen_encoder(encoder, opened, policy, config.kernel) if on_features else None,
        layout=layout_on(opened, config),
        num_outputs=identity["num_labels"],
    )


def _say_if_not_held(run: RunFolder, best: Best, saved: Snapshot) -> None:
    """Warns if no checkpoint holds the weights of the run's best evaluation."""
    found = best_evaluation(run, best)
    if found and found["step"] != saved.step:
        log.warning(
            "no checkpoint holds the run's %s, step %d (%s %.4f); this is %s (%s %.4f), the best that is kept",
            best.words,
            found["step"],
            best.metric,
            found[best.metric],
            saved.folder.name if saved.folder else saved.step,
            best.metric,
            saved.metrics[best.metric],
        )
