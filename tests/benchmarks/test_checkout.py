"""The checkouts of `isotrain bench --against`: found, exported, built, named, or refused in one line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.runs.files import temporary_name
from isotrain.benchmarks.against import checkout
from isotrain.benchmarks.against.checkout import PACKAGE_ROOT, library, other, own

PYPROJECT = """
[project]
name = "isotrain"
version = "0"
[project.urls]
Repository = "https://example.org/isotrain"
[tool.setuptools]
packages = ["isotrain.kernels.cpu"]
[tool.setuptools.package-dir]
isotrain = "."
[[tool.setuptools.ext-modules]]
name = "isotrain.kernels.cpu._native"
sources = ["kernels/cpu/native/api.cpp"]
optional = true
"""
# What setup.py adds.
DYNAMIC = 'dynamic = ["readme"]\n[project.urls]'
SOUND, BROKEN = 'extern "C" int answer() { return 42; }\n', "#error no such instruction\n"


def git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), "-c", "user.name=A", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write(root: Path, native: str, version: str = "1") -> None:
    """A package like this one: a native part, and nothing else that a checkout is known by."""
    for name, text in (
        ("__init__.py", f"version = {version}\n"),
        ("pyproject.toml", PYPROJECT if version == "1" else PYPROJECT.replace("[project.urls]", DYNAMIC)),
        ("README.md", "# A package\n"),
        (".gitignore", "*.so\nbuild\n"),
        ("benchmarks/harness/worker.py", ""),
        ("benchmarks/against/side.py", ""),
        ("kernels/__init__.py", ""),
        ("kernels/cpu/__init__.py", ""),
        ("kernels/cpu/native/api.cpp", native),
        # The oldest revisions have none, and name their libraries otherwise.
        *([] if version == "1" else [("setup.py", (PACKAGE_ROOT / "setup.py").read_text(encoding="utf-8"))]),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two commits, from whose newer one isotrain runs, with its native part built."""
    root = tmp_path / "repository"
    for version in ("1", "2"):
        write(root, SOUND, version)
        if version == "1":
            git(root, "init", "--quiet")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", version)
    library(root, "cpu").touch()
    monkeypatch.setattr(checkout, "PACKAGE_ROOT", root)
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native parts are taken as they are."""
    monkeypatch.setattr(checkout, "build", lambda *_: None)


def test_a_revision_is_exported_and_built_once(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = other("HEAD~1")
    revision = git(repository, "rev-parse", "HEAD~1")
    assert found.label == f"HEAD~1 ({revision[:10]})"
    assert (found.root / "__init__.py").read_text(encoding="utf-8") == "version = 1\n"
    assert library(found.root, "cpu").is_file()
    monkeypatch.setattr(checkout, "BUILD", ("--no-such-option",))
    assert other(revision) == found.__class__(f"{revision} ({revision[:10]})", found.root, found.git, found.sources)
    assert git(repository, "worktree", "list").count("\n") == 0


def test_what_a_killed_run_left_is_removed(repository: Path, unbuilt: None) -> None:
    left = checkout.cache_folder("against")
    assert left is not None
    died = subprocess.Popen(["true"])
    died.wait()
    name = temporary_name("abc").split("-")
    place = len(name) - 3
    half = left / "-".join([*name[:place], str(died.pid), *name[place + 1 :]])
    half.mkdir()
    other("HEAD")
    assert not half.exists()


def test_old_exports_make_room(repository: Path, unbuilt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "KEPT_EXPORTS", 1)
    first = other("HEAD~1").root
    other("HEAD")
    assert first.is_dir(), "it may be in use"
    os.utime(first, (0, 0))
    other("HEAD")
    assert not first.exists()
    assert other("HEAD~1").root.is_dir()


def test_changed_files_are_said_and_hashed(repository: Path, unbuilt: None) -> None:
    clean = own()
    assert clean.label == f"this checkout ({git(repository, 'rev-parse', '--short=10', 'HEAD')})"
    assert clean.sources == other("HEAD").sources != other("HEAD~1").sources
    (repository / "benchmarks" / "new.py").write_text("", encoding="utf-8")
    dirty = own()
    assert dirty.sources != clean.sources
    assert f"+ 1 changed file, sources {dirty.sources[:10]})" in dirty.label


def test_a_folder_is_another_checkout_and_is_built_in_place(repository: Path, tmp_path: Path) -> None:
    write(tmp_path / "copy", SOUND, "3")
    found = other(str(tmp_path / "copy"))
    assert library(found.root, "cpu").is_file()
    assert found.label == f"{tmp_path / 'copy'} (sources {found.sources[:10]})"
    assert not (tmp_path / "copy" / "build").exists()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("nowhere", "'nowhere' is neither a folder nor a revision of this repository"),
        ("--all", "neither a folder nor a revision"),
        ("HEAD:pyproject.toml", "neither a folder nor a revision"),
        (".", "'.' has no sources of isotrain at its top"),
    ],
)
def test_what_is_no_checkout_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        other(named)


def test_a_revision_without_the_sources_is_refused(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "--orphan", "empty")
    git(repository, "rm", "--quiet", "-r", "--cached", ".")
    git(repository, "add", ".gitignore")
    git(repository, "commit", "--quiet", "-m", "only a file of git's")
    with pytest.raises(UserError, match="has no sources of isotrain at its top"):
        other("HEAD")


def test_a_checkout_that_takes_no_turns_is_refused_before_it_is_built(repository: Path, tmp_path: Path) -> None:
    write(tmp_path / "old", BROKEN)
    (tmp_path / "old" / "benchmarks" / "against" / "side.py").unlink()
    with pytest.raises(UserError, match="older than this option, and its processes can't take turns"):
        other(str(tmp_path / "old"))


def test_a_revision_that_does_not_build_is_refused_with_the_compilers_words(repository: Path, tmp_path: Path) -> None:
    write(repository, BROKEN, "2")
    git(repository, "commit", "--quiet", "-am", "broken")
    library(repository, "cpu").touch()
    with pytest.raises(UserError, match=r"'HEAD' doesn't build: kernels/cpu: .*error: #error no such instruction"):
        other("HEAD")
    assert list((tmp_path / "cache" / "against").iterdir()) == []


def test_a_build_needs_a_recent_setuptools(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "version", lambda _: "65.5.0")
    with pytest.raises(UserError, match=r"needs setuptools 77 or newer: pip install 'setuptools>=77'"):
        other("HEAD")


def test_without_native_parts_here_none_are_built(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(repository, "cpu").unlink()
    monkeypatch.setattr(checkout, "BUILD", ("--no-such-option",))
    assert not library(other("HEAD").root, "cpu").exists()


def test_a_native_part_older_than_its_sources_is_not_measured(repository: Path) -> None:
    own()
    source = repository / "kernels" / "cpu" / "native" / "api.cpp"
    newer = library(repository, "cpu").stat().st_mtime + 10
    os.utime(source, (newer, newer))
    with pytest.raises(UserError, match="kernels/cpu is older than its sources"):
        own()


def test_an_installed_copy_has_no_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "PACKAGE_ROOT", tmp_path)
    with pytest.raises(UserError, match="'HEAD' is no folder, and isotrain runs without git: not a git checkout"):
        other("HEAD")


def test_no_git_is_said(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match="isotrain runs without git: git is not installed"):
        other("HEAD")
