"""The baselines: that each computes what transformers computes, and says why where it can't run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import LoadedEncoder, load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.backends import get_backend
from isotrain.benchmarks import baselines
from isotrain.benchmarks.baselines import BASELINES, build_baseline, chosen_baselines
from isotrain.benchmarks.baselines.base import BaselineEncoder, baseline_policy, running
from isotrain.benchmarks.harness.baseline import BaselineForward
from isotrain.benchmarks.harness.texts import Texts, embedded_texts, make_batches, static_cells
from isotrain.kernels.install import install_hint
from isotrain.kernels.packed import PaddedBatch

BASELINE_LAYOUTS = [
    (baseline.name, layout)
    for baseline in chosen_baselines(["baselines"])
    if baseline.name != "openvino-int8"
    for layout in dict.fromkeys(one for one, _ in baseline.shapes)
]


@pytest.fixture(scope="module")
def albert() -> LoadedEncoder:
    return load_encoder("random:tiny", 0)


@pytest.fixture(scope="module")
def texts() -> Texts:
    return embedded_texts(24, 64, 30000, 7, seed=3)


def needed(name: str) -> None:
    """Skips, with the reason, where a baseline isn't installed or can't compile."""
    missing = BASELINES[name].missing()
    if missing:
        pytest.skip(missing)


def features_of(albert: LoadedEncoder, texts: Texts, row: int) -> torch.Tensor:
    ids = torch.from_numpy(texts.ids[texts.offsets[row] : texts.offsets[row + 1]])[None]
    with torch.no_grad():
        return albert.module()(input_ids=ids).last_hidden_state[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout"), BASELINE_LAYOUTS)
def test_every_baseline_gives_the_features_of_transformers(
    albert: LoadedEncoder, texts: Texts, name: str, layout: str
) -> None:
    needed(name)
    try:
        backend = get_backend("cpu")
        baseline = build_baseline(name, albert, backend, "float32", layout)
        batches = make_batches(texts, 8, layout, 64, static_shapes=2, multiple=1)
        baseline.prepare([batch.inputs for batch in batches])
    except UserError as error:
        if "C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))
    compiled = backend.compile_count() + baseline.compile_count()
    for batch in batches:
        rows = baseline(batch.inputs)[: len(batch.rows)]
        assert rows.dtype == torch.float32
        expected = torch.stack([features_of(albert, texts, row) for row in batch.rows.tolist()])
        assert torch.linalg.norm(rows - expected) <= 1e-5 * torch.linalg.norm(expected)
    assert backend.compile_count() + baseline.compile_count() == compiled, "everything was compiled by prepare"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_baseline_says_which_dtype_it_really_computes_in(albert: LoadedEncoder, name: str) -> None:
    needed(name)
    layout = BASELINES[name].shapes[0][0]
    policy = build_baseline(name, albert, get_backend("cpu"), "bfloat16", layout).policy
    assert policy.requested == "bfloat16"
    assert name in policy.reason.lower().replace(" ", "")
    assert name != "onnxruntime" or policy.compute == "float32"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_baseline_sends_nobody_statistics(name: str, tmp_path: Path) -> None:
    """Both do unless told not to, and leave an identity in the user's home for it."""
    needed(name)
    program = (
        "import sys\n"
        "from isotrain.albert_core.model.encoder import load_encoder\n"
        "from isotrain.backends import get_backend\n"
        "from isotrain.benchmarks.baselines import build_baseline\n"
        f"build_baseline({name!r}, load_encoder('random:tiny', 0), get_backend('cpu'), 'float32', 'sorted')\n"
        "sent = [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
        "sys.exit(str(sent) if sent else 0)\n"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache"), "XDG_CONFIG_HOME": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | home
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name in ("intel", "Microsoft")]


