"""What `tt` says without its plugin or card, and its options; none of this needs torch_xla."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.backends import (
    BackendUnavailableError,
    backend_class,
    backend_traits,
    get_backend,
    list_backends,
    resolve,
)
from isotrain.backends.tt import card as tt


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with or without the plugin and cards."""

    def build(plugin: bool, cards: int) -> None:
        folder = tmp_path / "tenstorrent"
        folder.mkdir(exist_ok=True)
        for number in range(cards):
            (folder / str(number)).touch()
        entries = [EntryPoint("tt", "torch_plugin_tt:TTPlugin", tt.PLUGIN_GROUP)] if plugin else []
        monkeypatch.setattr(tt, "CARD_FOLDER", folder)
        monkeypatch.setattr(tt, "entry_points", lambda group: [item for item in entries if item.group == group])

    return build


@pytest.mark.parametrize(
    ("plugin", "cards", "reason", "fix"),
    [
        (False, 0, "no Tenstorrent card is here, and its PJRT plugin is not installed", "install pjrt-plugin-tt"),
        (False, 1, "a Tenstorrent card is here", "install pjrt-plugin-tt"),
        (True, 0, "plugin is installed, but there is no Tenstorrent card", "kernel driver"),
    ],
)
def test_what_is_missing_is_told_apart(machine: Any, plugin: bool, cards: int, reason: str, fix: str) -> None:
    machine(plugin, cards)
    found = tt.hardware_availability()
    assert not found.ok
    assert reason in found.reason
    assert fix in found.fix
    with pytest.raises(BackendUnavailableError, match=r"tt\.device: hardware can't run here"):
        get_backend("tt", {"tt": {"device": "hardware"}})


def test_a_card_with_its_plugin_is_found(machine: Any) -> None:
    machine(True, 2)
    found = tt.hardware_availability()
    assert found.ok
    assert "2 Tenstorrent cards" in found.reason
    assert backend_class("tt").probe() == found


def test_the_card_and_its_emulation_are_two_backends() -> None:
    assert list_backends()[:7] == ["cpu", "cuda", "xla", "tpu", "tt", "tt-emulated", "ideal"]
    assert backend_traits("tt-emulated").emulated
    assert not any(backend_traits(name).emulated for name in list_backends() if name != "tt-emulated")


def test_tt_opens_a_card_or_its_emulation_and_says_which(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine(True, 0)
    tt._warn_emulated.cache_clear()
    assert [resolve("tt"), resolve("tt:0")] == ["tt-emulated", "tt-emulated:0"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("backend tt is tt-emulated here")
    assert "there is no Tenstorrent card" in said
    opened = get_backend("tt")
    assert (opened.name, opened.info().backend, opened.info().emulated) == ("tt-emulated", "tt-emulated", True)
    assert opened.caveat == "tt-emulated"
    machine(True, 1)
    assert resolve("tt") == "tt"
    assert resolve("tt", {"tt": {"device": "emulated"}}) == resolve("tt-emulated") == "tt-emulated"
    machine(False, 1)
    with pytest.raises(BackendUnavailableError, match=r"tt\.device: hardware can't run here"):
        resolve("tt", {"tt": {"device": "hardware"}})
    with pytest.raises(UserError, match=r"tt-emulated and tt\.device: hardware contradict"):
        get_backend("tt-emulated", {"tt": {"device": "hardware"}})
    assert len(caplog.records) == 1, "it is said once in a process"


def test_a_configuration_is_of_the_backend_that_opens(machine: Any) -> None:
    machine(False, 0)
    for settings in (["backend=tt"], ["use_tt=true"], ["use_tt=true", "backend=tt-emulated"]):
        resolved = load_config(None, settings)
        assert resolved.config.backend_name == "tt-emulated"
        kept = resolved.of_run().config
        assert kept.backend == kept.backend_name == "tt-emulated", "a resume stays on it, with a card or without"
    assert load_config(None).of_run().config.backend is None


def test_traits_are_those_of_the_class_and_what_it_opens() -> None:
    for name in list_backends():
        assert backend_traits(name) == backend_traits(f"{name}:0") == backend_class(name).traits
        if backend_class(name).probe().ok:
            assert list(backend_traits(name).kernels) == list(get_backend(name).kernels())


def test_traits_and_options_of_a_built_in_backend_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from isotrain.albert_core.config.load import load_config\n"
        "from isotrain.backends import backend_traits, list_backends\n"
        "for name in list_backends(): backend_traits(name)\n"
        "load_config(None, ['tt.arch=blackhole', 'backend=tt']).config.backend_name\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_options_go_to_the_backend_of_their_name_alone() -> None:
    options = load_config(None, ["tt.math_fidelity=lofi"]).config.backend_options
    assert get_backend("cpu", options).name == "cpu"
    with pytest.raises(UserError, match="'cpu' takes no options, and was given threads"):
        get_backend("cpu", {"cpu": {"threads": 3}})


def test_the_section_is_read_from_a_file_and_overridden_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("backend: tt\ntt:\n  arch: blackhole\n  math_fidelity: hifi2\n  weight_dtype: bfp_bf8\n")
    config = load_config(file, ["tt.math_fidelity=hifi3", "tt.fp32_dest_acc_en=false"]).config
    told = config.backend_options["tt"]
    assert (told["arch"], told["math_fidelity"], told["weight_dtype"]) == ("blackhole", "hifi3", "bfp_bf8")
    assert not told["fp32_dest_acc_en"]
    assert told["device"] == "auto"
    written = tmp_path / "again.yaml"
    written.write_text(load_config(file, ["tt.math_fidelity=hifi3", "tt.fp32_dest_acc_en=false"]).to_yaml())
    assert load_config(written).config == config
    assert config != load_config(file).config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tt.math_fidelity=hifi5", "tt.math_fidelity: 'hifi5' is not allowed.*'hifi4'.*--set"),
        ("tt.weight_dtype=float32", "tt.weight_dtype: 'float32' is not allowed.*'bfp_bf8'"),
        ("tt.optimization_level=9", "tt.optimization_level: 9 is not allowed"),
        ("tt.device=card", "tt.device: 'card' is not allowed.*'emulated'"),
        ("tt.fidelity=hifi4", r"unknown key 'tt.fidelity'.*did you mean 'tt.math_fidelity'"),
        (
            "tt.foo=1",
            r"unknown key 'tt.foo' \(--set\);.*allowed in tt are arch, math_fidelity, fp32_dest_acc_en, weight",
        ),
        ("learning_rate.x=1", "unknown key 'learning_rate.x'"),
        ("tt=5", "tt is '5', and it is a section"),
    ],
)
def test_wrong_options_end_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(None, [setting])
    assert "\n" not in str(caught.value)


def test_a_wrong_option_of_a_library_call_is_one_line_too() -> None:
    with pytest.raises(UserError, match=r"tt.arch is 'grayskull'.*'blackhole'"):
        get_backend("tt", {"tt": {"arch": "grayskull"}})
