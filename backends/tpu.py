"""The TPU backend: Google's torch-tpu, which runs torch eagerly and compiles a program for each operator and shape.

`tt/card_tpu.py` builds on it. torch_tpu is imported when a backend is opened. That takes seconds, and it changes torch
for the whole process: `torch.compile` gets another default compiler, so code that means inductor must name it, and
`torch.set_float32_matmul_precision` sets the products of TPUs only.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import UserError
from ..kernels.inductor import compiled
from ..kernels.install import install_hint
from ..kernels.words import count
from .base import Generator
from .host import processor
from .host.memory import process_memory
from .host.rapl import RaplCounters
from .torch_device import TorchDevice
from .training.batch_norm import correct_running_statistics
from .traits import TPU
from .types import (
    Availability,
    CastPolicy,
    DeviceInfo,
    EnergyUse,
    MemoryUse,
    ShapeGrid,
    cannot_share,
    unsupported_dtype,
    versions,
)
from .xla import DEVICE_BATCH_TOKENS, HOST_BATCH_TOKENS, StaticEncoder

if TYPE_CHECKING:
    import torch

    from ..kernels.weights import EncoderWeights
    from .protocols import FrozenEncoder

F = TypeVar("F", bound=Callable[..., Any])

LIBRARY_VARIABLE = "TPU_LIBRARY_PATH"
# What torch calls the devices of torch_tpu, whatever they are.
TORCH_TYPE = "tpu"
PCI_DEVICES, VFIO_GROUPS = Path("/sys/bus/pci/devices"), Path("/dev/vfio")
GOOGLE = "0x1ae0"
# What PJRT calls XLA's CPU device.
HOST_KIND = "cpu"


class TpuBackend(TorchDevice):
    """A TPU as torch_tpu drives it, with batches of a few shapes. TPU_LIBRARY_PATH chooses another PJRT plugin.

    It has been run on XLA's CPU device. A TPU uses the same calls and has not been run.
    """

    name = "tpu"
    traits = TPU
    torch_type = TORCH_TYPE
    # The variable by which a process chooses its device.
    chooser: ClassVar[str] = "TPU_VISIBLE_CHIPS"
    # Whether the device must be a TPU on the PCI bus, the only one that torch_tpu looks for.
    needs_tpu: ClassVar[bool] = True

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        import torch

        if index:
            raise UserError(
                f"backend '{self.name}:{index}': a process has one device of it; write {self.name}, and choose it by "
                f"{self.chooser}"
            )
        self._module, self._generator, self._kind = _opened(self.name, self.needs_tpu)
        self._on_host = self._kind == HOST_KIND
        super().__init__(index, options)
        self._host_energy = RaplCounters()
        # torch_tpu has replaced this function by one that sets its own products only, and warns that they are slower.
        torch.set_float32_matmul_precision("highest")
        warnings.filterwarnings("ignore", message="<TorchTpu/Performance/> TPU is using HIGHEST precision")
        if not _is_tpu(self._kind):
            # torch_tpu's fused attention exists on TPUs only. torch has one switch for the attention of all devices.
            torch.backends.cuda.enable_flash_sdp(False)
        self._generator.manual_seed(torch.initial_seed() % 2**63)

    @classmethod
    def probe(cls) -> Availability:
        try:
            found = f"torch-tpu {metadata.version('torch-tpu')}"
        except metadata.PackageNotFoundError:
            fix = f"install it on a machine with a TPU: `{install_hint('tpu')}`; or use --backend cpu"
            return Availability(False, "torch_tpu is not installed", fix)
        library, tpus = os.environ.get(LIBRARY_VARIABLE), tpus_on_bus()
        if library and not Path(library).is_file():
            reason = f"{LIBRARY_VARIABLE} is {library!r}, which is no file"
            return Availability(False, reason, "unset it, or set it to the library of a PJRT plugin such as libtpu.so")
        if tpus and not library and find_spec("libtpu") is None:
            return Availability(False, f"{found} is here without libtpu", f"install it: `{install_hint('tpu')}`")
        if tpus or library:
            return Availability(True, f"{found}, {count(tpus, 'TPU') if tpus else f'{LIBRARY_VARIABLE} {library}'}")
        return Availability(False, f"{found} is here, and this machine has no TPU", "use a TPU VM, or --backend cpu")

    @classmethod
    def device_count(cls) -> int:
        return 1

    @classmethod
    def foreseen_caveat(cls) -> str:
        return "" if tpus_on_bus() else _caveat(HOST_KIND)

    @property
    def caveat(self) -> str:
        return _caveat(self._kind)

    @property
    def static_shapes(self) -> ShapeGrid | None:
        return ShapeGrid(HOST_BATCH_TOKENS if self._on_host else DEVICE_BATCH_TOKENS)

    def info(self) -> DeviceInfo:
        name, memory, units = self._kind, None, None
        if self._on_host:
            name, memory = f"{processor.processor_name()} ({_ran_on(self._kind)})", processor.memory_bytes()
            units = processor.usable_cores()
        return DeviceInfo(
            backend=self.name,
            device=str(self.device),
            name=name,
            memory_bytes=memory,
            compute_units=units,
            versions=versions() | {"torch_tpu": metadata.version("torch-tpu")},
            emulated=bool(self.caveat),
            untested=self.traits.untested,
        )

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype == "float32":
            return CastPolicy(dtype, dtype, dtype, dtype, f"{dtype} throughout (products at XLA's highest)")
        if dtype == "bfloat16":
            if not self._on_host:
                return CastPolicy(dtype, dtype, dtype, "float32", "bfloat16 operands, float32 sums")
            widens = "XLA widens bfloat16 to float32 on a host"
            if strict:
                return CastPolicy(dtype, dtype, dtype, "float32", f"asked for strictly; {widens}")
            reason = f"weights rounded to bfloat16, products in float32: {widens}"
            return CastPolicy(dtype, dtype, "float32", "float32", reason)
        raise unsupported_dtype(dtype, self.name, "float32", "bfloat16")

    def check_compile_mode(self, mode: str) -> None:
        self.traits.check_compile_mode("torch_compile", mode, self.name)
        if mode != "default":
            raise UserError(f"torch_compile {mode!r}: torch_tpu's compiler has no modes; set torch_compile: default")

    def compile(self, fn: F, mode: str | None = None) -> F:
        if mode is None:
            return fn
        self.check_compile_mode(mode)
        program: Any = compiled(fn, "drop torch_compile", compiler="tpu")
        return program

    def device_compilations(self) -> int:
        return int(self._module._get_cache_misses())

    def memory(self) -> MemoryUse:
        # XLA's CPU device counts none.
        return process_memory() if self._on_host else super().memory()

    def energy(self) -> EnergyUse:
        return self._host_energy.read() if self._on_host else super().energy()

    def generators(self) -> dict[str, Generator]:
        import torch

        host = {"cpu": (torch.get_rng_state, torch.set_rng_state)}
        return {**host, self.name: (self._generator.get_state, self._generator.set_state)}

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        del kernel
        return StaticEncoder(self.portable_encoder(weights, policy, chunk_tokens=4 * DEVICE_BATCH_TOKENS))


def tpus_on_bus() -> int:
    """The number of Google's PCI devices that are handed to programs, as TPUs are and network cards are not."""
    found = 0
    for device in PCI_DEVICES.glob("*"):
        try:
            is_googles = (device / "vendor").read_text().strip() == GOOGLE
            found += is_googles and (VFIO_GROUPS / (device / "iommu_group").readlink().name).exists()
        except OSError:
            continue
    return found


