"""The options of the tt backends, named as the vendor names them. They are the same for cards and the emulation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TtOptions(BaseModel):
    """The section `tt` of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: Literal["wormhole", "blackhole"] = Field(
        default="wormhole", description="which matrix unit is emulated; on hardware the card's must be this one"
    )
    math_fidelity: Literal["lofi", "hifi2", "hifi3", "hifi4"] = Field(
        default="hifi4", description="passes of the matrix unit a product takes: 1 to 4"
    )
    fp32_dest_acc_en: bool = Field(
        default=True, description="sums in float32 in the destination registers, else in bfloat16"
    )
    weight_dtype: Literal["bfloat16", "bfp_bf8", "bfp_bf4"] = Field(
        default="bfloat16", description="format of frozen weights; trained ones are never in a block format"
    )
    optimization_level: Literal[0, 1, 2] = Field(
        default=0, description="how hard the vendor's compiler tries; hardware only"
    )
    device: Literal["auto", "hardware", "emulated"] = Field(
        default="auto", description="a card where there is one, else emulation; or one of them"
    )
    optimizer_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype that an emulated step leaves parameters and optimizer state in; hardware has float32",
    )
    emulation: Literal["fast", "exact"] = Field(
        default="fast", description="how products are emulated: with the card's error, or with its bits"
    )

    @property
    def products(self) -> str:
        """How the matrix unit computes products, in words."""
        return f"{self.math_fidelity}, {'float32' if self.fp32_dest_acc_en else 'bfloat16'} destination"

    def largest_distance(self, frozen: bool) -> float:
        """How far logits may be from float32's, as relative L2 distance: 2 to 4 times what the emulation costs MiniLM.

        Args:
            frozen: Whether the encoder's weights have the frozen weights' format.
        """
        if frozen and self.weight_dtype == "bfp_bf4":
            return 0.6
        return 0.3 if self.math_fidelity == "lofi" else 0.1
