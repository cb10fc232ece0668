"""The whole training step in emulated arithmetic: a model made by hand has its bits, and fast mode has its error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.albert_core.model.whole import WholeModel, checkpoint_activations
from isotrain.backends import get_backend, renamed
from isotrain.kernels import reference
from isotrain.kernels.packed import PackedBatch
from isotrain.kernels.tt import stored
from isotrain.kernels.tt.arithmetic import Arithmetic
from isotrain.kernels.tt.encoder import TtEncoder
from isotrain.kernels.tt.modules import EmulatedOperations
from support.tt_step import Step
from torch.nn import functional

pytestmark = pytest.mark.core

# In the order of their lengths, as a packed batch is computed. 72 inner units are two blocks of K.
LENGTHS, LAYERS, HEADS = (3, 9), 2, 4
LABELS = torch.tensor([1, 0])
OPERATIONS = {"linear", "matmul", "softmax", "layer_norm", "activation", "add", "embedding"}


def encoder(seed: int = 3) -> Any:
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(seed)
    config = AlbertConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=32,
        intermediate_size=72,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    return AlbertModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    rng = np.random.default_rng(0)
    plain = PackedBatch.from_lists([rng.integers(0, 40, length).tolist() for length in LENGTHS])
    types = torch.arange(sum(LENGTHS)) % 2
    return PackedBatch(plain.input_ids, plain.cu_seqlens, plain.position_ids, types)


def build(
    backend_name: str = "tt-emulated", dtype: str = "float32", recompute: bool = False, seed: int = 3, **options: Any
) -> Any:
    backend = get_backend(backend_name, {"tt": options})
    policy = backend.whole_model_policy(backend.cast_policy(dtype))
    module, head = encoder(seed), ClassificationHead(32, 16, 2).to(getattr(torch, dtype))
    if recompute:
        checkpoint_activations(module, lambda: backend.autocast(policy))
    return backend.place(WholeModel(module, head, lambda part, states, _: part(states[:, 0]), backend, policy))


def step(model: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the parameters' gradients."""
    model.zero_grad()
    loss = functional.cross_entropy(model(batch), LABELS, reduction="sum") / len(LABELS)
    loss.backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return float(loss.detach()), gradients