def test_a_baseline_in_8_bits_is_near_and_others_say_that_they_are_none(albert: LoadedEncoder, texts: Texts) -> None:
    backend = get_backend("cpu")
    with pytest.raises(UserError, match="openvino int8 computes in int8, not in bfloat16; give --dtype int8"):
        build_baseline("openvino-int8", albert, backend, "bfloat16", "sorted")
    with pytest.raises(UserError, match="it has no int8 weights and activations, int32 sums; give another --dtype"):
        build_baseline("transformers-dynamic", albert, backend, "int8", "dynamic")
    needed("openvino-int8")
    baseline = build_baseline("openvino-int8", albert, backend, "int8", "sorted")
    batches = make_batches(texts, 8, "sorted", 64)
    baseline.prepare([batch.inputs for batch in batches])
    assert baseline.policy.compute == "int8"
    for batch in batches:
        expected = torch.stack([features_of(albert, texts, row) for row in batch.rows.tolist()])
        apart = torch.linalg.norm(baseline(batch.inputs) - expected) / torch.linalg.norm(expected)
        assert 1e-4 < apart < 0.1


def test_a_baselines_policy_is_the_backends_unless_it_has_its_own() -> None:
    backend = get_backend("cpu")
    assert baseline_policy(backend, "bfloat16") == backend.cast_policy("bfloat16")
    own = baseline_policy(backend, "bfloat16", "float32", "because")
    assert (own.requested, own.param, own.compute, own.reason) == ("bfloat16", "float32", "float32", "because")


def test_names_are_checked_and_baselines_means_all_of_the_workload() -> None:
    forward, steps = ([one.name for one in chosen_baselines(["baselines"], what)] for what in ("forward", "full_step"))
    assert sorted(forward + steps) == sorted(BASELINES)
    assert steps == ["trainer", "trainer-compile"]
    with pytest.raises(
        UserError, match="--vs 'trainer' computes full_step, not forward; allowed for that are baselines"
    ):
        chosen_baselines(["openvino", "trainer"])
    assert [baseline.name for baseline in chosen_baselines(["openvino", "openvino"])] == ["openvino"]
    with pytest.raises(UserError, match="--vs 'tensorflow' does not exist; allowed are baselines"):
        chosen_baselines(["tensorflow"])


def test_a_baseline_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda name: None if name == "onnx" else find_spec("json"))
    assert BASELINES["onnxruntime"].missing() == f"onnx not installed; get it by: `{install_hint('baselines')}`"
    assert BASELINES["openvino"].missing() == ""
    assert BASELINES["transformers-sorted"].missing() == ""


def test_given_batch_sizes_replace_a_baselines_own_unless_its_shape_is_what_it_stands_for() -> None:
    assert BASELINES["transformers-sorted"].choices([]) == BASELINES["transformers-sorted"].shapes
    assert BASELINES["openvino"].choices([5, 6]) == (("sorted", 5), ("sorted", 6), ("static", 5), ("static", 6))
    assert BASELINES["experiment-padded"].choices([5]) == (("padded", 8),)


def test_whatever_a_third_party_raises_becomes_one_line() -> None:
    with pytest.raises(UserError) as caught, running("openvino"):
        raise RuntimeError("\n  no such primitive\n  at line 3\n")
    assert str(caught.value) == "openvino can't run here: RuntimeError: no such primitive"
    with pytest.raises(KeyboardInterrupt), running("openvino"):
        raise KeyboardInterrupt


