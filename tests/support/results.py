"""Results as the commands write them, with figures that are known: what a report is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer import Typer
from typer.testing import CliRunner

STEPS = 40
LAYERS = ("embedding", *(f"layer {number}" for number in range(1, 13)))


def side(label: str, policy: str, **changes: Any) -> dict[str, Any]:
    """Whoever ran the steps of a parity result."""
    return {
        "label": label,
        "backend": label.partition(":")[0],
        "device": "Fake CPU",
        "policy": policy,
        "kernel": "portable 1",
        "layout": "packed",
        "emulated": False,
        "random_weights": True,
        "model": "random:tiny (random weights)",
        "dataset": "intents",
        "environment": {"isotrain": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "platform": "Linux"},
    } | changes


def loss_at(step: int) -> float:
    return 4.3 * math.exp(-step / 25) + 0.3


def candidate(label: str, policy: str, error: float, verdict: str = "pass", **changes: Any) -> dict[str, Any]:
    """A candidate whose loss leaves the reference's by `error` a step, in a band of 0.02."""
    steps = list(range(1, STEPS + 1))
    return (
        side(label, policy)
        | {
            "verdict": verdict,
            "reasons": [] if verdict == "pass" else ["its loss left the band"],
            "worst": error * 50,
            "first_step": None if verdict == "pass" else 12,
            "layer": None if verdict == "pass" else "layer 4",
            "cause": None if verdict == "pass" else "local",
            "error_budget": f"ideal {policy}",
            "draws": 3,
            "ended": None,
            "relative_l2": {"loss": error, "grad_norm": error, "update_norm": error},
            "series": {
                "step": steps,
                "loss": [loss_at(step) + error * step * math.sin(step) for step in steps],
                "loss_low": [loss_at(step) - 0.02 for step in steps],
                "loss_high": [loss_at(step) + 0.02 for step in steps],
                "grad_norm": [1.0 / step for step in steps],
                "update_norm": [0.1 / step for step in steps],
                "relative_error": [error * step / 10 for step in steps],
            },
            "layers": [
                {
                    "name": name,
                    "relative_l2": error * (place + 1),
                    "max_abs": error * (place + 1) * 3,
                    "allowed": 2e-3 * (place + 1),
                    # The embedding's is exact: a zero on a logarithmic axis.
                    "local_relative_l2": error / 2 if place else 0.0,
                    "local_max_abs": error if place else 0.0,
                    "local_allowed": 2e-3,
                }
                for place, name in enumerate(LAYERS)
            ],
            "probe": {"relative_l2": error, "max_abs": error * 4, "pcc": 0.999999, "allowed": 2e-3},
            "metrics": [
                {"epoch": 1, "accuracy": 0.8, "reference_accuracy": 0.81, "loss": 0.9, "reference_loss": 0.899}
            ],
        }
        | changes
    )


def parity(*candidates: dict[str, Any]) -> dict[str, Any]:
    """A result of `isotrain parity compare`: by default one candidate of each verdict, one of them emulated."""
    steps = list(range(1, STEPS + 1))
    reference = side("cpu:float64", "float64") | {
        "series": {
            "step": steps,
            "loss": [loss_at(step) for step in steps],
            "grad_norm": [1.0 / step for step in steps],
            "update_norm": [0.1 / step for step in steps],
        }
    }
    return {
        "schema": "isotrain.parity/2",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "isotrain parity quickstart --reference cpu:float64",
        "notes": ["a note of the parity result"],
        "status": "complete",
        "reference": reference,
        "batches_sha256": "a" * 64,
        "config_sha256": "b" * 64,
        "weights_sha256": "c" * 64,
        "recipe": {"seed": 42, "num_labels": 28},
        "steps": STEPS,
        "tolerance": {"float32": 2.0, "bfloat16": 3.0},
        "seeds": {
            "n": 5,
            "metric": "eval/accuracy",
            "margin": 0.01,
            "candidates": [
                {"label": "cpu:bfloat16", "difference": 0.001, "low": -0.002, "high": 0.004, "verdict": "equivalent"},
                {"label": "xla:float32", "difference": -0.02, "low": -0.03, "high": -0.01, "verdict": "different"},
            ],
        },
        "candidates": list(candidates)
        or [
            candidate("cpu:float32", "float32", 1e-6),
            candidate("cpu:bfloat16", "bfloat16 (computed in float32)", 4e-4),
            candidate("tt:hifi2", "bfloat16, HiFi2", 2e-3, "drift", emulated=True, device="tt-emulated"),
            candidate("xla:float32", "float32", 2e-2, "diverged"),
            {
                "label": "cuda:float32",
                "verdict": "failed",
                "reasons": ["its process ended with exit code 1: no <GPU> & no driver"],
            },
            {"label": "cpu:float32 other", "verdict": "refused", "reasons": ["its batches are not the reference's"]},
        ],
    }


