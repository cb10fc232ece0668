"""What is known of a backend before it is opened. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import UserError
from ..kernels.names import check_name
from .types import COMPILE_MODES, COMPILED_LAYOUTS, DTYPES, EIGHT_BIT, LAYOUTS

# What lists and results say of an untested backend.
UNTESTED = "not run by its authors"


@dataclass(frozen=True)
class Traits:
    """What is true of a backend on every machine.

    Attributes:
        about: The devices that it is for, in a few words.
        untested: Whether its authors have never run it on such a device.
        layouts: The batch layouts that it accepts.
        packs_whole_models: Whether whole models are trained in packed batches by default.
        measures_layout: Whether it is measured before training if packed batches are faster.
        kernels: The names that `frozen_encoder` accepts besides "auto"; empty if they are known only once it is opened.
        trained_kernels: Those of its kernels that also train whole encoders, on packed batches.
        dtypes: The dtypes that it can have. `cast_policy` refuses all others.
        recomputes: Whether torch.utils.checkpoint can compute a layer again in backward.
        torch_compile: Whether `compile` takes modes of torch.compile.
        process_group: How processes that train one run communicate, as torch.distributed names it ("gloo",
            "cpu:gloo,cuda:nccl"). Host tensors are exchanged too. None: only one process can train.
        device_per_process: Whether each process of a machine takes its own device; else all of them share one.
        feature_batch_tokens: Tokens per batch in the one pass over all texts, enough to keep the device busy.
        reads_wait: Whether a value that the host reads waits for all work that is queued.
        emulated: Whether it only emulates a device, so that its times are the host's and it has no peak.
        stands_in: Whether another device may be opened in its place; see `Backend.foreseen_caveat`.
        section: The configuration's key for its options. For an installed package's backend, the key is its name.
        resolves: Whether its name may open another backend; see `Backend.resolve`.
    """

    about: str = "of an installed package"
    untested: bool = False
    layouts: tuple[str, ...] = LAYOUTS
    packs_whole_models: bool = False
    measures_layout: bool = False
    kernels: tuple[str, ...] = ()
    trained_kernels: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPES
    recomputes: bool = True
    torch_compile: bool = False
    process_group: str | None = None
    device_per_process: bool = False
    feature_batch_tokens: int = 8192
    reads_wait: bool = False
    emulated: bool = False
    stands_in: bool = False
    section: str | None = None
    resolves: bool = False

    @property
    def whole_model_layout(self) -> str:
        """The default layout for training whole models."""
        if self.packs_whole_models:
            return "packed"
        return "dynamic" if "dynamic" in self.layouts else "bucketed"

    @property
    def described(self) -> str:
        """What it is for, and whether that was never run."""
        return f"{self.about}; {UNTESTED}" if self.untested else self.about

    def check_kernel(self, what: str, kernel: str, backend: str) -> None:
        """Checks that the backend may have this kernel. The encoder of transformers runs on every backend.

        Args:
            what: How the user names it, such as "--kernel".
            backend: The name of the backend that these traits describe.

        Raises:
            UserError: The backend has no kernel of this name.
        """
        if self.kernels:
            check_name(what, kernel, ("auto", *self.kernels, "transformers"), f"on backend {backend}")

    def training_kernels(self, layout: str, given: Sequence[str]) -> tuple[str, ...]:
        """What trains a whole model for each of these kernels: one of `trained_kernels`, else transformers' module."""
        own = ("auto", *self.trained_kernels) if self.trained_kernels and layout == "packed" else ()
        return tuple(dict.fromkeys(kernel if kernel in own else "transformers" for kernel in given))

    def check_compile_mode(self, what: str, mode: str, backend: str) -> None:
        """Checks that the backend compiles with torch.compile in this mode.

        Args:
            what: How the user names it, such as "--torch-compile".
            backend: The name of the backend that these traits describe.

        Raises:
            UserError: There is no such mode, or the backend has none.
        """
        check_name(what, mode, COMPILE_MODES)
        if not self.torch_compile:
            raise UserError(
                f"{what} {mode!r} means nothing on backend {backend}, which has no modes of torch.compile; drop it"
            )


CPU = Traits(
    about="this host",
    # Measured 1.65 times as fast as bucketed on Banking77.
    packs_whole_models=True,
    kernels=("native", "portable", "compile"),
    trained_kernels=("native",),
    torch_compile=True,
    dtypes=("float32", "bfloat16", "float64", "int8"),
    process_group="gloo",
)
CUDA = Traits(
    about="NVIDIA GPUs, or AMD's by ROCm; cuda:1 is the second",
    untested=True,
    measures_layout=True,
    kernels=("triton", "flash", "portable", "compile"),
    torch_compile=True,
    dtypes=(*DTYPES, *EIGHT_BIT),
    process_group="cpu:gloo,cuda:nccl",
    device_per_process=True,
    feature_batch_tokens=65536,
    reads_wait=True,
)
# torch.utils.checkpoint looks for the device's generator in a module torch.xla, which doesn't exist.
XLA = Traits(
    about="PJRT devices; PJRT_DEVICE chooses TPU or CUDA",
    layouts=COMPILED_LAYOUTS,
    kernels=("portable",),
    recomputes=False,
)
# torch.utils.checkpoint asks torch.tpu whether it is initialized, gets no answer, and restores no generator.
TPU = Traits(
    about="TPUs, through torch-tpu",
    untested=True,
    layouts=COMPILED_LAYOUTS,
    kernels=("portable",),
    dtypes=("float32", "bfloat16"),
    recomputes=False,
    torch_compile=True,
    stands_in=True,
)
TT = Traits(
    about="a Tenstorrent card, by what drives it here, or its emulation",
    untested=True,
    layouts=COMPILED_LAYOUTS,
    kernels=("portable",),
    recomputes=False,
    section="tt",
    resolves=True,
)
TT_TPU = replace(TPU, about="a Tenstorrent card, through torch-tpu", stands_in=False, section="tt")
TT_EMULATED = Traits(
    about="a Tenstorrent card's numerics on this host",
    packs_whole_models=True,
    kernels=("emulated",),
    process_group="gloo",
    emulated=True,
    section="tt",
)
IDEAL = Traits(
    about="no device: a dtype's rounding and no other error, for parity",
    packs_whole_models=True,
    kernels=("ideal",),
    dtypes=(*DTYPES, *EIGHT_BIT),
    process_group="gloo",
)
