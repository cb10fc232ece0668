"""Run as a program: saves checkpoints in child processes, kills each at a random moment, checks what is left.

Usage: kill_harness.py FOLDER KILLS SEED KEEP_LAST KEEP_BEST SAVE_OPTIM. Prints one JSON object with what was seen.
The children are forked from here, so that torch is imported once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from isotrain.albert_core.best import Best
from isotrain.albert_core.checkpoint import Snapshot, read_checkpoint
from isotrain.albert_core.checkpoint_store import CheckpointStore


def snapshot(step: int) -> Snapshot:
    value = torch.full((50, 50), float(step))
    return Snapshot(
        model={"weight": value},
        optimizer={"state": {0: {"exp_avg": value, "step": torch.tensor(float(step))}}, "param_groups": [{"lr": 0.1}]},
        state_tensors={"rng": value.to(torch.uint8)},
        state={"position": step},
        identity={},
        metrics={"eval/loss": float((step * 7919) % 101)},
        step=step,
        epoch=0,
    )


def save_for_ever(store: CheckpointStore, step: int, saved: int) -> None:
    while True:
        step += 1
        store.save(snapshot(step))
        os.write(saved, f"{step}\n".encode())


def check(store: CheckpointStore, at_least: int) -> int:
    """The step of the last checkpoint, which must be whole and not older than the last save that returned."""
    if at_least == 0 and not store.list():
        return 0
    last = read_checkpoint(store.find("last"))
    expected = snapshot(last.step)
    assert last.step >= at_least, (last.step, at_least)
    assert torch.equal(last.model["weight"], expected.model["weight"])
    assert last.state == expected.state
    assert last.optimizer is not None
    assert torch.equal(last.optimizer["state"][0]["step"], torch.tensor(float(last.step)))
    for info in store.list():
        assert info.problem is None, info
        read_checkpoint(info.path)
    return last.step


def main() -> None:
    folder, kills, seed, last, best, save_optim = sys.argv[1:]
    torch.set_num_threads(1)
    store = CheckpointStore(Path(folder), int(last), int(best), Best("eval/loss", "min"), save_optim == "true")
    moments = random.Random(int(seed))
    step = leftovers = 0
    for _ in range(int(kills)):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            save_for_ever(store, step, writer)
        os.close(writer)
        time.sleep(moments.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as stream:
            saved = [int(line) for line in stream.read().split()]
        leftovers += any(path.name.startswith(".") for path in store.folder.glob(".*")) if store.folder.exists() else 0
        step = check(store, max([step, *saved]))
    store.save(snapshot(step + 1))
    rest = [path.name for path in store.folder.iterdir() if path.name.startswith(".")]
    sys.stdout.write(json.dumps({"steps": step, "kills_with_leftovers": leftovers, "rest": rest}))


if __name__ == "__main__":
    main()
