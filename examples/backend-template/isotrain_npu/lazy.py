"""The backend `npu-lazy`: a device whose PJRT plugin torch_xla loads. XLA's CPU device stands in for it."""

from __future__ import annotations

import os

from isotrain.backends import COMPILED_LAYOUTS, Availability, Traits
from isotrain.backends.xla import DEVICE_VARIABLE, XlaBackend, torch_xla_version

# What the vendor's plugin is registered as.
PLUGIN = "CPU"


class LazyNpuBackend(XlaBackend):
    name = "npu-lazy"
    traits = Traits(layouts=COMPILED_LAYOUTS, kernels=("portable",), recomputes=False)

    def __init__(self, index: int | None = None) -> None:
        os.environ[DEVICE_VARIABLE] = PLUGIN
        super().__init__(index)

    @classmethod
    def probe(cls) -> Availability:
        found = torch_xla_version()
        return Availability(True, f"{found.reason}, its {PLUGIN} device in place of an NPU") if found.ok else found
