"""The registry of backends, and what the host's own backend does beyond the contract (tests/conformance)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.backends import (
    Availability,
    Backend,
    BackendUnavailableError,
    CastPolicy,
    DeviceInfo,
    FrozenEncoder,
    MemoryUse,
    backend_class,
    get_backend,
    is_built_in,
    list_backends,
    resolve,
)
from isotrain.backends.cpu import CpuBackend
from isotrain.kernels import plugins
from isotrain.kernels.cpu import library
from pydantic import BaseModel, ConfigDict, Field

pytestmark = pytest.mark.core


def test_the_targets_are_known_and_cpu_opens() -> None:
    assert list_backends()[:5] == ["cpu", "cuda", "xla", "tpu", "tt"]
    assert get_backend("cpu").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpu", "cpu, cuda, xla, tpu, tt"), ("cpu:x", "device number"), ("cpu:3", "one device"), ("", "does not exist")],
)
def test_a_wrong_name_says_what_exists(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        get_backend(name)


@pytest.mark.parametrize("name", list_backends())
def test_every_backend_counts_torchs_compilations(name: str) -> None:
    """A device adds its own, and can't forget those."""
    assert backend_class(name).compile_count is Backend.compile_count


@pytest.mark.parametrize("name", list_backends())
def test_an_unavailable_backend_says_why_and_how_to_fix_it(name: str) -> None:
    availability = backend_class(name).probe()
    if availability.ok or resolve(name) != name:
        assert get_backend(name).info().name
        return
    assert availability.reason
    assert availability.fix
    with pytest.raises(BackendUnavailableError) as caught:
        get_backend(name)
    assert availability.reason in str(caught.value)
    assert availability.fix in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_cast_policy_says_what_is_computed(dtype: str) -> None:
    policy = get_backend("cpu").cast_policy(dtype)
    assert policy.requested == policy.param == dtype
    assert policy.reason
    assert (policy.label == dtype) == (policy.compute == dtype)


def test_strict_bfloat16_computes_in_bfloat16_everywhere() -> None:
    policy = get_backend("cpu").cast_policy("bfloat16", strict=True)
    assert (policy.compute, policy.accumulate) == ("bfloat16", "float32")


def test_bfloat16_without_units_is_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isotrain.backends.host.processor.bfloat16_units", lambda: "")
    policy = get_backend("cpu").cast_policy("bfloat16")
    assert policy.compute == "float32"
    assert "computed in float32" in policy.label


def test_small_steps_leave_the_threads_as_they_were() -> None:
    torch.set_num_threads(2)
    with get_backend("cpu").single_threaded():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system counts no process's own peak")
def test_the_peak_is_not_that_of_the_parent_process() -> None:
    held = b"x" * 500_000_000
    script = "from isotrain.backends.host.memory import process_memory; print(process_memory().peak_bytes)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0 < int(child.stdout) < len(held) / 2


class OtherBackend(Backend):
    """What another distribution would bring: the abstract members and nothing else."""

    name = "other"

    @classmethod
    def probe(cls) -> Availability:
        return Availability(True, "a host in disguise")

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def info(self) -> DeviceInfo:
        return DeviceInfo("other", "cpu", "a host in disguise")

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        return CastPolicy(dtype, "float32", "float32", "float32", "only float32 here")

    def synchronize(self, *tensors: torch.Tensor) -> None: ...

    def memory(self) -> MemoryUse:
        return MemoryUse(0, 0, "nothing counted")

    def rng_state(self) -> dict[str, torch.Tensor]:
        return {}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None: ...

    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        return nullcontext()

    def frozen_encoder(self, weights: Any, policy: CastPolicy, kernel: str = "auto") -> FrozenEncoder:
        return CpuBackend().frozen_encoder(weights, policy, kernel)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points as if packages with these were installed."""
    entries: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: [item for item in entries if item.group == group])
    return entries


def test_an_installed_package_adds_a_backend(installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    installed.append(EntryPoint("other", "whatever:OtherBackend", "isotrain.backends"))
    monkeypatch.setattr(EntryPoint, "load", lambda _: OtherBackend)
    assert "other" in list_backends()
    backend = get_backend("other")
    assert isinstance(backend, OtherBackend)


class NpuOptions(BaseModel):
    """What a package's own device takes."""

    model_config = ConfigDict(extra="forbid")

    precision: Literal["low", "high"] = "low"
    streams: int = Field(2, ge=1)


class Npu(OtherBackend):
    """One with options; the registry's tests alone open it."""

    name = "npu"
    Options = NpuOptions


