"""The backend `npu`: an eager device of torch. The host stands in for it, until `torch_type` is the device's own."""

from __future__ import annotations

from typing import Literal

import torch
from isotrain.backends import Availability, CastPolicy, Traits
from isotrain.backends.torch_device import TorchDevice
from isotrain.backends.types import unsupported_dtype
from pydantic import BaseModel, ConfigDict, Field


class NpuOptions(BaseModel):
    """The section `npu` of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    products: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="dtype of products in a frozen encoder whose weights are bfloat16"
    )


class NpuBackend(TorchDevice):
    name = "npu"
    torch_type = "cpu"
    traits = Traits(kernels=("portable",))
    Options = NpuOptions

    @classmethod
    def probe(cls) -> Availability:
        if not hasattr(torch, cls.torch_type):
            return Availability(False, f"torch has no {cls.torch_type} devices", "install the vendor's torch package")
        return Availability(True, f"{cls.device_count()} of torch's {cls.torch_type} devices, in place of an NPU")

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype == "float32":
            return CastPolicy(dtype, dtype, dtype, dtype, "float32 throughout")
        if dtype == "bfloat16":
            compute = dtype if strict else self.options.products
            return CastPolicy(dtype, dtype, compute, "float32", f"weights rounded, products in {compute}, float32 sums")
        raise unsupported_dtype(dtype, self.name, "float32", "bfloat16")
