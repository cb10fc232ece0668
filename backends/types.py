"""Plain values that describe backends. Importing it imports no torch."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Literal, get_args

from .. import UserError

DTYPES = ("float32", "bfloat16", "float16", "float64")
# Formats of the products of a frozen encoder, in which nothing is trained, and what they mean.
EIGHT_BIT = {
    "int8": "int8 weights and activations, int32 sums",
    "float8_e4m3": "float8_e4m3 weights and activations, float32 sums",
}
# From most to least padding. Few batches of the last two have equal shapes.
LAYOUTS = ("padded", "bucketed", "dynamic", "packed")
# Those of a device that compiles a program for each shape.
COMPILED_LAYOUTS = LAYOUTS[:2]
# Frozen kernels that take no packed batches.
PADDED_KERNELS = ("transformers", "compile")
# Modes of torch.compile.
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
COMPILE_MODES = get_args(CompileMode)


class BackendUnavailableError(UserError):
    """The backend exists but can't run here. The message has the probe's reason and fix."""

    @classmethod
    def of(cls, backend: str, reason: str, fix: str) -> BackendUnavailableError:
        """The error for what a probe has found."""
        return cls(f"backend {backend!r} can't run here: {reason}; {fix}")


@dataclass(frozen=True)
class Availability:
    """Whether a device can be used, and if not, why and how to fix it."""

    ok: bool
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class CastPolicy:
    """The dtypes that a frozen encoder really uses on a device, as torch names them, and why.

    Attributes:
        requested: What the user asked for.
        param: What the weights are rounded to.
        compute: The operands of products. If they have 8 bits, those of attention are in the dtype of `param`.
        accumulate: Sums, normalisation and softmax.
        mode: Whatever else decides the numbers, such as a math fidelity or a block format of the weights; or "".
        largest_distance: How far a text's logits may be from float32's, as relative L2 distance, if `mode` makes that
            another distance than the compute dtype does.
    """

    requested: str
    param: str
    compute: str
    accumulate: str
    reason: str
    mode: str = ""
    largest_distance: float | None = None

    @property
    def label(self) -> str:
        """The words for tables: the requested dtype, the compute dtype if it differs, and the mode."""
        if self.eight_bit:
            return self.mode
        computed = (
            self.requested if self.compute == self.requested else f"{self.requested} (computed in {self.compute})"
        )
        return f"{computed}, {self.mode}" if self.mode else computed

    @property
    def eight_bit(self) -> bool:
        """Whether products are of 8-bit numbers, which only a frozen encoder has."""
        return self.compute in EIGHT_BIT

    def trainable(self) -> CastPolicy:
        """Itself, or a UserError if nothing can be trained in its dtype."""
        if self.eight_bit:
            raise UserError(
                f"dtype {self.requested!r} is for a frozen encoder's features, and this model is trained whole; set "
                "dtype: bfloat16, or freeze_encoder: true with a task on features"
            )
        return self


def eight_bit_policy(dtype: str, why: str) -> CastPolicy:
    """The policy of one of EIGHT_BIT. `why` is the rest of its reason, such as " on AVX512-VNNI"."""
    reason = f"{EIGHT_BIT[dtype]}{why}; attention's products in bfloat16, the rest in float32"
    return CastPolicy(dtype, "bfloat16", dtype, "float32", reason, mode=EIGHT_BIT[dtype])


def unsupported_dtype(dtype: str, backend: str, *allowed: str) -> UserError:
    """The error for a dtype that the backend doesn't have."""
    return UserError(
        f"dtype {dtype!r} can't train on the {backend} backend; allowed are {', '.join(allowed)}; set dtype to one"
    )


# What to do if two devices want one process.
SEPARATE = "use a process for each"


def taken_by(other: str) -> str:
    """Why no second device can be opened in a process that `other`, a package or device, has taken."""
    return f"can't share a process with {other}, which this one uses"


def cannot_share(backend: str, other: str) -> UserError:
    """The error for a process that `other`, a package or device, has taken."""
    return UserError(f"backend {backend!r} {taken_by(other)}; {SEPARATE}")


@dataclass(frozen=True)
class DeviceInfo:
    """What a result says about its device. Unknown figures are None, never a guess."""

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
    untested: bool = False


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use now and at most so far.

    Attributes:
        scope: What was counted ("process RSS", "CUDA allocator").
        missing: Why the device's own memory isn't counted; empty if it is.
    """

    current_bytes: int
    peak_bytes: int
    scope: str
    missing: str = ""


@dataclass(frozen=True)
class EnergyUse:
    """Joules that a counter has counted so far; only differences mean anything. None if there is no counter.

    `source` names the counter and what it covers ("NVML, the whole board"), or is "unavailable: " and the reason.
    """

    joules: float | None
    source: str

    def since(self, earlier: EnergyUse) -> EnergyUse:
        """The energy used since `earlier` was read."""
        if self.joules is None or earlier.joules is None:
            return EnergyUse(None, self.source if self.joules is None else earlier.source)
        return EnergyUse(self.joules - earlier.joules, self.source)


@dataclass(frozen=True)
class UnitRate:
    """The rate of a device's matrix unit itself, measured by a micro-benchmark of the device's own kernels.

    A kernel that nothing else limits could reach this rate. A library's matrix product may stay far below it.

    Attributes:
        unit: Its name, such as "AVX512-BF16".
        fed_from: The level of memory that its operands came from, such as "L2".
    """

    unit: str
    dtype: str
    fed_from: str
    tflops: float
    threads: int


@dataclass(frozen=True)
class ShapeGrid:
    """The few batch shapes, rows x length, of a device that compiles a program for each.

    In training and evaluation, all batches have the configured number of rows and one of `lengths` (None: the bucketed
    layout's). In a pass over a whole split, they have `batch_tokens` // length rows. A batch with fewer texts is padded
    with rows that count nowhere.
    """

    batch_tokens: int
    lengths: tuple[int, ...] | None = None

    def rows(self, length: int) -> int:
        """The number of texts of up to `length` tokens in a batch of a pass over a whole split."""
        return max(1, self.batch_tokens // length)


def versions() -> dict[str, str]:
    """The versions of torch and Python, for results."""
    import torch

    return {"torch": torch.__version__, "python": platform.python_version()}
