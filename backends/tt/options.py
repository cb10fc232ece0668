"""The options of the tt backends, named as the vendor names them. They are the same for cards and the emulation."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Operation = Literal["linear", "matmul", "softmax", "layer_norm", "activation", "add", "embedding"]


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
        default="fast", description="how operations are emulated: with the card's error, or with its bits"
    )
    emulate: Literal["linear", "all"] | None = Field(
        default=None,
        description="linear layers or all operations; default: all, but of what is trained in fast mode linear layers",
    )
    float32: list[Operation] = Field(
        default=[], description="operations that an emulation leaves in float32, to see what each costs"
    )

    @property
    def products(self) -> str:
        """How the matrix unit computes products, in words."""
        return f"{self.math_fidelity}, {'float32' if self.fp32_dest_acc_en else 'bfloat16'} destination"

    def whole(self, frozen: bool) -> bool:
        """Whether all operations of a frozen encoder, or of a trained model, are emulated; else linear layers."""
        return (self.emulate or ("all" if frozen or self.emulation == "exact" else "linear")) == "all"

    def in_float32(self, frozen: bool) -> frozenset[str]:
        """The operations that aren't emulated."""
        others = [] if self.whole(frozen) else [name for name in get_args(Operation) if name != "linear"]
        return frozenset([*self.float32, *others])

    def emulated(self, frozen: bool) -> str:
        """What is emulated and how, in words."""
        scope = "all operations" if self.whole(frozen) else "linear layers"
        return f"{self.emulation}, {scope}" + (f" except {' '.join(self.float32)}" if self.float32 else "")

    def largest_distance(self, frozen: bool) -> float:
        """How far logits may be from float32's, as relative L2 distance: 2 to 4 times what the emulation costs MiniLM.

        Args:
            frozen: Whether the encoder's weights have the frozen weights' format.
        """
        if frozen and self.weight_dtype == "bfp_bf4":
            return 0.6
        return 0.3 if self.math_fidelity == "lofi" else 0.1
