"""AMD GPUs: a ROCm build of torch drives them by HIP, under the name torch.cuda. Not run by its authors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..types import Availability, DeviceInfo, EnergyUse
from .device import CudaBackend

# What GPUs of an architecture are called, since a driver may know no better name than "AMD Radeon Graphics".
_SERIES = {"gfx942": "Instinct MI300 series", "gfx950": "Instinct MI350 series"}
# The tests compile the Triton kernels for these.
_TRITON = tuple(_SERIES)
# Dense bfloat16 TFLOP/s, GB/s and compute units from AMD's data sheets; the MI350s' rates unrounded, units times clock.
_VENDOR_PEAKS = {
    "AMD Instinct MI300X": (1307.4, 5300.0, 304),
    "AMD Instinct MI325X": (1307.4, 6000.0, 304),
    "AMD Instinct MI350X": (2306.9, 8000.0, 256),
    "AMD Instinct MI355X": (2516.6, 8000.0, 256),
}
# Architectures with matrix instructions for bfloat16. torch says of every AMD GPU that it has them.
_BFLOAT16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")


class RocmBackend(CudaBackend):
    """One AMD GPU. Streams, graphs and the allocator are torch.cuda's, and collectives are RCCL's, called NCCL."""

    units = "matrix cores"
    tool = "amd-smi"
    driver = "amdgpu"

    @classmethod
    def probe(cls) -> Availability:
        if torch.cuda.is_available():
            return cls._found()
        return Availability(
            False,
            "torch has ROCm support but finds no usable AMD GPU",
            f"check that amd-smi lists a device, its driver fits torch's HIP {torch.version.hip}, and "
            "HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES do not hide it",
        )

    def _architecture(self) -> str:
        """LLVM's name of the GPU's instruction set, such as "gfx942"."""
        # The rest are modes: "gfx942:sramecc+:xnack-".
        return str(torch.cuda.get_device_properties(self.device).gcnArchName).partition(":")[0]

    def info(self) -> DeviceInfo:
        name = self._architecture()
        return replace(
            super().info(),
            features=(name, _SERIES[name]) if name in _SERIES else (name,),
        )

    def _versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "hip": torch.version.hip or "unknown"}

    def _peaks(self, properties: Any) -> tuple[float | None, float | None]:
        tflops, gbps, units = _VENDOR_PEAKS.get(properties.name, (None, None, None))
        # A partition has the GPU's name and fewer units.
        return (tflops, gbps) if properties.multi_processor_count == units else (None, None)

    def _has_bfloat16(self) -> bool:
        return self._architecture().startswith(_BFLOAT16)

    def _eight_bit(self) -> list[str]:
        return []

    def _why_not_this_gpu(self) -> str:
        name = self._architecture()
        return "" if name in _TRITON else f"this GPU is {name}, the Triton kernels are for {' and '.join(_TRITON)}"

    def energy(self) -> EnergyUse:
        """What the driver counts (AMD SMI)."""
        try:
            import amdsmi
        except (ImportError, OSError, KeyError) as error:  # It looks up where ROCm's library is, and loads it.
            return EnergyUse(None, f"unavailable: ROCm's Python package amdsmi can't be imported ({error})")
        at: Any = torch.cuda.get_device_properties(self.device)
        address = f"{at.pci_domain_id:04x}:{at.pci_bus_id:02x}:{at.pci_device_id:02x}"
        try:
            # Repeated initialisation is cheap.
            amdsmi.amdsmi_init()
            for handle in amdsmi.amdsmi_get_processor_handles():
                # Without the function after the dot, which numbers the partitions of one GPU.
                if amdsmi.amdsmi_get_gpu_device_bdf(handle).lower().partition(".")[0] == address:
                    counted = amdsmi.amdsmi_get_energy_count(handle)
                    microjoules = counted["energy_accumulator"] * counted["counter_resolution"]
                    return EnergyUse(microjoules / 1e6, "AMD SMI, the whole GPU")
        except amdsmi.AmdSmiException as error:
            return EnergyUse(None, f"unavailable: AMD SMI can't read it ({error})")
        return EnergyUse(None, f"unavailable: AMD SMI lists no GPU at {address}")


# The backend `cuda`, for the GPUs that this build of torch is for.
BuiltBackend = CudaBackend if torch.version.hip is None else RocmBackend