def end_to_end_figures(tflops: float, energy_source: str) -> dict[str, Any]:
    """What a side of an end-to-end run has beside its seconds, where `tflops` of its device's 0.5 are reached."""
    rate = {"median": tflops, "low": 0.9 * tflops, "high": 1.1 * tflops}
    names = ("samples_per_second", "real_tokens_per_second", "padded_tokens_per_second")
    return {
        "work": {
            "samples": 1000.0,
            "real_tokens": 12_000.0,
            "padded_tokens": 8_000.0,
            "model_flops": 2e12,
            "hardware_flops": 4e12,
            "moved_bytes": 1e9,
        },
        "figures": dict.fromkeys((*names, "model_tflops", "hardware_tflops"), rate),
        "share_of_peak": {"model": tflops / 0.5, "hardware": tflops / 0.5},
        "roofline": {
            "intensity_flop_per_byte": 300.0,
            "roof_tflops": 0.5,
            "share": tflops / 0.5,
            "bound": "compute",
            "bandwidth_gbps": 10.0,
        },
        "energy": {"source": energy_source, "joules_per_sample": None, "n": 0},
    }


def whole_process(**changes: Any) -> dict[str, Any]:
    """A training run that was timed to its end."""
    return {
        "seconds": 91.0,
        "peak_bytes": 2**30,
        "status": "completed",
        "step": 6255,
        "total_steps": 6255,
        "phases": {"open_backend": 0.1, "load_model": 2.5, "tokenise": 1.5, "features": 80.0},
        "model": "random:tiny (random weights)",
        "random_weights": True,
        "device": "Fake CPU",
        "dtype": "float32",
        "energy": {"joules": None, "source": "unavailable: a test"},
        "dataset": "embedded:intents",
        "metrics": {"eval/loss": 1.0, "eval/accuracy": 0.5, "eval/f1_macro": 0.5},
    } | changes


def timed_loop(**changes: Any) -> dict[str, Any]:
    """Some steps and validation batches of a loop."""
    return {
        "once": {"import": 1.0, "load": 2.0, "tokenise": 3.0},
        "steps": [0.2, 0.2],
        "validation": [0.1],
        "step_batches": [{"texts": 8, "length": 32, "real_tokens": 100}] * 2,
        "validation_batches": [{"texts": 8, "length": 32, "real_tokens": 100}],
        "steps_per_epoch": 1251,
        "validation_batches_per_epoch": 385,
        "train_texts": 10_008,
        "test_texts": 3080,
        "finite": True,
        "peak_bytes": 2**30,
        "model": "random:tiny (random weights)",
        "random_weights": True,
        "device": "Fake CPU",
    } | changes


