"""What `tt` says without its plugin or card, and its options; none of this needs torch_xla."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
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
from isotrain.backends.tpu import LIBRARY_VARIABLE
from isotrain.backends.tt import stacks
from isotrain.cli.main import main


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with or without each of the two stacks, and cards."""
    library, version = tmp_path / "plugin.so", metadata.version
    library.touch()

    def build(plugin: bool, cards: int, torch_tpu: str = "") -> None:
        """torch_tpu: "", "alone", "wrong plugin" or "with a plugin"."""
        folder = tmp_path / "tenstorrent"
        folder.mkdir(exist_ok=True)
        for number in range(cards):
            (folder / str(number)).touch()
        entries = [EntryPoint("tt", "torch_plugin_tt:TTPlugin", stacks.PLUGIN_GROUP)] if plugin else []

        def found(name: str) -> str:
            if name != "torch-tpu":
                return version(name)
            if not torch_tpu:
                raise metadata.PackageNotFoundError(name)
            return "0.2.0"

        monkeypatch.setattr(stacks, "CARD_FOLDER", folder)
        monkeypatch.setattr(stacks, "entry_points", lambda group: [item for item in entries if item.group == group])
        monkeypatch.setattr(metadata, "version", found)
        monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
        if torch_tpu.endswith("plugin"):
            monkeypatch.setenv(LIBRARY_VARIABLE, "/nowhere.so" if torch_tpu == "wrong plugin" else str(library))

    return build


NO_LIBRARY = "TPU_LIBRARY_PATH is not set"
# What is installed, in words, and what is missing for each stack.
MACHINES = [
    (False, 0, "", "neither pjrt-plugin-tt nor torch-tpu is installed", "install pjrt-plugin-tt", "install it"),
    (False, 1, "", "neither pjrt-plugin-tt nor torch-tpu is installed", "install pjrt-plugin-tt", "install it"),
    (True, 0, "", "pjrt-plugin-tt is installed, torch-tpu is not", "kernel driver", "install it"),
    (True, 1, "", "pjrt-plugin-tt is installed, torch-tpu is not", "", "install it"),
    (
        *(False, 1, "alone"),
        f"torch-tpu 0.2.0 ({NO_LIBRARY}) is installed, pjrt-plugin-tt is not",
        *("install pjrt-plugin-tt", "set TPU_LIBRARY_PATH"),
    ),
    (
        *(False, 1, "wrong plugin"),
        "torch-tpu 0.2.0 (TPU_LIBRARY_PATH is '/nowhere.so', which is no file) is installed, pjrt-plugin-tt is not",
        *("install pjrt-plugin-tt", "set TPU_LIBRARY_PATH"),
    ),
    (
        *(False, 1, "with a plugin"),
        "torch-tpu 0.2.0 is installed, pjrt-plugin-tt is not",
        *("install pjrt-plugin-tt", ""),
    ),
    (
        *(True, 1, "alone"),
        f"pjrt-plugin-tt and torch-tpu 0.2.0 ({NO_LIBRARY}) are installed",
        *("", "set TPU_LIBRARY_PATH"),
    ),
    (True, 0, "with a plugin", "pjrt-plugin-tt and torch-tpu 0.2.0 are installed", "kernel driver", "kernel driver"),
    (True, 2, "with a plugin", "pjrt-plugin-tt and torch-tpu 0.2.0 are installed", "", ""),
]


@pytest.mark.parametrize(("plugin", "cards", "torch_tpu", "installed", "fix_tt", "fix_tpu"), MACHINES)
def test_what_is_installed_is_told_apart_and_which_of_it_tt_takes(
    machine: Any, plugin: bool, cards: int, torch_tpu: str, installed: str, fix_tt: str, fix_tpu: str
) -> None:
    machine(plugin, cards, torch_tpu)
    here = {0: "no Tenstorrent card in ", 1: "1 Tenstorrent card (", 2: "2 Tenstorrent cards ("}[cards]
    taken = "tt" if not fix_tt else "tt-tpu" if not fix_tpu else "tt-emulated"
    for name, fix in (("tt", fix_tt), ("tt-tpu", fix_tpu)):
        found = backend_class(name).probe()
        assert found.ok == (not fix)
        assert found.reason.startswith(here)
        assert found.reason.endswith(f"; {installed}; --backend tt is {taken}")
        assert fix in found.fix
        assert bool(found.fix) == bool(fix)
    assert resolve("tt") == taken
    assert resolve("tt-tpu") == "tt-tpu", "a stack that is named is the one that opens, or none"
    if taken == "tt-emulated":
        with pytest.raises(BackendUnavailableError, match=r"tt\.device: hardware can't run here"):
            resolve("tt", {"tt": {"device": "hardware"}})
        with pytest.raises(BackendUnavailableError, match=r"backend 'tt-tpu' can't run here: .* installed"):
            get_backend("tt-tpu")
    else:
        assert resolve("tt", {"tt": {"device": "hardware"}}) == taken
    assert resolve("tt", {"tt": {"device": "emulated"}}) == "tt-emulated"


def install(site: Path, name: str, entry_points: str = "") -> None:
    """What pip leaves of a package, for every process that has `site` on its path."""
    folder = site / f"{name.replace('-', '_')}-0.2.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.2.0\n")
    (folder / "entry_points.txt").write_text(entry_points)


@pytest.mark.parametrize(
    ("plugin", "torch_tpu", "installed"),
    [
        (False, False, "neither pjrt-plugin-tt nor torch-tpu is installed"),
        (True, False, "pjrt-plugin-tt is installed, torch-tpu is not"),
        (False, True, f"torch-tpu 0.2.0 ({NO_LIBRARY}) is installed, pjrt-plugin-tt is not"),
        (True, True, f"pjrt-plugin-tt and torch-tpu 0.2.0 ({NO_LIBRARY}) are installed"),
    ],
)
def test_doctor_tells_apart_what_is_installed(
    plugin: bool,
    torch_tpu: bool,
    installed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if plugin:
        install(tmp_path, "pjrt-plugin-tt", "[torch_xla.plugins]\ntt = torch_plugin_tt:TTPlugin\n")
    if torch_tpu:
        install(tmp_path, "torch-tpu")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr("isotrain.backends.list_backends", lambda: ["tt", "tt-tpu"])
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    for report in json.loads(capsys.readouterr().out)["backends"]:
        assert report["status"] == "absent"
        assert report["reason"].endswith(f"; {installed}; --backend tt is tt-emulated")


def test_a_card_has_a_backend_for_each_stack_and_its_emulation_another() -> None:
    assert list_backends()[:8] == ["cpu", "cuda", "xla", "tpu", "tt", "tt-tpu", "tt-emulated", "ideal"]
    assert backend_traits("tt-emulated").emulated
    assert not any(backend_traits(name).emulated for name in list_backends() if name != "tt-emulated")


def test_tt_opens_a_card_or_its_emulation_and_says_which(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine(True, 0)
    stacks._warn_emulated.cache_clear()
    assert [resolve("tt"), resolve("tt:0")] == ["tt-emulated", "tt-emulated:0"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("backend tt is tt-emulated here")
    assert "no Tenstorrent card in " in said
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
