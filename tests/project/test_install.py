"""The commands that messages print to install what is missing."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from isotrain.cli.main import app
from isotrain.kernels import install
from isotrain.kernels.install import install_hint
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
DISTRIBUTION = re.compile(r"isotrain\\*\[\w+\\*\]|pip install [^`\n]*\bisotrain\b")
TEXTS = ("*.md", "Makefile", "docs/*.md", "configs/*.yaml", "*.py", "constraints*.txt")
# Not all below the root, where environments are, too.
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "build"))]
SHOWN = sorted(path for pattern in TEXTS for path in ROOT.glob(pattern))
# These two name on purpose what doesn't exist.
FALSE = {Path(__file__), ROOT / "tests/project/test_pages.py"}
SHOWN += [path for folder in FOLDERS for path in sorted(folder.rglob("*.py")) if path not in FALSE]


def test_no_text_names_a_distribution_that_no_index_has() -> None:
    named = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in SHOWN
        for match in DISTRIBUTION.finditer(path.read_text(encoding="utf-8"))
    ]
    assert named == []


def test_every_extra_that_a_text_names_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SHOWN)
    named = {*re.findall(r"install -e '\.\[(\w+)\]", text), *re.findall(r"install_hint\(['\"](\w+)", text)}
    assert named >= {"onnx", "lora", "baselines", "nvml", "xla", "tpu", "dev"}
    assert named <= EXTRAS.keys()


@pytest.mark.parametrize("inside", [True, False])
def test_a_checkout_is_installed_from_wherever_the_user_stands(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    monkeypatch.setattr(install, "checkout_folder", lambda: checkout)
    monkeypatch.chdir(checkout if inside else tmp_path.parent)
    command = shlex.split(install_hint("onnx", pip="pip"))
    assert command[:3] == ["pip", "install", "-e"]
    place, extra = command[3][:-6], command[3][-6:]
    assert extra == "[onnx]"
    assert (Path.cwd() / place).resolve() == checkout.resolve()
    assert place == "." or not inside


def test_this_checkout_is_known() -> None:
    assert install.checkout_folder() == ROOT


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_installed_wheel_names_the_packages_themselves(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    required = [f'{text}; extra == "{name}"' for name, texts in EXTRAS.items() for text in texts if ";" not in text]
    monkeypatch.setattr(install, "checkout_folder", lambda: None)
    monkeypatch.setattr(install.metadata, "requires", lambda _: ["torch>=2.9", *required])
    expected = [text for text in EXTRAS[extra] if ";" not in text]
    assert shlex.split(install_hint(extra, pip="pip")) == ["pip", "install", *expected]


def test_pip_is_the_running_interpreters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "pip").write_text("#!/bin/sh\n")
    (folder / "pip").chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    assert install_hint("onnx").startswith(".venv/bin/pip install ")
    monkeypatch.setenv("PATH", str(folder))
    assert install_hint("onnx").startswith("pip install ")


def make(folder: Path, python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """make in `folder`, which gets what an installation needs; `python` is the script that plays Python."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{python}")
    script.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt", "constraints-xla.txt"):
        shutil.copy(ROOT / name, folder)
    # As in a shell of its own: under `make test`, make would also print the folders it enters.
    unset = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "TORCH")
    alone = {name: value for name, value in os.environ.items() if name not in unset}
    command = ["make", f"PYTHON={script}", *arguments]
    return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False)


def test_an_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    done = make(tmp_path, '[ "$1" = --version ] && { echo Python 3.9.18; exit 0; }\nexit 1\n', "run")
    assert done.returncode == 2
    assert done.stdout == "isotrain needs Python 3.11 or newer; set PYTHON=python3.11 (found: Python 3.9.18)\n"


# Makes an environment with itself as its Python, and notes what it was called with.
NOTES = (
    'echo "$@" >> "$(dirname "$0")/called"\n[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"\nexit 0\n'
)


@pytest.mark.parametrize(
    ("target", "place", "versions"),
    [(".venv/.installed", ".venv", "constraints.txt"), ("xla-environment", ".venv-xla", "constraints-xla.txt")],
)
def test_one_variable_chooses_the_build_of_torch(target: str, place: str, versions: str, tmp_path: Path) -> None:
    version = re.findall(r"^torch==.*", (ROOT / versions).read_text(), re.MULTILINE)[0]
    for build, options in (("", ""), ("cpu", f"{version}+cpu --extra-index-url https://download.pytorch.org/whl/cpu")):
        folder = tmp_path / f"torch-{build}"
        folder.mkdir()
        done = make(folder, NOTES, target, f"TORCH={build}")
        assert done.returncode == 0, done.stderr
        called = (folder / place / "bin" / "called").read_text()
        assert options in called
        assert ("download.pytorch.org" in called) == bool(build)
        said = "torch 2.9 brings CUDA's libraries" in done.stdout
        assert said == (place == ".venv-xla" and not build)


def test_every_command_that_the_code_prints_exists() -> None:
    commands: dict[str, Any] = dict(get_command(app).commands)
    for name, command in list(commands.items()):
        commands |= {f"{name} {inner}": inside for inner, inside in getattr(command, "commands", {}).items()}
    checked = set()
    for path in SHOWN:
        if path.suffix != ".py" or path.is_relative_to(ROOT / "tests"):
            continue
        text = path.read_text(encoding="utf-8")
        printed = [found.split() for found in re.findall(r"isotrain ((?:[a-z][\w-]*|--?[a-z][\w-]*)[^`\"\n]*)", text)]
        called = re.findall(r"\bcommand\(((?:['\"][^'\"]*['\"](?:, )?)+)", text)
        for words in [*printed, *(re.findall(r"['\"]([^'\"]*)['\"]", found) for found in called)]:
            names = [" ".join(words[:2]), words[0]] if words else []
            name = next((name for name in names if name in commands), None)
            options = {word.rstrip(";,:.)") for word in words if re.match(r"--?[a-z]", word)}
            if name is None:
                continue
            parts = [commands[name], *getattr(commands[name], "commands", {}).values()]
            known = {option for part in parts for parameter in part.params for option in parameter.opts}
            missing = {option.partition("=")[0] for option in options} - known - {"--help", "-h"}
            assert not missing, f"{path.relative_to(ROOT)}: isotrain {' '.join(words)}"
            checked |= options
    assert checked >= {"--resume", "--keys", "-v", "--help"}
