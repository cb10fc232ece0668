"""Checks of training: a head and small models, step by step against float64 on the host."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import UserError
from ...albert_core.config.lora import LoraOptions
from ...backends import DTYPES, CastPolicy, get_backend
from ...benchmarks.parity.bands import COARSE, LARGEST_FACTOR, Check, bias_corrections, mean_so_far, tensor_checks
from ..case import Case, Checks, Device, Passed, UnsupportedError, ViolationError, require
from ..common.draws import draws, factor, judged
from .short_run import Outcome, Recipe, ShortRun, recipe
from .steps import Done, Form, Plan, run_steps

STEPS, ACCUMULATED_STEPS = 30, 12
WHOLE_MODELS = ("albert", "bert")
# What accumulates gradients: a head, and a whole model.
ACCUMULATING = ("", "albert")
# A run of so many steps is resumed from each of them.
RESUMED_STEPS = 6
# Batches of some sizes that come back, as at the end of each epoch.
ROWS = (8, 8, 8, 3, 8, 1, 3, 8, 8, 3)
# Windows of 8, 8 and 4 texts, so that some checkpoints stand at the end of an epoch.
RESUMED: dict[str, Any] = {"texts": 20, "batch_size": 4, "gradient_accumulation_steps": 2}
# The hidden size of a model that kernels take: they refuse most others.
PLAIN = 64
LORA = LoraOptions(rank=4, targets=("query", "value", "ffn"))
# A head in float16 would need a loss scale, and no configuration has one.
HEAD_DTYPES = tuple(dtype for dtype in DTYPES if dtype != "float16")
check = Checks("training", time_limit=600.0)


def cases() -> list[Case]:
    """Every case of this group."""
    return check.cases


@check(
    "head",
    f"{STEPS} steps of a head on features have float64's losses within the dtype's error budget.",
    HEAD_DTYPES,
    300.0,
)
def _head(device: Device, dtype: str) -> Passed:
    recipes = [recipe(device.seed, head_dtype=dtype)]
    # Rounding to nearest loses an update below half a unit of a coarse weight, which the draws' stochastic one keeps.
    m = LARGEST_FACTOR if dtype in COARSE else None
    return judged(_checks(device, device.policy(dtype), recipes, m=m))


@check(
    "whole-model",
    f"{STEPS} steps of a whole model have float64's losses within the dtype's error budget.",
    DTYPES,
)
def _whole_model(device: Device, dtype: str) -> Passed:
    policy = device.policy(dtype)
    if policy.compute == "float16" and device.backend.grad_scaler(policy) is None:
        raise UnsupportedError("it has no gradient scaler, without which float16's gradients underflow")
    head_dtype = "float64" if dtype == "float64" else "float32"
    recipes = [recipe(device.seed, kind, head_dtype=head_dtype) for kind in WHOLE_MODELS]
    return judged(_checks(device, policy, recipes, device.backend.traits.layouts))


@check("adapters", f"{STEPS} steps of low-rank adapters have float64's losses within the error budget.")
def _adapters(device: Device) -> Passed:
    if find_spec("peft") is None:
        raise UnsupportedError("peft is not installed")
    made = recipe(device.seed, "albert", lora=LORA, learning_rate=1e-2)
    return judged(_checks(device, device.policies()[0], [made]))


@check("accumulation", "4 micro-batches of 2 texts make the step of one batch of 8 texts.")
def _accumulation(device: Device) -> Passed:
    """Compares micro-batches on the device with whole batches in float64."""
    whole = [
        recipe(device.seed, kind, texts=45, optim=optim, momentum=0.9, adam_epsilon=1e-2)
        for kind, optim in product(ACCUMULATING, ("sgd", "adamw"))
    ]
    split = {"batch_size": 2, "gradient_accumulation_steps": 4}
    return judged(_checks(device, device.policies()[0], whole, steps=ACCUMULATED_STEPS, of_device=split))


def _checks(
    device: Device,
    policy: CastPolicy,
    recipes: Sequence[Recipe],
    layouts: Sequence[str] = (),
    steps: int | None = None,
    of_device: Mapping[str, Any] | None = None,
    m: float | None = None,
) -> list[Check]:
    """Trains each recipe on the device, and checks the run by float64 and the draws of the device's error budget.

    Args:
        layouts: By default the device's own.
        steps: By default STEPS.
        of_device: Keys of the configuration that differ in the device's run.
        m: How many times the draws' error is allowed, by default what the policy says.
    """
    steps = steps or STEPS
    checks: list[Check] = []
    for made in recipes:
        exact, drawn = _exact_and_drawn(device, policy, made, steps)
        host = _on_host(made, "float32", steps)
        for layout in layouts or [_layout(device)]:
            found = ShortRun(made.changed(**of_device or {}), device.backend, policy, layout).outcome(steps)
            name = f"{made.kind}, {layout}, {made.config.optim}" if made.kind else f"head, {made.config.optim}"
            checks += _run_checks(name, exact, found, drawn, m or factor(policy), made.config.head_dtype, host)
    return checks


def _on_host(made: Recipe, dtype: str, steps: int) -> Outcome:
    host = get_backend("cpu")
    return ShortRun(made.changed(head_dtype=dtype), host, host.cast_policy(dtype)).outcome(steps)


def _exact_and_drawn(device: Device, policy: CastPolicy, made: Recipe, steps: int) -> tuple[Outcome, list[Outcome]]:
    """The run in float64 on the host, and the same by each draw of the device's error budget."""
    exact = _on_host(made, "float64", steps)
    of_run = device.backend.whole_model_policy(policy) if made.kind else policy
    opened = draws(device.backend, of_run)
    return exact, [ShortRun(made, draw.device.backend, draw.policy).outcome(steps) for draw in opened]


