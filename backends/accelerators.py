"""The devices of `torch.accelerator` besides CUDA, by torch's own names. A new one is one more class in this file.

Their authors never ran them. Each is written to torch's interface and its vendor's documents, and asks the device what
it can do. `isotrain conformance` says what is wrong with one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, cached_property, partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from .. import UserError
from ..kernels.words import count, first_line
from .torch_device import TorchDevice
from .traits import Traits
from .types import (
    COMPILED_LAYOUTS,
    SEPARATE,
    Availability,
    CastPolicy,
    DeviceInfo,
    MemoryUse,
    cannot_share,
    taken_by,
    unsupported_dtype,
    versions,
)

if TYPE_CHECKING:
    import torch

# `import torch` loads the packages of this group, which register their devices, where the variable is 1 or not set.
_TORCH_GROUP = "torch.backends"
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
# What isotrain's programs set it to: each package is loaded when its device is asked for. Users set 0 to load none.
LATE = "late"
_NOT_RENAMED = "privateuseone"
WITHOUT_FLOAT64 = ("float32", "bfloat16", "float16")


def _traits(about: str, process_group: str | None = None, **others: Any) -> Traits:
    """Traits that hold for each of these devices: packed torch operators, a process for each device."""
    return Traits(
        about=about,
        untested=True,
        kernels=("portable",),
        process_group=process_group,
        device_per_process=process_group is not None,
        **others,
    )


class Accelerator(TorchDevice):
    """A device that torch has under its name, with what torch's module of that name offers."""

    # What registers it with torch; empty if torch itself has it.
    package: ClassVar[str] = ""
    how_to_get: ClassVar[str]

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        module = self.torch_module()
        # Collectives and the vendor's libraries use the current device.
        if hasattr(module, "set_device"):
            module.set_device(self.device.index)

    @classmethod
    def probe(cls) -> Availability:
        if cls.package and find_spec(cls.package) is None:
            return Availability(False, f"the package {cls.package} isn't installed", cls.how_to_get)
        if other := cls._holder_of_its_place():
            return Availability(False, f"it {taken_by(f'torch device {other}')}", SEPARATE)
        import torch

        try:
            if not hasattr(torch, cls.name):
                _load({cls.package})
            module = getattr(torch, cls.name, None)
            if module is None:
                reason = f"torch {torch.__version__} has no module torch.{cls.name}, which its package should register"
                return Availability(False, reason, f"{cls.how_to_get}, and unset {AUTOLOAD}")
            there = int(module.device_count()) if getattr(module, "is_available", lambda: True)() else 0
        except Exception as error:  # noqa: BLE001 (a vendor's driver raises what it likes)
            said = first_line(error)
            return Availability(False, f"torch.{cls.name} doesn't work ({said})", cls.how_to_get)
        if not there:
            return Availability(False, f"torch {torch.__version__} finds no {cls.name} device", cls.how_to_get)
        return Availability(True, f"{cls.traits.about} ({count(there, 'device')})")

    @classmethod
    def _holder_of_its_place(cls) -> str:
        """The other device that has torch's one place for a device of a package; empty if this one may have it."""
        import torch

        holder = torch._C._get_privateuse1_backend_name()
        if holder in (_NOT_RENAMED, cls.name):
            return ""
        try:
            torch.device(cls.name)
        except RuntimeError:
            return holder
        # torch itself has a device of this name.
        return ""

    def info(self) -> DeviceInfo:
        module, known = self.torch_module(), super().info()
        properties = module.get_device_properties(self.device) if hasattr(module, "get_device_properties") else None
        return replace(
            known,
            name=module.get_device_name(self.device) if hasattr(module, "get_device_name") else known.name,
            memory_bytes=getattr(properties, "total_memory", None),
            compute_units=getattr(properties, "multi_processor_count", None),
            versions=versions() | ({self.package: self._package_version()} if self.package else {}),
        )

    def _package_version(self) -> str:
        return str(getattr(sys.modules.get(self.package), "__version__", "unknown"))

    def synchronize(self, *tensors: torch.Tensor) -> None:
        del tensors  # The queue is in order.
        self._fence()

    @cached_property
    def _fence(self) -> Callable[[], object]:
        import torch

        try:
            torch.accelerator.synchronize(self.device)
        except RuntimeError:
            # Some packages have a fence in their module only. It waits for the current device.
            if (fence := getattr(self.torch_module(), "synchronize", None)) is None:
                raise UserError(f"torch.{self.name} has no synchronize, so nothing can wait for the device") from None
            return fence
        return partial(torch.accelerator.synchronize, self.device)

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the traits that the device can multiply."""
        return tuple(dtype for dtype in self.traits.dtypes if self._multiplies(dtype))

    def _multiplies(self, dtype: str) -> bool:
        import torch

        def product() -> bool:
            twos = torch.full((2, 2), 2.0, dtype=getattr(torch, dtype), device=self.device)
            return bool((twos @ twos == 8.0).all())

        return _works(product)

    def _has_scaler(self) -> bool:
        """Whether torch's gradient scaler works, which inverts its scale in float64."""
        import torch

        return _works(lambda: bool(torch.full((), 2.0, device=self.device).double().reciprocal() == 0.5))

    def grad_scaler(self, policy: CastPolicy) -> torch.amp.GradScaler | None:
        return super().grad_scaler(policy) if self._has_scaler() else None

    def _emulates_bfloat16(self) -> bool:
        supported = getattr(self.torch_module(), "is_bf16_supported", None)
        if supported is None:
            return False
        try:
            return not supported(including_emulation=False)
        except TypeError:
            return not supported()

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype not in self.dtypes:
            raise unsupported_dtype(dtype, self.name, *self.dtypes)
        if dtype in ("float32", "float64"):
            return CastPolicy(dtype, dtype, dtype, dtype, f"{dtype} throughout")
        if dtype == "bfloat16" and not strict and self._emulates_bfloat16():
            reason = "weights rounded to bfloat16, products in float32: the device emulates bfloat16"
            return CastPolicy(dtype, dtype, "float32", "float32", reason)
        return CastPolicy(dtype, dtype, dtype, "float32", f"{dtype} products, float32 sums")

    def whole_model_policy(self, policy: CastPolicy) -> CastPolicy:
        """`policy`, in float32 if the device's package hasn't registered autocast."""
        if policy.compute == policy.accumulate or not self._lacks_autocast():
            return policy
        reason = f"{policy.reason}; whole models in {policy.accumulate}: torch.{self.name} has no autocast"
        return replace(policy, compute=policy.accumulate, reason=reason)

    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        # torch refuses even a context that is switched off if the package has registered no autocast.
        return nullcontext() if policy.compute == policy.accumulate else super().autocast(policy)

    def _lacks_autocast(self) -> bool:
        import torch

        kind = self.device.type
        registered = kind != torch._C._get_privateuse1_backend_name() or hasattr(
            self.torch_module(), "get_amp_supported_dtype"
        )
        return not (registered and torch.amp.is_autocast_available(kind))


