"""The native code under the address and undefined-behaviour sanitizers, on shapes with every kind of remainder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def compiled(compiler: str, driver: Path, folder: Path, kernel: str) -> Path:
    """`driver` with the sources of kernels/`kernel` as a program; the test is skipped where nothing can build one."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    if subprocess.run([compiler, *SANITIZERS, str(probe), "-o", str(folder / "probe")], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers here")
    sources = sorted((ROOT / "kernels" / kernel / "native").glob("*.cpp"))
    program = folder / "driver"
    built = subprocess.run(
        [compiler, "-std=c++17", "-O1", "-g", *WARNINGS, *SANITIZERS]
        + [str(path) for path in (driver, *sources)]
        + ["-pthread", "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize(
    ("kernel", "driver"), [("cpu", "encoder_driver.cpp"), ("cpu", "head_driver.cpp"), ("tt", "tt_driver.cpp")]
)
def test_every_access_stays_inside_its_buffer(kernel: str, driver: str, compiler: str, tmp_path: Path) -> None:
    program = compiled(compiler, Path(__file__).with_name(driver), tmp_path, kernel)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    if result.stdout.startswith("0 runs"):
        pytest.skip("this processor has none of the native kernel's instruction sets")
