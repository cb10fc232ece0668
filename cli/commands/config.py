"""`isotrain config`."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from ...albert_core.terminal.console import new_console
from ..documents import print_json


def config(
    file: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="YAML file, or a packaged one by name.")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")] = None,
    backend: Annotated[str | None, typer.Option(help="As on `isotrain train`.")] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key with its default and meaning.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Show what a run would really use, and where each value comes from.

    Examples:

      isotrain config banking77 --set learning_rate=3e-4

      isotrain config --keys
    """
    from ...albert_core.config.load import load_config

    if keys:
        _show_keys(json_output)
        return
    resolved = load_config(file, sets or (), {"backend": backend})
    values = resolved.config.model_dump()
    if json_output:
        print_json("config", {"values": values, "sources": resolved.sources})
        return
    _show_values(values, resolved.sources)


def _show_values(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Prints one line per key. The output is YAML and can be used as a configuration."""
    from rich.text import Text

    console = new_console()
    for key, value in values.items():
        source = sources[key]
        style = "dim" if source == "default" else "bold"
        console.print(Text(f"{key}: {_yaml(value)}", style).append(f"  # {source}", "dim"), soft_wrap=True)


def _show_keys(json_output: bool) -> None:
    from ...albert_core.config.schema import TrainConfig

    fields = TrainConfig.flat_keys()
    for name, section in TrainConfig.sections().items():
        fields |= {f"{name}.{key}": field for key, field in section.model_fields.items()}
    rows = [
        (key, _yaml(field.get_default(call_default_factory=True)), field.description or "")
        for key, field in fields.items()
    ]
    if json_output:
        names = ("key", "default", "meaning")
        print_json("config-keys", {"keys": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    from ...benchmarks.reports.blocks import Table, word_columns
    from ...benchmarks.reports.terminal import output_console, print_blocks

    print_blocks([Table("Configuration keys", word_columns("key", "default", "meaning"), rows)], output_console())


def _yaml(value: object) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
