"""A task's answers for new texts, from a run's folder."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from .. import UserError
from ..backends import Backend, FrozenEncoder, get_backend
from .best import Best
from .checkpoint import Snapshot, read_checkpoint
from .checkpoint_store import CheckpointStore
from .config import TrainConfig
from .config_file import load_config
from .data import Table, TextTokenizer, TokenStore, load_tokenizer
from .data.columns import refuse_repeated_ids
from .data.tabular import is_unicode
from .encoder import LoadedEncoder, load_encoder, saved_encoder
from .features import batches_by_length, compute_features
from .history import best_evaluation
from .job import frozen_encoder, labelled, layout_on, module_of, policy_on, trains_on_features
from .model import WholeModel, load_trained_state
from .run import RunFolder, with_device
from .runs.files import write_json, write_text
from .saved_model import read_model
from .tasks import Prediction, Task, find_task

log = logging.getLogger("isotrain")


@dataclass
class Predictor:
    """A trained run, loaded. `label` names the encoder, random weights included; `loaded` is the encoder it was trained
    on, `recalled` what the task kept.
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

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Any]:
        """The task's answers (see `Prediction`) in the order of `texts`, with second texts where it was trained on two.

        Raises UserError for an empty text, second texts that are missing, too many or not wanted.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f"there are {len(texts)} texts and {len(pairs)} second texts; give each text its second")
        for role, texts_of_role in (("text", texts), ("second text", pairs or ())):
            for number, text in enumerate(texts_of_role, start=1):
                if not text.strip():
                    raise UserError(f"{role} {number} of {len(texts)} is empty; give a text to predict")
                # As a shell hands over bytes that are in another encoding.
                if not is_unicode(text):
                    raise UserError(f"{role} {number} of {len(texts)} is not UTF-8: {text!r}; write it as UTF-8")
        return self.task.predict(self, texts, pairs) if texts else []

    def outputs(self, store: TokenStore) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """The head's outputs for every sequence: row numbers int64 [n] and logits [n, ...] on the host, some at a time.

        Batches hold sequences of like lengths and about as many tokens as the device likes.
        """
        length = self.config.max_length
        with torch.no_grad():
            if self.encoder is not None:
                features = compute_features(self.encoder, store, self.backend, self.layout, length)
                yield np.arange(store.num_texts), self.model(features).cpu()
                return
            for rows, batch in batches_by_length(store, self.backend, self.layout, length):
                logits = self.model(batch)
                self.backend.step_boundary()
                yield rows, logits.cpu()[: len(rows)]


def load_predictor(
    run: RunFolder, backend: str | None = None, checkpoint: str | None = None, model_name: str | None = None
) -> Predictor:
    """Opens a run for prediction: its finished model, or with `checkpoint` "last", "best" or a folder's path.

    The encoder is the run's own copy; where it has none, the one that the configuration names, or `model_name`.

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
        store = CheckpointStore.for_reading(run.checkpoints, config.best)
        saved = read_checkpoint(store.find(option, checkpoint))
        if option == "best":
            _say_if_not_held(run, config.best, saved)
        weights, identity = saved.model, saved.identity
    task = find_task(config.task)
    trained_for = identity.get("task", "a task that it doesn't name")
    if trained_for != task.name:
        raise UserError(
            f"{checkpoint or run.model} holds weights for {trained_for}, and run {str(run.path)!r} is one of "
            f"{task.name}; name a checkpoint of this run"
        )
    # Two recipes of one task have weights of the same shapes, and labels that have nothing to do with each other.
    if identity["train_data"] != run.identity().get("train_data", identity["train_data"]):
        raise UserError(
            f"{checkpoint or run.model} holds weights trained on other texts than run {str(run.path)!r}; name a "
            "checkpoint of this run"
        )
    opened = get_backend(backend or config.backend_name, config.backend_options)
    if model_name is None and run.encoder.is_dir():
        encoder = saved_encoder(run.encoder, config.model_name)
    else:
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
    tokenizer = load_tokenizer(str(run.tokenizer), config.model_name, texts=None, vocab_size=encoder.config.vocab_size)
    head = task.head(encoder.config.hidden_size, identity["num_labels"], config).to(getattr(torch, config.head_dtype))
    policy = policy_on(opened, config)
    model: nn.Module = head
    on_features = trains_on_features(config)
    if not on_features:
        model = WholeModel(module_of(encoder, config), head, task.apply_head, opened, policy)
    load_trained_state(model, weights)
    return Predictor(
        config=config,
        task=task,
        backend=opened,
        tokenizer=tokenizer,
        loaded=encoder,
        recalled=task.recall(run),
        model=opened.place(model).eval(),
        label=labelled(encoder.label, opened),
        encoder=frozen_encoder(encoder, opened, policy, config.kernel) if on_features else None,
        layout=layout_on(opened, config),
    )


