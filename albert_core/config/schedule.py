"""The learning-rate schedules by transformers' names, and the parameters that each takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

ScheduleName = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "reduce_lr_on_plateau",
    "greedy",
]
Course = Literal["linear", "cosine", "1-sqrt"]
Count = Annotated[int | None, Field(ge=0, le=10**9)]
Share = Annotated[float | None, Field(ge=0, le=1)]
Rate = Annotated[float | None, Field(ge=0, le=1e30)]

_FOLLOWING = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
# The parameters of each schedule. Those that are missing here take none.
TAKES: dict[str, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": (
        *("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
    ),
    "reduce_lr_on_plateau": _FOLLOWING,
    "greedy": (*_FOLLOWING, "max_lr", "warmup", "smooth", "window_size", "reset_start"),
}
# Schedules that follow the evaluations instead of the step.
ADAPTIVE = ("reduce_lr_on_plateau", "greedy")


class ScheduleOptions(BaseModel):
    """The section `lr_scheduler_kwargs` of a configuration. What is null keeps transformers' default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cycles: float | None = Field(
        default=None, gt=0, le=1e6, description="cosine: waves (0.5 falls once), or restarts"
    )
    min_lr: Rate = Field(default=None, description="lowest learning rate")
    min_lr_rate: Share = Field(default=None, description="the same as a share of learning_rate")
    warmup_lr_rate: Share = Field(default=None, description="where the warm-up begins, as a share")
    lr_end: Rate = Field(default=None, description="polynomial: last learning rate; 1e-7 when absent")
    power: float | None = Field(default=None, gt=0, le=1e3, description="polynomial: its power; 1 when absent")
    timescale: Count = Field(default=None, ge=1, description="inverse_sqrt: steps; the warm-up's when absent")
    num_decay_steps: Count = Field(default=None, description="warmup_stable_decay: steps of the decay")
    num_stable_steps: Count = Field(
        default=None, description="warmup_stable_decay: steps at the peak; all that remain when absent"
    )
    warmup_type: Course | None = Field(
        default=None, description="warmup_stable_decay: how it rises; linear when absent"
    )
    decay_type: Course | None = Field(default=None, description="warmup_stable_decay: how it falls; cosine when absent")
    min_lr_ratio: Share = Field(default=None, description="warmup_stable_decay: lowest share; 0 when absent")
    mode: Literal["min", "max"] | None = Field(
        default=None,
        description="reduce_lr_on_plateau, greedy: better is lower or higher; checkpoint_metric's when absent",
    )
    factor: float | None = Field(default=None, gt=0, lt=1, description="what the learning rate is multiplied by")
    patience: Count = Field(default=None, description="evaluations before a change; 10 when absent")
    threshold: Rate = Field(default=None, description="how much better counts as better")
    threshold_mode: Literal["rel", "abs"] | None = Field(default=None, description="whether threshold is relative")
    cooldown: Count = Field(default=None, description="evaluations that don't count after a reduction")
    eps: Share = Field(default=None, description="smaller changes are left out; 1e-8 when absent")
    max_lr: Rate = Field(default=None, description="greedy: highest learning rate; 1 when absent")
    warmup: Count = Field(default=None, description="greedy: evaluations that don't count after a rise")
    smooth: bool | None = Field(default=None, description="greedy: average the metric")
    window_size: Count = Field(default=None, ge=1, description="greedy: evaluations averaged; 50 when absent")
    reset_start: Count = Field(
        default=None, description="greedy: reductions at the lowest rate before it starts over; 500 when absent"
    )

    @model_serializer(mode="wrap")
    def _given(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in written(self).items() if value is not None}

    def check(self, name: str, learning_rate: float, *, warms_up: bool) -> None:
        """Checks that the schedule `name` can be made with these parameters.

        Raises:
            ValueError: It takes other parameters, needs more, or has no warm-up.
        """
        own = TAKES.get(name, ())
        given = self.model_dump()
        wrong = next((parameter for parameter in given if parameter not in own), None)
        if wrong is not None:
            allowed = f"allowed are {', '.join(own)}" if own else "it takes none"
            raise ValueError(f"lr_scheduler_type: {name} takes no lr_scheduler_kwargs.{wrong}; {allowed}")
        if name == "warmup_stable_decay" and self.num_decay_steps is None:
            raise ValueError(f"lr_scheduler_type: {name} needs lr_scheduler_kwargs.num_decay_steps; set it to a number")
        if "min_lr_rate" in own and (self.min_lr is None) == (self.min_lr_rate is None):
            raise ValueError(f"lr_scheduler_type: {name} needs either min_lr or min_lr_rate in lr_scheduler_kwargs")
        if name == "polynomial" and learning_rate <= (1e-7 if self.lr_end is None else self.lr_end):
            raise ValueError("lr_scheduler_kwargs.lr_end must be below learning_rate; lower it (1e-7 when absent)")
        if name in ADAPTIVE and warms_up:
            raise ValueError(f"lr_scheduler_type: {name} has no warm-up; drop warmup_steps and warmup_ratio")
