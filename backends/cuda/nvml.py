"""Energy of an NVIDIA GPU, as its driver counts it (NVML; Volta and newer)."""

from __future__ import annotations

from ...kernels.install import install_hint
from ..types import EnergyUse


def gpu_energy(uuid: str) -> EnergyUse:
    """Joules of the GPU with this UUID (as torch names it, without "GPU-") since its driver was loaded."""
    try:
        import pynvml
    except ImportError:
        return EnergyUse(None, f"unavailable: nvidia-ml-py is not installed ({install_hint('nvml')})")
    try:
        # Initialising again only counts up: NVML holds one state a process.
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return EnergyUse(None, f"unavailable: NVML doesn't tell ({error})")
    return EnergyUse(millijoules / 1e3, "NVML, the whole board")
