"""The Dockerfiles, looked at instruction by instruction: there is no builder here."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from isotrain.cli.main import app
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KNOWN = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}

Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def faults(text: str) -> list[str]:
    """What a builder would refuse, and what makes an image larger, less repeatable or less safe than it need be."""
    found, stages, user = [], set(), "root"
    for name, rest in instructions(text):
        words = rest.split()
        if name not in KNOWN:
            found.append(f"unknown: {name}")
        if name == "FROM":
            user = "root"
            if not re.fullmatch(r"[\w./-]+:[\w.-]+( AS \w+)?", rest) or ":latest" in rest:
                found.append(f"no version: {rest}")
            stages |= set(words[2:])
        if name == "COPY":
            source = next(word for word in words if not word.startswith("--"))
            stage = [word.partition("=")[2] for word in words if word.startswith("--from=")]
            if stage and stage[0] not in stages:
                found.append(f"unknown stage: {stage[0]}")
            if not stage and not (ROOT / source).exists():
                found.append(f"not there: {source}")
        if name == "RUN":
            found += [f"shell: {error}" for error in shell_errors(rest)]
            for step in re.split(r" && ", rest):
                if step.startswith("apt-get install") and not {"--yes", "--no-install-recommends"} <= set(step.split()):
                    found.append(f"asks or recommends: {step}")
                if re.match(r"pip (install|wheel)", step) and "--no-cache-dir" not in step:
                    found.append(f"keeps a cache: {step}")
                if step.startswith("pip install") and "--constraint" not in step:
                    found.append(f"any version: {step}")
            if "apt-get install" in rest and not re.match(r"apt-get update && .*rm -rf /var/lib/apt/lists/\*", rest):
                found.append(f"an old list, or one that is kept: {rest}")
        if name == "USER":
            user = rest
        if name in ("ENTRYPOINT", "CMD") and not rest.startswith("["):
            found.append(f"a shell would get the signals: {name} {rest}")
    return found + (["ends as root"] if user == "root" else [])


def shell_errors(script: str) -> list[str]:
    done = subprocess.run(["sh", "-n", "-c", script], capture_output=True, text=True, check=False)
    return [done.stderr.strip()] if done.returncode else []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dockerfile_has_no_fault(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python:3.11-slim AS", "python AS", "no version"),
        ("--from=wheel", "--from=wheels", "unknown stage"),
        ("COPY constraints.txt", "COPY constraint.txt", "not there"),
        ("--no-install-recommends ", "", "asks or recommends"),
        ("rm -rf /var/lib/apt/lists/*", "true", "an old list"),
        ("pip wheel --no-cache-dir", "pip wheel", "keeps a cache"),
        ("--constraint /wheel/constraints.txt", "", "any version"),
        ("USER isotrain\n", "", "ends as root"),
        ('ENTRYPOINT ["isotrain"]', "ENTRYPOINT isotrain", "a shell would get the signals"),
        ("RUN pip wheel", "RUN if pip wheel", "shell"),
        ("WORKDIR /source", "WORKDIRS /source", "unknown"),
    ],
)
def test_a_planted_fault_is_found(old: str, new: str, fault: str) -> None:
    text = (ROOT / "docker" / "cpu.Dockerfile").read_text(encoding="utf-8")
    assert old in text
    assert any(found.startswith(fault) for found in faults(text.replace(old, new)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_image_runs_what_the_wheel_installs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    last = dict(instructions(text))
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert json.loads(last["ENTRYPOINT"])[0] in PROJECT["scripts"]
    run = re.findall(r"docker run .*?isotrain[\w-]* ([\w-]+)", text)
    assert {*run, json.loads(last["CMD"])[0]} <= commands.keys()
    assert run
    built = re.findall(r"docker build -f (\S+) -t (\S+) \.", text)
    assert [name for name, _ in built] == [str(path.relative_to(ROOT))]
    versions = re.findall(r"^FROM python:([\d.]+)", text, re.MULTILINE)
    assert {f"Programming Language :: Python :: {version}" for version in versions} <= set(PROJECT["classifiers"])


def test_a_builder_gets_what_git_has() -> None:
    """No more, so that no library built here gets into an image; no less, or git calls the version changed."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    places = [pattern.rstrip("/") for pattern in ignored]
    wanted = [place[1:] if place.startswith("/") else f"**/{place}" for place in places]
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(line for line in lines if not line.startswith("#")) == sorted(wanted)