def _say_if_not_held(run: RunFolder, best: Best, saved: Snapshot) -> None:
    """Warns where the run's best evaluation was of weights that no checkpoint holds."""
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


@dataclass(frozen=True)
class Inputs:
    """What a file asks: its table, the texts, and the second texts of pairs."""

    table: Table
    texts: list[str]
    pairs: list[str] | None


def read_inputs(run: RunFolder, file: Path, text_column: str | None, pair_column: str | None) -> Inputs:
    """The texts in a CSV, TSV or JSONL file that `run` is to answer for.

    Raises UserError, also for an empty cell and for an id that occurs twice.
    """
    config = load_config(run.config).config
    task = find_task(config.task)
    table = task.read(file)
    first, second = task.columns(table, task.recall(run), text_column, pair_column)
    refuse_repeated_ids(table, used=(first, second, config.label_column))
    return Inputs(table, _texts_of(table, first), None if second is None else _texts_of(table, second))


def _texts_of(table: Table, column: str) -> list[str]:
    texts = table.column(column)
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{table.place(row)}: {column} is {text!r}, and a text is needed; fill it in or remove the row"
            )
    return texts


def write_predictions(path: Path, table: Table, predictions: Sequence[Prediction], emulated: str = "") -> None:
    """`table`'s rows with the answers' columns added, whole or not at all: JSONL or CSV, by the name of `path`.

    `emulated`, the label of a device that is only emulated, gets a column ``device``. A column of the input that has
    the name of one added is kept as ``input_`` and that name. A .json file gets SQuAD's format instead, the answer by
    id (and the label as `with_device` puts it). Raises UserError where that is asked for and the rows have no ids of
    their own.
    """
    said: dict[str, str | int | float] = {"device": emulated} if emulated else {}
    answers = [prediction.answer() | said for prediction in predictions]
    if path.suffix.lower() == ".json":
        by_id = dict(zip(answer_ids(table), (next(iter(answer.values())) for answer in answers), strict=True))
        write_json(path, with_device(by_id, emulated))
        return
    added = list(answers[0]) if answers else []
    kept = [f"input_{column}" if column in added else column for column in table.columns]
    if path.suffix.lower() == ".jsonl":
        rows = (dict(zip(kept, row, strict=True)) | answer for row, answer in zip(table.rows, answers, strict=True))
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([*kept, *added])
    for row, answer in zip(table.rows, answers, strict=True):
        writer.writerow([*map(_cell, row), *map(_cell, answer.values())])
    write_text(path, buffer.getvalue())


def answer_ids(table: Table) -> list[str]:
    """The id of each row, for answers by id. Raises UserError where one has none, or that of another."""
    instead = "a .json file of answers has them by id: give each row its own, or name a .csv or .jsonl file by --out"
    if "id" not in table.columns:
        raise UserError(f"{table.origin} has no column id, and {instead}")
    refuse_repeated_ids(table)
    ids = table.column("id")
    for row, cell in enumerate(ids):
        if cell in (None, ""):
            raise UserError(f"{table.place(row)} has no id, and {instead}")
    return [str(cell) for cell in ids]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
