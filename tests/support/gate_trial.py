"""The regression gate on real changes: ``make gate-trial`` plants slowdowns, faults and nothing, and counts verdicts.

Each trial copies the checkout twice, plants a change in the second copy and runs ``isotrain bench --against`` from it
against the first, as a user does. Run it on a quiet machine, or with --busy beside one busy process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = "    @torch.no_grad()\n    def run(self, index: int) -> torch.Tensor:\n"
WORKLOADS = "benchmarks/harness/workloads.py"


@dataclass(frozen=True)
class Plant:
    """A change of one file. verdict: what the gate must say of it; told: words that its result must have."""

    verdict: tuple[str, ...]
    told: str = ""
    file: str = WORKLOADS
    old: str = ""
    new: str = ""

    def apply(self, root: Path) -> None:
        text = (root / self.file).read_text(encoding="utf-8")
        assert text.count(self.old) >= 1, f"{self.file} has no {self.old!r}"
        (root / self.file).write_text(text.replace(self.old, self.new, 1), encoding="utf-8")


def slower(share: float) -> Plant:
    """Every step takes so much longer, by a loop that keeps one CPU busy."""
    timed = (
        f"{RUN}        import time\n        began = time.perf_counter_ns()\n        result = self.timed(index)\n"
        f"        until = began + (time.perf_counter_ns() - began) * {1.0 + share}\n"
        "        while time.perf_counter_ns() < until:\n            pass\n        return result\n\n"
        "    @torch.no_grad()\n    def timed(self, index: int) -> torch.Tensor:\n"
    )
    return Plant(("regression",), old=RUN, new=timed)


FEATURES = "        features = self.features(index)\n"
PLANTS = {
    "nothing": Plant(("no regression", "improvement")),
    "5%": slower(0.05),
    "10%": slower(0.10),
    "20%": slower(0.20),
    "swapped rows": Plant(("refused",), old=FEATURES, new=f"{FEATURES}        features = features.flip(0)\n"),
    "stale buffer": Plant(
        ("refused",),
        old=FEATURES,
        new=f"{FEATURES}        features, self.last = getattr(self, 'last', features), features\n",
    ),
    "skipped layer": Plant(
        ("refused",),
        file="albert_core/features/source.py",
        old="    return backend.frozen_encoder(encoder.weights, policy, kernel)\n",
        new="    from dataclasses import replace\n\n    config = encoder.weights.config\n"
        "    shorter = replace(config, weights_of_layer=config.weights_of_layer[1:])\n"
        "    return backend.frozen_encoder(replace(encoder.weights, config=shorter), policy, kernel)\n",
    ),
    "race": Plant(
        ("refused",),
        old=FEATURES,
        new=f"{FEATURES}        import threading\n\n        late = torch.zeros_like(features)\n"
        "        threading.Timer(0.003, late.copy_, (features,)).start()\n        features = late\n",
    ),
    "half an encoder": Plant(
        ("refused",), old=FEATURES, new=f"{FEATURES}        features = features * 0.5 + 0.01 * index\n"
    ),
    "leak": Plant(
        ("no regression", "improvement", "inconclusive"),
        told="memory grows by",
        old=FEATURES,
        new=f"{FEATURES}        self.kept = [*getattr(self, 'kept', []), bytearray(b'x') * 100_000]\n",
    ),
}


def copied(folder: Path) -> Path:
    """A copy of the checkout with its native libraries; what git ignores stays behind."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = listed.stdout.splitlines()
    built = [str(path.relative_to(ROOT)) for path in ROOT.glob("kernels/*/_native.so")]
    for name in (*files, *built):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Beside one process that wants a CPU all the time."""
    # It ends with this one, also if this one is killed.
    loop = f"import os\nwhile os.getppid() == {os.getpid()}:\n for _ in range(10**6): pass"
    process = subprocess.Popen([sys.executable, "-c", loop]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()


def trial(plant: Plant, options: list[str]) -> dict[str, object]:
    """One run of the gate; its first target, with the seconds that the run took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clean, planted = copied(folder / "clean"), copied(folder / "planted")
        if plant.new:
            plant.apply(planted)
        (folder / "path").mkdir()
        (folder / "path" / "isotrain").symlink_to(planted)
        start = time.monotonic()
        command = [sys.executable, "-P", "-m", "isotrain.cli", "bench", "--against", str(clean), *options, "--json"]
        environment = os.environ | {"PYTHONPATH": str(folder / "path")}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if not done.stdout:
            return {"verdict": done.stderr.strip()[-300:], "seconds": time.monotonic() - start, "code": done.returncode}
        target = json.loads(done.stdout)["targets"][0]
        told = plant.told in done.stdout
        return {**target, "seconds": time.monotonic() - start, "code": done.returncode, "told": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--plant", action="append", choices=list(PLANTS), help="may be repeated; all by default")
    parser.add_argument("--busy", action="store_true", help="beside one busy process")
    parser.add_argument("options", nargs="*", help="for isotrain bench, after --")
    given = parser.parse_args()
    options = given.options or ["--model", "random:tiny", "--workload", "forward", "--layout", "packed"]
    for name in given.plant or PLANTS:
        plant, right = PLANTS[name], 0
        with busy(given.busy):
            for number in range(given.tries):
                found = trial(plant, options)
                right += found["verdict"] in plant.verdict and bool(found.get("told"))
                ratio = found.get("time")
                interval = "{median:.3f} [{low:.3f}, {high:.3f}]".format(**ratio) if isinstance(ratio, dict) else ""
                words = f"{found['verdict']} {interval} {found.get('reason', '')}"
                print(f"{name}: {number + 1}/{given.tries} {found['seconds']:.0f} s: {words}", flush=True)
        print(f"{name}: {right} of {given.tries} as they should be", flush=True)


if __name__ == "__main__":
    main()
