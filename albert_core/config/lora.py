"""The options of low-rank adapters (LoRA)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

ALL_LINEAR = "all-linear"


class LoraOptions(BaseModel):
    """The section `lora` of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(
        default=0, ge=0, le=65_536, description="columns of each adapter; 0 trains the weights themselves"
    )
    alpha: float = Field(default=16.0, gt=0, le=1e6, description="adapters count alpha / rank times")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapters' input")
    targets: tuple[str, ...] = Field(
        default=("query", "value"),
        min_length=1,
        description="linear layers that get one, by the end of their name; all-linear for all of them",
    )

    @field_validator("targets")
    @classmethod
    def _without_blanks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip(" .") for name in value):
            raise ValueError("names no layer; write names such as query, or all-linear")
        return value