class MpsBackend(Accelerator):
    name = "mps"
    # torch.utils.checkpoint doesn't restore this device's generator.
    traits = _traits("Apple GPUs", dtypes=WITHOUT_FLOAT64, recomputes=False)
    how_to_get = "use a Mac with Apple silicon and macOS 14 or newer"

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        self._largest_seen = 0

    @classmethod
    def probe(cls) -> Availability:
        if sys.platform != "darwin":
            return Availability(False, "Apple GPUs need macOS", cls.how_to_get)
        return super().probe()

    def info(self) -> DeviceInfo:
        return replace(super().info(), memory_bytes=self.torch_module().recommended_max_memory())

    def _has_scaler(self) -> bool:
        # torch's scaler inverts in float32 on this device, which has no float64.
        return True

    def memory(self) -> MemoryUse:
        """torch.mps counts no peak, so it is the largest use at a reading."""
        now = self.torch_module().current_allocated_memory()
        self._largest_seen = max(self._largest_seen, now)
        return MemoryUse(now, self._largest_seen, "MPS allocator, its peak at a reading")


class XpuBackend(Accelerator):
    name = "xpu"
    traits = _traits("Intel GPUs", "cpu:gloo,xpu:xccl")
    how_to_get = "install an XPU build of torch (see pytorch.org/get-started) and Intel's GPU driver"


class NpuBackend(Accelerator):
    name = "npu"
    traits = _traits("Huawei Ascend", "cpu:gloo,npu:hccl", dtypes=WITHOUT_FLOAT64, recomputes=False)
    package = "torch_npu"
    how_to_get = "install Huawei's CANN and the torch_npu for this torch"


