"""Whole conformance runs of a right backend, one after the other, to count false alarms.

Run as ``PYTHONPATH=tests python -m support.conformance_seeds BACKEND [FIRST [LAST]]``. All checks of a seed run in the
same order as in `isotrain conformance`, in one process for all seeds: programs that a device compiled for one seed
serve the next. So `device/compile-count`, which waits for a new program, runs for the first seed only.
"""

from __future__ import annotations

import sys
import time

from isotrain.conformance.catalogue import cases
from isotrain.conformance.run import choose
from isotrain.conformance.worker import judge, open_device


def main(backend: str, first: int = 1, last: int = 20) -> int:
    alarms = 0
    for seed in range(first, last + 1):
        start = time.monotonic()
        opening, device = open_device(backend, {}, seed)
        assert device is not None, opening.reason
        wanted = [case for case in choose(cases(), None, None) if seed == first or "compile-count" not in case.name]
        found = [(case.name, judge(case, device)) for case in wanted]
        failed = [f"{name}: {result.detail}" for name, result in found if result.status == "FAIL"]
        passed = sum(result.status == "pass" for _, result in found)
        largest = max((result.share or 0.0, name) for name, result in found)
        alarms += len(failed)
        print(
            f"{backend} seed {seed}: {passed} pass, {len(failed)} fail in {time.monotonic() - start:.0f} s; largest "
            f"share {largest[0]:.2f} ({largest[1]})",
            *failed,
            sep="\n  ",
            flush=True,
        )
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
