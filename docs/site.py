"""What the site has beside the pages here: reference pages made from the code, and links to files of the repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """# Python

::: isotrain.api.training
    options: {members: [train, load_run, predict, Run]}
::: isotrain.api.measuring
    options: {members: [bench, parity, report, BenchResult, ParityResult]}
::: isotrain.backends.training.session.Session
::: isotrain.backends.base.Backend
"""


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of reference/ (a hook of MkDocs)."""
    files.append(File.generated(config, "index.md", content=readme()))
    pages = {"commands": commands(), "keys": keys(), "results": results(), "python": PYTHON}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Leads links that leave docs/ to the repository (a hook of MkDocs)."""
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({config.repo_url}/blob/main/\1)", markdown)


def readme() -> str:
    """README.md, as the first page: its links to docs/ lead to the pages, the others to the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!\w+:|docs/|#)", "](../", text)
    return text.replace("](docs/", "](")


def commands() -> str:
    """The help of every command."""
    import click
    from isotrain.cli.main import app
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=click.Context(command, info_name="isotrain"), name="isotrain")
    # Two brackets side by side would be a link.
    return text.replace("][", "]\\[").replace("[:", "\\[:")


def keys() -> str:
    """Every key of a configuration, as `isotrain config --keys` has them."""
    command = [sys.executable, "-m", "isotrain.cli", "config", "--keys", "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["keys"]
    lines = ["# All keys", "", "| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{row['key']}` | `{row['default']}` | {cell(row['meaning'])} |" for row in rows]
    return "\n".join(lines)


def results() -> str:
    """The fields of a result file, from its JSON schema."""
    schema = json.loads((ROOT / "benchmarks" / "schema" / "bench-2.json").read_text(encoding="utf-8"))
    lines = ["# Result files", "", "What `isotrain bench --out` writes, from `benchmarks/schema/bench-2.json`."]
    for name, part in [("Result", schema), *schema.get("$defs", {}).items()]:
        if part.get("properties"):
            lines += ["", f"## {name}", "", cell(part.get("description", "")), "", "| field | type | meaning |"]
            lines.append("|---|---|---|")
            lines += [
                f"| `{field}` | {cell(kind(value))} | {cell(value.get('description', ''))} |"
                for field, value in part["properties"].items()
            ]
    return "\n".join(lines)


def kind(value: dict[str, Any]) -> str:
    """A field's type as a reader says it: "number or null", "list of Block"."""
    if "anyOf" in value:
        return " or ".join(kind(one) for one in value["anyOf"])
    if "$ref" in value:
        return str(value["$ref"]).rsplit("/", 1)[-1]
    if value.get("type") == "array":
        return f"list of {kind(value.get('items', {}))}"
    return str(value.get("type", value.get("const", "any")))


def cell(text: str) -> str:
    """`text` inside a row of a table."""
    return " ".join(text.split()).replace("|", "\\|")