def _ran_on(kind: str) -> str:
    return "torch_tpu on " + ("XLA's CPU device" if kind == HOST_KIND else kind)


def _caveat(kind: str) -> str:
    """The caveat of a device of this kind, which is none for a TPU."""
    return "" if _is_tpu(kind) else f"{TpuBackend.name} ({_ran_on(kind)})"


def _is_tpu(kind: str) -> bool:
    return kind.upper().startswith("TPU")


def _opened(backend: str, needs_tpu: bool) -> tuple[Any, torch.Generator, str]:
    """Imports torch_tpu and opens its device.

    Args:
        backend: The name of the backend that opens it.
        needs_tpu: See `TpuBackend.needs_tpu`.

    Returns:
        torch's module of the device, the device's generator, and what PJRT calls this kind of device.

    Raises:
        UserError: torch_tpu can't be imported, has no device, or can't share this process.
    """
    import torch

    _check_alone(backend)
    _check_library()
    # Errors only, or torch_tpu's libraries write several lines at each start.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _quietly():
            for load in metadata.entry_points(group="torch.backends", name="torch_tpu"):
                load.load()()
            accelerator = torch.accelerator.current_accelerator()
            if accelerator is None and not needs_tpu:
                # What `load` does with the device if it finds a TPU. There is no public way.
                import_module("torch_tpu._loader")._init_device(TORCH_TYPE)
                accelerator = torch.accelerator.current_accelerator()
            if accelerator is None or accelerator.type != TORCH_TYPE:
                raise UserError(
                    "torch_tpu registers no device, since it finds no TPU that it knows on this machine; use a TPU VM, "
                    "or --backend cpu"
                )
            module: Any = torch.get_device_module(accelerator)
            # Reading the generators starts the runtime, which the device's attributes need.
            generator = module.default_generators[0]
            kind = str(module._get_local_device_attributes()["device_kind"])
            correct_running_statistics("PrivateUse1")
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"torch_tpu can't open a device ({reason}); check that no other process uses it, and the "
            f"library that {LIBRARY_VARIABLE} names (by default libtpu's), or use --backend cpu"
        ) from error
    return module, generator, kind


def _check_alone(backend: str) -> None:
    """Refuses a process with another package that drives PJRT, or with another holder of torch's one extra device."""
    import torch

    taken = torch._C._get_privateuse1_backend_name()
    if "torch_xla" in sys.modules:
        raise cannot_share(backend, "torch_xla")
    if taken not in ("privateuseone", TORCH_TYPE):
        raise cannot_share(backend, f"torch device {taken}")


def _check_library() -> None:
    """torch_tpu ends the process if it can't use the library."""
    path = os.environ.get(LIBRARY_VARIABLE)
    if not path:
        return
    try:
        ctypes.CDLL(path).GetPjrtApi  # noqa: B018 (looks the function up)
    except (OSError, AttributeError) as error:
        raise UserError(
            f"{LIBRARY_VARIABLE} is {path!r}, which is no PJRT plugin ({error}); unset it, or set it to the library of "
            "one such as libtpu.so"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps back what torch_tpu prints at each start, and warnings about its interface and our kernel for it."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="<TorchTpu/")
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        yield
