"""The emulation against vectors of the vendor's own stack: 0 mismatches where an algorithm is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from isotrain.kernels.native import NativeLibrary
from isotrain.kernels.tt import formats, native, vector
from isotrain.kernels.tt.unary import unary
from support import tt_golden

COMPACT = Path(__file__).resolve().parents[1] / "golden" / "tt"
DOCUMENT = Path(__file__).resolve().parents[1] / "golden" / "tt" / "README.md"


@pytest.fixture(params=["compact", pytest.param("full", marks=pytest.mark.shared)])
def vectors(request: pytest.FixtureRequest) -> Path:
    """The folder of the vectors: the part in the repository, and the full set where it is at hand."""
    if request.param == "compact":
        return COMPACT
    folder: Path = request.getfixturevalue("shared_data") / "tt-golden"
    if not folder.is_dir():
        pytest.skip("the full set of TT vectors is not beside this repository (../shared/data/tt-golden)")
    return folder


Show = Callable[[str], None]


def assert_all_equal(what: str, checks: Iterable[tt_golden.Checked], show: Show) -> None:
    """Demands 0 mismatches, and shows of how many values that is said."""
    done = list(checks)
    wrong = {check.name: check.mismatches for check in done if check.mismatches}
    total = sum(check.values for check in done)
    show(f"TT {what}: {len(done)} arrays, {total:,} values, {sum(wrong.values())} mismatches")
    assert done
    assert not wrong


@pytest.mark.parametrize("what", tt_golden.CHECKS)
def test_every_vector_has_the_vendors_bits(what: str, vectors: Path, show: Show) -> None:
    assert_all_equal(what, tt_golden.CHECKS[what](vectors), show)


@pytest.mark.parametrize("engine", native.ENGINES)
def test_every_engine_multiplies_tiles_with_the_vendors_bits(engine: str, vectors: Path, show: Show) -> None:
    if engine not in native.engines():
        pytest.skip(f"engine {engine} does not run here: {native.library().reason}")
    assert_all_equal(f"tile matmul, {engine}", tt_golden.matmul(vectors, engine), show)
    assert_all_equal(f"erratum, {engine}", tt_golden.erratum(vectors, engine), show)


def test_the_tables_of_functions_are_the_golden_ones(show: Show) -> None:
    assert_all_equal("unary tables", tt_golden.unary_digests(COMPACT), show)


@pytest.mark.shared
def test_the_tables_give_the_golden_results(shared_data: Path, show: Show) -> None:
    assert_all_equal("unary functions", tt_golden.unary_tables(shared_data / "tt-golden"), show)


def test_the_fast_exp_of_float32_values_is_the_tables() -> None:
    """The table is of bfloat16 values only; softmax gives the function differences in float32."""
    inputs = formats.from_bits(torch.arange(1 << 16) << 16)
    inputs = inputs[inputs.isfinite()]
    got = torch.from_numpy(vector.fast_exp(inputs.numpy()))
    assert torch.equal(formats.truncate(got, 7), unary("exp_fast", inputs))


# Of the table in the description of SFPARECIP: the first of its 128 mantissas, and the last.
DESCRIBED = (127, 125, 123, 121, 119, 117, 116, 114, 112, 110, 109, 107), (5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0)


def test_blackholes_approximate_reciprocal_is_the_described_one() -> None:
    steps = 1 + np.arange(128, dtype=np.float32) / 128
    mantissas = vector.approximate_reciprocal(steps).view(np.uint32) >> 16 & 127
    first, last = DESCRIBED
    assert tuple(mantissas[: len(first)]) == first
    assert tuple(mantissas[-len(last) :]) == last
    values = np.float32([1.0, 2.0**126, 2.0**-127, np.inf])
    assert vector.approximate_reciprocal(values).tolist() == [0.99609375, 0.0, np.inf, 0.0]


@pytest.mark.parametrize("arch", native.ARCHITECTURES)
def test_the_reciprocal_has_float32s_digits(arch: str) -> None:
    x = np.exp2(np.random.default_rng(0).uniform(-60, 60, 10_000)).astype(np.float32)
    assert np.abs(vector.reciprocal(x, arch).astype(np.float64) * x - 1).max() < 1e-7


def test_a_wrong_bit_would_be_counted() -> None:
    case = next(tt_golden.linear_cases(COMPACT))
    wrong = case.run(math_fidelity="lofi")
    assert tt_golden.compare("wrong", tt_golden.patterns(wrong), tt_golden.patterns(case.expected)).mismatches


def test_the_committed_vectors_stay_small() -> None:
    assert sum(path.stat().st_size for path in COMPACT.iterdir()) <= 1.5e6


@pytest.mark.parametrize("extension", [True, False], ids=["with the extension", "without"])
@pytest.mark.parametrize("gemm_dtype", [torch.float32, torch.bfloat16])
def test_fast_mode_has_the_errors_of_the_device(
    gemm_dtype: torch.dtype, extension: bool, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative RMS against float64 within 1.3 of golden's own on every linear case.

    With a bfloat16 Dst, fast mode runs the exact unit where the extension is, and its bits are then golden's.
    """
    if not extension:
        monkeypatch.setattr(native, "library", lambda: NativeLibrary(None, "it was not built"))
    built = native.library().library is not None
    print()
    for case in tt_golden.linear_cases(vectors):
        dtype = torch.float32 if case.out_dtype == "float32" else gemm_dtype
        fast = case.run(mode="fast", gemm_dtype=dtype)
        judge = case.exact()
        ours, golden = tt_golden.relative_rms(fast, judge), tt_golden.relative_rms(case.expected, judge)
        equal = float((fast == case.expected).float().mean())
        print(f"{case.name:42s} fast {ours:.2e}  golden {golden:.2e}  bit-equal {equal:.0%}")
        assert ours <= 1.3 * golden
        if built and not case.arithmetic.fp32_dest_acc_en and case.bias is None:
            assert equal == 1.0
        # More exact than the device is no emulation of it; float32 results have only their sums' last bits to lose.
        assert ours >= golden / 1.3 or case.out_dtype == "float32"


