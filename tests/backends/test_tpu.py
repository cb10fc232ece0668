"""What `tpu` says without torch_tpu or a TPU, and of what can't work; none of this imports torch_tpu."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch
from isotrain import UserError
from isotrain.backends import backend_class, caveat, get_backend, tpu
from isotrain.backends.tpu import LIBRARY_VARIABLE, TpuBackend
from isotrain.backends.xla import XlaBackend


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with torch_tpu and without a TPU."""
    versions = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.2.0" if name == "torch-tpu" else versions(name))
    monkeypatch.setattr(tpu, "PCI_DEVICES", tmp_path / "devices")
    monkeypatch.setattr(tpu, "VFIO_GROUPS", tmp_path / "vfio")
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)


def plug_in(folder: Path, vendor: str, groups: tuple[str, ...] = ()) -> None:
    """A PCI device whose IOMMU group is 7, and the groups that are handed to programs."""
    device = folder / "devices" / f"0000:00:0{len(list(folder.glob('devices/*')))}.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "iommu_group").symlink_to(Path("/sys/kernel/iommu_groups/7"))
    (folder / "vfio").mkdir(exist_ok=True)
    for group in groups:
        (folder / "vfio" / group).touch()


def test_without_torch_tpu_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    found = TpuBackend.probe()
    assert not found.ok
    assert found.reason == "torch_tpu is not installed"
    assert "pip install" in found.fix
    with pytest.raises(UserError, match=r"backend 'tpu' can't run here: torch_tpu is not installed; install it on"):
        get_backend("tpu")


@pytest.mark.usefixtures("installed")
def test_a_tpu_is_told_from_googles_network_card_and_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not TpuBackend.probe().ok
    assert "this machine has no TPU" in TpuBackend.probe().reason
    plug_in(tmp_path, "0x8086", ("7",))
    assert not TpuBackend.probe().ok
    (tmp_path / "vfio" / "7").unlink()
    plug_in(tmp_path, "0x1ae0")
    assert not TpuBackend.probe().ok
    plug_in(tmp_path, "0x1ae0", ("7",))
    assert (TpuBackend.probe().ok, TpuBackend.probe().reason) == (False, "torch-tpu 0.2.0 is here without libtpu")
    monkeypatch.setattr(tpu, "find_spec", lambda name: name)
    assert (TpuBackend.probe().ok, TpuBackend.probe().reason) == (True, "torch-tpu 0.2.0, 2 TPUs")
    assert caveat("tpu") == ""


@pytest.mark.usefixtures("installed")
def test_another_plugins_figures_are_labelled_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin.so").touch()
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "plugin.so"))
    assert TpuBackend.probe().ok
    assert caveat("tpu") == "tpu (torch_tpu on XLA's CPU device)"
    assert (tpu._caveat("TPU v5e"), tpu._caveat("Blackhole")) == ("", "tpu (torch_tpu on Blackhole)")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", ["missing", "folder", "text", "other library"])
def test_a_wrong_plugin_library_is_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "libtpu.so"
    if kind == "folder":
        path.mkdir()
    if kind == "text":
        path.write_text("no library")
    if kind == "other library":
        path = next(Path(torch.__file__).parent.glob("lib/libtorch_cpu.so"))
    monkeypatch.setenv(LIBRARY_VARIABLE, str(path))
    with pytest.raises(UserError, match=LIBRARY_VARIABLE) as caught:
        get_backend("tpu")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_two_that_drive_pjrt_can_not_share_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_xla", ModuleType("torch_xla"))
    with pytest.raises(UserError, match=r"backend 'tpu' can't share a process with torch_xla, .*a process for each"):
        TpuBackend()
    monkeypatch.setitem(sys.modules, "torch_tpu", ModuleType("torch_tpu"))
    with pytest.raises(UserError, match=r"backend 'xla' can't share a process with torch_tpu, .*a process for each"):
        XlaBackend()


def test_torchs_other_extra_device_can_not_share_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "npu")
    with pytest.raises(UserError, match="can't share a process with torch device npu"):
        TpuBackend()


@pytest.mark.parametrize("found", [None, "2.9.0", torch.__version__])
def test_torch_xla_is_said_to_have_ended(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "torch-xla":
            return torch.__version__
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    state = backend_class("xla").probe()
    assert state.ok == (found == torch.__version__)
    assert "2.9 is its last release, and backend tpu succeeds it" in state.reason