def test_torch_compile_without_a_compiler_says_so(
    albert: LoadedEncoder, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    baseline = build_baseline("torch-compile", albert, get_backend("cpu"), "float32", "static")
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler, and no-such-compiler is not installed"):
        baseline.prepare([batch.inputs for batch in make_batches(texts, 8, "static", 64)])


def test_the_experiments_forward_has_the_pooler_that_nothing_reads(albert: LoadedEncoder) -> None:
    bare = build_baseline("transformers-dynamic", albert, get_backend("cpu"), "float32", "dynamic")
    own = build_baseline("experiment-dynamic", albert, get_backend("cpu"), "float32", "dynamic")
    assert bare.module.pooler is None
    assert own.module.pooler is not None


@pytest.mark.parametrize("layout", ["dynamic", "sorted", "static"])
@pytest.mark.parametrize("size", [1, 5, 8, 100])
def test_baselines_layouts_hold_every_text_once(texts: Texts, layout: str, size: int) -> None:
    batches = make_batches(texts, size, layout, 64, static_shapes=3, multiple=1)
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(24))
    for batch in batches:
        ids, mask = batch.inputs.input_ids, batch.inputs.attention_mask
        assert len(batch.computed) == ids.shape[0] >= len(batch.rows)
        assert (batch.computed == ids.shape[1]).all()
        assert batch.lengths.tolist() == texts.lengths[batch.rows].tolist()
        for place, row in enumerate(batch.rows.tolist()):
            expected = texts.ids[texts.offsets[row] : texts.offsets[row + 1]]
            assert ids[place][mask[place] == 1].tolist() == expected.tolist()
    if layout != "static":
        assert all(batch.inputs.input_ids.shape[1] == batch.lengths.max() for batch in batches)
    if layout == "static":
        assert len({tuple(batch.inputs.input_ids.shape) for batch in batches}) <= 3
    if layout == "sorted":
        assert (np.diff(texts.lengths[rows]) >= 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_static_cells_waste_as_little_as_any(count: int) -> None:
    lengths = np.array([3, 3, 4, 9, 9, 9, 10, 30, 31])

    def cost(cells: list[int]) -> int:
        return sum(min(cell for cell in cells if cell >= length) for length in lengths.tolist())

    found = static_cells(lengths, count)
    distinct = sorted(set(lengths.tolist()))
    possible = [
        [*chosen, distinct[-1]]
        for number in range(min(count, len(distinct)))
        for chosen in itertools.combinations(distinct[:-1], number)
    ]
    assert found == sorted(set(found))
    assert len(found) <= count
    assert cost(found) == min(cost(cells) for cells in possible)


class Counted(BaselineEncoder):
    """Features that are each text's first real id, and a compiler that is asked at every call."""

    name, version = "counted", "1"

    def __init__(self) -> None:
        self.compiles = 0
        self.policy = baseline_policy(get_backend("cpu"), "float32")

    def features(self, batch: PaddedBatch) -> torch.Tensor:
        self.compiles += 1
        return batch.input_ids[:, 1:2].float().expand(-1, 4).contiguous()

    def compile_count(self) -> int:
        return self.compiles


@pytest.fixture
def counted(texts: Texts) -> Callable[[], BaselineForward]:
    def make() -> BaselineForward:
        head = ClassificationHead(4, 8, 7, seed=1)
        return BaselineForward(get_backend("cpu"), Counted(), head, make_batches(texts, 5, "static", 64, 2), texts)

    return make


def test_fillers_of_a_static_shape_are_no_results(counted: Callable[[], BaselineForward], texts: Texts) -> None:
    workload = counted()
    workload.judge(dict.fromkeys(range(len(texts.lengths)), np.ones(7)))
    assert any(len(batch.computed) > len(batch.rows) for batch in workload.batches)
    workload.begin()
    for index in range(len(workload.batches)):
        workload.step(index)
    assert workload.read() == []
    assert sorted(workload.probe) == list(range(len(texts.lengths)))
    for row, logits in workload.probe.items():
        features = torch.full((1, 4), float(texts.ids[texts.offsets[row] + 1]))
        assert torch.allclose(torch.tensor(logits), workload.head(features)[0])


def test_a_baselines_own_compiler_is_watched(counted: Callable[[], BaselineForward]) -> None:
    workload = counted()
    before = workload.compile_count()
    workload.begin()
    workload.step(0)
    assert workload.compile_count() == before + 1
