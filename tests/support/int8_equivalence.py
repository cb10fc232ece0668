"""Whether int8 features train as good a head as bfloat16 ones: paired seeds, and the features' distance from float32.

    PYTHONPATH=tests python -m support.int8_equivalence FOLDER [--seeds 5] [--margin 0.005]

FOLDER holds Banking77's published train.csv and test.csv. The encoder is MiniLM with its pretrained weights (extra
`demo`). Exit code 0: the final accuracies are equivalent by two one-sided tests; 1: they aren't.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from isotrain.albert_core.config.load import ResolvedConfig, as_set, load_config
from isotrain.albert_core.features.compute import compute_features
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import train
from isotrain.benchmarks.parity.seeds import EQUIVALENT, equivalence

DTYPES = ("bfloat16", "int8")


def recipe(**keys: Any) -> ResolvedConfig:
    return load_config("banking77", [as_set(key, value) for key, value in keys.items()])


def final_accuracy(**keys: Any) -> float:
    """Trains the packaged recipe, and reads its last evaluation."""
    result = train(recipe(**keys))
    lines = [json.loads(line) for line in (result.run.path / "metrics.jsonl").read_text().splitlines()]
    return float([line["eval/accuracy"] for line in lines if "eval/accuracy" in line][-1])


def features(**keys: Any) -> torch.Tensor:
    """Those of the test split, float64 [texts, hidden]."""
    job = open_job(recipe(**keys).config)
    found = compute_features(job.frozen_encoder(), job.test_tokens, job.backend, job.layout, job.config.max_length)
    return found.double()


def report_distance(dtype: str, found: torch.Tensor, exact: torch.Tensor) -> None:
    apart = (found - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    cosines = torch.nn.functional.cosine_similarity(found, exact)
    print(
        f"features {dtype} from float32's over {len(exact):,} texts: relative RMS {apart:.2e}, cosine mean "
        f"{cosines.mean():.6f}, least {cosines.min():.6f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--margin", type=float, default=0.005)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "dataset_id": str(given.folder.resolve()),
            "model_name": "demo:minilm",
            "project_dir": folder,
            "log_level": "WARNING",
        }
        exact = features(**common, dtype="float32")
        for dtype in DTYPES:
            report_distance(dtype, features(**common, dtype=dtype), exact)
        accuracies: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
        for seed in range(1, given.seeds + 1):
            for dtype, found in accuracies.items():
                found.append(final_accuracy(**common, dtype=dtype, seed=seed, run_name=f"{dtype}-{seed}"))
            print(
                f"seed {seed}: " + ", ".join(f"{dtype} {found[-1]:.4f}" for dtype, found in accuracies.items()),
                flush=True,
            )
    test = equivalence("int8", accuracies["bfloat16"], accuracies["int8"], given.margin)
    figures = f"{test.difference:+.4f}, 90 % interval {test.low:+.4f} to {test.high:+.4f}"
    print(f"{test.verdict}: accuracy of int8 less that of bfloat16 {figures}, margin {given.margin:g}")
    return 0 if test.verdict == EQUIVALENT else 1


if __name__ == "__main__":
    sys.exit(main())
