"""The wheel, and the template of a backend beside it, installed as a user would have them: without the source tree.

Both are tested here since compiling the wheel takes long.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "examples" / "backend-template"
# Of an eager device's class.
MOST_LINES = 40
# setuptools' choice.
COMPILER = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy, for setuptools leaves a build folder in the tree it builds from.
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if not files:
        pytest.skip("the source tree is no git checkout, so its files can't be listed")
    for name in files:
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    # First the source distribution, then the wheel from what that holds: whatever it lacked would be missing here.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return next(folder.glob("*.whl"))


def fresh_environment(folder: Path, *wheels: Path) -> Path:
    """The folder of programs of a new environment that holds `wheels` alone; dependencies come by PYTHONPATH."""
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", *map(str, wheels)]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_environment(tmp_path_factory.mktemp("venv"), wheel)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the template, for setuptools leaves a build folder in the tree it builds from."""
    return Path(shutil.copytree(TEMPLATE, tmp_path_factory.mktemp("template") / "source"))


@pytest.fixture(scope="module")
def with_template(wheel: Path, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(template.parent)]
    built = subprocess.run([*build, str(template)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return fresh_environment(tmp_path_factory.mktemp("npu"), wheel, *template.parent.glob("*.whl"))


def run_program(installed: Path, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(site.getsitepackages())}
    command = [str(installed / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)


def run(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_program(installed, "isotrain", *arguments, cwd=cwd)


def test_the_wheel_holds_the_packages_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "isotrain/configs/banking77.yaml" in names
    assert "isotrain/py.typed" in names
    assert "isotrain/albert_core/data/intents.json" in names
    page = "isotrain/benchmarks/reports/html/page"
    assert {f"{page}.css", f"{page}.html.j2"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith("isotrain/tests") or not name.startswith("isotrain")]
    assert "isotrain/setup.py" not in names


def test_links_of_its_description_lead_somewhere_from_anywhere(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    links = re.findall(r"\]\(([^)]*)\)", metadata)
    repository = re.findall(r"^Project-URL: Repository, (.*)$", metadata, re.MULTILINE)[0]
    assert f"{repository}/raw/main/docs/report.png" in links
    assert f"{repository}/blob/main/docs/data.md" in links
    assert [link for link in links if not link.startswith("https://")] == []


def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"isotrain-.*-py3-none-linux_\w+\.whl", wheel.name)


def test_without_libraries_it_serves_every_platform(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as sources:
        sources.extractall(tmp_path, filter="data")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path)]
    environment = os.environ | {"ISOTRAIN_PURE": "1"}
    subprocess.run([*command, str(next(tmp_path.glob("isotrain-*")))], env=environment, check=True, capture_output=True)
    pure = next(tmp_path.glob("*-py3-none-any.whl"))
    libraries = {f"isotrain/kernels/{package}/_native.so" for package in ("cpu", "tt")}
    both = [set(zipfile.ZipFile(path).namelist()) for path in (wheel, pure)]
    assert both[0] - both[1] <= libraries
    assert not libraries & both[1]
    assert not both[1] - both[0]


@pytest.mark.skipif(shutil.which(COMPILER.split()[0]) is None, reason=f"no C++ compiler here ({COMPILER})")
@pytest.mark.parametrize("package", ["cpu", "tt"])
def test_the_wheel_holds_the_native_kernels(wheel: Path, package: str) -> None:
    # A failed build of an optional extension leaves a wheel without it, and no error.
    assert f"isotrain/kernels/{package}/_native.so" in zipfile.ZipFile(wheel).namelist()


def test_doctor_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    result = run(installed, "doctor", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reports = {item["backend"]: item for item in json.loads(result.stdout)["backends"]}
    assert reports["cpu"]["status"] == "PASS"
    assert [check["ok"] for check in reports["cpu"]["checks"]] == [True, True, True]
    assert reports["tt"]["status"] == "absent"
    assert reports["tt"]["fix"]


def test_pytest_finds_the_conformance_checks_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    options = "-m pytest --pyargs isotrain.conformance --backend cpu --only device/place -p no:cacheprovider"
    done = run_program(installed, "python", *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_a_packaged_configuration_trains_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    sets = ["model_name=random:tiny", "max_steps=5", "run_name=first"]
    options = [part for item in sets for part in ("--set", item)]
    result = run(installed, "train", "quickstart", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "first" / "summary.json").is_file()
    result = run(installed, "report", "runs", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "<h1>isotrain report: runs</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_template_holds_the_contract(with_template: Path, tmp_path: Path) -> None:
    done = run(with_template, "conformance", "--backend", "npu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 fail, " in done.stdout


def test_plain_pytest_runs_the_conformance_checks_of_the_template(with_template: Path, template: Path) -> None:
    done = run_program(with_template, "python", "-m", "pytest", "--only", "device/place", "-v", cwd=template)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_conformance[device/place-bits] PASSED" in done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.slow
def test_the_template_trains(with_template: Path, tmp_path: Path) -> None:
    sets = ["model_name=random:tiny", "max_steps=5", "dataset_id=embedded:intents?train=154&test=77"]
    options = [part for item in sets for part in ("--set", item)]
    done = run(with_template, "train", "quickstart", "--backend", "npu", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(with_template, "train", "quickstart", "--backend", "npu", "--set", "npu.products=int8", cwd=tmp_path)
    assert done.returncode == 2
    assert "npu.products: 'int8' is not allowed" in done.stderr


def test_an_eager_device_is_short() -> None:
    source = (TEMPLATE / "isotrain_npu" / "__init__.py").read_text()
    (kind,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "NpuBackend")
    assert kind.end_lineno is not None
    assert kind.end_lineno - kind.lineno < MOST_LINES
