"""The group "operations": right backends raise no alarm, broken ones are caught by the row of their clause."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from isotrain.backends import Backend, get_backend
from isotrain.conformance import operations
from isotrain.conformance.case import Case, Device, Passed, UnsupportedError, ViolationError
from isotrain.conformance.operations import dropout, edges, products, rows, updates
from isotrain.conformance.operations.listed import WIDE_DTYPES
from isotrain.conformance.operations.operation import Numerics, check_gradients, check_result
from isotrain.conformance.operations.uncertain import SIGMAS, Precision, Uncertain
from isotrain.conformance.operations.updates import OPTIMIZERS, RATES

from conformance import mutated_operations
from conformance.mutated_operations import LowFidelity, Mutant, past_the_end, running
from conformance.mutated_shapes import SHAPE_MUTANTS

CASES = operations.cases()
MUTANTS = (*mutated_operations.MUTANTS, *SHAPE_MUTANTS)
OPERATIONS = (
    *products.PRODUCTS,
    *products.LONG_PRODUCTS,
    *rows.ROW_OPERATIONS,
    *rows.LONG_ROWS,
    *rows.HUGE_LOGITS,
)
SMALL = ((16, 96, 64), (1024, 17, 3), (17, 127, 3), (1, 1, 1), (0, 17, 3))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller shapes than those of real models, for runs of many devices."""
    monkeypatch.setattr(products, "SHAPES", SMALL)
    monkeypatch.setattr(products, "ATTENTION", ((2, 3, 17, 32), (1, 1, 1, 3)))
    monkeypatch.setattr(rows, "SHAPES", ((1024, 96), (17, 127), (1, 1), (0, 17)))
    monkeypatch.setattr(rows, "NORMS", ((1024, 17), (17, 127), (1, 17)))
    monkeypatch.setattr(rows, "LONG", 4_096)
    monkeypatch.setattr(products, "LONG", 4_096)
    monkeypatch.setattr(rows, "TABLES", ((3000, 128, 64), (70_000, 3, 17), (17, 3, 127), (17, 127, 0)))
    monkeypatch.setattr(updates, "SHAPES", updates.SHAPES[:3])
    monkeypatch.setattr(dropout, "SHAPES", ((256, 256), (17, 127)))


def outcome(case: Case, backend: Backend, seed: int = 0) -> Passed | Exception:
    try:
        return case.run(Device(backend, seed))
    except Exception as error:  # noqa: BLE001 (whatever a broken device raises is a row)
        return error


def failed(backend: Backend, dtypes: tuple[str, ...], seed: int = 0) -> dict[str, Exception]:
    """The rows that fail, by name without the group."""
    found = {case.name: outcome(case, backend, seed) for case in CASES if case.dtype in dtypes}
    return {
        name.removeprefix("operations/"): result
        for name, result in found.items()
        if isinstance(result, Exception) and not isinstance(result, UnsupportedError)
    }


def test_the_rows_have_names_of_their_own_and_say_what_they_hold_a_device_to() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert all(case.group == "operations" and case.clause and case.dtype for case in CASES)
    assert {case.dtype for case in CASES if case.subject == "AdamW"} == set(WIDE_DTYPES)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.usefixtures("small")
