"""A training run's configuration: its keys (`keys`), and which values are allowed and fit together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationInfo, field_validator, model_validator

from ..terminal.text import holds_secret
from .best import Best
from .keys import Keys
from .label_rules import check_rule

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
}
# The limit of a folder's name in bytes on most file systems.
LONGEST_NAME = 255


class TrainConfig(Keys):
    """The checked keys of one run."""

    @field_validator("dtype", "head_dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        name = DTYPE_NAMES.get(value.strip().removeprefix("torch."))
        if name is None:
            allowed = "float32, bfloat16, float16, float64"
            raise ValueError(f"is no dtype; allowed are {allowed}, also written torch.bfloat16 or bf16")
        return name

    @field_validator("head_dtype")
    @classmethod
    def _trainable_dtype(cls, value: str) -> str:
        if value == "float16":
            raise ValueError("can't be float16: its gradients underflow without a scaler; use float32 or bfloat16")
        return value

    @field_validator("no_decay", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("label_rules")
    @classmethod
    def _known_rules(cls, value: list[str]) -> list[str]:
        return [check_rule(rule) for rule in value]

    @field_validator("wandb_watch_mode", mode="before")
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
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps and warmup_ratio are both set; keep one of them")
        if self.resume_option == "path" and not self.checkpoint_path:
            raise ValueError("resume_option: path needs checkpoint_path; name the checkpoint's folder there")
        if self.resume_from_checkpoint == "auto" and self.run_name is None:
            raise ValueError(
                "resume_from_checkpoint: auto (--resume-or-start) needs run_name, the run to go on with or to start; "
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
        if self.lora.rank and self.freeze_encoder:
            raise ValueError(
                "lora.rank puts adapters into the encoder, and it is frozen; set freeze_encoder: false, or lora.rank: 0"
            )
        if self.use_tt and self.backend is not None and self.backend.partition(":")[0] != "tt":
            raise ValueError(f"use_tt: true and backend: {self.backend} contradict each other; keep one of them")
        if self.mesh_shape is not None or self.mesh_axis_names is not None:
            raise ValueError("mesh_shape and mesh_axis_names must be null: this version trains on one device")
        if self.layout == "packed" and self.kernel == "transformers" and self.freeze_encoder:
            raise ValueError(
                "layout: packed with a frozen encoder needs a packed kernel; set kernel: auto, or layout: padded or "
                "bucketed"
            )
        return self

    @property
    def backend_options(self) -> dict[str, Any]:
        """The options of each backend with its own section, by backend name."""
        return {name: getattr(self, name).model_dump() for name in self.sections() if name != "lora"}

    @classmethod
    def sections(cls) -> dict[str, type[BaseModel]]:
        """The keys that are mappings: `lora`, and the options of backends by name."""
        found = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}

    @property
    def best(self) -> Best:
        """Ranks evaluations, and so checkpoints."""
        return Best.by(self.checkpoint_metric, self.checkpoint_metric_mode)

    @property
    def backend_name(self) -> str:
        """The backend to open: the key `backend`, else `tt` if use_tt is set, else `cpu`."""
        return self.backend or ("tt" if self.use_tt else "cpu")
