"""Asks the judge case by case, in a process with a time limit for each result, and compares every bit."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import numpy as np
from isotrain.kernels.tt import formats

from .cases import BLOCK, EPSILON, Case

VENDOR = Path(__file__).with_name("vendor.py")
# Processes that end before there is any result: then the judge itself is broken.
BROKEN = 2


@dataclass(frozen=True)
class Row:
    """One group in the table. `reason` says why some of its cases have no result ("": all have one)."""

    arch: str
    operation: str
    formats: str
    fidelity: str
    destination: str
    known: bool
    values: int
    equal: int
    reason: str = ""


@dataclass(frozen=True)
class Judge:
    """The vendor's stack: its Python, and the variables that name the simulator.

    seconds: The longest wait for one result, the start of the simulator included.
    """

    python: str
    environment: dict[str, str]
    seconds: float

    def rows(self, cases: Sequence[Case]) -> Iterator[Row]:
        """One row for each group, as soon as its last case is judged."""
        ordered = sorted(cases, key=lambda case: (sorted(_offered(case).items()), case.group))
        results = chain.from_iterable(self._results(offer, list(part)) for offer, part in groupby(ordered, _offered))
        for group, judged in groupby(results, key=lambda pair: pair[0].group):
            values = equal = 0
            reasons = []
            for case, result in judged:
                if isinstance(result, str):
                    reasons.append(result)
                    continue
                ours = formats.bits_of(case.ours()).numpy()
                values += ours.size
                equal += int((ours == result).sum()) if ours.shape == result.shape else 0
            yield Row(case.arithmetic.arch, *group, case.known, values, equal, "; ".join(dict.fromkeys(reasons)))

    def _results(self, offered: dict[str, str], cases: Sequence[Case]) -> Iterator[tuple[Case, np.ndarray | str]]:
        """Each case with its result's bits [rows, columns], or with the reason why it has none.

        A case at which the judge ends or takes too long is left out, and another process goes on with the next.
        """
        with tempfile.TemporaryDirectory(prefix="judge-tt-", ignore_cleanup_errors=True) as name:
            folder, left, barren = Path(name), list(enumerate(cases)), 0
            while left:
                _write(folder, left)
                before, reason = len(left), ""
                with self._process(folder, offered) as process:
                    while left and not reason:
                        path = folder / f"{left[0][0]}.npy"
                        reason = self._wait(process, path)
                        if not reason:
                            result = np.load(path)
                            yield left.pop(0)[1], result.reshape(math.prod(result.shape[:-1]), result.shape[-1])
                if left:
                    barren += len(left) == before == len(cases)
                    said = f"{reason}{_last_lines(folder / 'log')}"
                    for _ in range(len(left) if barren == BROKEN else 1):
                        yield left.pop(0)[1], said

    @contextmanager
    def _process(self, folder: Path, offered: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """The judge at work in `folder`. Nothing that it started outlives the block."""
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [self.python, str(VENDOR), str(folder)],
                stdin=subprocess.DEVNULL,
                cwd=folder,
                stdout=log,
                stderr=log,
                env=self.environment | {"TT_METAL_CACHE": str(folder / "kernels")} | offered,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()
                _end_all(folder)

    def _wait(self, process: subprocess.Popen[bytes], path: Path) -> str:
        """Waits for a result. Returns why there is none, or ""."""
        until = time.monotonic() + self.seconds
        while not path.exists():
            status = process.poll()
            if status is not None and not path.exists():
                return f"the judge ended with exit code {status}"
            if time.monotonic() > until:
                return f"no result in {self.seconds:g} s"
            time.sleep(0.05)
        return ""


def _end_all(folder: Path) -> None:
    """Ends what the judge started: its simulator runs in a session of its own, with the folder in its environment."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if os.fsencode(folder) in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)


def _offered(case: Case) -> dict[str, str]:
    """What the judge's process must be told for a case: the cores, and whether kernels are compiled but do nothing."""
    grid = {"TT_METAL_CORE_GRID_OVERRIDE_TODEPRECATE": case.grid} if case.grid else {}
    return grid | ({"TT_METAL_NULL_KERNELS": "1"} if case.operation == BLOCK else {})


def _last_lines(log: Path) -> str:
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if re.match(r"\w*(Error|Exception|FATAL)\b", line)]
    return f": {(errors or said)[-1][:200]}" if said else ""


def _write(folder: Path, cases: Sequence[tuple[int, Case]]) -> None:
    """cases.json and the operands, as vendor.py reads them."""
    described = []
    for index, case in cases:
        names = []
        for number, operand in enumerate(case.operands()):
            names.append(f"{index}_{number}.npy")
            np.save(folder / names[-1], formats.bits_of(operand).numpy().astype(np.uint32))
        arithmetic = case.arithmetic
        described.append(
            {
                "operation": case.operation,
                "formats": case.formats,
                "operands": names,
                "result": f"{index}.npy",
                "output": case.output,
                "config": case.config,
                "fidelity": arithmetic.math_fidelity,
                "fp32_dest": arithmetic.fp32_dest_acc_en,
                "l1_acc": arithmetic.packer_l1_acc,
                "epsilon": EPSILON,
            }
        )
    (folder / "cases.json").write_text(json.dumps(described), encoding="utf-8")