def distance(got: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Relative RMS of all gradients together."""
    lost = sum(float((got[name].double() - exact[name]).square().sum()) for name in exact)
    return (lost / sum(float(part.square().sum()) for part in exact.values())) ** 0.5


@pytest.mark.parametrize(
    ("arch", "fidelity", "fp32_dest"),
    [("wormhole", "hifi4", True), ("blackhole", "hifi2", False), ("wormhole", "lofi", True)],
)
def test_a_whole_step_has_the_bits_of_the_integer_model(
    arch: str, fidelity: str, fp32_dest: bool, batch: PackedBatch, show: Callable[[str], None]
) -> None:
    model = build(emulation="exact", arch=arch, math_fidelity=fidelity, fp32_dest_acc_en=fp32_dest)
    loss, gradients = step(model, batch)
    by_hand = Step(
        Arithmetic(arch, fidelity, fp32_dest, mode="exact"),
        {name: part.detach().numpy() for name, part in model.named_parameters()},
        HEADS,
        model.encoder.config.layer_norm_eps,
    )
    ids, types, positions = (part.numpy() for part in (batch.input_ids, batch.token_type_ids, batch.position_ids))
    assert by_hand.run(ids, types, positions, list(LENGTHS), LAYERS, LABELS) == loss
    assert by_hand.gradients.keys() == gradients.keys()
    wrong = {
        name: int((part.numpy() != by_hand.gradients[name]).sum())
        for name, part in gradients.items()
        if not np.array_equal(part.numpy(), by_hand.gradients[name])
    }
    values = sum(part.numel() for part in gradients.values())
    show(f"TT whole step, {arch} {fidelity}: {values:,} gradients, {sum(wrong.values())} mismatches")
    assert not wrong


@pytest.mark.parametrize("fp32_dest", [True, False])
def test_a_fast_step_has_the_error_of_an_exact_one(
    fp32_dest: bool, batch: PackedBatch, show: Callable[[str], None]
) -> None:
    """RMS over several models, since the error of one depends on chance as much as on the arithmetic."""
    squares = {"exact": 0.0, "fast": 0.0}
    for seed in range(6):
        _, judge = step(build("cpu", "float64", seed=seed), batch)
        for mode in squares:
            model = build(emulation=mode, emulate="all", fp32_dest_acc_en=fp32_dest, seed=seed)
            squares[mode] += distance(step(model, batch)[1], judge) ** 2 / 6
    exact, fast = (square**0.5 for square in squares.values())
    show(f"TT whole step, float32 Dst {fp32_dest}: relative RMS of the gradients exact {exact:.2e}, fast {fast:.2e}")
    assert exact > 1e-3
    assert 1 / 1.3 < fast / exact < 1.3


def test_padding_changes_a_step_by_less_than_the_arithmetic_does(batch: PackedBatch) -> None:
    """Masked scores vanish; only the order of sums differs."""
    _, judge = step(build("cpu", "float64"), batch)
    model = build(emulation="fast", emulate="all")
    packed, padded = step(model, batch)[1], step(model, batch.to_padded(16))[1]
    assert distance(padded, judge) < 1.3 * distance(packed, judge)


def test_recomputed_layers_have_the_same_bits(batch: PackedBatch) -> None:
    kept, again = (step(build(emulate="all", recompute=recompute), batch) for recompute in (False, True))
    assert kept[0] == again[0]
    assert all(torch.equal(kept[1][name], again[1][name]) for name in kept[1])


def test_only_linear_layers_are_emulated_where_that_is_asked_for(batch: PackedBatch) -> None:
    asked: list[dict[str, Any]] = [{}, {"emulate": "linear"}, {"emulate": "all"}]
    by_default, linear, whole = (step(build(**options), batch)[0] for options in asked)
    assert by_default == linear != whole
    exact, same = (step(build(emulation="exact", **options), batch)[0] for options in ({}, {"emulate": "all"}))
    assert exact == same
    nothing = step(build(emulate="all", float32=sorted(OPERATIONS)), batch)[0]
    assert nothing == pytest.approx(step(build("cpu"), batch)[0], rel=1e-5)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_each_operation_can_stay_in_float32(operation: str, batch: PackedBatch) -> None:
    options = {"emulation": "exact", "math_fidelity": "lofi"}
    ours, without = (step(build(**options, float32=left), batch)[1] for left in ([], [operation]))
    assert any(not torch.equal(ours[name], without[name]) for name in ours)
    weights, words = load_encoder("random:tiny").weights, PackedBatch.from_lists([[2, 5, 3], [2, 7]])
    arithmetic = Arithmetic(math_fidelity="lofi", mode="exact")
    every, others = (TtEncoder(weights, arithmetic, float32=left) for left in (frozenset(), frozenset({operation})))
    assert others.version != every.version
    # What they return is read in bfloat16 by the operation that follows.
    if operation not in ("embedding", "activation"):
        assert not torch.equal(others(words), every(words))


def test_a_frozen_encoder_without_the_devices_operations_is_the_hosts() -> None:
    weights, words = load_encoder("random:tiny").weights, PackedBatch.from_lists([[2, 5, 3], [2, 7, 8, 9, 4, 1, 1]])
    for mode in ("fast", "exact"):
        found = TtEncoder(weights, Arithmetic(mode=mode), float32=frozenset(OPERATIONS))(words)
        torch.testing.assert_close(found.double(), reference.encode(weights, words).features, rtol=0, atol=1e-5)


def in_place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x += y
    return x


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x, y: x + y, lambda x, y, a: stored.add(x, y, a)),
        (lambda x, y: torch.add(x, y), lambda x, y, a: stored.add(x, y, a)),
        (lambda x, y: x - y, lambda x, y, a: stored.add(x, y, a, subtract=True)),
        (in_place, lambda x, y, a: stored.add(x, y, a)),
        (lambda x, y: x @ y.mT, lambda x, y, a: stored.product(x, y.mT, a)),
        (lambda x, y: torch.matmul(x, y.mT), lambda x, y, a: stored.product(x, y.mT, a)),
        (lambda x, y: x.mm(y.mT), lambda x, y, a: stored.product(x, y.mT, a)),
        (lambda x, y: torch.bmm(x[None], y.mT[None])[0], lambda x, y, a: stored.product(x, y.mT, a)),
        (functional.linear, lambda x, y, a: stored.product(x, y.mT, a)),
        (lambda x, _: x.softmax(-1), lambda x, _, a: stored.softmax(x, a)),
        (lambda x, _: torch.softmax(x, 0), lambda x, _, a: stored.softmax(x.mT, a).mT),
        (lambda x, _: functional.layer_norm(x, (33,)), lambda x, _, a: plain_norm(x, a)),
        (lambda x, _: functional.gelu(x), lambda x, _, a: stored.function("gelu", x, a)),
        (lambda x, _: functional.gelu(x, approximate="tanh"), lambda x, _, a: stored.function("gelu_tanh", x, a)),
        (lambda x, _: functional.silu(x), lambda x, _, a: stored.function("silu", x, a)),
        (lambda x, _: x.tanh(), lambda x, _, a: stored.function("tanh", x, a)),
        (lambda x, _: torch.sigmoid(x), lambda x, _, a: stored.function("sigmoid", x, a)),
    ],
)
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_users_module_is_met_by_what_it_calls(mode: str, call: Any, expected: Any) -> None:
    """Shapes are no tiles: 5 x 33."""
    arithmetic = Arithmetic(math_fidelity="lofi", mode=mode)
    x, y = torch.randn(2, 5, 33, generator=torch.Generator().manual_seed(0))
    with EmulatedOperations(arithmetic):
        found = call(x, y)
    assert found.dtype == torch.float32
    assert torch.equal(found.bfloat16(), expected(x.bfloat16(), y.bfloat16(), arithmetic))
    assert torch.equal(found, found.bfloat16().float())
    with EmulatedOperations(arithmetic, frozenset(OPERATIONS)):
        assert torch.equal(call(x, y), call(x, y))
    assert not torch.equal(found, call(x, y))


def plain_norm(x: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    ones, zeros = (torch.full(x.shape[-1:], value, dtype=torch.bfloat16) for value in (1.0, 0.0))
    return stored.layer_norm(x, ones, zeros, 1e-5, arithmetic)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_gradients_of_every_operation_are_near_torchs(mode: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 6, 16, generator=generator)
    table, norm, level = (torch.randn(*shape, generator=generator) for shape in ((9, 16), (16,), (16,)))
    ids = torch.tensor([[1, 2, 2, 0, 5, 1], [3, 3, 3, 3, 8, 1]])

    def run(given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x, table, norm, level = given
        x = x + functional.embedding(ids, table)
        x = functional.layer_norm(x, (16,), norm, level)
        x = x + functional.scaled_dot_product_attention(x, functional.gelu(x), torch.tanh(x), is_causal=True)
        return (functional.silu(x) - x[:1] @ level.view(16, 1)).square().sum()

    found = []
    for context in (EmulatedOperations(Arithmetic(mode=mode)), torch.enable_grad()):
        given = tuple(part.clone().requires_grad_() for part in (x, table, norm, level))
        with context:
            run(given).backward()
        found.append([part.grad for part in given])
    for ours, exact in zip(*found, strict=True):
        assert 1e-4 < float((ours - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(mode: str, bad: float, batch: PackedBatch) -> None:
    model = build(emulation=mode, emulate="all")
    with torch.no_grad():
        next(iter(model.encoder.encoder.parameters()))[0, 0] = bad
    loss, gradients = step(model, batch)
    assert not np.isfinite(loss)
    assert not all(bool(part.isfinite().all()) for part in gradients.values())
    linear = get_backend("tt-emulated", {"tt": {"emulation": mode}}).place(torch.nn.Linear(40, 3))
    assert not linear(torch.full((2, 40), bad)).isfinite().any()


def test_a_placed_model_is_the_hosts_again_on_the_host(batch: PackedBatch) -> None:
    backend, model = get_backend("tt-emulated", {"tt": {"emulate": "all"}}), build(emulate="all")
    plain = backend.on_host(copy.deepcopy(model).encoder)
    ids = batch.input_ids[None]
    torch.testing.assert_close(plain(ids).last_hidden_state, encoder()(ids).last_hidden_state)


def test_the_label_says_what_is_emulated() -> None:
    def labels(**options: Any) -> tuple[str, str]:
        backend = get_backend("tt-emulated", {"tt": options})
        policy = backend.cast_policy("float32")
        return policy.mode, backend.whole_model_policy(policy).mode

    start = "tt-emulated hifi4, float32 destination"
    weights = "frozen weights bfloat16"
    assert labels() == (f"{start}, {weights}, fast, all operations", f"{start}, fast, linear layers")
    assert labels(emulation="exact")[1] == f"{start}, exact, all operations"
    assert labels(emulate="all", float32=["add"])[1] == f"{start}, fast, all operations except add"
    # Runs of before don't say it.
    for label in (*labels(), labels(emulation="exact")[0]):
        assert renamed(label.rpartition(",")[0]) == renamed(label) == label


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tt.emulate=some", "tt.emulate: 'some' is not allowed.*'linear'.*'all'"),
        ("tt.float32=[relu]", r"tt\.float32.*'relu' is not allowed.*'softmax'"),
    ],
)
def test_a_wrong_choice_of_operations_ends_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(None, [setting])
    assert "\n" not in str(caught.value)


def test_the_error_budget_models_what_the_device_computes() -> None:
    def budget(**options: Any) -> dict[str, Any]:
        backend = get_backend("tt-emulated", {"tt": options})
        return dict(backend.error_budget(backend.cast_policy("float32")).options)

    assert "emulate" not in budget()
    assert budget(emulation="exact")["emulate"] == budget(emulate="all")["emulate"] == "all"
