"""What formats lose, the command that says it, and the estimate of a card's speed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.cli.main import main
from isotrain.kernels.tt import formats
from isotrain.kernels.tt.estimate import card_named, peak_tflops
from isotrain.kernels.tt.losses import format_losses
from support import tt_tiles as tiles

pytestmark = pytest.mark.core


def test_losses_are_what_the_values_say() -> None:
    # 1 and the 15 zeros around it share an exponent with nothing; 1/1024 beside 1 is below half of bfp4's unit.
    row = torch.zeros(1, 32)
    row[0, 0], row[0, 1], row[0, 16] = 1.0, 1.0 / 1024, 1.999
    losses = {(loss.dtype, loss.fidelity): loss for loss in format_losses([("row", row)], block_axis="last")}
    four = losses["bfp_bf4", "hifi4"]
    assert four.flushed == 1
    assert four.saturated == 1
    assert four.max_abs == pytest.approx(1.999 - 1.75)
    assert four.relative_rms == pytest.approx(float(np.hypot(0.249, 1 / 1024) / np.sqrt(1 + 1.999**2)), rel=1e-3)
    assert losses["bfloat16", "hifi4"].flushed == 0
    wide = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    losses = {(loss.dtype, loss.fidelity): loss for loss in format_losses([("wide", wide)])}
    assert losses["bfloat16", "lofi"].relative_rms > losses["bfloat16", "hifi4"].relative_rms


def test_blocks_lie_along_the_dimension_named() -> None:
    # Columns of one magnitude each: exact along them, flushed across.
    weight = torch.ones(16, 16) * 2.0 ** -torch.arange(16.0)
    lost = {axis: next(format_losses([("w", weight)], ["bfp_bf4"], ["hifi4"], axis)) for axis in ("first", "last")}
    assert lost["first"].flushed == 0
    assert lost["last"].flushed > 100


def test_nan_and_integers_are_no_loss() -> None:
    rows = list(format_losses([("w", torch.tensor([1.0, float("nan")])), ("ids", torch.arange(3))], ["bfp_bf8"]))
    assert {(row.tensor, row.values, row.non_finite, row.relative_rms) for row in rows} == {("w", 1, 1, 0.0)}


def test_the_command_reads_npz_and_saved_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    weight = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "w.npz", weight=weight.numpy(), ids=np.arange(4))
    (tmp_path / "saved").mkdir()
    save_file({"weight": weight.T.contiguous()}, tmp_path / "saved" / "model.safetensors")
    outputs = []
    for path in (tmp_path / "w.npz", tmp_path / "saved"):
        with pytest.raises(SystemExit) as end:
            main(["tt-formats", str(path), "--json"])
        assert end.value.code == 0
        outputs.append(json.loads(capsys.readouterr().out)["losses"])
    assert len(outputs[0]) == 3 * 4
    for ours, theirs in zip(*outputs, strict=True):
        assert ours["relative_rms"] == pytest.approx(theirs["relative_rms"], rel=1e-9)
    with pytest.raises(SystemExit):
        main(["tt-formats", str(tmp_path / "w.npz")])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any(words[:2] == ["weight", "20x40"] for words in shown)
    assert any(words[:2] == ["bfp_bf8", "lofi"] for words in shown)


def test_the_table_names_every_tensor_and_what_no_format_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    np.savez(tmp_path / "w.npz", long_name=np.eye(16) * 1e300, half=np.ones(4, np.float16))
    with pytest.raises(SystemExit) as end:
        main(["tt-formats", str(tmp_path / "w.npz"), "--dtype", "bfp_bf8"])
    assert end.value.code == 0
    captured = capsys.readouterr()
    for shown in ("long_name", "half", "lofi-hifi4", "not finite"):
        assert shown in captured.out
    assert not captured.err
    assert not recwarn.list


@pytest.mark.parametrize("name", ["missing.npz", "missing", "empty.npz", "integers.npz", "objects.npz", "w.pt", "."])
def test_what_holds_no_weights_ends_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "integers.npz", ids=np.arange(4))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    (tmp_path / "w.pt").write_bytes(b"weights")
    with pytest.raises(SystemExit) as end:
        main(["tt-formats", str(tmp_path / name)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("isotrain: error:")
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"weights"])
def test_damaged_files_end_in_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("w.npz", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SystemExit) as end:
            main(["tt-formats", str(tmp_path / name)])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("isotrain: error:")
        assert error.count("\n") == 1


def test_bytes_of_a_wrong_length_are_refused() -> None:
    with pytest.raises(UserError, match="7 x 45 elements of bfp_bf8 are 2176 bytes, not 100"):
        tiles.from_bytes(np.zeros(100, np.uint8), "bfp_bf8", 7, 45)
    with pytest.raises(UserError, match="TT dtype 'fp8' is unknown"):
        formats.host_convert(torch.ones(2), "fp8")


def test_tilise_and_back() -> None:
    matrix = torch.arange(45.0 * 70).reshape(45, 70)
    cut = tiles.tilise(matrix)
    assert cut.shape == (6, 4, 16, 16)
    assert cut[0, 1, 0, 0] == matrix[0, 16]
    assert cut[0, 2, 0, 0] == matrix[16, 0]
    assert torch.equal(tiles.untilise(cut, 45, 70), matrix)


@pytest.mark.parametrize(
    ("card", "peaks"),
    [("n150", (295, 147, 98, 74)), ("n300", (524, 262, 175, 131)), ("p150", (774, 387, 258, 194))],
)
def test_peaks_are_the_published_ones(card: str, peaks: tuple[int, ...]) -> None:
    got = [peak_tflops(card_named(card), fidelity) for fidelity in ("lofi", "hifi2", "hifi3", "hifi4")]
    assert got == pytest.approx(peaks, rel=0.006)


def test_an_estimate_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main(["tt-estimate", "--model", "random:tiny", *extra])
        assert "estimate" in capsys.readouterr().out
    for wrong in (["--card", "n999"], ["--length", "100000"], ["--sequences", "0"], ["--weight-dtype", "int8"]):
        with pytest.raises(SystemExit) as end:
            main(["tt-estimate", "--model", "random:tiny", *wrong])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