def test_the_definitions_are_torchs_own(operation: products.Operation) -> None:
    """In float64 on the host, results and gradients equal torch's to a few units in the last place."""
    double = Precision.of(torch.float64)
    numerics = Numerics(torch.float64, double, double)
    host = get_backend("cpu")
    for example in operation.examples(torch.Generator().manual_seed(1)):
        leaves = [one.clone().requires_grad_(one.is_floating_point()) for one in example.inputs]
        inputs = numerics.uncertain(example.inputs)
        want, found = operation.expected(numerics, *inputs), operation.run(host, *leaves)
        torch.testing.assert_close(want.value, found.detach(), rtol=1e-9, atol=1e-9)
        if operation.gradients is None:
            continue
        upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        found.backward(upstream)
        gradients = operation.gradients(numerics, Uncertain.exact(upstream, double), *inputs)
        for got, one in zip((leaf.grad for leaf in leaves if leaf.requires_grad), gradients, strict=True):
            torch.testing.assert_close(one.value, got, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
def test_the_definitions_of_steps_are_torchs_own(optimizer: products.Operation) -> None:
    host, double = get_backend("cpu"), Precision.of(torch.float64)
    generator = torch.Generator().manual_seed(1)
    start = rows.normal(generator, 17, 3)
    gradients = [rows.normal(generator, 17, 3) for _ in RATES]
    parameter = start.clone().requires_grad_()
    built = optimizer.make(host, [parameter])
    for gradient, rate in zip(gradients, RATES, strict=True):
        parameter.grad = gradient.clone()
        host.set_learning_rate(built, rate)
        built.step()
    exact = [Uncertain.exact(one, double) for one in gradients]
    for on_device in (False, True):
        want = optimizer.expected(Uncertain.exact(start, double), exact, double, on_device)
        torch.testing.assert_close(want.value, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_the_host_passes_at_the_real_shapes() -> None:
    assert failed(get_backend("cpu"), ("float32",)) == {}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["cpu", "ideal", "tt-emulated"])
@pytest.mark.usefixtures("small")
def test_right_backends_raise_no_alarm(name: str, seed: int) -> None:
    assert failed(get_backend(name), ("float32", "bfloat16"), seed) == {}


def test_what_a_device_does_not_claim_is_listed() -> None:
    (case,) = (case for case in CASES if case.name == "operations/matmul/float16")
    with pytest.raises(UnsupportedError, match="dtype 'float16' can't train on the cpu backend"):
        case.run(Device(get_backend("cpu")))


def rows_of(mutant: Mutant) -> set[str]:
    """Their full names in the table."""
    named = {f"{subject}/float32{'/' if mode else ''}{mode}" for subject, _, mode in map(split, mutant.fails)}
    return named | mutant.elsewhere


def split(row: str) -> tuple[str, str, str]:
    return row.partition("/")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
@pytest.mark.usefixtures("small")
def test_a_broken_device_is_caught_by_the_rows_of_its_clause(mutant: Mutant) -> None:
    dtypes = ("float32", "bfloat16") if mutant.elsewhere else ("float32",)
    with running(mutant) as backend:
        found = failed(backend, dtypes)
    assert all(isinstance(error, ViolationError) for error in found.values()), found
    assert {name for name in found if "/float32" in name} | mutant.elsewhere & found.keys() == rows_of(mutant)
    assert any(mutant.said in str(error) for error in found.values())


@pytest.mark.usefixtures("small")
def test_another_arithmetic_than_the_mode_says_is_caught() -> None:
    products_fail = {
        "linear/float32",
        "linear/float32/grad",
        "linear-long-sums/float32",
        "linear-long-sums/float32/grad",
    }
    assert failed(LowFidelity(), ("float32",)).keys() == products_fail


@pytest.mark.parametrize("options", [{"math_fidelity": "lofi", "optimizer_dtype": "bfloat16"}, {"emulation": "exact"}])
@pytest.mark.usefixtures("small")
def test_an_arithmetic_of_its_own_is_judged_by_its_model(options: dict[str, str]) -> None:
    assert failed(get_backend("tt-emulated", {"tt": options}), ("float32",)) == {}


def test_a_write_past_any_output_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    writes = list(edges._writes())
    assert len({write.name for write in writes}) == len(writes)
    for write in writes:

        def call(*given: torch.Tensor, write: edges._Write = write) -> None:
            write.call(*given)
            past_the_end(given[-1])

        broken = replace(write, call=call)
        monkeypatch.setattr(edges, "_writes", partial(list, [broken]))
        with pytest.raises(ViolationError, match=f"^{write.name} writes 1 elements outside its output$"):
            edges.check_bounds("float32", Device(get_backend("cpu")))


def test_every_check_catches_a_broken_device() -> None:
    checks = {f"{case.subject}{'' if case.mode == 'test' else '/grad'}" for case in CASES}
    narrow = {name.partition("/")[0] for mutant in MUTANTS for name in mutant.elsewhere}
    assert checks == narrow.union(*(mutant.fails for mutant in MUTANTS))
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.usefixtures("small")
def test_float64_that_is_computed_in_float32_is_caught(operation: products.Operation) -> None:
    """No mutant can show it, since what is expected is computed in float64, too."""

    def run(backend: Backend, *inputs: torch.Tensor) -> torch.Tensor:
        narrow = (one.float() if one.is_floating_point() else one for one in inputs)
        return operation.run(backend, *narrow).double()

    for check in (check_result, check_gradients)[: 1 if operation.gradients is None else 2]:
        with pytest.raises(ViolationError, match="budget"):
            check(replace(operation, run=run), "float64", Device(get_backend("cpu")))


def _raising(error: Exception) -> Callable[..., Any]:
    def missing(*_: Any, **__: Any) -> Any:
        raise error

    return missing


# torch says so in one way, torch_tpu in the other.
WITHOUT_GELU = tuple(
    Mutant(
        f"has no GELU: {error}",
        frozenset(),
        dict.fromkeys((torch.ops.aten.gelu.default, torch.ops.aten.gelu.out), _raising(error)),
    )
    for error in (
        NotImplementedError("Could not run 'aten::gelu' with arguments from the 'NPU' backend"),
        RuntimeError("aten::gelu is not implemented"),
    )
)


@pytest.mark.parametrize("mutant", WITHOUT_GELU, ids=("torch", "torch_tpu"))
@pytest.mark.usefixtures("small")
def test_a_missing_operator_is_listed_by_name(mutant: Mutant) -> None:
    with running(mutant) as backend:
        found = {case.name: outcome(case, backend) for case in CASES if case.dtype == "float32"}
    unsupported = {name for name, result in found.items() if isinstance(result, UnsupportedError)}
    gelu = {f"operations/gelu-{form}/float32{mode}" for form in ("erf", "tanh") for mode in ("", "/grad")}
    assert unsupported == gelu
    assert str(found["operations/gelu-erf/float32"]) == f"gelu-erf: {mutant.name.removeprefix('has no GELU: ')}"
    assert found["operations/bounds/float32"] == Passed(
        lacks=f"not implemented: gelu-erf, gelu-tanh; {edges.UNWATCHED}"
    )
    assert found["operations/nan/float32"] == Passed(lacks="not implemented: gelu-erf, gelu-tanh")


@pytest.mark.parametrize("operation", [products.MATMUL, rows.SOFTMAX, rows.SUM], ids=lambda operation: operation.name)
@pytest.mark.usefixtures("small")
def test_errors_of_a_few_units_in_the_last_place_are_caught(operation: products.Operation) -> None:
    def run(backend: Backend, *inputs: torch.Tensor) -> torch.Tensor:
        return operation.run(backend, *inputs) * (1.0 + 16 * torch.finfo(torch.float32).eps)

    with pytest.raises(ViolationError, match="budget"):
        check_result(replace(operation, run=run), "float32", Device(get_backend("cpu")))


class TestUncertain:
    """The running error analysis itself."""

    single = Precision.of(torch.float32)

    def inputs(self, *shapes: tuple[int, ...]) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        return (torch.randn(*shape, generator=generator) for shape in shapes)

    def test_a_sum_in_order_errs_as_its_variance_says(self) -> None:
        (x,) = self.inputs((400, 2000))
        total = torch.zeros(400)
        for column in x.T:
            total += column
        want = Uncertain.exact(x, self.single).sum(1)
        standard = (total - want.value) / want.variance.sqrt()
        assert 0.4 < float(standard.square().mean().sqrt()) < 1.1

    def test_a_product_in_order_errs_as_its_variance_says(self) -> None:
        a, b = self.inputs((20, 1000), (1000, 20))
        total = torch.zeros(20, 20)
        for term in range(1000):
            total += a[:, term, None] * b[None, term]
        want = Uncertain.exact(a, self.single) @ Uncertain.exact(b, self.single)
        standard = (total - want.value) / want.variance.sqrt()
        assert 0.4 < float(standard.square().mean().sqrt()) < 1.1

    @pytest.mark.parametrize(("dtype", "errors"), [(torch.float32, 1.0), (torch.float64, math.sqrt(2.0))])
    def test_float64_may_err_as_the_reference_does_besides(self, dtype: torch.dtype, errors: float) -> None:
        want = Uncertain.exact(torch.tensor([3.0]), Precision.of(dtype)) * 5.0
        foreseen = SIGMAS * 15.0 * torch.finfo(dtype).eps / 2 / math.sqrt(3.0)
        assert float(want.budget()) / foreseen == pytest.approx(errors)

    @pytest.mark.parametrize(
        "compute",
        [
            lambda a, b: a + b,
            lambda a, b: a - b,
            lambda a, b: a * b,
            lambda a, b: a / b,
            lambda a, b: (a * b).tanh() + 0.1,
            lambda a, b: (a * a + 0.3).sqrt() * b.exp(),
        ],
    )
    def test_elementwise_errors_are_as_large_as_foreseen(
        self, compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        a, b = self.inputs((10_000,), (10_000,))
        want = compute(Uncertain.exact(a, self.single), Uncertain.exact(b, self.single))
        standard = (compute(a, b) - want.value) / want.variance.sqrt()
        assert 0.1 < float(standard.square().mean().sqrt()) < 1.2

    def test_an_exact_value_allows_no_error_and_nan_is_never_within_a_budget(self) -> None:
        want = Uncertain.exact(torch.tensor([1.0, 2.0, math.inf]), self.single)
        shares = want.share(torch.tensor([1.0, 2.0000002, math.nan]))
        assert shares.tolist() == [0.0, math.inf, math.inf]

    def test_a_result_below_the_normal_numbers_may_be_flushed(self) -> None:
        tiny = torch.tensor([torch.finfo(torch.float32).tiny / 8])
        want = Uncertain.exact(tiny, self.single) * 2.0
        assert float(want.share(torch.zeros(1))) < 1.0