HEADER = """\
| operation | mode | bit-equal | largest ULP | RMS | golden's RMS |
|---|---|---|---|---|---|"""


def test_compositions_are_near_the_vendors_results(show: Show) -> None:
    """The part in the repository: a few rows of each, so that the table is printed wherever the suite runs."""
    rows = list(tt_golden.compositions(COMPACT))
    show("\n".join(["compositions, the part of the vectors in the repository:", HEADER, *(row.row for row in rows)]))
    for row in rows:
        assert row.golden_rms / 1.3 <= row.rms <= 1.3 * row.golden_rms, row
        # The accurate exp in float32 is the processor's, and attention isn't ttnn's kernel.
        if row.mode == "exact" and row.name not in ("softmax_hifi4_exact_fp32", "sdpa"):
            assert row.equal == 1.0, row


@pytest.mark.shared
def test_compositions_are_as_near_as_the_documentation_says(shared_data: Path, show: Show) -> None:
    rows = list(tt_golden.compositions(shared_data / "tt-golden"))
    table = "\n".join([HEADER, *(row.row for row in rows)])
    show(table)
    stated = DOCUMENT.read_text(encoding="utf-8").partition(HEADER)[2].partition("\n\n")[0].strip().splitlines()
    assert len(stated) == len(rows)
    for row, line in zip(rows, stated, strict=True):
        name, mode, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        equal, ulp, rms, golden = (float(figure.rstrip(" %").replace(",", "")) for figure in figures)
        assert (name, mode) == (row.name, row.mode)
        # Of torch's float32 functions, the last bit is the processor's.
        assert 100 * row.equal == pytest.approx(equal, abs=0.5), f"tests/golden/tt/README.md should have:\n{table}"
        assert row.max_ulp == pytest.approx(ulp, rel=0.1, abs=2)
        assert (row.rms, row.golden_rms) == pytest.approx((rms, golden), rel=0.01)
        assert row.golden_rms / 1.3 <= row.rms <= 1.3 * row.golden_rms
