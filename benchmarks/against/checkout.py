"""The two checkouts: where they come from, what state they are in, and their native parts.

A git revision is exported into a folder of the cache, built there once, and used again. Nothing is written into the
repository.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ... import UserError
from ...albert_core.runs.files import published, scratch_folder, sweep
from ...albert_core.terminal.text import quoted, shorten
from ...backends.host.cache import cache_folder
from ...kernels.install import rebuild_hint
from ...kernels.words import count
from ..harness.environment import PACKAGE_ROOT, git, git_state
from ..outcome.model import Git

# The folders of the package, and the files in them that decide what a process does.
FOLDERS = ("kernels", "backends", "albert_core", "benchmarks", "conformance", "api", "cli", "configs")
SUFFIXES = {".py", ".cpp", ".h", ".yaml", ".json", ".npz"}
RESULTS = ("benchmarks", "results")
# The oldest setuptools that builds what pyproject.toml describes.
LEAST_SETUPTOOLS = 77
BUILD = ("--quiet", "build_ext", "--inplace")
BUILD_SECONDS = 900.0
# How many exports of revisions stay, 9 MB each.
KEPT_EXPORTS = 8


@dataclass(frozen=True)
class Checkout:
    """One side. root: the folder that is the package. git: as in a result. sources: SHA-256 of what runs."""

    label: str
    root: Path
    git: Git | str
    sources: str


def own() -> Checkout:
    """The checkout or installation that runs. Raises UserError where its native libraries are older than its sources.

    A regression in a library that nobody built would not be seen.
    """
    stale = [name for name in native_parts(PACKAGE_ROOT) if not is_built(PACKAGE_ROOT, name)]
    if any(library(PACKAGE_ROOT, name).is_file() for name in stale):
        raise UserError(
            f"the native library of kernels/{stale[0]} is older than its sources, so that it isn't what would be "
            f"measured; build it: {rebuild_hint()}"
        )
    return _described("this checkout", PACKAGE_ROOT, _state(PACKAGE_ROOT))


def other(named: str) -> Checkout:
    """The checkout of `--against`: a folder, or a git revision of the running one. Builds its native parts.

    Raises UserError for anything else, and for a checkout that doesn't build.
    """
    folder = Path(named).expanduser()
    if folder.is_dir():
        root = folder.resolve()
        _check_package(root, named)
        build(root, named)
        return _described(named, root, _state(root))
    revision = _revision(named)
    root = _exported(revision, named)
    return _described(f"{named} ({revision[:10]})", root, Git(revision=revision, dirty=False), told=True)


def _check_package(root: Path, named: str) -> None:
    """Raises UserError for a folder that isn't the package, and for a package whose processes can't take turns."""
    if not all((root / name).is_file() for name in ("__init__.py", "pyproject.toml", "benchmarks/harness/worker.py")):
        raise UserError(f"--against {quoted(named)} has no sources of isotrain at its top; give a checkout of isotrain")
    if not (root / "benchmarks" / "against" / "side.py").is_file():
        raise UserError(
            f"--against {quoted(named)} is older than this option, and its processes can't take turns; give a newer one"
        )


def native_parts(root: Path) -> list[str]:
    """The folders of kernels/ that have C++ sources."""
    return sorted(path.parent.name for path in (root / "kernels").glob("*/native"))


def library(root: Path, name: str) -> Path:
    """The native library of kernels/`name`."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if _is_old(root) else ".so"
    return root / "kernels" / name / f"_native{suffix}"


def _is_old(root: Path) -> bool:
    """Whether a checkout has no setup.py yet. Its libraries are named by the interpreter."""
    return (root / "pyproject.toml").is_file() and not (root / "setup.py").is_file()


def is_built(root: Path, name: str) -> bool:
    """Whether the native library is there and no older than its sources."""
    built = library(root, name)
    folders = (root / "kernels" / name / "native", root / "kernels" / "include")
    sources = [path.stat().st_mtime for folder in folders for path in folder.rglob("*") if path.is_file()]
    return built.is_file() and built.stat().st_mtime >= max(sources, default=0.0)


