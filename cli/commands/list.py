"""`isotrain list`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ...albert_core.terminal.invocation import command
from ..documents import print_json

if TYPE_CHECKING:
    from ...backends import Traits

Entries = dict[str, str]


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="recipes, backends, kernels, workloads, layouts, baselines, formats."),
    ] = None,
    json_only: Annotated[bool, typer.Option("--json", help="The lists as JSON.")] = False,
) -> None:
    """List what the commands take by name: recipes, backends, kernels, workloads, layouts, baselines, export formats.

    Examples:

      isotrain list

      isotrain list recipes
    """
    from ...kernels.names import check_name

    if kind is not None:
        check_name("list", kind, _KINDS)
    chosen = {name: entries for name, entries in _KINDS.items() if kind in (None, name)}
    found = {name: entries() if callable(entries) else entries for name, entries in chosen.items()}
    if json_only:
        print_json("list", found)
    else:
        _show(found)


def _show(found: dict[str, Entries]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from ...benchmarks.reports.blocks import Table, word_columns
    from ...benchmarks.reports.terminal import fitted, output_console

    console = output_console()
    for kind, entries in found.items():
        console.print(Text(kind, style="bold"))
        table = Table("", word_columns("", ""), list(entries.items()))
        console.print(Padding(fitted(table, console), (0, 0, 0, 2)))


def recipes() -> Entries:
    """The packaged configurations, with the first sentences of their files."""
    from ...albert_core.config.load import packaged_configs

    found = {}
    for file in packaged_configs():
        comment = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("# "):
                break
            comment += line[1:]
        found[file.stem] = comment.strip().partition(". ")[0].rstrip(".")
    return found


def _backends() -> Entries:
    return _of_backends(lambda traits: traits.described)


def _kernels() -> Entries:
    later = f"known once it is opened: `{command('doctor', '-v')}`"
    return _of_backends(lambda traits: ", ".join(("auto", *traits.kernels)) if traits.kernels else later)


def _of_backends(words: Callable[[Traits], str]) -> Entries:
    """Each backend's name and the words for its traits, or why its package can't be loaded."""
    from ... import UserError
    from ...backends import backend_traits, list_backends

    found = {}
    for name in list_backends():
        try:
            found[name] = words(backend_traits(name))
        except UserError as error:
            found[name] = str(error)
    return found


def _workloads() -> Entries:
    """isotrain's own, those of installed packages, and how one's own is named."""
    from ...albert_core.config.workload_name import installed

    found = {
        name: f"{entry.value}{f', of the package {entry.dist.name}' if entry.dist else ''}: {command('bench', name)}"
        for name, entry in installed().items()
    }
    own = f"your own, a class with model, batches and loss: {command('bench', 'my_model.py:TinyGPT')}"
    return {**STEPS, **found, "FILE.py:NAME": own}


def _baselines() -> Entries:
    from ...benchmarks.baselines import BASELINES

    return {name: baseline.what for name, baseline in BASELINES.items()}


STEPS: Entries = {
    "forward": "the frozen encoder and the head",
    "train_step": "the same, with loss, backward and AdamW",
    "head_step": "a training step on cached features",
    "full_step": "a training step of all layers",
    "end_to_end": "a whole training run, tokenising to trained head",
}
_KINDS: dict[str, Entries | Callable[[], Entries]] = {
    "recipes": recipes,
    "backends": _backends,
    "kernels": _kernels,
    "workloads": _workloads,
    "layouts": {
        "padded": "every text padded to max_length",
        "bucketed": "padded to one of a few lengths, for devices that compile each shape",
        "dynamic": "padded to the longest text of each batch",
        "packed": "no padding",
    },
    "baselines": _baselines,
    "formats": {
        "transformers": "a whole model that transformers' Auto classes load",
        "safetensors": "an encoder that transformers loads, and the head beside it",
        "torch-export": "a torch.export program",
        "onnx": "an ONNX model",
        "peft": "adapters that peft loads",
    },
}
