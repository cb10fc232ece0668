"""Publishes a trained run on the Hugging Face Hub: the files of the export `transformers`, and a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ... import RunError, UserError
from ..config.load import load_config
from ..config.parsing import read_json_object
from ..data.hub import hub_is_away
from ..model.encoder import quiet_transformers
from ..runs.files import write_text
from ..runs.folder import COPY_AGAIN, RunFolder
from ..terminal.console import quieted
from ..terminal.text import quoted, reason_of
from .export import EXPORT_RECORD, export_run
from .model_card import model_card

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What was sent, or would be. `files` maps names to sizes in bytes. `url` is None if nothing was sent."""

    repo: str
    private: bool
    files: dict[str, int]
    card: str
    url: str | None


def push_run(
    run: RunFolder, repo: str, *, public: bool = False, dry_run: bool = False, parity: Sequence[str] = ()
) -> Pushed:
    """Exports a finished run and sends it to the Hub in one commit.

    Args:
        repo: ``OWNER/NAME``, or ``NAME`` for the owner of the token. It is created if it doesn't exist.
        public: Whether the repository may be public. Otherwise a new one is private, and a public one is refused.
        dry_run: Whether nothing is sent. Then no token is needed.
        parity: As in `model_card`.

    Raises:
        UserError: The run can't be exported, its summary is damaged, the name is no repository's, there is no token, or
            the Hub refuses.
        RunError: The transfer fails.
    """
    check_push(repo, dry_run)
    summary = read_json_object(run.summary, COPY_AGAIN)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        exported = export_run(run, "transformers", folder)
        # It holds the command line, with paths of this machine.
        (folder / EXPORT_RECORD).unlink()
        origin = read_json_object(run.origin, COPY_AGAIN)
        card = model_card(load_config(run.config).config, origin, summary, exported, parity, repo)
        write_text(folder / CARD, card)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        url = None if dry_run else _send(folder, repo, public)
    return Pushed(repo, not public, files, card, url)


def check_push(repo: str, dry_run: bool = False) -> None:
    """Raises UserError if `repo` is no repository's name, or there is no token and it isn't a dry run."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{quoted(repo)} is no name on the Hub; give OWNER/NAME or NAME") from error
    if not dry_run and get_token() is None:
        raise UserError(
            "there is no token for the Hub; log in by `hf auth login` or set HF_TOKEN, with a token that may write; "
            "isotrain push --dry-run needs none"
        )


def _send(folder: Path, repo: str, public: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if hub_is_away():
        raise RunError("the Hub can't be reached, or HF_HUB_OFFLINE is set; push again when it can, or pass --dry-run")
    api: Any = HfApi(library_name="isotrain")
    try:
        with quiet_transformers(), quieted("huggingface_hub"):
            made = api.create_repo(repo, private=not public, exist_ok=True)
            if not public and not api.repo_info(made.repo_id).private:
                raise UserError(f"{made.repo_id} exists and is public; pass --public to publish there, or name another")
            api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Publish a run of isotrain")
    except UserError:
        raise
    # The client's HTTP library, and with it the exceptions, changes between releases.
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            raise UserError(
                f"the Hub refuses {quoted(repo)} (HTTP {status}); give a token that may write there, by HF_TOKEN"
            ) from error
        raise RunError(f"the transfer to {quoted(repo)} failed ({reason_of(error)}); push again") from error
    return str(made)
