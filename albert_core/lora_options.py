"""What a configuration says about low-rank adapters (LoRA)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LoraOptions(BaseModel):
    """The section `lora` of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=0, ge=0, description="columns of each adapter; 0 trains the weights themselves")
    alpha: float = Field(default=16.0, gt=0, description="adapters count alpha / rank times")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapters' input")
    targets: tuple[str, ...] = Field(
        default=("query", "value"),
        min_length=1,
        description="linear layers that get one, by the end of their name",
    )