@pytest.fixture
def npu(installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    installed.append(EntryPoint("npu", "whatever:Npu", "isotrain.backends"))
    monkeypatch.setattr(EntryPoint, "load", lambda _: Npu)


@pytest.mark.usefixtures("npu")
def test_an_installed_backend_has_its_own_section_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("backend: npu\nnpu:\n  streams: 3\n")
    resolved = load_config(file, ["npu.precision=high"])
    assert resolved.config.backend_options == {"npu": {"precision": "high", "streams": 3}}
    assert resolved.sources["npu"] == "--set"
    opened = get_backend(resolved.config.backend_name, resolved.config.backend_options)
    assert opened.options == NpuOptions(precision="high", streams=3)
    assert get_backend("npu").options == NpuOptions()
    assert not is_built_in("npu"), "a package's class takes the place of isotrain's own"
    file.write_text(resolved.to_yaml())
    assert load_config(file).config == resolved.config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("npu.precision=middle", r"npu.precision: 'middle' is not allowed.*'low' or 'high' \(--set\)"),
        ("npu.streams=0", r"npu.streams: 0 is not allowed.*\(--set\)"),
        ("npu.streams=few", "npu.streams: 'few' is no whole number"),
        ("npu.precison=high", "unknown key 'npu.precison'.*did you mean 'npu.precision'"),
        ("npu=5", "npu is '5', and it is a section"),
        ("cpu.precision=high", "unknown key 'cpu.precision'.*backend cpu takes no options"),
        ("tt-emulated.arch=wormhole", r"unknown key 'tt-emulated.arch'.*takes those of tt, as tt\.KEY"),
    ],
)
@pytest.mark.usefixtures("npu")
def test_wrong_options_of_an_installed_backend_end_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(None, [setting])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("npu")
def test_a_wrong_option_in_a_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("seed: 3\nnpu:\n  precision: middle\n")
    with pytest.raises(UserError, match=r"npu\.precision: 'middle' is not allowed.*job\.yaml:3"):
        load_config(tmp_path / "job.yaml")


def test_a_broken_package_is_named(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("broken", "no_such_module_here:Backend", "isotrain.backends"))
    with pytest.raises(UserError, match="'broken' is registered as 'no_such_module_here:Backend'"):
        get_backend("broken")
    installed[:] = [EntryPoint("odd", "pathlib:Path", "isotrain.backends")]
    with pytest.raises(UserError, match="no isotrain Backend class"):
        get_backend("odd")


def _without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from isotrain.kernels import native
    from isotrain.kernels.cpu import library

    missing = native.load("no_such_package", 1)
    assert missing.library is None
    monkeypatch.setattr(library, "native", lambda: missing)


def test_without_a_compiler_the_portable_kernel_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _without_library(monkeypatch)
    monkeypatch.setattr("isotrain.kernels.cpu.encoder.native", lambda: pytest.fail("must not be called"))
    caplog.set_level("INFO", "isotrain")
    backend = CpuBackend()
    policy = CastPolicy("bfloat16", "bfloat16", "bfloat16", "float32", "")
    weights = load_encoder("random:tiny").weights
    assert backend.frozen_encoder(weights, policy).name == "portable"
    monkeypatch.setattr("isotrain.kernels.cpu.head.native", library.native)
    parameters = [torch.zeros(4, 4, requires_grad=True)]
    assert backend.head_step(parameters, torch.optim.AdamW(parameters, fused=True)) is None
    assert caplog.text.count("install a C++ compiler") == 1, "said once"
    assert "trained by autograd: its native step can't run (for the same reason)" in caplog.text
    with pytest.raises(UserError, match=r"kernel native can't run: .* was not built .* install a C\+\+ compiler"):
        backend.frozen_encoder(weights, policy, "native")
    state = backend.kernels()["native"]
    assert not state.ok
    assert "C++ compiler" in state.reason


def test_a_shape_that_native_does_not_have_goes_to_portable(caplog: pytest.LogCaptureFixture) -> None:
    backend = CpuBackend()
    if not backend.kernels()["native"].ok:
        pytest.skip(backend.kernels()["native"].reason)
    caplog.set_level("INFO", "isotrain")
    policy = CastPolicy("bfloat16", "bfloat16", "bfloat16", "float32", "")
    weights = load_encoder("random:tiny").weights
    odd = replace(weights, config=replace(weights.config, num_heads=8))
    assert backend.frozen_encoder(odd, policy).name == "portable"
    assert "kernel portable: the native one can't run" in caplog.text
    assert "head size 8 (it must be a multiple of 16" in caplog.text
    rare = replace(weights, config=replace(weights.config, activation="mish"))
    assert backend.frozen_encoder(rare, policy).name == "portable"
    assert "activation 'mish'" in caplog.text
    assert backend.frozen_encoder(weights, policy).name == "native"