def build(root: Path, named: str) -> None:
    """Builds those native libraries that the running checkout has and `root` lacks. Raises UserError if it can't."""

    def lacking() -> list[str]:
        return [
            name for name in native_parts(root) if library(PACKAGE_ROOT, name).is_file() and not is_built(root, name)
        ]

    if not lacking():
        return
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = "0"
    if int(found.partition(".")[0]) < LEAST_SETUPTOOLS:
        raise UserError(
            f"building --against {quoted(named)} needs setuptools {LEAST_SETUPTOOLS} or newer: "
            f"pip install 'setuptools>={LEAST_SETUPTOOLS}'"
        )
    with scratch_folder("isotrain-build") as folder:
        script = ("-c", "import setuptools; setuptools.setup()") if _is_old(root) else ("setup.py",)
        command = [sys.executable, *script, *BUILD, "--build-temp", folder, "--build-lib", f"{folder}/lib"]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"--against {quoted(named)} doesn't build within {BUILD_SECONDS:g} s") from error
    failed = lacking()
    if failed:
        lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        why = next((line for line in lines if "error:" in line), lines[-1] if lines else "it said nothing")
        raise UserError(f"--against {quoted(named)} doesn't build: kernels/{failed[0]}: {shorten(why)}")


def _revision(named: str) -> str:
    """The full hash of a revision of the checkout that runs."""
    state = git_state(PACKAGE_ROOT)
    if isinstance(state, str):
        why = state.removeprefix("unavailable: ")
        raise UserError(f"--against {quoted(named)} is no folder, and isotrain runs without git: {why}; give a folder")
    found = None if named.startswith("-") else git(PACKAGE_ROOT, "rev-parse", "--verify", f"{named}^{{commit}}")
    if found is None:
        raise UserError(
            f"--against {quoted(named)} is neither a folder nor a revision of this repository; `git log` lists those"
        )
    return found


def _exported(revision: str, named: str) -> Path:
    """The sources of a revision with its native parts built, for this interpreter."""
    cache = cache_folder("against")
    if cache is None:
        raise UserError("--against needs a folder to build in; set ISOTRAIN_CACHE to one that can be written")
    sweep(cache)
    _forget(cache)
    root = cache / f"{revision}-{sysconfig.get_config_var('SOABI')}"
    if root.is_dir():
        os.utime(root)
        # A compiler may have come since.
        build(root, named)
        return root
    with suppress(FileExistsError), published(root) as folder:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE_ROOT), "archive", "--format=tar", revision], capture_output=True, check=False
        )
        if done.returncode != 0:
            raise UserError(f"--against {quoted(named)}: git archive fails: {shorten(done.stderr.decode().strip())}")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        _check_package(folder, named)
        build(folder, named)
    return root


def _forget(cache: Path) -> None:
    """Removes the exports that were used longest ago; one that was used within a day may be in use."""
    known = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in known[:-KEPT_EXPORTS]:
        # The file system's clock is the wall's, and no duration is measured.
        if time.time() - path.stat().st_mtime > 86_400:
            shutil.rmtree(path, ignore_errors=True)


def _state(root: Path) -> Git | str:
    state = git_state(root)
    return state if isinstance(state, str) else Git.model_validate(state)


def _described(label: str, root: Path, state: Git | str, told: bool = False) -> Checkout:
    """told: the label names the revision already."""
    digest = sources_digest(root)
    if isinstance(state, str):
        label = f"{label} (sources {digest[:10]})"
    elif state.dirty:
        changed = count(state.changed_files, "changed file")
        label = f"{label} ({state.revision[:10]} + {changed}, sources {digest[:10]})"
    elif not told:
        label = f"{label} ({state.revision[:10]})"
    return Checkout(label, root, state, digest)


def sources_digest(root: Path) -> str:
    """SHA-256 of the names and contents of every file of the package that decides what a process does."""
    digest = hashlib.sha256()
    files = [root / "__init__.py", *(path for folder in FOLDERS for path in (root / folder).rglob("*"))]
    for path in sorted(files):
        below = path.relative_to(root)
        if path.suffix in SUFFIXES and below.parts[:2] != RESULTS and path.is_file():
            content = path.read_bytes()
            digest.update(f"{below.as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()