def _run_checks(
    name: str,
    exact: Outcome,
    found: Outcome,
    drawn: Sequence[Outcome],
    m: float,
    head_dtype: str,
    host: Outcome | None = None,
) -> list[Check]:
    """Checks of the losses, and of logits before and after the steps.

    Args:
        host: The run in float32 on the host, whose own error is allowed besides.
    """
    steps = len(exact.losses)
    eps = float(np.finfo(np.float64 if head_dtype == "float64" else np.float32).eps)
    corrections = mean_so_far(bias_corrections(found.betas, steps))
    learned = corrections * np.abs(exact.losses - exact.losses[0])
    moved = corrections[-1] * np.abs(exact.after - exact.before)
    losses, before, after = ([getattr(one, field) for one in drawn] for field in ("losses", "before", "after"))
    checks: list[Check] = []
    if host is not None:
        off = host.losses - exact.losses
        moved_draws = [one + off for one in losses]
        words, more = f"losses against cpu:float32's ({name})", learned + np.abs(off)
        checks = tensor_checks(words, steps, host.losses, found.losses, moved_draws, m, more, eps)
    return [
        *checks,
        *tensor_checks(f"losses ({name})", steps, exact.losses, found.losses, losses, m, learned, eps),
        *tensor_checks(f"first logits ({name})", 0, exact.before, found.before, before, m, eps=eps),
        *tensor_checks(f"last logits ({name})", steps, exact.after, found.after, after, m, moved, eps),
    ]


def _forms(device: Device, form: Form) -> Passed:
    plan = Plan(device.seed, ROWS, (1e-2,) * len(ROWS))
    checks = _step_checks(device, plan, form)
    if form in ("fused", "captured"):
        # A fused step may take a single group only.
        with suppress(UnsupportedError):
            checks += _step_checks(device, replace(plan, bias_rates=plan.rates), form)
    if form == "captured":
        _require_new_dropout(device)
    return judged(checks)


def _require_new_dropout(device: Device) -> None:
    """Raises ViolationError if captured steps drop the same values each time. The first few may not be replayed."""
    steps, last = 8, 4
    losses = run_steps(device, Plan(device.seed, (8,) * steps, (0.0,) * steps, dropout=0.5), "captured").losses[-last:]
    # All of them, since two losses may be the same by rounding.
    require(
        np.ptp(losses) > 0.0, f"the last {last} captured steps drop the same values: each has the loss {losses[0]:g}"
    )


