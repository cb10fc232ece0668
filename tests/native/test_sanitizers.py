"""The native code under the address and undefined-behaviour sanitizers, on shapes with every kind of remainder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiled(driver: Path, folder: Path, *extra: str, kernel: str = "cpu") -> Path:
    """`driver` with the sources of kernels/`kernel` as a program; the test is skipped where nothing can build one."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    if subprocess.run([compiler, *SANITIZERS, str(probe), "-o", str(folder / "probe")], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers here")
    sources = sorted((ROOT / "kernels" / kernel / "native").glob("*.cpp"))
    program = folder / "driver"
    built = subprocess.run(
        [compiler, "-std=c++17", "-O1", "-g", "-Wno-maybe-uninitialized", *SANITIZERS, *extra]
        + [str(path) for path in (driver, *sources)]
        + ["-pthread", "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "driver"), [("cpu", "encoder_driver.cpp"), ("cpu", "head_driver.cpp"), ("tt", "tt_driver.cpp")]
)
def test_every_access_stays_inside_its_buffer(kernel: str, driver: str, tmp_path: Path) -> None:
    program = compiled(Path(__file__).with_name(driver), tmp_path, kernel=kernel)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    if result.stdout.startswith("0 runs"):
        pytest.skip("this processor has none of the native kernel's instruction sets")
