"""Passwords and tokens reach no file of a run, no line of a terminal or a log, and no tracker."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from isotrain import UserError
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.albert_core.runs.remote import check_remote
from isotrain.albert_core.terminal.console import CleanFormatter
from isotrain.albert_core.terminal.text import clean, quoted, redacted, shorten
from isotrain.benchmarks.harness.environment import command_line
from support.command import Invoke, one_line_error
from support.small_job import settings, write_dataset

SECRET = "hunter2Sw0rdf1sh"
WITH_SECRET = {
    f"ftp://me:{SECRET}@host/runs": "ftp://me:***@host/runs",
    f"sftp://me:{SECRET}@host:22/runs": "sftp://me:***@host:22/runs",
    f"simplecache::s3://AKIA:{SECRET}@bucket/runs": "simplecache::s3://AKIA:***@bucket/runs",
    f"https://{SECRET}@host/runs": "https://***@host/runs",
    f"https://host/runs?token={SECRET}&x=1": "https://host/runs?token=***&x=1",
    f"https://host/runs?x=1&X-Amz-Signature={SECRET}": "https://host/runs?x=1&X-Amz-Signature=***",
    f"abfs://c@account.blob/x?sv=2024&sig={SECRET}": "abfs://c@account.blob/x?sv=2024&sig=***",
    f"https:/me:{SECRET}@host/runs": "https:/me:***@host/runs",
    f"https:/{SECRET}@host/runs": "https:/***@host/runs",
    f"gs://bucket/runs#access_token={SECRET}": "gs://bucket/runs#access_token=***",
    f"sftp://me:{SECRET}/with/slashes@host/runs": "sftp://me:***@host/runs",
    f"hf://hf_{SECRET}@datasets/x": "hf://***@datasets/x",
}
# What libraries print beside URLs.
PRINTED = {
    f"FTPFileSystem(host='h', password='{SECRET}')": "FTPFileSystem(host='h', password='***')",
    f"{{'username': 'me', \"password\": '{SECRET}'}}": "{'username': 'me', \"password\": '***'}",
    f"WANDB_API_KEY={SECRET}": "WANDB_API_KEY=***",
    f"wandb login wandb_v1_{SECRET}": "wandb login ***",
    f"Authorization: Bearer {SECRET}": "Authorization: Bearer ***",
    f"(key=AKIA, aws_secret_access_key={SECRET})": "(key=AKIA, aws_secret_access_key=***)",
}
WITHOUT = [
    "password reset: the secret is in the app, token = 5",
    "unknown key 'api_key'",
    "wandb_version",
    "s3://bucket/run",
    "sftp://me@host:22/runs",
    "abfs://container@account/x",
    "embedded:intents?train=154&test=77",
    "http://host:8080/a@b",
    "/srv/data:/a@b/c.csv",
    "zip://a.csv::s3://me@bucket/b",
]


@pytest.mark.parametrize(("url", "shown"), WITH_SECRET.items())
def test_a_secret_in_a_url_is_hidden_and_refused_as_a_value(url: str, shown: str) -> None:
    assert redacted(f"can't open {url!r} (refused)") == f"can't open {shown!r} (refused)"
    assert clean(url) == shown
    for key in ("remote_path", "dataset_id", "model_name", "tokenizer_name", "checkpoint_path"):
        with pytest.raises(ValueError, match="holds a password or a token"):
            TrainConfig(**{key: url, "storage_backend": "fsspec"})
    for values in ({"wandb_tags": ["a", url]}, {"missing_markers": [url]}, {"lora": {"targets": [url]}}):
        with pytest.raises(ValueError, match="holds a password or a token"):
            TrainConfig(**values)


@pytest.mark.parametrize(("text", "shown"), PRINTED.items())
def test_a_secret_that_a_library_prints_is_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


def test_half_of_a_url_shows_no_password() -> None:
    url = f"sftp://me:{SECRET}{'x' * 300}@host/runs"
    for text in (shorten(url), shorten(url, 30), quoted(url), quoted([url])):
        assert SECRET[:4] not in text


LIBRARIES = f"""
import logging, sys, warnings
from isotrain.cli.streams import settle_streams
settle_streams()
logging.getLogger("fsspec").warning("retrying %s", "ftp://me:{SECRET}@host/runs")
handler = logging.StreamHandler()
logging.getLogger("transformers").addHandler(handler)
logging.getLogger("transformers").warning("https://me:{SECRET}@mirror/model")
warnings.warn("https://host/?token={SECRET}")
print("wandb: API key wandb_v1_{SECRET}", file=sys.stderr)
print("ftp://me:{SECRET}@host/runs")
raise RuntimeError("ftp://me:{SECRET}@host/runs")
"""


def test_no_library_writes_a_secret_to_the_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("***") >= 5, "the log lines, the warning, what was printed, the traceback"
    assert done.stdout == "ftp://me:***@host/runs\n"
    assert SECRET not in done.stderr


def test_a_traceback_in_a_runs_log_has_no_secret() -> None:
    try:
        raise RuntimeError(f"ftp://me:{SECRET}@host/runs")
    except RuntimeError:
        record = logging.LogRecord("isotrain", logging.ERROR, "file", 1, "failed", None, sys.exc_info())
    text = CleanFormatter("%(message)s").format(record)
    assert "ftp://me:***@host/runs" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--kernel"],
        ["bench", "--backend"],
        ["bench", "--model"],
        ["bench", "--dataset"],
        ["bench", "--set", "tt.arch="],
        ["bench", "--set", "other="],
        ["train", "quickstart", "--backend"],
        ["train", "quickstart", "--set", "kernel="],
        ["train", "quickstart", "--set", "other="],
        ["train", "quickstart", "--threads"],
        ["train", "quickstart", "--resume"],
        ["train"],
        ["predict"],
        ["show"],
        ["report"],
        ["parity"],
        ["list"],
        [],
    ],
)
def test_no_refusal_repeats_a_password(arguments: list[str], invoke: Invoke) -> None:
    url = f"https://me:{SECRET}{'y' * 150}@host/x"
    *others, last = [*arguments, ""] if not arguments or not arguments[-1].endswith("=") else arguments
    result = invoke(*others, last + url)
    one_line_error(result)
    assert SECRET[:6] not in "".join(map(str, result))


@pytest.mark.parametrize("url", WITHOUT)
def test_what_holds_no_secret_stays(url: str) -> None:
    assert redacted(url) == url
    TrainConfig(remote_path=url, storage_backend="fsspec")


def everything_written(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_bytes()


def test_a_run_with_a_secret_in_remote_path_does_not_begin(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"remote_path: ftp://me:{SECRET}@host/runs\nstorage_backend: fsspec\n")
    job = ["train", "job.yaml", *(f"--set={item}" for item in settings(write_dataset(tmp_path / "data"), tmp_path))]
    result = invoke(*job)
    one_line_error(result, "ftp://me:***@host/runs", "job.yaml:1", "FSSPEC_SFTP_PASSWORD")
    result = invoke(*job, "--set", f"remote_path=ftp://me:{SECRET}@elsewhere/")
    one_line_error(result, "ftp://me:***@elsewhere/", "--set")
    assert SECRET not in "".join(map(str, result))
    assert not (tmp_path / "runs").exists()


class Vault(MemoryFileSystem):
    """A storage that wants a password, and puts it into its errors."""

    protocol = "vault"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    def __init__(self, password: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.password = password

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if self.password != SECRET:
            raise PermissionError(f"login to vault://me:{self.password}@host failed")
        super().makedirs(path, exist_ok)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("vault://", "memory://"))


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    fsspec.register_implementation("vault", Vault, clobber=True)
    return monkeypatch


def test_a_password_in_fsspecs_configuration_serves_and_is_written_nowhere(
    vault: pytest.MonkeyPatch, invoke: Invoke, tmp_path: Path
) -> None:
    conf: dict[str, Any] = {}
    fsspec.config.set_conf_env(conf, {"FSSPEC_VAULT_PASSWORD": SECRET})
    vault.setitem(fsspec.config.conf, "vault", conf["vault"])
    job = settings(
        write_dataset(tmp_path / "data"),
        tmp_path,
        num_epochs=1,
        remote_path="vault://host/runs",
        storage_backend="fsspec",
        sync_to_storage=True,
    )
    (tmp_path / "job.yaml").write_text("num_epochs: 1\n")
    code, out, err = invoke("train", "job.yaml", *(f"--set={item}" for item in job))
    assert code == 0, err
    assert any("manifest.json" in name for name in Vault.store), "the checkpoints were copied"
    assert SECRET not in out + err
    assert not any(SECRET.encode() in data for data in everything_written(tmp_path / "runs"))


def test_a_storages_error_is_shown_without_its_password(vault: pytest.MonkeyPatch) -> None:
    vault.setitem(fsspec.config.conf, "vault", {"password": f"wrong{SECRET}"})
    with pytest.raises(UserError, match="login to vault") as caught:
        check_remote("vault://host/runs")
    assert SECRET not in str(caught.value)


def test_the_command_that_results_keep_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/isotrain", "bench", "--dataset", f"https://me:{SECRET}@host/data.csv"])
    assert command_line() == ["isotrain", "bench", "--dataset", "https://me:***@host/data.csv"]
