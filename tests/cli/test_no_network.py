"""A Hub that can't be reached: one line, and no half minute of tries before it; what is cached is used."""

from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.command import one_line_error
from support.small_job import write_dataset

TINY = ("--set", "model_name=random:tiny", "--set", "dtype=float32", "--set", "max_steps=1", "--set")


class Hub(socketserver.TCPServer):
    """Hangs up on everybody, and counts them."""

    calls = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.calls += 1
        self.shutdown_request(request)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(hub: Hub, folder: Path, *arguments: str) -> tuple[int, str, str]:
    online = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "isotrain.cli", *arguments],
        env=os.environ | online | {"TRANSFORMERS_OFFLINE": "0", "HF_HOME": str(folder / "hub")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (("tt-estimate", "--model", "nobody/has-this-model"), "without a network give a local folder"),
        (("train", "quickstart", *TINY, "dataset_id=nobody/has-this"), "without a network give a local file or folder"),
        (
            ("train", "quickstart", *TINY, "tokenizer_name=nobody/has-this"),
            "without a network set tokenizer_name to a local tokenizer.json",
        ),
    ],
    ids=["model", "texts", "tokenizer"],
)
def test_what_only_the_hub_has_fails_fast_without_a_network(
    arguments: tuple[str, ...], fix: str, hub: Hub, tmp_path: Path
) -> None:
    one_line_error(run(hub, tmp_path, *arguments), fix)
    # The client would ask for each file six times, and wait for half a minute between.
    assert 1 <= hub.calls <= 2


def test_a_cached_data_set_is_used_without_a_network(hub: Hub, tmp_path: Path) -> None:
    # As `datasets` keeps what it has read from the Hub: owner___name/configuration/version/hash.
    cached = tmp_path / "hub" / "datasets" / "owner___name" / "default" / "0.0.0" / "0123456789abcdef"
    source = write_dataset(tmp_path / "source" / "name")
    builder = datasets.load_dataset_builder(str(source), cache_dir=str(tmp_path / "source"))
    builder.download_and_prepare(str(cached))
    code, _, printed = run(hub, tmp_path, "train", "quickstart", *TINY, "dataset_id=owner/name")
    assert code == 0, printed
