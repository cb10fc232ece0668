"""One way to write: whole or not at all, through no link, with the umask's mode, and never into a folder made again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from isotrain import RunError, UserError
from isotrain.albert_core.runs import files
from isotrain.benchmarks.harness.document import Sweep
from isotrain.benchmarks.outcome.build import write_result

pytestmark = pytest.mark.core


def test_a_file_appears_whole_with_the_umasks_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").read_text() == "text"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.txt").symlink_to(victim)
    files.write_text(tmp_path / "a.txt", "text")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a.txt").is_symlink()


def test_a_pipe_or_device_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_DEVICES", tmp_path / "dev")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "dev").mkdir()
    (tmp_path / "out.json").touch()
    # With `> out.json`.
    (tmp_path / "dev" / "stdout").symlink_to(tmp_path / "out.json")
    for name in ("pipe", "link", "dev/stdout"):
        with pytest.raises(UserError, match=f"can't write .*{name}: it is a device or a pipe; choose another name"):
            files.write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "dev").iterdir() if path.is_symlink()] == ["stdout"]
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link", "dev", "out.json"}


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ValueError, match="no"), files.written(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), files.published(tmp_path / "folder") as folder:
        (folder / "x").write_text("half")
        raise ValueError("no")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_removed_folder_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        files.write_text(tmp_path / "gone" / "a.txt", "text")
    with pytest.raises(UserError, match="No such file or directory"), files.published(tmp_path / "gone" / "folder"):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_failed_run() -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space left") as refused, device.open("wb", buffering=0) as file:
        file.write(b"x")
    assert isinstance(files.write_error(Path("a.txt"), refused.value), RunError)


@pytest.mark.parametrize(
    "words",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_a_full_disk_in_a_librarys_words_is_a_failed_run(tmp_path: Path, words: str) -> None:
    with pytest.raises(RunError, match=r"can't write .*folder \("), files.published(tmp_path / "folder") as folder:
        (folder / "file").touch()
        raise RuntimeError(words)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="another"), files.published(tmp_path / "folder"):
        raise RuntimeError("another")


def test_a_folder_is_published_once(tmp_path: Path) -> None:
    with files.published(tmp_path / "folder") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x").write_text("1")
    assert (tmp_path / "folder" / "deep" / "x").read_text() == "1"
    with pytest.raises(FileExistsError), files.published(tmp_path / "folder") as folder:
        (folder / "deep").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_sweeping_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    program = "from isotrain.albert_core.runs.files import temporary_name; print(temporary_name('a.txt'))"
    dead = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    alive = dead.replace(f"-{dead.split('-')[-3]}-", f"-{os.getppid()}-")
    (tmp_path / dead).write_text("half")
    (tmp_path / f"{dead}-folder").mkdir()
    (tmp_path / alive).write_text("half")
    (tmp_path / "a.txt").write_text("whole")
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive, "a.txt"])


def test_a_scratch_folder_of_a_killed_process_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import time; from isotrain.albert_core.runs.files import scratch_folder\n"
        "with scratch_folder('work') as folder:\n (folder / 'x').touch(); print(folder, flush=True); time.sleep(60)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        others = Path(other.stdout.readline().strip())
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with files.scratch_folder("work") as own:
            other.kill()
            other.wait()
            assert list(others.iterdir()) == [others / "x"]
            with files.scratch_folder("more"):
                assert own.is_dir(), "it is in use"
                assert not others.exists()
            assert own.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("text")
    described = files.checksums(tmp_path, ["a.txt"])["a.txt"]
    files.check_file(file, described, "copy it again")
    file.write_text("tex7")
    with pytest.raises(UserError, match=r"a\.txt is damaged: its SHA-256.*copy it again"):
        files.check_file(file, described, "copy it again")
    file.write_text("longer text")
    with pytest.raises(UserError, match="11 bytes instead of 4"):
        files.check_file(file, described, "copy it again")
    file.unlink()
    with pytest.raises(UserError, match=r"a\.txt is missing"):
        files.check_file(file, described, "copy it again")
    with pytest.raises(UserError, match="says nothing usable"):
        files.check_file(file, {"size": 4}, "copy it again")


def test_names_as_long_as_the_file_system_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    files.write_text(path, "text")
    assert path.read_text() == "text"


def test_what_a_killed_writer_left_beside_a_result_goes_with_the_next_result(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True, text=True
    )
    left = tmp_path / files.temporary_name("bench.json").replace(f"-{os.getpid()}-", f"-{dead.stdout.strip()}-")
    left.write_text("half")
    write_result(Sweep(sweep=[]), tmp_path / "bench.json")
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
