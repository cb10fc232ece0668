"""`isotrain config`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..albert_core.console import new_console, say_lines


def config(
    file: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="YAML file, or a packaged one by name.")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")] = None,
    backend: Annotated[str | None, typer.Option(help="As on `isotrain train`.")] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key with its type, default and meaning.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --keys: a Markdown table.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Values and sources as JSON.")] = False,
) -> None:
    """Show what a run would really use, and where each value comes from.

    Examples:

      isotrain config banking77 --set learning_rate=3e-4

      isotrain config --keys
    """
    from ..albert_core.config_file import load_config

    if keys:
        _show_keys(markdown)
        return
    resolved = load_config(file, sets or (), {"backend": backend})
    values = resolved.config.model_dump()
    if json_output:
        from .documents import print_json

        print_json("config", {"values": values, "sources": resolved.sources})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"configuration of {resolved.stem}", title_justify="left")
    for column in ("key", "value", "from"):
        table.add_column(column, overflow="fold")
    for key, value in values.items():
        source = resolved.sources[key]
        style = "dim" if source == "default" else "bold"
        table.add_row(Text(key, style), Text(_yaml(value), style), Text(source, style))
    new_console().print(table)


def _show_keys(markdown: bool) -> None:
    from ..albert_core.config import TrainConfig

    sections = TrainConfig.sections()
    fields = {key: field for key, field in TrainConfig.model_fields.items() if key not in sections}
    for name, section in sections.items():
        fields |= {f"{name}.{key}": field for key, field in section.model_fields.items()}
    rows = [
        (key, _yaml(field.get_default(call_default_factory=True)), field.description or "")
        for key, field in fields.items()
    ]
    if markdown:
        lines = [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in rows]
        say_lines(["| key | default | meaning |", "|---|---|---|", *lines])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title="configuration keys", title_justify="left")
    for column in ("key", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    new_console().print(table)


def _yaml(value: object) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
