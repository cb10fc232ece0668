"""The native code under the address and undefined-behaviour sanitizers, on shapes with every kind of remainder."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def build(compiler: str, *arguments: str | Path) -> None:
    built = subprocess.run([compiler, *SANITIZERS, *map(str, arguments)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


def compiled(compiler: str, source: Path, folder: Path) -> Path:
    """The object file of `source` in `folder`."""
    target = folder / f"{source.stem}.o"
    build(compiler, "-std=c++17", "-O1", "-g", *WARNINGS, "-c", source, "-o", target)
    return target


@pytest.fixture(scope="module", params=["g++", "clang++"])
def compiler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiler that is here and has the sanitizers."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here")
    probe = tmp_path_factory.mktemp("probe") / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    command = [request.param, *SANITIZERS, str(probe), "-o", str(probe.with_suffix(""))]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers here")
    return str(request.param)


@pytest.fixture(scope="module")
def objects(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """The object files of a kernel's sources, compiled once for all drivers."""

    @cache
    def of(kernel: str) -> list[Path]:
        folder = tmp_path_factory.mktemp(kernel)
        return [
            compiled(compiler, path, folder) for path in sorted((ROOT / "kernels" / kernel / "native").glob("*.cpp"))
        ]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "driver"),
    [
        ("cpu", "encoder_driver.cpp"),
        ("cpu", "attention_driver.cpp"),
        ("cpu", "head_driver.cpp"),
        ("cpu", "training_driver.cpp"),
        ("tt", "tt_driver.cpp"),
    ],
)
def test_every_access_stays_inside_its_buffer(
    kernel: str, driver: str, compiler: str, objects: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    program = tmp_path / "driver"
    build(
        compiler,
        compiled(compiler, Path(__file__).with_name(driver), tmp_path),
        *objects(kernel),
        "-pthread",
        "-o",
        program,
    )
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    if result.stdout.startswith("0 runs"):
        pytest.skip("this processor has none of the native kernel's instruction sets")
