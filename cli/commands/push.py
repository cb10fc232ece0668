"""`isotrain push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...albert_core.terminal.console import say
from ...albert_core.terminal.text import quoted
from ..documents import print_json
from ..help import panel
from ..streams import kept

if TYPE_CHECKING:
    from ...albert_core.runs.folder import RunFolder

_what, _output = map(panel, ("What is sent", "Output"))


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as `isotrain train` printed it.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face Hub, or NAME.")],
    public: Annotated[bool, _what(help="Let the repository be public; it is private otherwise.")] = False,
    parity: Annotated[
        Path | None, _what(metavar="FILE", help="A result of `isotrain parity` on this model and data, for the card.")
    ] = None,
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

    folder = open_run(run)
    said = () if parity is None else _verdicts(parity, folder)
    pushed = push_run(folder, repo, public=public, dry_run=dry_run, parity=said)
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


def _verdicts(file: Path, run: RunFolder) -> tuple[str, ...]:
    """A sentence per candidate of a parity result. Raises UserError if it is none, or of another model or data."""
    from pydantic import ValidationError

    from ... import UserError
    from ...albert_core.config.parsing import read_json_object
    from ...albert_core.runs.folder import COPY_AGAIN
    from ...benchmarks.outcome.load import lack
    from ...benchmarks.outcome.parity import Parity
    from ...benchmarks.outcome.upgrade import upgraded

    fix = "give the parity.json of a result of isotrain parity"
    try:
        result = Parity.model_validate(upgraded(read_json_object(file, fix, nan=True)))
    except ValidationError as error:
        raise UserError(f"--parity {str(file)!r} is no result of parity ({lack(error)}); {fix}") from error
    origin, reference = read_json_object(run.origin, COPY_AGAIN), result.reference
    for name, given in (("model", reference.model), ("dataset", reference.dataset)):
        if given != origin.get(name):
            raise UserError(
                f"--parity {str(file)!r} compared devices on {name} {quoted(given)}, and the run's is "
                f"{quoted(origin.get(name))}; give a result on the same, or drop --parity"
            )
    return tuple(
        f"{side.label} against {reference.label}: {side.verdict}, over {result.steps} steps by isotrain parity"
        f"{' (emulated)' if side.emulated else ''}"
        for side in result.candidates
    )
