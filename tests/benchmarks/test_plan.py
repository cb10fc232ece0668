"""Options, targets and their order."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from isotrain import UserError
from isotrain.backends.host.processor import usable_cores
from isotrain.benchmarks.harness.plan import PEAKS_SECONDS, Options, hash_of, make_plan, with_quick
from isotrain.benchmarks.harness.turns import interleaved

pytestmark = pytest.mark.core

COMPILED = {"workloads": ("full_step",), "torch_compile": "default"}


def test_all_combinations_are_targets_and_impossible_ones_are_named() -> None:
    plan = make_plan(Options(kernels=("auto", "transformers"), batch_sizes=(8, 16)))
    assert len(plan.targets) == 2 * 4 * 2 * 2 - 4
    assert len(plan.skipped) == 4
    assert all("transformers takes padded batches only" in text for text in plan.skipped)


def test_each_target_runs_in_every_process_once_and_pairs_of_rounds_mirror() -> None:
    order = interleaved(6, 3, seed=1)
    assert sorted(order) == [(target, process) for target in range(6) for process in range(3)]
    rounds = [[target for target, process in order if process == number] for number in range(3)]
    assert rounds[1] == rounds[0][::-1]
    assert rounds[0] != sorted(rounds[0])
    assert interleaved(6, 3, seed=1) == order
    assert interleaved(6, 3, seed=2) != order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workloads": ("backward",)}, "--workload 'backward' does not exist; allowed are forward, train_step"),
        ({"layouts": ("ragged",)}, "--layout 'ragged' does not exist; allowed are padded, bucketed, dynamic"),
        ({"kernels": ("auto", "auto")}, "--kernel is given auto, auto; give each value once"),
        ({"dtypes": ("q4",)}, "--dtype 'q4' does not exist; allowed are float32"),
        ({"backends": ("gpu",)}, "--backend 'gpu' does not exist; allowed are cpu"),
        ({"backends": ("cpu", "cpu")}, "give each value once"),
        ({"dtypes": ("int8", "int8")}, "--dtype is given int8, int8; give each value once"),
        ({"layouts": ("padded", "padded")}, "give each value once"),
        ({"batch_sizes": (8, 0)}, "--batch-size 0 is out of range"),
        ({"batch_sizes": (8, 8)}, "give each value once"),
        ({"max_length": 1}, "--max-length 1 is out of range; allowed is 2 to 512"),
        ({"processes": 0}, "--processes 0 is out of range"),
        ({"blocks": 0}, "--blocks 0 is out of range"),
        ({"seconds": float("nan")}, "--seconds nan is out of range"),
        ({"seed": -1}, "--seed -1 is out of range"),
        ({"threads": 0}, "--threads 0 is out of range"),
        ({"threads": 100_000}, f"allowed is 1 to {usable_cores()} (the CPUs this process may use)"),
        ({"kernels": ("transformers",), "layouts": ("packed",)}, "transformers takes padded batches only; add"),
        ({"kernels": ("compile",), "layouts": ("packed",)}, "compile takes padded batches only; add"),
        ({"torch_compile": "default"}, "--torch-compile is for --workload full_step of --model; give that"),
        ({**COMPILED, "torch_compile": "fast"}, "--torch-compile 'fast' does not exist; allowed are default"),
        ({**COMPILED, "backends": ("xla",)}, "--torch-compile 'default' means nothing on backend xla"),
        ({**COMPILED, "layouts": ("packed",)}, "makes a program for each shape, and packed batches have many; add"),
        ({**COMPILED, "layouts": ("dynamic",)}, "makes a program for each shape, and dynamic batches have many; add"),
        ({"backends": ("xla",), "layouts": ("dynamic",)}, "xla makes a program for each shape, and dynamic batches"),
    ],
)
def test_wrong_options_say_what_is_allowed(change: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        make_plan(replace(Options(), **change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_configuration_holds_what_is_measured_and_not_how_long() -> None:
    options = Options()
    assert hash_of(options.config()) == hash_of(with_quick(options).config())
    for change in ({"dtypes": ("float32",)}, {"seed": 1}, {"max_length": 64}, {"threads": 1}, {"model": "random:tiny"}):
        assert hash_of(replace(options, **change).config()) != hash_of(options.config())


def test_a_pair_is_foreseen_as_two_processes_that_measure_the_peaks_once() -> None:
    alone = make_plan(Options())
    assert 2.0 * alone.least_seconds - replace(alone, paired=True).least_seconds == PEAKS_SECONDS


def test_every_target_of_several_dtypes_has_one_and_one_of_a_single_dtype_none() -> None:
    options = Options(kernels=("auto", "portable"), layouts=("packed",), workloads=("forward",))
    both = make_plan(replace(options, dtypes=("bfloat16", "int8"))).targets
    assert [target.label for target in both] == [
        "cpu forward packed auto bfloat16 x8",
        "cpu forward packed auto int8 x8",
        "cpu forward packed portable bfloat16 x8",
        "cpu forward packed portable int8 x8",
    ]
    alone = make_plan(replace(options, dtypes=("int8",))).targets
    assert [target.label for target in alone] == ["cpu forward packed auto x8", "cpu forward packed portable x8"]
    assert "dtype" not in alone[0].as_dict()


def test_planning_needs_no_torch() -> None:
    """The parent must start at once and stay small beside what it measures."""
    code = (
        "import sys\n"
        "from isotrain.benchmarks.bench import run_bench\n"
        "from isotrain.benchmarks.harness.plan import Options, make_plan\n"
        "make_plan(Options())\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_step_of_the_head_is_planned_once_and_one_of_the_whole_model_by_layout() -> None:
    plan = make_plan(Options(workloads=("head_step", "full_step"), kernels=("auto", "portable"), batch_sizes=(8, 16)))
    assert [target.label for target in plan.targets] == [
        "cpu head_step cached auto x8",
        "cpu head_step cached auto x16",
        "cpu full_step padded transformers x8",
        "cpu full_step padded transformers x16",
        "cpu full_step bucketed transformers x8",
        "cpu full_step bucketed transformers x16",
        "cpu full_step dynamic transformers x8",
        "cpu full_step dynamic transformers x16",
        "cpu full_step packed auto x8",
        "cpu full_step packed auto x16",
        "cpu full_step packed transformers x8",
        "cpu full_step packed transformers x16",
    ]
    assert not plan.skipped


def test_a_compiled_step_says_so_and_leaves_other_targets_as_they_are() -> None:
    options = Options(workloads=("head_step", "full_step"), layouts=("bucketed",))
    plain, compiled = make_plan(options).targets, make_plan(replace(options, torch_compile="max-autotune")).targets
    assert compiled[0] == plain[0]
    assert compiled[1] == replace(plain[1], torch_compile="max-autotune")
    assert compiled[1].label == "cpu full_step bucketed transformers torch.compile max-autotune x8"
    assert "torch_compile" not in plain[1].as_dict()