def end_to_end(*sides: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A result of `isotrain bench --workload end_to_end` of these sides."""
    return {
        "schema": "isotrain.end-to-end/2",
        "created": "2026-01-02T03:04:05+00:00",
        "status": "complete",
        "valid": True,
        "notes": ["a note of the end-to-end runs"],
        "command": ["isotrain", "bench", "--workload", "end_to_end"],
        "config": {
            "model": "random:tiny",
            "dtype": "float32",
            "strict_dtype": False,
            "max_length": 128,
            "threads": None,
            "dataset": "embedded:intents",
            "tokenizer": None,
            "seed": 23,
            "mlp_hidden_size": 256,
            "backend": "cpu",
            "kernel": "auto",
            "epochs": 5,
            "batch_size": 8,
        },
        "config_sha256": "d" * 64,
        "method": {"processes": 1, "quick": False, "steps": 50, "validation_batches": 20},
        "environment": {
            "host": {"system": "Linux"},
            "cpu": {"model": "Fake CPU"},
            "load": [0.0, 0.0, 0.0],
            "versions": {"torch": "2.13.0"},
            "git": "unavailable: a test",
        },
        "sides": list(sides),
        "device": None,
        "policy": None,
        "kernel": None,
        "peaks": None,
        "memory": None,
    } | changes


def end_to_end_side(*processes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One side of such a result, without figures."""
    return {
        "name": "isotrain train",
        "extrapolated": False,
        "valid": True,
        "reasons": [],
        "warnings": [],
        "processes": list(processes),
    } | changes


def end_to_end_run() -> dict[str, Any]:
    """A result of `isotrain bench --workload end_to_end` whose second side is extrapolated."""
    own = end_to_end_side(
        whole_process(),
        seconds={"median": 91.0, "low": 90.0, "high": 92.0},
        **end_to_end_figures(0.4, "unavailable: no RAPL package"),
    )
    loop = end_to_end_side(
        timed_loop(),
        name="the experiment's loop, dynamic padding",
        extrapolated=True,
        seconds={"median": 1289.0, "low": 1186.0, "high": 1396.0},
        ratio={"median": 14.1, "low": 13.0, "high": 15.3},
        **end_to_end_figures(0.1, "unavailable: only a part of the run was run"),
    )
    loop["from"] = {"steps": 50, "of_steps": 6255, "validation_batches": 20, "of_validation_batches": 1925}
    return end_to_end(own, loop)


def write_run(folder: Path, steps: int = 1200, ended: bool = True, emulated: bool = False) -> Path:
    """A training run's folder; `ended`: with a summary, else the last line of its metrics is torn."""
    folder.mkdir(parents=True)
    name = "wormhole emulated on Fake CPU" if emulated else "Fake CPU"
    record = {
        "model": "random:tiny (random weights)",
        "random_weights": True,
        "dataset": "intents",
        "device": {"backend": "tt" if emulated else "cpu", "name": name, "emulated": emulated},
        "cast_policy": {"requested": "bfloat16", "compute": "bfloat16"},
        "environment": {"torch": "2.13.0", "command": "isotrain train quickstart"},
    }
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        values = {"train/loss": 0.5 + 4 * math.exp(-step / 300) + 0.1 * math.sin(step), "samples_per_second": 1000.0}
        lines.append({"step": step, "epoch": 1} | values)
        if step % 300 == 0:
            lines.append({"step": step, "epoch": 1, "eval/loss": 4.0 - step / 600, "eval/accuracy": step / 2000})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text if ended else text[:-9], encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "labels.json").write_text('["a", "b"]', encoding="utf-8")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    if ended:
        summary = {
            "status": "completed",
            "step": steps,
            "total_steps": steps,
            "dtype": "bfloat16",
            "seconds": 30.0,
            "phases": {"open_backend": 0.5, "load_model": 4.0, "features": 10.0},
            "peak_memory_bytes": 2**30,
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def put(place: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of a result: `value` at `place`, which is dotted."""

    def change(result: dict[str, Any]) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
        found: Any = result
        for part in way:
            found = found[part]
        found[last] = value

    return change


def run_command(command: Callable[..., None], *arguments: object) -> Any:
    """A command of the command line, called in this process."""
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