class HpuBackend(Accelerator):
    name = "hpu"
    # Its graph compiler makes a program for each shape.
    traits = _traits(
        "Intel Gaudi",
        "cpu:gloo,hpu:hccl",
        layouts=COMPILED_LAYOUTS,
        dtypes=WITHOUT_FLOAT64,
        recomputes=False,
    )
    package = "habana_frameworks"
    how_to_get = "install Intel Gaudi's software, with habana-torch-plugin for this torch"


class MluBackend(Accelerator):
    name = "mlu"
    traits = _traits("Cambricon MLUs", "cpu:gloo,mlu:cncl", recomputes=False)
    package = "torch_mlu"
    how_to_get = "install Cambricon's software, with torch_mlu for this torch"


class MusaBackend(Accelerator):
    name = "musa"
    traits = _traits("Moore Threads GPUs", "cpu:gloo,musa:mccl", dtypes=WITHOUT_FLOAT64, recomputes=False)
    package = "torch_musa"
    how_to_get = "install Moore Threads' software, with torch_musa for this torch"


DEVICES: dict[str, type[Accelerator]] = {
    kind.name: kind for kind in (MpsBackend, XpuBackend, NpuBackend, HpuBackend, MluBackend, MusaBackend)
}


def _works(work: Callable[[], bool]) -> bool:
    try:
        return work()
    except Exception:  # noqa: BLE001 (torch and its packages raise what they like for what they haven't)
        return False


def device_names() -> list[str]:
    """The names of `DEVICES`, and of the device that another installed package has registered with torch."""
    return list(dict.fromkeys([*DEVICES, *_registered()]))


def device_class(name: str) -> type[Accelerator] | None:
    """The class of the device that torch calls `name`; None if torch has none.

    Raises:
        UserError: Its package is installed, and another device has torch's one place for a device of a package.
    """
    if name in DEVICES:
        return DEVICES[name]
    there = _registered()
    if name in there:
        return _of_package(name)
    if there and f"torch_{name}" in _unknown_packages() - sys.modules.keys():
        raise cannot_share(name, f"torch device {there[0]}")
    return None


def _registered() -> list[str]:
    """What torch calls the device of an out-of-tree package.

    torch imports these packages, so it is asked only if there are any whose device isn't known anyway.
    """
    packages = _unknown_packages()
    if "torch" not in sys.modules and not packages:
        return []
    import torch

    if torch._C._get_privateuse1_backend_name() == _NOT_RENAMED:
        _load(packages)
    name = torch._C._get_privateuse1_backend_name()
    return [] if name == _NOT_RENAMED else [name]


def _unknown_packages() -> set[str]:
    """The installed packages that register a device with torch, without those of the devices that are known."""
    packages = {entry.module.partition(".")[0] for entry in entry_points(group=_TORCH_GROUP)}
    return packages - {kind.package for kind in DEVICES.values()} - {"torch_tpu"}


def _load(packages: Set[str]) -> None:
    """Loads those of torch's out-of-tree `packages` that `import torch` has left for later.

    Raises:
        UserError: One of them fails.
    """
    late = entry_points(group=_TORCH_GROUP) if os.environ.get(AUTOLOAD) == LATE else ()
    for entry in late:
        if entry.module.partition(".")[0] in packages:
            try:
                entry.load()()
            except Exception as error:
                said = first_line(error)
                raise UserError(
                    f"{entry.value}, which registers a device with torch, can't be loaded ({said}); repair it, or set "
                    f"{AUTOLOAD}=0 to load no such package"
                ) from error


@cache
def _of_package(device: str) -> type[Accelerator]:
    """A class for a device with nothing known of it but what its package has registered with torch."""
    import torch

    # What torch.utils.checkpoint uses of a module.
    needed = ("_initialized", "device", "get_amp_supported_dtype", "get_rng_state", "set_rng_state")
    restores = all(hasattr(getattr(torch, device, None), part) for part in needed)
    groups = torch.distributed.Backend.default_device_backend_map if torch.distributed.is_available() else {}
    group = f"cpu:gloo,{device}:{groups[device]}" if device in groups else None

    class Registered(Accelerator):
        name = device
        traits = _traits(f"torch's {device} devices, of an installed package", group, recomputes=restores)
        how_to_get = "check its driver, and that its package is for this torch"

    return Registered
