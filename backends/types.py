"""What backends say of themselves, as plain values. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .. import UserError

DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYOUTS = ("padded", "bucketed", "packed")


class BackendUnavailableError(UserError):
    """The backend exists but can't run here; the message carries its probe's reason and fix."""


@dataclass(frozen=True)
class Availability:
    """The answer of `Backend.probe`: whether the device can be used, and if not, why and what to do about it."""

    ok: bool
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class CastPolicy:
    """Which dtype each role of the frozen encoder really has on a device, and why.

    `requested` is what the user asked for; `param` is what the weights are rounded to, `compute` is what products
    take as operands, `accumulate` is what sums, normalisation and softmax use. All are torch dtype names. `mode` is
    what else decides the numbers (a math fidelity, a block format of the weights); "" where nothing does.
    """

    requested: str
    param: str
    compute: str
    accumulate: str
    reason: str
    mode: str = ""

    @property
    def label(self) -> str:
        """What tables show: the requested dtype, the compute dtype where that is another one, and the mode."""
        computed = (
            self.requested if self.compute == self.requested else f"{self.requested} (computed in {self.compute})"
        )
        return f"{computed}, {self.mode}" if self.mode else computed


@dataclass(frozen=True)
class DeviceInfo:
    """What a result must say about the device it was measured on. Unknown figures are None, never a guess."""

    backend: str
    device: str
    name: str
    memory_bytes: int | None = None
    compute_units: int | None = None
    vendor_peak_tflops: float | None = None
    vendor_bandwidth_gbps: float | None = None
    features: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    emulated: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use now and at most so far; `scope` names what was counted ("process RSS", "CUDA allocator")."""

    current_bytes: int
    peak_bytes: int
    scope: str


@dataclass(frozen=True)
class EnergyUse:
    """Joules that a counter has seen so far (only differences mean anything), or None where `source` says why.

    `source` names the counter and what it covers ("NVML, the whole board"), or is "unavailable: " and the reason.
    """

    joules: float | None
    source: str

    def since(self, earlier: EnergyUse) -> EnergyUse:
        """What was used after `earlier` was read."""
        if self.joules is None or earlier.joules is None:
            return EnergyUse(None, self.source if self.joules is None else earlier.source)
        return EnergyUse(self.joules - earlier.joules, self.source)


@dataclass(frozen=True)
class UnitRate:
    """The rate of a device's matrix unit alone, as a micro-benchmark of the device's own kernels measured it.

    `unit` names it ("AVX512-BF16"), `fed_from` the level of memory its operands came from ("L2"). It is what a kernel
    could reach if nothing but that level held it up; a library's matrix product may stay far below it.
    """

    unit: str
    dtype: str
    fed_from: str
    tflops: float
    threads: int


@dataclass(frozen=True)
class ShapeGrid:
    """The few shapes that batches have on a device that compiles a program for each: rows x length.

    Training's and evaluation's batches all have the rows that the configuration gives them, and one of `lengths`
    (None: those of the bucketed layout). A pass over a whole split takes `batch_tokens` // length rows of a length.
    A batch with fewer texts is filled up, and the rows that fill it count nowhere.
    """

    batch_tokens: int
    lengths: tuple[int, ...] | None = None

    def rows(self, length: int) -> int:
        """How many texts of up to `length` tokens a batch of a whole pass holds."""
        return max(1, self.batch_tokens // length)