_CLAUSES: dict[Form, str] = {
    "fused": "The fused step of a head changes its weights as autograd and the optimizer would.",
    "captured": "A captured step uses each call's batch and new dropout, and changes the weights as the step would.",
    "compiled": "A compiled loss has the value and the gradient of the function, for each shape of its inputs.",
    "torch-compile": "So has one by torch.compile, if the device offers its modes.",
}
for _form, _clause in _CLAUSES.items():
    check(f"{_form}-step", _clause, time_limit=300.0)(partial(_forms, form=_form))


@check("learning-rate", "Each step uses the learning rate set last for each parameter group, whatever its form.")
def _learning_rate(device: Device) -> Passed:
    rates = tuple(1e-2 * share for share in (1.0, 0.0, 0.5, 2.0, 0.0, 0.1, 1.0, 1.0))
    forms: tuple[Form, ...] = ("autograd", "captured", "fused")
    checks: list[Check] = []
    for form, optim, bias_rates in product(forms, ("adamw", "sgd"), ((), rates[::-1])):
        try:
            checks += _step_checks(device, Plan(device.seed, (8,) * len(rates), rates, optim, bias_rates), form)
        except UnsupportedError:
            if form != "fused":
                raise
    return judged(checks)


def _step_checks(device: Device, plan: Plan, form: Form) -> list[Check]:
    """Checks of a form's losses and weights against autograd in float64.

    Raises:
        ViolationError: A step with the learning rate 0 changes a weight.
    """
    policy = device.policies()[0]
    found = run_steps(device, plan, form)
    exact = run_steps(Device(get_backend("cpu")), plan, "autograd", "float64")
    drawn = [run_steps(draw.device, plan, "autograd") for draw in draws(device.backend, policy)]
    name, steps, m = f"{form} step, {plan.optim}", len(plan.rows), factor(policy)
    if plan.bias_rates:
        name += ", biases in a group of their own"
    for step in range(steps):
        before, after = found.weights[step : step + 2]
        rates = plan.rates_at(step)
        for key, tensor in after.items():
            if rates[-1 if key.endswith("bias") else 0] == 0.0 and not torch.equal(tensor, before[key]):
                raise ViolationError(f"step {step + 1} has the learning rate 0 and changes {key} ({name})")
    corrections = mean_so_far(bias_corrections(found.betas, steps))
    # Two logits may be so near each other that rounding decides which is larger.
    flips = [float(np.abs(one.right - exact.right).max()) for one in (found, *drawn)]
    checks = [Check(f"right answers ({name})", steps, flips[0], m * max(flips[1:]) + 1.0)]
    losses = [one.losses for one in drawn]
    checks += tensor_checks(
        f"losses ({name})", steps, exact.losses, found.losses, losses, m, corrections * exact.losses
    )
    for key in exact.weights[-1]:
        right, *others = (_last(done, key) for done in (exact, found, *drawn))
        moved_by = np.abs(right - exact.weights[0][key].numpy())
        checks += tensor_checks(f"{key} ({name})", steps, right, others[0], others[1:], m, corrections[-1] * moved_by)
    return checks


def _last(done: Done, key: str) -> np.ndarray:
    """A tensor of the head after the last step, float64."""
    return done.weights[-1][key].double().numpy()


@check("checkpointing", "Layers that backward computes again give the same losses, with dropout.")
def _checkpointing(device: Device) -> Passed:
    """The error of runs without dropout is allowed between two runs with the same dropout."""
    if not device.backend.traits.recomputes:
        raise UnsupportedError("torch recomputes no activations on it")
    policy = device.policies()[0]
    exact, drawn = _exact_and_drawn(device, policy, recipe(device.seed, "albert"), STEPS)
    start = device.backend.rng_state()
    made = recipe(device.seed, "albert", dropout=0.2)
    runs = []
    for one in (made, made.changed(gradient_checkpointing=True)):
        device.backend.set_rng_state(start)
        runs.append(ShortRun(one, device.backend, policy, _layout(device)).outcome(STEPS))
    kept, recomputed = runs
    shifted = [
        replace(
            kept,
            losses=kept.losses + draw.losses - exact.losses,
            before=kept.before + draw.before - exact.before,
            after=kept.after + draw.after - exact.after,
        )
        for draw in drawn
    ]
    return judged(_run_checks("recomputed layers", kept, recomputed, shifted, factor(policy), "float32"))


