"""The C++ matrix unit against the numpy model, on operands that golden vectors don't reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.kernels import native as loader
from isotrain.kernels.tt import model, native
from support.tt_golden import floats, patterns

ENGINES = native.ENGINES[:-1]
# Exponents from .. to: everything, about 1, nearly equal (ties, cancellation), underflow, overflow.
EXPONENTS = [(0, 255), (120, 135), (126, 129), (0, 20), (235, 255)]


def random_bits(rng: np.random.Generator, shape: tuple[int, int], exponents: tuple[int, int]) -> np.ndarray:
    """Bit patterns: any sign and mantissa (sometimes of bfloat16), a fair share of zeros and denormals."""
    mantissa = rng.integers(0, 1 << 23, shape, dtype=np.uint32)
    if rng.integers(2):
        mantissa &= 0x7F0000
    bits = rng.integers(0, 2, shape, dtype=np.uint32) << 31 | rng.integers(*exponents, shape, dtype=np.uint32) << 23
    bits |= mantissa
    bits[rng.random(shape) < 0.1] &= 0x80000000
    bits[rng.random(shape) < 0.05] &= 0x807FFFFF
    return bits


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("arch", native.ARCHITECTURES)
@pytest.mark.parametrize("fp32_dest", [False, True])
def test_random_operands_give_the_models_bits(engine: str, arch: str, fp32_dest: bool) -> None:
    if engine not in native.engines():
        pytest.skip(f"engine {engine} does not run here: {native.library().reason}")
    rng = np.random.default_rng(5)
    for trial in range(25):
        m, k, n = (int(rng.integers(1, top)) for top in (20, 80, 70))
        a = random_bits(rng, (m, k), EXPONENTS[trial % 5])
        b = random_bits(rng, (k, n), EXPONENTS[trial // 5])
        if trial % 3 == 0:
            # Every product meets its negative.
            a[:, 1::2] = a[:, 0 : k - 1 : 2][:, : a[:, 1::2].shape[1]] ^ 0x80000000
            b[:] = b[0]
        dst = random_bits(rng, (m, n), EXPONENTS[rng.integers(5)]) & (0xFFFFFFFF if fp32_dest else 0xFFFF0000)
        for fidelity in model.PHASES:
            expected = model.matmul(a, b, fidelity, fp32_dest, arch, dst)
            got = native.matmul(
                floats(a), floats(b), fidelity, fp32_dest=fp32_dest, arch=arch, dst=floats(dst), engine=engine
            )
            assert np.array_equal(patterns(got), expected), (trial, fidelity)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fp32_dest", [False, True])
def test_random_elements_give_the_models_bits(engine: str, fp32_dest: bool) -> None:
    if engine not in native.engines():
        pytest.skip(f"engine {engine} does not run here: {native.library().reason}")
    rng = np.random.default_rng(6)
    for trial in range(25):
        shape = (int(rng.integers(1, 30)), int(rng.integers(1, 90)))
        a = floats(random_bits(rng, shape, EXPONENTS[trial % 5]))
        b = floats(random_bits(rng, shape, EXPONENTS[trial // 5]))
        if trial % 4 == 0:
            b = -a
        for operation in native.OPERATIONS:
            for fidelity in model.PHASES if operation == "multiply" else ("hifi4",):
                for arch in native.ARCHITECTURES:
                    settings = {"fp32_dest": fp32_dest, "arch": arch}
                    got, expected = (
                        native.elementwise(operation, a, b, fidelity, engine=name, **settings)
                        for name in (engine, "numpy")
                    )
                    assert np.array_equal(patterns(got), patterns(expected)), (trial, operation, fidelity, arch)


def test_neither_threads_nor_strides_change_a_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 96, generator=generator)
    b = torch.randn(96, 130, generator=generator)
    expected = native.matmul(a, b, "hifi4", fp32_dest=True, threads=1)
    assert torch.equal(native.matmul(a, b, "hifi4", fp32_dest=True, threads=4), expected)
    assert torch.equal(native.matmul(a.T.contiguous().T, b.T.contiguous().T, "hifi4", fp32_dest=True), expected)
    assert torch.equal(native.matmul(a[3:9], b[:, 5:70], "hifi4", fp32_dest=True), expected[3:9, 5:70])


def test_exact_mode_works_without_the_extension(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = torch.randn(3, 40), torch.randn(40, 5)
    expected = native.matmul(a, b, "hifi2", fp32_dest=False)
    monkeypatch.setattr(native, "library", lambda: loader.NativeLibrary(None, "it was not built"))
    native._say_slow.cache_clear()
    assert native.engines() == ["numpy"]
    for _ in range(2):
        assert torch.equal(native.matmul(a, b, "hifi2", fp32_dest=False), expected)
    assert [record.message for record in caplog.records] == [
        "exact TT arithmetic runs on the numpy model, some hundred times slower: it was not built"
    ]


def test_what_does_not_fit_is_refused() -> None:
    a, b = torch.randn(3, 40), torch.randn(41, 5)
    with pytest.raises(UserError, match=r"in0 \(3, 40\) and in1 \(41, 5\)"):
        native.matmul(a, b, "lofi", fp32_dest=True)
    with pytest.raises(UserError, match="math_fidelity 'hifi5' is unknown; allowed are lofi"):
        native.matmul(a, b[:40], "hifi5", fp32_dest=True)
    with pytest.raises(UserError, match="arch 'grayskull' is unknown"):
        native.matmul(a, b[:40], "lofi", fp32_dest=True, arch="grayskull")
    with pytest.raises(UserError, match="engine 'sse' doesn't run here"):
        native.matmul(a, b[:40], "lofi", fp32_dest=True, engine="sse")
