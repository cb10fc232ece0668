"""A training run's configuration: its keys (`keys`), and which values are allowed and fit together."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from ...backends import (
    COMPILED_LAYOUTS,
    EIGHT_BIT,
    PADDED_KERNELS,
    backend_traits,
    options_model,
    options_models,
    read_section,
    resolve,
)
from ...kernels.names import check_name
from ..terminal.text import holds_secret, quoted
from .best import METRICS, Best, metric_name
from .keys import OF_TEXTS, Keys
from .label_rules import check_rule
from .lora import LoraOptions
from .schedule import ScheduleOptions
from .training_type import check_training_type

DTYPE_NAMES = {
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float64": "float64",
    "fp64": "float64",
    "double": "float64",
    "int8": "int8",
    "float8_e4m3": "float8_e4m3",
    "float8_e4m3fn": "float8_e4m3",
}
# The limit of a folder's name in bytes on most file systems.
LONGEST_NAME = 255
# The keys that hold keys. Backends add sections of their own.
SECTIONS: dict[str, type[BaseModel]] = {"lora": LoraOptions, "lr_scheduler_kwargs": ScheduleOptions}


class TrainConfig(Keys):
    """The checked keys of one run. `backend_options`: the options of backends by the key of their section."""

    backend_options: dict[str, dict[str, Any]] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _by_backend(cls, written: Any) -> Any:
        """A key that is a backend's section goes to `backend_options`, completed by the backend's own model."""
        if not isinstance(written, dict):
            return written
        sections = {key: value for key, value in written.items() if key not in SECTIONS and cls.section(key)}
        given = {**written.get("backend_options", {}), **sections}
        options = {key: read_section(key, value).model_dump() for key, value in given.items()}
        return {key: value for key, value in written.items() if key not in sections} | {"backend_options": options}

    @model_validator(mode="before")
    @classmethod
    def _by_todays_metrics(cls, written: Any) -> Any:
        """Former names of metrics become today's."""

        def today(value: Any) -> Any:
            if isinstance(value, list):
                return [today(item) for item in value]
            return metric_name(value, written.get("workload")) if isinstance(value, str) else value

        if not isinstance(written, dict):
            return written
        return {key: today(value) if key in ("checkpoint_metric", "chart") else value for key, value in written.items()}

    @field_validator("dtype", "head_dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        name = DTYPE_NAMES.get(value.strip().removeprefix("torch."))
        if name is None:
            allowed = ", ".join(dict.fromkeys(DTYPE_NAMES.values()))
            raise ValueError(f"is no dtype; allowed are {allowed}, also written torch.bfloat16 or bf16")
        return name

    @field_validator("head_dtype")
    @classmethod
    def _trainable_dtype(cls, value: str) -> str:
        if value == "float16":
            raise ValueError("can't be float16: its gradients underflow without a scaler; use float32 or bfloat16")
        if value in EIGHT_BIT:
            raise ValueError(f"can't be {value}, in which nothing is trained; use float32 or bfloat16")
        return value

    @field_validator("label_rules")
    @classmethod
    def _known_rules(cls, value: list[str]) -> list[str]:
        return [check_rule(rule) for rule in value]

    @field_validator("class_weights")
    @classmethod
    def _usable_weights(cls, value: list[float] | str | None) -> list[float] | str | None:
        if isinstance(value, list) and not (value and all(1e-6 <= weight <= 1e6 for weight in value)):
            raise ValueError("has a weight that can't be used; give one number from 1e-6 to 1e6 per label, or balanced")
        return value

    @field_validator("wandb_watch_mode", "torch_compile", mode="before")
    @classmethod
    def _off_is_none(cls, value: Any) -> Any:
        return None if str(value).lower() in ("", "off", "no", "none", "false") else value

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float, int | None, float | None):
            raise ValueError("is no number")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_secrets(cls, value: Any) -> Any:
        if holds_secret(value):
            raise ValueError(
                "holds a password or a token, and every value is written to the run's folder; leave it out and give it "
                "to fsspec, as FSSPEC_SFTP_PASSWORD in the environment or in ~/.config/fsspec"
            )
        return value

    @field_validator("dataset_id", "model_name", "tokenizer_name", "project_dir", "remote_path", "checkpoint_path")
    @classmethod
    def _home_exists(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("~"):
            try:
                Path(value).expanduser()
            except RuntimeError as error:
                raise ValueError("names a home folder that does not exist; write the path in full") from error
        return value

    @field_validator("project_dir", "run_name")
    @classmethod
    def _fits_a_file_system(cls, value: str | None) -> str | None:
        longest = max((len(os.fsencode(part)) for part in Path(value or "").parts), default=0)
        if longest > LONGEST_NAME:
            raise ValueError(f"has a name of {longest} bytes, and a folder's has at most {LONGEST_NAME}; shorten it")
        return value

    @field_validator(
        "wandb_run_name",
        "num_labels",
        "tokenizer_name",
        "backend",
        "workload",
        "text_column",
        "text_pair_column",
        "label_column",
        "evaluation_split",
        "run_name",
        "checkpoint_metric_mode",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        fields = type(self).model_fields
        given = [key for key in OF_TEXTS if getattr(self, key) != fields[key].get_default(call_default_factory=True)]
        if self.workload is not None and given:
            raise ValueError(f"{given[0]} is for training on texts, and a workload has its own model and data; drop it")
        if self.workload is None and self.sharding != "none":
            raise ValueError(f"sharding: {self.sharding} is for a workload, a model of your own; drop it")
        if self.checkpoint_metric not in METRICS:
            self._check_own_metric()
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps and warmup_ratio are both set; keep one of them")
        self.lr_scheduler_kwargs.check(
            self.lr_scheduler_type, self.learning_rate, warms_up=bool(self.warmup_steps or self.warmup_ratio)
        )
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError("early_stopping_threshold needs early_stopping_patience; set that too, or drop it")
        if self.task != "classification" and (self.label_smoothing_factor or self.class_weights is not None):
            key = "label_smoothing_factor" if self.label_smoothing_factor else "class_weights"
            raise ValueError(f"{key} is of task: classification, and this is task: {self.task}; drop it")
        if self.loss_over_padding and not self.task.startswith("question_answering"):
            raise ValueError(
                f"loss_over_padding is of task: question_answering, and this is task: {self.task}; drop it"
            )
        if self.loss_over_padding and self.layout not in ("auto", "padded"):
            raise ValueError(
                f"loss_over_padding is over windows of full length, and {self.layout} batches are padded less; "
                "set layout: padded or auto, or loss_over_padding: false"
            )
        if self.resume_option == "path" and not self.checkpoint_path:
            raise ValueError("resume_option: path needs checkpoint_path; name the checkpoint's folder there")
        if self.resume_from_checkpoint == "auto" and self.run_name is None:
            raise ValueError(
                "resume_from_checkpoint: auto (--resume-or-start) needs run_name, the run to continue or to start; "
                "add --set run_name=NAME"
            )
        if (self.sync_to_storage or self.load_from_storage) and not self.remote_path:
            raise ValueError("sync_to_storage and load_from_storage need remote_path; name a path or URL there")
        if self.load_from_storage and not self.resume_from_checkpoint:
            raise ValueError("load_from_storage fetches what to resume from; set resume_from_checkpoint: true too")
        if self.storage_backend == "local" and "://" in self.remote_path:
            raise ValueError(f"remote_path {self.remote_path!r} is a URL; set storage_backend: fsspec")
        if self.gradient_checkpointing and self.freeze_encoder:
            raise ValueError(
                "gradient_checkpointing saves nothing with a frozen encoder; set freeze_encoder: false, or drop it"
            )
        if self.torch_compile and self.freeze_encoder and self.workload is None:
            raise ValueError(
                "torch_compile is for a model that is trained whole, and the encoder is frozen; set freeze_encoder: "
                "false, or kernel: compile instead"
            )
        if self.torch_compile and self.layout not in ("auto", *COMPILED_LAYOUTS):
            raise ValueError(
                f"torch_compile makes a program for each batch shape, and {self.layout} batches have many; set layout: "
                "bucketed or padded"
            )
        if self.lora.rank and self.freeze_encoder:
            raise ValueError(
                "lora.rank puts adapters into the encoder, and it is frozen; set freeze_encoder: false, or lora.rank: 0"
            )
        if (self.head != "mlp" or self.head_dropout) and self.task.startswith("question_answering"):
            raise ValueError(
                f"head and head_dropout are for a head on [CLS], and that of task {self.task} is one linear layer on "
                "every token; drop them"
            )
        if self.label_rules and self.task != "classification":
            raise ValueError(f"label_rules make labels alike, and task {self.task} has none; drop label_rules")
        if self.label_columns and self.task not in ("multi_label_classification", "regression"):
            raise ValueError(f"label_columns are several, and task {self.task} reads one; set label_column instead")
        if self.label_columns and self.label_column is not None:
            raise ValueError("label_column and label_columns are both set; keep one of them")
        if len(set(self.label_columns)) < len(self.label_columns):
            raise ValueError("label_columns names a column twice; name each once")
        check_training_type(self)
        if self.use_tt and self.backend is not None and backend_traits(self.backend).section != "tt":
            raise ValueError(f"use_tt: true and backend: {self.backend} contradict each other; keep one of them")
        if prod(self.mesh_shape or ()) != 1:
            raise ValueError(
                f"mesh_shape {self.mesh_shape} is a mesh of several devices, and a run trains on one device; write "
                "null, and start several processes by torchrun"
            )
        if len(self.mesh_axis_names or ()) != len(self.mesh_shape or ()):
            raise ValueError(
                f"mesh_axis_names {self.mesh_axis_names} doesn't name each axis of mesh_shape {self.mesh_shape}; write "
                "null for both"
            )
        packed = self.layout in ("auto", "packed") and not self.torch_compile and not self.loss_over_padding
        if self.kernel == "native" and not packed and (self.loss_over_padding or not self.freeze_encoder):
            raise ValueError(
                "kernel: native trains whole models on packed batches, without torch.compile and loss_over_padding; "
                "set layout: packed and drop the others, or set kernel: auto"
            )
        if self.layout == "packed" and self.kernel in PADDED_KERNELS and self.freeze_encoder:
            raise ValueError(
                f"kernel: {self.kernel} takes no packed batches; set kernel: auto, or layout: padded or bucketed"
            )
        return self

    def _check_own_metric(self) -> None:
        """Raises ValueError if `checkpoint_metric`, a name of the user's, can't be a figure of a workload."""
        if self.workload is None:
            check_name("checkpoint_metric", self.checkpoint_metric, METRICS)
        name = quoted(self.checkpoint_metric)
        if not self.checkpoint_metric.removeprefix("eval/") or not self.checkpoint_metric.startswith("eval/"):
            raise ValueError(f"checkpoint_metric {name} is no figure of an evaluation; write eval/NAME")
        if self.checkpoint_metric_mode is None:
            raise ValueError(
                f"checkpoint_metric {name} is a figure of your own; set checkpoint_metric_mode: min or max"
            )

    @model_serializer(mode="wrap")
    def _flat(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A backend's section under its own key, as `_by_backend` reads it."""
        return {**written(self), **self.backend_options}

    @classmethod
    def flat_keys(cls) -> dict[str, FieldInfo]:
        """The keys that hold one value or a list."""
        return {key: field for key, field in Keys.model_fields.items() if key not in SECTIONS}

    @classmethod
    def section(cls, key: str) -> type[BaseModel] | None:
        """The model of the keys inside the section `key`, ours or what a backend takes; None for any other key."""
        return SECTIONS.get(key) or (None if key in cls.model_fields else options_model(key))

    @classmethod
    def sections(cls) -> dict[str, type[BaseModel]]:
        """The models of all sections by their keys."""
        return {**SECTIONS, **options_models()}

    @property
    def tracker_names(self) -> list[str]:
        """The trackers that are asked for, each once."""
        switched = (("wandb", self.use_wandb), ("tensorboard", self.use_tensorboard))
        return list(dict.fromkeys([*(name for name, on in switched if on), *self.trackers]))

    @property
    def shared(self) -> tuple[str, int]:
        """What several processes share out, by key and value: the texts of a batch, or the batches of a step."""
        key = "batch_size" if self.workload is None else "gradient_accumulation_steps"
        return key, getattr(self, key)

    @property
    def best(self) -> Best:
        """Ranks evaluations, and so checkpoints."""
        return Best.by(self.checkpoint_metric, self.checkpoint_metric_mode)

    @property
    def backend_name(self) -> str:
        """The backend that opens here as `backend`, else as `tt` if use_tt is set, else `cpu`."""
        return resolve(self.backend or ("tt" if self.use_tt else "cpu"), self.backend_options)