@check("resume", "A run that is resumed from any of its steps goes on bit for bit, with dropout.")
def _resume(device: Device) -> Passed:
    policy, layout = device.policies()[0], _layout(device)
    # A generator that no checkpoint has drops other values in the resumed run.
    dropout = 0.0 if device.backend.unsaved_generator() else 0.2
    for kind in ("", "albert"):
        _resumes(device, policy, layout, recipe(device.seed, kind, dropout=dropout, **RESUMED))
    lacks = "" if dropout else f"without dropout: {device.backend.unsaved_generator()}"
    return Passed(detail=f"a head and a whole model, from each of {RESUMED_STEPS} steps", lacks=lacks)


def _resumes(device: Device, policy: CastPolicy, layout: str, made: Recipe) -> None:
    """Raises ViolationError if a run that is resumed from any of its steps has other losses or weights."""
    with tempfile.TemporaryDirectory(prefix="isotrain-conformance-") as folder:
        straight = ShortRun(made, device.backend, policy, layout)
        saved, losses = [], []
        for step in range(RESUMED_STEPS):
            saved.append(straight.save(Path(folder)))
            losses.append(straight.train(step + 1))
        weights = straight.weights()
        for step, checkpoint in enumerate(saved):
            # Another seed, which the checkpoint must replace.
            torch.manual_seed(device.seed + 1 + step)
            again = ShortRun(made, device.backend, policy, layout)
            again.restore(checkpoint)
            name = f"a {made.kind or 'head'} resumed from step {step}"
            if not np.array_equal(again.train(RESUMED_STEPS), np.concatenate(losses[step:])):
                raise ViolationError(f"{name} has other losses than the run that went on")
            wrong = [key for key, tensor in again.weights().items() if not torch.equal(tensor, weights[key])]
            if wrong:
                raise ViolationError(f"{name} ends with other bits in {', '.join(wrong[:3])}")


@check(
    "trained-kernel",
    "A kernel that trains whole models has float64's losses within the error budget, and resumes bit for bit.",
)
def _trained_kernel(device: Device) -> Passed:
    kernels = device.backend.traits.trained_kernels
    if not kernels:
        raise UnsupportedError("none of its kernels trains whole models")
    policy = device.policy("bfloat16")
    checks: list[Check] = []
    for kernel in kernels:
        named = {"kernel": kernel}
        recipes = [recipe(device.seed, kind, hidden=PLAIN) for kind in WHOLE_MODELS]
        try:
            ShortRun(recipes[0].changed(**named), device.backend, policy, "packed")
        except UserError as error:
            raise UnsupportedError(str(error)) from error
        checks += _checks(device, policy, recipes, ["packed"], ACCUMULATED_STEPS, of_device=named)
        for kind, recomputed in (("albert", False), ("bert", True)):
            keys = RESUMED | named | {"gradient_checkpointing": recomputed}
            _resumes(device, policy, "packed", recipe(device.seed, kind, dropout=0.2, hidden=PLAIN, **keys))
    return judged(checks)


@check("static-grid", "A second pass over the same texts compiles nothing.")
def _static_grid(device: Device) -> Passed:
    """The last batch of an epoch is smaller."""
    counted = []
    for kind in ("", "albert"):
        run = ShortRun(recipe(device.seed, kind, texts=44), device.backend, device.policies()[0], _layout(device))
        counts = [device.backend.compile_count()]
        for epochs in (1, 2):
            run.stream.restore({"epoch": 0, "position": 0})
            run.train(epochs * run.stream.steps_per_epoch)
            counts.append(device.backend.compile_count())
        first, second = np.diff(counts).tolist()
        if second:
            raise ViolationError(f"the second pass of a {kind or 'head'} compiles {second} times, the first {first}")
        counted.append(f"{first} for a {kind or 'head'}")
    return Passed(detail=f"compiled in the first pass: {', '.join(counted)}")


def _layout(device: Device) -> str:
    """The layout in which the device trains whole models by default."""
    return device.backend.traits.whole_model_layout
