"""Learning rates, judged by transformers' own schedules as they are stepped beside an optimizer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.config.schedule import ADAPTIVE, TAKES, ScheduleName, ScheduleOptions
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.albert_core.loop.schedule import Schedule
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.runs.checkpoint import _decode, _encode
from support.small_job import metrics
from transformers import SchedulerType, get_scheduler

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]

TOTAL = 24
NEEDED: dict[str, dict[str, Any]] = {
    "warmup_stable_decay": {"num_decay_steps": 8},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
}
# A value of each parameter that isn't the default.
VALUES: dict[str, Any] = {
    "num_cycles": 3,
    "min_lr": 2e-3,
    "min_lr_rate": 0.3,
    "warmup_lr_rate": 0.5,
    "lr_end": 1e-3,
    "power": 2.0,
    "timescale": 3,
    "num_decay_steps": 5,
    "num_stable_steps": 2,
    "warmup_type": "cosine",
    "decay_type": "1-sqrt",
    "min_lr_ratio": 0.2,
    "mode": "max",
    "factor": 0.3,
    "patience": 1,
    "threshold": 0.5,
    "threshold_mode": "abs",
    "cooldown": 2,
    "eps": 0.01,
    "max_lr": 0.0101,
    "warmup": 2,
    "smooth": True,
    "window_size": 3,
    "reset_start": 1,
}
# What makes the others matter within so few evaluations.
BESIDE: dict[str, dict[str, Any]] = {
    "reduce_lr_on_plateau": {"patience": 0, "threshold": 0.1, "factor": 0.8},
    "greedy": {"patience": 0, "threshold": 0.1, "min_lr": 5e-3, "reset_start": 3},
}
# Its default is the other's value.
OTHERS: dict[tuple[str, str], Any] = {("greedy", "threshold_mode"): "rel"}
CASES = [
    (name, given)
    for name in get_args(ScheduleName)
    for given in (
        {},
        *({parameter: OTHERS.get((name, parameter), VALUES[parameter])} for parameter in TAKES.get(name, ())),
    )
]


def options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    needed = {} if "min_lr" in given and name not in ADAPTIVE else NEEDED.get(name, {})
    beside = {"smooth": True} if "window_size" in given else {}
    return needed | BESIDE.get(name, {}) | beside | given


def losses_like(seed: int, number: int = 40) -> list[float]:
    """Losses that fall, rise and stay."""
    draw = random.Random(seed)
    values = [10.0]
    for _ in range(number - 1):
        values.append(values[-1] * draw.choice((0.8, 0.95, 1.0, 1.3)))
    return values


class Reference:
    """transformers' schedule, stepped as Trainer steps it."""

    def __init__(self, name: str, given: dict[str, Any], warmup: int = 0, rate: float = 1e-2) -> None:
        self.adaptive = name in ADAPTIVE
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        steps = None if "num_stable_steps" in given else TOTAL
        self.schedule: Any = get_scheduler(name, self.optimizer, warmup, steps, given)

    def course(self) -> list[float]:
        """The learning rate of every step, or after every evaluation of `losses_like`."""
        rates = []
        for loss in losses_like(1) if self.adaptive else [None] * TOTAL:
            if self.adaptive:
                self.schedule.step(loss)
            rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            if not self.adaptive:
                self.schedule.step()
        return rates


def course(schedule: Schedule, adaptive: bool) -> list[float]:
    rates = []
    for step, loss in enumerate(losses_like(1)[: None if adaptive else TOTAL]):
        if adaptive:
            schedule.follow(loss)
        rates.append(schedule.at(step))
    return rates


def configured(name: str, given: dict[str, Any], **others: Any) -> TrainConfig:
    return TrainConfig(lr_scheduler_type=name, lr_scheduler_kwargs=given, learning_rate=1e-2, **others)


def test_all_names_of_transformers_are_there() -> None:
    assert set(get_args(ScheduleName)) == {kind.value for kind in SchedulerType}
    assert set(VALUES) == set(ScheduleOptions.model_fields) == {name for own in TAKES.values() for name in own}


@pytest.mark.parametrize(("name", "given"), CASES, ids=lambda part: part if isinstance(part, str) else "".join(part))
def test_every_schedule_and_parameter_is_transformers_own(name: str, given: dict[str, Any]) -> None:
    adaptive = name in ADAPTIVE
    asked = options(name, given)
    courses = []
    for warmup in (0,) if adaptive else (0, 5):
        # Trainer's "constant" leaves out the warm-up that is asked for.
        theirs = "constant_with_warmup" if name == "constant" else name
        expected = Reference(theirs, asked, warmup).course()
        ours = configured(name, asked, warmup_steps=warmup)
        assert course(Schedule(ours, TOTAL), adaptive) == expected
        by_ratio = configured(name, asked, warmup_ratio=warmup / TOTAL)
        assert course(Schedule(by_ratio, TOTAL), adaptive) == expected
        courses.append(expected)
    without = options(name, {})
    plain = [
        Reference("constant_with_warmup" if name == "constant" else name, without, warmup).course()
        for warmup in ((0,) if adaptive else (0, 5))
    ]
    assert (courses == plain) == (not given), "a parameter that changes nothing here would prove nothing"


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("beside", [{}, {"cooldown": 1}])
def test_what_a_schedule_remembers_goes_through_a_checkpoint(name: str, beside: dict[str, Any]) -> None:
    asked = options(name, beside | ({"smooth": True, "window_size": 3, "warmup": 1} if name == "greedy" else {}))
    straight = Schedule(configured(name, asked), TOTAL)
    expected = course(straight, adaptive=True)
    assert len(set(expected)) > 2
    got = []
    schedule = Schedule(configured(name, asked), TOTAL)
    for loss in losses_like(1):
        schedule.follow(loss)
        saved = _decode(_encode(schedule.state(), "state", None), {})
        schedule = Schedule(configured(name, asked), TOTAL)
        schedule.restore(saved, same_metric=True)
        got.append(schedule.at(0))
    assert got == expected


