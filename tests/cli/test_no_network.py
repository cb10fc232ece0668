"""A Hub that can't be reached: one line, and no half minute of tries before it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from support.command import one_line_error


def test_a_model_of_the_hub_fails_fast_without_a_network() -> None:
    # Nothing listens on the port of "discard".
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "isotrain.cli", "tt-estimate", "--model", "nobody/has-this-model"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    one_line_error((done.returncode, done.stdout, done.stderr), "without a network give a local folder")
    # Each of the client's files would be asked for six times, with 23 seconds of waiting between.
    assert time.monotonic() - began < 20
