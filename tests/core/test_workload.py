"""A workload of the user's own: found, loaded, checked and stepped."""

from __future__ import annotations

import random
import sys
import textwrap
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config import workload_name
from isotrain.albert_core.config.workload_name import check_workload_name, names_workload
from isotrain.albert_core.workload.batches import (
    cost_class,
    digest,
    leaves,
    mapped,
    placed,
    placed_ahead,
    samples,
    shape_advice,
    signature,
)
from isotrain.albert_core.workload.checks import (
    check_repeats,
    checked_loss,
    make_batches,
    make_model,
    operations_named,
    seeded,
    trial,
)
from isotrain.albert_core.workload.load import LoadedWorkload, load_workload
from isotrain.albert_core.workload.step import loss_of, place_model, workload_step
from isotrain.backends import get_backend
from isotrain.backends.training.loss_scale import unscaled
from isotrain.backends.types import ShapeGrid
from support import own_modules
from torch import nn

pytestmark = pytest.mark.core

OWN = Path(own_modules.__file__)

GOOD = """
import torch
from torch import nn
calls = 0
class Mine:
    def model(self, seed):
        return nn.Linear(2, 1)
    def batches(self, seed):
        return [torch.ones(3, 2)]
    def loss(self, model, batch):
        return model(batch).square().mean()
class Fresh:
    def __iter__(self):
        global calls
        calls += 1
        yield torch.ones(calls)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Writes mine.py into the current folder. What loading changes in the interpreter is restored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def make(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    yield make
    # The folder's own only: torch imports parts of itself at any time.
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def changed(write: Callable[[str], Path]) -> Callable[..., LoadedWorkload]:
    """`changed(old, new)`: the good file with one line replaced, loaded."""

    def make(old: str, new: str) -> LoadedWorkload:
        assert old in GOOD
        write(GOOD.replace(old, new))
        return load_workload("mine.py:Mine")

    return make


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as found:
        call()
    return str(found.value)


def test_a_class_a_function_and_an_object_are_workloads(write: Callable[[str], Path]) -> None:
    path = write(GOOD + "def made():\n    return Mine()\nready = Mine()\n")
    for name in ("Mine", "made", "ready"):
        loaded = load_workload(f"mine.py:{name}")
        assert (loaded.name, loaded.spec, loaded.file) == (name, f"mine.py:{name}", path)
        assert loaded.workload.batches(0)[0].shape == (3, 2)
        assert len(loaded.sha256) == 64
        assert loaded.optional("evaluate") is None
    write(GOOD + "# another file\n")
    assert load_workload("mine.py:Mine").sha256 != loaded.sha256


def test_a_file_with_one_workload_needs_no_name(write: Callable[[str], Path]) -> None:
    write(GOOD)
    assert load_workload("mine.py").name == "mine"
    write(GOOD + "class Other(Mine):\n    pass\n")
    assert "choose one: mine.py:Mine, mine.py:Other" in refused(lambda: load_workload("mine.py"))
    write("import torch\n")
    assert "mine.py defines no workload" in refused(lambda: load_workload("mine.py"))


def test_a_module_and_an_installed_name_are_found(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(GOOD, "installed_mine.py")
    sys.path.insert(0, str(path.parent))
    assert load_workload("installed_mine:Mine").file == path
    ours = workload_name.ENTRY_POINT_GROUP
    entry = EntryPoint("tiny", "installed_mine:Mine", ours)
    monkeypatch.setattr(workload_name, "entry_points", lambda group: [entry] if group == ours else [])
    assert load_workload("tiny").name == "tiny"
    assert names_workload("tiny")
    assert not any(map(names_workload, ("quickstart", "random:tiny", "some/recipe.yaml")))
    assert "did you mean tiny?" in refused(lambda: check_workload_name("tiny2"))
    assert "the import raised ModuleNotFoundError" in refused(lambda: load_workload("no_such_module:Mine"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:Mine", "there is no file 'nowhere.py'"),
        ("quickstart", "workload 'quickstart' can't be found"),
        ("mine.py:Nine", "mine.py has no 'Nine'; did you mean Mine?"),
        ("mine.py:calls", "mine.py: calls has no model(seed) and no batches(seed) and no loss(model, batch); "),
    ],
)
def test_what_is_no_workload_is_refused_in_one_line(write: Callable[[str], Path], spec: str, message: str) -> None:
    write(GOOD)
    said = refused(lambda: load_workload(spec))
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "\nmissing_name\n", "mine.py:18: the import raised NameError"),
        (GOOD + "\nimport no_such_package\n", "mine.py:18: the import raised ModuleNotFoundError"),
        (GOOD + "\ndef broken(:\n", "mine.py:18: the import raised SyntaxError"),
        (
            GOOD.replace("    def loss(", "    def lose("),
            "mine.py:5: Mine has no loss(model, batch); a workload has the methods model(seed), batches(seed), loss(",
        ),
        (GOOD.replace("calls = 0", "def Made(path):\n    pass").replace("class Mine", "class Other"), "has no 'Mine'"),
        (
            GOOD.replace("    def model", "    def __init__(self, path):\n        pass\n    def model"),
            "mine.py:5: the class Mine was called without arguments and raised TypeError",
        ),
    ],
)
def test_a_file_that_does_not_load_is_named_with_its_line(
    write: Callable[[str], Path], text: str, message: str
) -> None:
    write(text)
    assert message in refused(lambda: load_workload("mine.py:Mine"))


def test_a_file_may_import_its_neighbours_and_an_error_there_has_their_line(write: Callable[..., Path]) -> None:
    write(GOOD.replace("import torch\n", "import torch\nimport beside_mine\n", 1))
    write("rows = 3\nraise OSError('no data')\n", "beside_mine.py")
    assert "beside_mine.py:2: the import raised OSError: no data" in refused(lambda: load_workload("mine.py:Mine"))
    write("rows = 3\n", "beside_mine.py")
    assert load_workload("mine.py:Mine").name == "Mine"


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("return 3", "mine.py:6: model(7) returned a int; return a torch.nn.Module"),
        ("return nn.ReLU()", "mine.py:6: no parameter of model(7) requires a gradient"),
        ("return nn.Linear(2, 1).requires_grad_(False)", "mine.py:6: no parameter of model(7) requires a gradient"),
        ("return nn.Linear(2, 1, device='meta')", "mine.py:6: 'weight' of model(7) is not on the host"),
        ("raise KeyError('lost')", "mine.py:7: model raised KeyError: 'lost'"),
        (
            "layer = nn.Linear(2, 1)\n        import os\n        nn.init.constant_(layer.bias, os.urandom(4)[0])\n"
            "        nn.init.constant_(layer.bias, int.from_bytes(os.urandom(4)))\n        return layer",
            "mine.py:6: model(7) isn't deterministic: 'bias' differs between two calls",
        ),
    ],
)
def test_a_module_that_can_not_be_trained_is_refused(
    changed: Callable[..., LoadedWorkload], new: str, message: str
) -> None:
    loaded = changed("return nn.Linear(2, 1)", new)
    assert message in refused(lambda: make_model(loaded, 7))


def test_the_global_generators_have_the_seed_and_are_restored() -> None:
    loaded = load_workload(f"{OWN}:Convolution")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, second, other = (make_model(loaded, seed).sha256 for seed in (1, 1, 2))
    assert first == second != other
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("return []", "mine.py:8: batches(7) has no batch"),
        ("return (torch.ones(3, 2) for _ in range(2))", "gave 2 batches, and 0 when iterated again; return a list"),
        ("return Fresh()", "mine.py:8: batch 0 of batches(7) differs between two iterations"),
        ("return None", "batches raised TypeError: 'NoneType' object is not iterable"),
        ("return [torch.ones(3, 2)][1:2][0]", "mine.py:9: batches raised IndexError"),
    ],
)
def test_batches_that_differ_are_refused(changed: Callable[..., LoadedWorkload], new: str, message: str) -> None:
    loaded = changed("return [torch.ones(3, 2)]", new)
    assert message in refused(lambda: make_batches(loaded, 7, 2))


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("return model(batch)", "mine.py:10: loss returned a tensor of shape (3, 1), not a scalar"),
        ("return model(batch).mean().item()", "mine.py:10: loss returned a float; return the tensor"),
        ("return model(batch).mean().detach()", "mine.py:10: the loss depends on no trained parameter"),
        ("return model(batch).mean() * float('nan')", "mine.py:10: the loss of the initial weights is nan"),
        ("return model(batch.mul_(2)).mean()", "mine.py:10: loss changed its batch"),
        ("return model(batch[:, :1]).mean()", "mine.py:11: loss raised RuntimeError"),
    ],
)
def test_a_loss_that_can_not_be_trained_is_refused(
    changed: Callable[..., LoadedWorkload], new: str, message: str
) -> None:
    loaded = changed("return model(batch).square().mean()", new)
    module = make_model(loaded, 7).module
    assert message in refused(lambda: checked_loss(loaded, module, torch.ones(3, 2)))


def test_a_loss_that_differs_from_call_to_call_is_refused(changed: Callable[..., LoadedWorkload]) -> None:
    global_noise = changed("return model(batch).square().mean()", "return (model(batch) + torch.rand(1)).mean()")
    module = make_model(global_noise, 7).module
    check_repeats(global_noise, module, torch.ones(3, 2), 7)
    own = "return (model(batch) + torch.rand(1, generator=noise)).mean()\nnoise = torch.Generator()"
    loaded = changed("return model(batch).square().mean()", own)
    said = refused(lambda: check_repeats(loaded, module, torch.ones(3, 2), 7))
    assert said.startswith("mine.py:10: the loss isn't deterministic: ")


def test_a_trial_leaves_no_trace() -> None:
    loaded = load_workload(f"{OWN}:Convolution")
    module, batch = make_model(loaded, 1).module, make_batches(loaded, 1, 1).batches[0]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    generator = torch.get_rng_state()
    with trial(module, 1, training=True):
        checked_loss(loaded, module, batch).backward()
        assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(generator, torch.get_rng_state())


Point = namedtuple("Point", "x y")


def test_batches_of_any_form_are_walked_and_rebuilt() -> None:
    images = own_modules.Images(torch.zeros(2, 3), torch.ones(2, dtype=torch.long))
    batch = {"a": [torch.ones(1), "text"], "b": (Point(torch.zeros(2), 3), images), "c": UserDict(z=torch.ones(3))}
    doubled = mapped(batch, lambda _, leaf: leaf * 2 if isinstance(leaf, torch.Tensor) else leaf)
    assert [place for place, _ in leaves(batch)] == ["a.0", "a.1", "b.0.x", "b.0.y", "b.1.pixels", "b.1.labels", "c.z"]
    assert doubled["b"][1].labels.tolist() == [2, 2]
    assert images.labels.tolist() == [1, 1]
    assert doubled["c"]["z"].tolist() == [2, 2, 2]
    assert batch["c"]["z"].tolist() == [1, 1, 1]
    assert isinstance(doubled["b"][0], Point)
    assert digest(doubled) != digest(batch) == digest(mapped(batch, lambda _, leaf: leaf))
    assert digest({"a": np.ones(2)}) != digest({"a": np.zeros(2)})
    assert signature(batch)[0] == ("a.0", (1,), "torch.float32")


def test_batches_of_any_form_are_placed_ahead() -> None:
    backend = get_backend("cpu")
    forms = [{"a": (Point(torch.full((2,), float(number)), "text"), number), "b": torch.ones(1)} for number in range(3)]
    found = list(placed_ahead(iter(forms), backend, backend.cast_policy("float64")))
    assert [batch["a"][0].x.tolist() for batch in found] == [[number, number] for number in (0.0, 1.0, 2.0)]
    assert [(batch["a"][0].y, batch["a"][1]) for batch in found] == [("text", number) for number in range(3)]
    assert found[0]["b"].dtype == torch.float64


def test_float64_casts_the_batch_with_the_module() -> None:
    backend = get_backend("cpu")
    wide = placed({"x": torch.ones(2), "n": torch.ones(2, dtype=torch.long)}, backend, backend.cast_policy("float64"))
    assert {name: tensor.dtype for name, tensor in wide.items()} == {"x": torch.float64, "n": torch.int64}
    model = place_model(nn.Linear(2, 2), backend, backend.cast_policy("float64"))
    assert model.weight.dtype == torch.float64


def test_samples_and_cost_classes_are_the_workloads_or_come_from_the_shapes() -> None:
    plain, own = LoadedWorkload("a", "a", None, "", own_modules.TinyGPT()), own_modules.TinyGPT()
    own.samples, own.cost_class = lambda _: 7, lambda _: "all alike"
    told = LoadedWorkload("b", "b", None, "", own)
    batches = own_modules.Ragged().batches(0)
    assert [samples(plain, batch) for batch in batches] == [4, 4, 4]
    assert samples(told, batches[0]) == 7
    assert len({cost_class(plain, batch) for batch in batches}) == 3
    assert len({cost_class(told, batch) for batch in batches}) == 1
    own.cost_class = lambda batch: batch["ids"]
    assert "cost_class returned a Tensor; return a number" in refused(lambda: cost_class(told, batches[0]))


@pytest.mark.parametrize(
    ("grid", "lengths", "advice"),
    [
        (None, (5, 7, 12), ""),
        (ShapeGrid(64), (12, 12, 12), ""),
        (ShapeGrid(64), (5, 7, 12), "of 3 batch shapes; 2 would do: dimension 1 of ids is 5, 7, 12: pad it to 8, 16"),
        (ShapeGrid(64, (12, 24)), (5, 7, 12), "1 would do: dimension 1 of ids is 5, 7, 12: pad it to 12"),
        (ShapeGrid(64), (8, 16), ""),
    ],
)
def test_a_device_of_few_shapes_tells_the_grid(grid: ShapeGrid | None, lengths: tuple[int, ...], advice: str) -> None:
    batches = [{"ids": torch.zeros(4, length)} for length in lengths]
    found = shape_advice(batches, SimpleNamespace(name="npu", static_shapes=grid))
    assert (advice in found) if advice else (found == "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_accumulated_batches_give_the_step_of_one_batch(dtype: str) -> None:
    backend = get_backend("cpu")
    policy, workload = backend.whole_model_policy(backend.cast_policy(dtype)), own_modules.TinyGPT()
    batch = workload.batches(3)[0]["ids"]
    found = []
    for parts in ([batch], [batch[:3], batch[3:]]):
        torch.manual_seed(0)
        model = place_model(workload.model(3), backend, policy)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        loss = loss_of(workload, model, backend, policy)
        step = workload_step(loss, model, backend, optimizer, unscaled(), 0.1)
        result = step([{"ids": part} for part in parts], [len(part) / 4 for part in parts])
        assert set(result.figures) == {"accuracy"}
        assert all(parameter.grad is None for parameter in model.parameters())
        found.append(
            (result.loss, result.figures["accuracy"], result.gradient_norm, *(p.detach() for p in model.parameters()))
        )
    tolerance = 3e-2 if policy.compute == "bfloat16" else 1e-5
    for once, twice in zip(*found, strict=True):
        torch.testing.assert_close(once, twice, rtol=tolerance, atol=tolerance)
    assert found[0][2] > 0.1


def test_equal_shares_are_the_default_and_clipping_bounds_the_update() -> None:
    backend, workload = get_backend("cpu"), own_modules.Convolution()
    with seeded(1):
        model = workload.model(1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    policy = backend.cast_policy("float32")
    step = workload_step(
        loss_of(workload, model, backend, policy),
        model,
        backend,
        torch.optim.SGD(model.parameters(), lr=1.0),
        unscaled(),
        max_grad_norm=0.01,
    )
    losses = [loss_of(workload, model, backend, policy)(batch)[0].item() for batch in workload.batches(1)]
    assert step(workload.batches(1)).loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before, strict=True)]).norm().item()
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_an_operation_that_the_device_lacks_is_named(changed: Callable[..., LoadedWorkload]) -> None:
    loaded = changed("return model(batch).square().mean()", "return model(batch).to('meta').cpu().mean()")
    module, backend = nn.Linear(2, 1), get_backend("cpu")

    def run() -> None:
        loaded.workload.loss(module, torch.ones(3, 2))

    def guarded(step: Callable[[], object]) -> None:
        with operations_named(loaded, backend, step):
            step()

    said = refused(lambda: guarded(run))
    assert said.startswith("mine.py:11: operation aten._to_copy can't run on backend cpu (")
    # A fault of isotrain's own is not put on the user's file.
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)
