"""Energy of an NVIDIA GPU, as its driver counts it (NVML; Volta and newer)."""

from __future__ import annotations

from ...kernels.install import install_hint
from ..types import EnergyUse


def gpu_energy(uuid: str) -> EnergyUse:
    """Joules of the GPU since its driver was loaded. `uuid` is torch's, without "GPU-"."""
    try:
        import pynvml
    except ImportError:
        return EnergyUse(None, f"unavailable: nvidia-ml-py is not installed ({install_hint('nvml')})")
    try:
        # Repeated initialisation is cheap, since NVML counts references to one state per process.
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return EnergyUse(None, f"unavailable: NVML can't read it ({error})")
    return EnergyUse(millijoules / 1e3, "NVML, the whole board")
