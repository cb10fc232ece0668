"""`isotrain push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...albert_core.terminal.console import say
from ..documents import print_json
from ..help import panel
from ..streams import kept

_what, _output = map(panel, ("What is sent", "Output"))


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as `isotrain train` printed it.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face Hub, or NAME.")],
    public: Annotated[bool, _what(help="Let the repository be public; it is private otherwise.")] = False,
    dry_run: Annotated[bool, _what(help="Show the files and the model card, and send nothing.")] = False,
    json_only: Annotated[bool, _output("--json", help="What was sent, as JSON.")] = False,
) -> None:
    """Publish a finished run on the Hugging Face Hub, as transformers loads it, with a model card.

    Examples:

      isotrain push runs/banking77-... me/banking77-albert --dry-run

      isotrain push runs/banking77-... me/banking77-albert
    """
    from dataclasses import asdict

    from ...albert_core.inference.push import push_run
    from ...albert_core.runs.folder import open_run
    from ...kernels.words import count

    pushed = push_run(open_run(run), repo, public=public, dry_run=dry_run)
    with kept("the run was sent" if pushed.url else "nothing was sent"):
        if json_only:
            print_json("push", asdict(pushed))
            return
        if pushed.url is not None:
            say(f"sent {count(len(pushed.files), 'file')} to {pushed.url}{' (private)' if pushed.private else ''}")
            return
        say(f"nothing was sent; to {pushed.repo}{' (private)' if pushed.private else ''} would go:")
        for name, size in pushed.files.items():
            say(f"  {name}  {size:,} bytes")
        say("")
        for line in pushed.card.splitlines():
            say(line)