def test_a_changed_learning_rate_is_reduced_as_far_and_another_schedule_begins_anew() -> None:
    first = Schedule(configured("reduce_lr_on_plateau", {"patience": 0}), TOTAL)
    for loss in (1.0, 2.0, 3.0):
        first.follow(loss)
    assert first.at(0) == pytest.approx(1e-4)
    halved = TrainConfig(lr_scheduler_type="reduce_lr_on_plateau", learning_rate=5e-3)
    second = Schedule(halved, TOTAL)
    second.restore(first.state(), same_metric=False)
    assert second.at(0) == pytest.approx(5e-5)
    assert second.state()["remembered"]["best"] == float("inf"), "the best loss is no accuracy"
    for other in ("greedy", "linear"):
        schedule = Schedule(TrainConfig(lr_scheduler_type=other), TOTAL)
        schedule.restore(first.state(), same_metric=True)
        schedule.restore({}, same_metric=True)
        assert schedule.at(0) == 1e-3
    # What checkpoints said before schedules had a state.
    schedule.restore({"type": "linear", "step": 3}, same_metric=True)


def test_the_direction_is_the_metrics() -> None:
    for metric, given, expected in (
        ("eval/loss", {}, "min"),
        ("eval/accuracy", {}, "max"),
        ("eval/accuracy", {"mode": "min"}, "min"),
    ):
        config = configured("reduce_lr_on_plateau", given, checkpoint_metric=metric)
        assert Schedule(config, TOTAL)._scheduler.mode == expected


PLATEAU: dict[str, Any] = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "threshold": 0.3},
    "val_steps_freq": 3,
    "save_strategy": "step",
    "steps_freq": 1,
    "keep_last_n": 99,
}


def rates(result: TrainResult) -> list[float]:
    return [row["learning_rate"] for row in metrics(result) if "learning_rate" in row]


def test_a_run_follows_its_evaluations_also_over_a_stop(run: Run) -> None:
    straight = run(run_name="straight", **PLATEAU)
    found = [row["eval/loss"] for row in metrics(straight) if "eval/loss" in row]
    reference = Reference("reduce_lr_on_plateau", {"patience": 0, "factor": 0.5, "threshold": 0.3})
    expected, optimizer = [], reference.optimizer
    at = {row["step"]: row["eval/loss"] for row in metrics(straight) if "eval/loss" in row}
    for step in range(1, 25):
        expected.append(optimizer.param_groups[0]["lr"])
        if step in at:
            reference.schedule.step(at[step])
    assert rates(straight) == expected
    assert len(set(expected)) > 2
    assert len(found) == 8
    for stop in (7, 9):
        run(run_name=f"cut-{stop}", stop_at_step=stop, **PLATEAU)
        again = run(run_name=f"cut-{stop}", resume_from_checkpoint=True, **PLATEAU)
        rows = [
            [{key: value for key, value in row.items() if "second" not in key} for row in metrics(one)]
            for one in (straight, again)
        ]
        assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["lr_scheduler_type=cosin"], "'cosine'"),
        (["lr_scheduler_kwargs.power=2"], "constant takes no lr_scheduler_kwargs.power; it takes none"),
        (
            ["lr_scheduler_type=cosine", "lr_scheduler_kwargs.power=2"],
            "cosine takes no lr_scheduler_kwargs.power; allowed are num_cycles",
        ),
        (["lr_scheduler_type=warmup_stable_decay"], "needs lr_scheduler_kwargs.num_decay_steps"),
        (["lr_scheduler_type=cosine_with_min_lr"], "either min_lr or min_lr_rate"),
        (
            ["lr_scheduler_type=cosine_warmup_with_min_lr", "lr_scheduler_kwargs={min_lr: 0.1, min_lr_rate: 0.1}"],
            "either min_lr or min_lr_rate",
        ),
        (["lr_scheduler_type=polynomial", "learning_rate=1e-8"], "lr_end must be below learning_rate"),
        (["lr_scheduler_type=greedy", "warmup_steps=3"], "greedy has no warm-up; drop warmup_steps"),
        (["lr_scheduler_kwargs.num_cicles=2"], "did you mean 'lr_scheduler_kwargs.num_cycles'"),
        (["lr_scheduler_kwargs.factor=1"], "lr_scheduler_kwargs.factor: 1.0 is not allowed"),
        (["lr_scheduler_kwargs=2"], "it is a section"),
        (["lr_scheduler_kwargs.warmup_type=sqrt"], "'1-sqrt'"),
    ],
)
def test_what_no_schedule_can_be_made_of_is_refused(sets: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, sets)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_are_written_as_in_transformers_and_read_again(tmp_path: Any) -> None:
    (tmp_path / "job.yaml").write_text(
        "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}\nwarmup_steps: 3\n"
    )
    first = load_config(tmp_path / "job.yaml")
    assert first.config.model_dump()["lr_scheduler_kwargs"] == {"num_cycles": 2.0}
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    assert load_config(tmp_path / "again.yaml").config == first.config
    assert load_config(None, ["lr_scheduler_kwargs=null"]).config.lr_scheduler_kwargs == ScheduleOptions()


def test_parity_refuses_a_schedule_that_follows_the_evaluations() -> None:
    from isotrain.benchmarks.parity.recording.record import record

    with pytest.raises(UserError, match="greedy follows each run's own evaluations"):
        record(None, "x", ["lr_scheduler_type=greedy"])
