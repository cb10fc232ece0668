"""The README.md of a published model: what it was trained on, how, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, TypeVar

import yaml

from ... import UserError
from ..config.schema import TrainConfig
from ..model.names import is_local
from ..runs.folder import COPY_AGAIN
from ..terminal.text import clean
from .export import Exported

T = TypeVar("T")

_PIPELINES = {True: "text-classification", False: "question-answering"}
# Keys that say more of a model than where it was trained. All their values are names and numbers.
_SHOWN_KEYS = (
    *("task", "max_length", "freeze_encoder", "batch_size", "learning_rate", "num_epochs", "seed"),
    *("lr_scheduler_type", "weight_decay"),
)
_HEAD_KEYS = ("head", "head_dropout")
# Shown if they have another value than their default.
_LOSS_KEYS = (
    *("gradient_accumulation_steps", "max_grad_norm", "no_decay", "label_smoothing_factor", "class_weights"),
    "loss_over_padding",
)


def model_card(
    config: TrainConfig,
    origin: dict[str, Any],
    summary: dict[str, Any],
    exported: Exported,
    parity: Sequence[str],
    repo: str,
) -> str:
    """Writes the card in Markdown with the Hub's metadata. Paths of this machine and secrets are left out.

    Args:
        origin: The content of the run's run.json.
        summary: The content of the run's summary.json.
        parity: Sentences about how the device compares with another.
        repo: The repository's name, with or without its owner.

    Raises:
        UserError: A file lacks what the card says.
    """
    random = _entry(origin, "random_weights", bool)
    device, policy = _entry(origin, "device", dict), _entry(origin, "cast_policy", dict)
    dataset = _entry(origin, "dataset", str)
    emulated = _entry(device, "emulated", bool)
    on_features = not config.task.startswith("question_answering")
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": _PIPELINES[on_features]}
    head["tags"] = ["isotrain", *(["random-weights"] if random else [])]
    if not random and not is_local(config.model_name) and ":" not in config.model_name:
        head["base_model"] = clean(config.model_name)
    fields = TrainConfig.model_fields
    usual = {key: fields[key].get_default(call_default_factory=True) for key in _LOSS_KEYS}
    figures = [(name, value) for name, value in summary.items() if name.startswith("eval/")]
    trained = [
        ("encoder", _public(config.model_name) + (", **random weights**, not pretrained" if random else "")),
        ("data", _public(dataset)),
        ("device", _public(_entry(device, "name", str)) + (", **emulated**" if emulated else "")),
        ("backend", _public(_entry(device, "backend", str))),
        ("cast policy", ", ".join(f"{name} {_public(value)}" for name, value in policy.items() if value)),
        ("steps", f"{_entry(summary, 'step', int):,} of {_entry(summary, 'total_steps', int):,}"),
        *((key, _public(getattr(config, key))) for key in _SHOWN_KEYS),
        *((key, _public(getattr(config, key))) for key in _HEAD_KEYS if on_features),
        *((key, _public(getattr(config, key))) for key in _LOSS_KEYS if getattr(config, key) != usual[key]),
    ]
    auto = "AutoModelForSequenceClassification" if on_features else "AutoModelForQuestionAnswering"
    custom = on_features and config.head == "mlp"
    register = ["import isotrain", "", "isotrain.register_models()  # the head is none of transformers' own"]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        "# A model trained by isotrain",
        _warning(random, emulated),
        _table(("of the training", ""), trained),
        "## Figures",
        "Measured by isotrain on the evaluation split, by the weights of the last step.",
        _table(("figure", "value"), [(name, f"{value:.6g}") for name, value in figures if isinstance(value, float)]),
        f"These files were loaded again by {_public(exported.judge)}: their logits are within "
        f"{exported.relative_l2:.1e} (relative L2, float32) of the trained model's.",
        *(["## Parity", "\n".join(f"* {_public(line)}" for line in parity)] if parity else []),
        "## Use",
        "\n".join(
            [
                "```python",
                *(register if custom else []),
                f"from transformers import AutoTokenizer, {auto}",
                "",
                f'REPO = "{repo if "/" in repo else f"OWNER/{repo}"}"',
                f"model = {auto}.from_pretrained(REPO)",
                "tokenizer = AutoTokenizer.from_pretrained(REPO)",
                "```",
            ]
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _entry(document: dict[str, Any], name: str, kind: type[T]) -> T:
    value = document.get(name)
    if not isinstance(value, kind):
        raise UserError(f"run.json or summary.json of the run has no usable {name!r}; {COPY_AGAIN}")
    return value


def _warning(random: bool, emulated: bool) -> str:
    said = [
        *(["The encoder's initial weights were random: figures say nothing of a pretrained model."] if random else []),
        *(["The device was emulated: its results are not a real device's."] if emulated else []),
    ]
    return " ".join(["**Note.**", *said]) if said else ""


def _public(value: object) -> str:
    """A value for one cell: without secrets, Markdown or HTML, and of a path only the last part."""
    text = clean(str(value))
    if text.startswith(("/", "~", ".")):
        text = PurePath(text).name
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text)


def _table(names: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    return "\n".join([f"| {names[0]} | {names[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
