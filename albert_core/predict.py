"""Labels and probabilities for new texts, from a run's folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from .. import UserError
from ..backends import Backend, FrozenEncoder, get_backend
from .checkpoint import read_checkpoint
from .checkpoint_store import CheckpointStore
from .config import TrainConfig
from .config_file import load_config
from .data import RawSplit, Table, TextTokenizer, build_token_store, load_tokenizer
from .encoder import load_encoder
from .features import TokenBatches, compute_features
from .head import ClassificationHead
from .job import frozen_encoder, labelled, layout_on, with_adapters
from .model import WholeModel, load_trained_state
from .run import RunFolder, write_text
from .saved_model import read_model


@dataclass(frozen=True)
class Prediction:
    """The likeliest label of a text and its softmax probability."""

    text: str
    label: str
    label_id: int
    probability: float


@dataclass
class Predictor:
    """A trained run, loaded. `label` names the encoder, random weights included."""

    config: TrainConfig
    backend: Backend
    tokenizer: TextTokenizer
    label_names: list[str]
    model: nn.Module
    label: str
    encoder: FrozenEncoder | None
    layout: str

    def predict(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> list[Prediction]:
        """Predictions in the order of `texts`. Raises UserError for an empty text."""
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise UserError(f"text {number} of {len(texts)} is empty; give a text to predict")
        if not texts:
            return []
        logits = self._logits(list(texts), progress)
        probabilities = torch.softmax(logits.double(), dim=-1)
        best, ids = probabilities.max(dim=-1)
        return [
            Prediction(text, self._name(label_id), label_id, probability)
            for text, label_id, probability in zip(texts, ids.tolist(), best.tolist(), strict=True)
        ]

    def _name(self, label_id: int) -> str:
        return self.label_names[label_id] if label_id < len(self.label_names) else f"unused-{label_id}"

    def _logits(self, texts: list[str], progress: Callable[[int, int], None] | None) -> torch.Tensor:
        config = self.config
        split = RawSplit(texts, [0] * len(texts))
        store = build_token_store(split, self.tokenizer, config.max_length, use_cache=False)
        with torch.no_grad():
            if self.encoder is None:
                size = config.eval_batch_size
                source = TokenBatches(store, self.backend, self.layout, config.max_length, size)
                source.start_epoch(np.arange(len(texts)))
                ranges = [(start, min(start + size, len(texts))) for start in range(0, len(texts), size)]
                return torch.cat([self.model(source.batch(*bounds)[0]).cpu() for bounds in ranges])[: len(texts)]
            features = compute_features(self.encoder, store, self.backend, self.layout, config.max_length, progress)
            return self.model(features).cpu()


def load_predictor(
    run: RunFolder, backend: str | None = None, checkpoint: str | None = None, model_name: str | None = None
) -> Predictor:
    """Opens a run for prediction: its finished model, or with `checkpoint` "last", "best" or a folder's path.

    `model_name` is where the encoder is now, when it has moved since training.

    Raises UserError when the run is unfinished and no checkpoint is named, when something in it is damaged, or when
    the encoder it was trained on is not the one that loads now.
    """
    config = load_config(run.config, options={"model_name": model_name}).config
    if checkpoint is None:
        weights, identity = read_model(run)
    else:
        option: Literal["last", "best", "path"] = "path"
        if checkpoint == "last":
            option = "last"
        elif checkpoint == "best":
            option = "best"
        store = CheckpointStore.for_reading(run.checkpoints, config.checkpoint_metric, config.checkpoint_metric_mode)
        saved = read_checkpoint(store.find(option, checkpoint))
        weights, identity = saved.model, saved.identity
    opened = get_backend(backend or config.backend_name, config.backend_options)
    encoder = load_encoder(config.model_name, config.seed)
    if encoder.fingerprint != identity["encoder"]:
        raise UserError(
            f"run {str(run.path)!r} was trained on other weights than {config.model_name!r} holds now; "
            "name the encoder it was trained with by --model"
        )
    edited = [
        key for key in ("mlp_hidden_size", "freeze_encoder", "head_dtype") if identity[key] != getattr(config, key)
    ]
    if config.lora.rank and identity.get("lora") != config.lora.model_dump(mode="json"):
        edited.append("lora")
    if edited:
        raise UserError(f"{run.config} was edited: its {', '.join(edited)} are not those of the weights; put them back")
    label_names = _read_labels(run.labels)
    tokenizer = load_tokenizer(str(run.tokenizer), config.model_name, texts=None, vocab_size=encoder.config.vocab_size)
    head = ClassificationHead(encoder.config.hidden_size, config.mlp_hidden_size, identity["num_labels"])
    head = head.to(getattr(torch, config.head_dtype))
    policy = opened.cast_policy(config.dtype, strict=config.strict_dtype)
    model: nn.Module = head
    if not config.freeze_encoder:
        model = WholeModel(with_adapters(encoder, config), head, opened, policy)
    load_trained_state(model, weights)
    frozen = frozen_encoder(encoder, opened, policy, config.kernel) if config.freeze_encoder else None
    model = opened.place(model).eval()
    layout = layout_on(opened, config)
    return Predictor(config, opened, tokenizer, label_names, model, labelled(encoder.label, opened), frozen, layout)


def _read_labels(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); copy the whole run folder again") from error
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} holds no list of label names; copy the whole run folder again")
    return [str(name) for name in names]


def texts_of(table: Table, column: str) -> list[str]:
    """The cells of a text column. Raises UserError naming the row of one that is missing, empty or no text."""
    texts = table.column(column)
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{table.place(row)}: {column} is {text!r}, and a text is needed; fill it in or remove the row"
            )
    return texts


def write_predictions(path: Path, table: Table, predictions: Sequence[Prediction]) -> None:
    """A CSV of `table`'s rows with the columns ``label`` and ``probability`` added, whole or not at all.

    A column of the input that has one of these names is kept under ``input_label`` or ``input_probability``.
    """
    added = ("label", "probability")
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([*(f"input_{column}" if column in added else column for column in table.columns), *added])
    for row, prediction in zip(table.rows, predictions, strict=True):
        cells = (cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in row)
        writer.writerow([*cells, prediction.label, f"{prediction.probability:.6f}"])
    write_text(path, buffer.getvalue())
