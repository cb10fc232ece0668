"""The GPU encoder against the float64 oracle: on a GPU where there is one, else under Triton's interpreter.

Everything runs but CUDA graphs and streams. A recorder of operators and launches stands in for the graph, so that
buckets, buffers and what is left over in them are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.kernels import reference
from isotrain.kernels.cuda import BucketRunner, Operators, PackedGpuEncoder, encoder, smoke_test, support, why_not
from isotrain.kernels.cuda.buckets import sequence_bucket, token_bucket
from isotrain.kernels.cuda.rows import TokenRows, first_rows, key_ranges, split
from isotrain.kernels.packed import PackedBatch, PaddedBatch, PortableEncoder
from isotrain.kernels.weights import EncoderWeights
from support.awkward import NAN_PLACES, unaligned, unaligned_batch, with_nan
from support.hosted_cuda import plain_flash
from support.recorded_graph import RecordedGraph
from torch.utils.flop_counter import FlopCounterMode

Build = Callable[..., torch.nn.Module]
MakeBatch = Callable[..., PackedBatch]
TextLengths = Callable[[int], list[int]]


def rmse(values: torch.Tensor, exact: torch.Tensor) -> float:
    return (values.cpu().double() - exact).square().mean().sqrt().item()


def assert_near(values: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(values.cpu().double(), expected.cpu().double(), rtol=0, atol=atol)


@pytest.fixture(scope="module")
def make(triton_device: torch.device) -> Callable[..., PackedGpuEncoder]:
    def _make(weights: EncoderWeights, compute: torch.dtype = torch.float32, **options: Any) -> PackedGpuEncoder:
        return PackedGpuEncoder(weights.to(triton_device), compute, **options)

    return _make


@pytest.fixture(scope="module")
def tiny(build: Build) -> EncoderWeights:
    return weights_from_module(build("albert-tiny"))


# --- equal to the oracle


@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize(
    ("architecture", "lengths"),
    [
        ("albert-tiny", [65, 1, 2, 63, 3, 64, 1]),
        ("albert-grouped", [9, 1, 30, 9]),
        ("albert-one-layer", [9, 1, 30, 9]),
        ("bert-small", [20, 1, 2, 70, 3]),
    ],
)
def test_features_equal_the_oracle(
    architecture: str, lengths: list[int], pairs: bool, build: Build, make_batch: MakeBatch, make: Callable
) -> None:
    weights = weights_from_module(build(architecture))
    batch = make_batch(lengths, pairs=pairs)
    expected = reference.encode(weights, batch).features
    assert expected.std(dim=0).mean() > 0.1, "features that hardly depend on the text would hide errors"
    gpu_encoder = make(weights)
    for layout in (batch, batch.to_padded(), batch.to_padded(length=80)):
        features = gpu_encoder(layout)
        assert features.dtype == torch.float32
        assert_near(features, expected)


def test_albert_base_in_bfloat16(build: Build, make_batch: MakeBatch, make: Callable) -> None:
    weights = weights_from_module(build("albert-base"))
    batch = make_batch([7, 1, 12])
    exact = reference.encode(weights, batch).features
    portable = rmse(PortableEncoder(weights, torch.bfloat16)(batch), exact)
    # The interpreter cuts bfloat16 off where a GPU rounds: about twice the error at each of its results.
    most = 3 if torch.cuda.is_available() else 6
    assert 1e-4 < rmse(make(weights, torch.bfloat16)(batch), exact) <= most * portable


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["albert-tiny", "bert-small"])
def test_narrow_types_are_as_near_as_the_portable_kernel(
    architecture: str, dtype: torch.dtype, build: Build, make_batch: MakeBatch, make: Callable
) -> None:
    weights = weights_from_module(build(architecture))
    batch = make_batch([5, 17, 9, 1, 12, 12], pairs=True)
    exact = reference.encode(weights, batch).features
    portable = rmse(PortableEncoder(weights, dtype)(batch), exact)
    most = 3 if torch.cuda.is_available() else 6
    for layout in (batch, batch.to_padded()):
        assert 0 < rmse(make(weights, dtype)(layout), exact) <= most * portable


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[512], [511, 1, 2, 300]])
def test_the_longest_sequences(lengths: list[int], tiny: EncoderWeights, make_batch: MakeBatch, make: Callable) -> None:
    batch = make_batch(lengths)
    assert_near(make(tiny)(batch), reference.encode(tiny, batch).features)


@pytest.mark.slow
def test_thousands_of_sequences(build: Build, make_batch: MakeBatch, text_lengths: TextLengths, make: Callable) -> None:
    weights = weights_from_module(build("albert-one-layer"))
    batch = make_batch(text_lengths(1200))
    assert_near(make(weights, chunk_tokens=7_000)(batch), PortableEncoder(weights)(batch))


@pytest.mark.parametrize("length", [1, 2, 130])
def test_a_batch_of_one(length: int, tiny: EncoderWeights, make_batch: MakeBatch, make: Callable) -> None:
    batch = make_batch([length])
    assert_near(make(tiny)(batch), reference.encode(tiny, batch).features)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
def test_activations(name: str, build: Build, make_batch: MakeBatch, make: Callable) -> None:
    weights = weights_from_module(build("albert-tiny", hidden_act=name))
    batch = make_batch([4, 30, 9])
    assert_near(make(weights)(batch), reference.encode(weights, batch).features)


@pytest.mark.parametrize("operators", [Operators(norm="torch"), Operators(activation="torch")], ids=str)
def test_torchs_operators_in_their_place(
    operators: Operators, tiny: EncoderWeights, make_batch: MakeBatch, make: Callable
) -> None:
    batch = make_batch([4, 30, 9])
    expected = reference.encode(tiny, batch).features
    assert_near(make(tiny, operators=operators)(batch), expected)
    assert rmse(make(tiny, torch.bfloat16, operators=operators)(batch), expected) < 0.05


def test_flash_attention_gets_the_right_sequences(
    monkeypatch: pytest.MonkeyPatch, tiny: EncoderWeights, make_batch: MakeBatch, make: Callable
) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(encoder, "flash_attention", plain_flash)
    batch = make_batch([4, 30, 9, 1], pairs=True)
    expected = reference.encode(tiny, batch).features
    graph = RecordedGraph()

    def runner(forward: Any) -> BucketRunner:
        return BucketRunner(forward, graph, 512)

    for gpu_encoder in (
        make(tiny, torch.bfloat16, operators=Operators("flash")),
        make(tiny, torch.bfloat16, operators=Operators("flash"), runner=runner),
        make(tiny, torch.bfloat16, operators=Operators(flash_from=1), runner=runner),
    ):
        assert gpu_encoder.name in ("flash", "triton+flash")
        for layout in (batch, batch.to_padded()):
            assert rmse(gpu_encoder(layout), expected) < 0.05


def test_flash_attention_takes_the_chunks_of_long_texts_only(
    monkeypatch: pytest.MonkeyPatch, tiny: EncoderWeights, make_batch: MakeBatch, make: Callable
) -> None:
    taken: list[int] = []

    def attend(q: torch.Tensor, *others: Any) -> torch.Tensor:
        taken.append(others[-1])
        return plain_flash(q, *others)

    monkeypatch.setattr(encoder, "flash_attention", attend)
    gpu_encoder = make(tiny, torch.bfloat16, operators=Operators(flash_from=20), chunk_tokens=45)
    assert (gpu_encoder.name, gpu_encoder.version) == (
        "triton+flash",
        "1, flash from 20 tokens, chunks of 45 tokens",
    )
    # Chunks of 24, 17 and 20 tokens on average.
    batch = make_batch([8, 40, 14, 20, 30, 10])
    expected = reference.encode(tiny, batch).features
    assert [rows.max_length for rows in split(batch, 45)] == [8, 40, 20, 30]
    assert rmse(gpu_encoder(batch), expected) < 0.05
    assert set(taken) == {40, 30}
    taken.clear()
    assert rmse(gpu_encoder(batch.to_padded()), expected) < 0.05
    assert taken == [], "it can't hide padding"


@pytest.mark.parametrize("norm", ["triton", "torch"])
def test_a_narrow_residual_stream_rounds_more_and_not_much(
    norm: str, build: Build, make_batch: MakeBatch, make: Callable
) -> None:
    weights = weights_from_module(build("bert-small"))
    batch = make_batch([5, 17, 9, 1, 12, 12], pairs=True)
    exact = reference.encode(weights, batch)
    wide, narrow = (
        make(weights, torch.bfloat16, operators=Operators(norm=norm, residual=kind)) for kind in ("float32", "compute")
    )
    for layout in (batch, batch.to_padded()):
        features = narrow(layout)
        assert features.dtype == torch.float32
        assert 0.5 * rmse(wide(layout), exact.features) < rmse(features, exact.features)
        assert rmse(features, exact.features) < 4 * rmse(wide(layout), exact.features)
    states = narrow.layer_states(batch)
    assert {state.dtype for state in states} == {torch.float32}
    assert all(torch.equal(state, state.bfloat16().float()) for state in states), "it isn't kept in bfloat16"
    replayed = narrow.layer_states(batch, states[:-1])
    assert all(torch.equal(one, other) for one, other in zip(replayed, states[1:], strict=True))


def test_a_changed_encoder_shares_the_weights_and_leaves_the_other_as_it_was(
    tiny: EncoderWeights, make_batch: MakeBatch, make: Callable
) -> None:
    gpu_encoder, batch = make(tiny, torch.bfloat16), make_batch([4, 30, 9])
    before = gpu_encoder(batch)
    changed = gpu_encoder.changed(Operators(residual="compute", activation="torch"), 10)
    assert changed._layers is gpu_encoder._layers
    assert changed.version == "1, activation torch, residual compute, chunks of 10 tokens"
    assert not torch.equal(changed(batch), before)
    assert torch.equal(gpu_encoder(batch), before)
    assert gpu_encoder.version == "1"


def test_chunks_order_and_company_change_nothing_but_rounding(
    tiny: EncoderWeights, make_batch: MakeBatch, text_lengths: TextLengths, make: Callable
) -> None:
    batch = make_batch(text_lengths(12), pairs=True)
    expected = reference.encode(tiny, batch).features
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = PackedBatch.from_flat(
        batch.input_ids.numpy(), batch.cu_seqlens.numpy(), order.numpy(), batch.token_type_ids.numpy()
    )
    for chunk_tokens in (30, 100, 10**6):
        gpu_encoder = make(tiny, chunk_tokens=chunk_tokens)
        assert_near(gpu_encoder(batch), expected)
        assert_near(gpu_encoder(batch.to_padded()), expected)
    assert_near(gpu_encoder(shuffled), expected[order])


# --- only the work that is needed


def test_only_real_tokens_are_multiplied_and_only_cls_in_the_last_layer(
    tiny: EncoderWeights, make_batch: MakeBatch, make: Callable
) -> None:
    lengths = [3, 40, 7, 40, 1]
    tokens, sequences, h, f, e = sum(lengths), len(lengths), 64, 128, 32
    whole = 4 * h * h + 2 * h * f
    last = tokens * 2 * h * h + sequences * (2 * h * h + 2 * h * f)
    gpu_encoder = make(tiny)
    with FlopCounterMode(display=False) as counter:
        gpu_encoder(make_batch(lengths))
    # Attention is Triton's, which the counter doesn't see.
    assert counter.get_total_flops() == 2 * (tokens * e * h + 2 * tokens * whole + last)


# --- rows and buckets


def rows_of(batch: PackedBatch) -> TokenRows:
    return next(split(batch, 10**6))


def test_rows_see_their_own_sequence_and_padding_sees_nothing(make_batch: MakeBatch) -> None:
    rows = rows_of(make_batch([2, 1, 3]))
    # Two empty sequences and four padding rows behind.
    padded = replace(
        rows, input_ids=torch.zeros(10, dtype=torch.int64), cu_seqlens=torch.tensor([0, 2, 3, 6, 6, 6]).int()
    )
    starts, ends = key_ranges(padded)
    assert starts.tolist() == [0, 0, 2, 3, 3, 3, 6, 6, 6, 6]
    assert ends.tolist() == [2, 2, 3, 6, 6, 6, 6, 6, 6, 6]
    assert first_rows(padded).tolist() == [0, 2, 3, 6, 6]
    assert first_rows(replace(padded, input_ids=torch.zeros(6))).tolist() == [0, 2, 3, 5, 5]


def test_padded_places_are_rows_that_nobody_sees(make_batch: MakeBatch) -> None:
    rows = next(split(make_batch([2, 1]).to_padded(3), 100))
    starts, ends = key_ranges(rows)
    assert starts.tolist() == [0, 0, 0, 3, 3, 3]
    assert ends.tolist() == [2, 2, 2, 4, 4, 4]


def test_buckets_hold_their_batches_and_waste_little() -> None:
    for tokens in [*range(1, 3000), 8191, 8192, 8193]:
        bucket = token_bucket(tokens)
        assert tokens <= bucket == token_bucket(bucket)
        assert bucket == 64 or bucket < tokens * 1.125 + 1
    assert len({token_bucket(tokens) for tokens in range(1, 8193)}) <= 57
    assert [sequence_bucket(count) for count in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]


def test_buckets_are_reused_and_what_is_left_in_them_reaches_no_feature(
    tiny: EncoderWeights, make_batch: MakeBatch, make: Callable
) -> None:
    graph = RecordedGraph()
    runners: list[BucketRunner] = []

    def runner(forward: Any) -> BucketRunner:
        runners.append(BucketRunner(forward, graph, 512))
        return runners[0]

    gpu_encoder = make(tiny, runner=runner)
    batches = [
        make_batch(lengths, seed=seed) for seed, lengths in enumerate(([60, 1, 3], [30, 31], [1], [3, 9, 2, 40]))
    ]
    batches += [make_batch([64]), make_batch([1, 2], pairs=True), make_batch([3, 4]).to_padded(6)]
    kept = []
    for _ in range(3):
        for batch in batches:
            features = gpu_encoder(batch)
            kept.append((features, features.clone()))
            assert_near(features, reference.encode(tiny, batch).features)
    for features, copy in kept:
        assert torch.equal(features, copy), "a later batch wrote over an earlier one's features"
    # (64, 4), (64, 2), (64, 1), with types, padded.
    assert len(runners[0]._buckets) == graph.events.count("capture") == graph.events.count("warm up") == 5
    assert graph.events.count("replay") == 3 * len(batches) - 5


def test_full_buckets_of_every_number_of_sequences(tiny: EncoderWeights, make_batch: MakeBatch, make: Callable) -> None:
    """No padding row is left: a spare sequence would begin behind the last one."""
    gpu_encoder = make(tiny, runner=lambda forward: BucketRunner(forward, RecordedGraph(), 512))
    for lengths in ([64], [32, 31, 1], [20, 20, 20, 3, 1]):
        batch = make_batch(lengths)
        for _ in range(3):
            assert_near(gpu_encoder(batch), reference.encode(tiny, batch).features)


def test_the_number_of_graphs_is_bounded(tiny: EncoderWeights, make_batch: MakeBatch, make: Callable) -> None:
    graph = RecordedGraph()
    gpu_encoder = make(tiny, runner=lambda forward: BucketRunner(forward, graph, 512, graph_tokens=150, most_buckets=2))
    for lengths in ([9], [70], [100], [9], [130, 30]):
        for _ in range(2):
            batch = make_batch(lengths)
            assert_near(gpu_encoder(batch), reference.encode(tiny, batch).features)
    assert graph.events.count("capture") == 2


def test_after_a_failed_capture_the_encoder_runs_directly(
    tiny: EncoderWeights, make_batch: MakeBatch, make: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    graph = RecordedGraph(fails=True)
    gpu_encoder = make(tiny, runner=lambda forward: BucketRunner(forward, graph, 512))
    for lengths in ([9], [9], [9], [70], [70], [70]):
        batch = make_batch(lengths)
        assert_near(gpu_encoder(batch), reference.encode(tiny, batch).features)
    assert graph.events == ["warm up", "capture"]
    (warning,) = caplog.messages
    assert warning.startswith("the encoder runs small batches without CUDA graphs: operation not permitted")


def test_weights_changed_in_place_are_those_that_are_used(
    tiny: EncoderWeights, make_batch: MakeBatch, triton_device: torch.device
) -> None:
    """Sharing is documented; a graph must not turn it into a mixture of old and new."""
    weights = tiny.to(triton_device)
    embedding = weights.word_embeddings.clone()
    weights = replace(weights, word_embeddings=embedding)
    batch = make_batch([5, 9])
    gpu_encoder = PackedGpuEncoder(
        weights, torch.float32, runner=lambda forward: BucketRunner(forward, RecordedGraph(), 512)
    )
    for _ in range(3):
        gpu_encoder(batch)
    embedding.mul_(0.5)
    assert_near(gpu_encoder(batch), reference.encode(weights, batch).features)


# --- bad input


@pytest.mark.parametrize(
    ("ids", "message"),
    [([1, 1000], "token id 1000"), ([-1, 1], "token id -1"), ([1] * 513, "513 tokens is longer"), ([], "empty")],
)
def test_bad_batches_on_the_host_are_refused(
    ids: list[int], message: str, tiny: EncoderWeights, make: Callable
) -> None:
    gpu_encoder = make(tiny)
    with pytest.raises(UserError, match=message):
        gpu_encoder(PackedBatch.from_lists([[2, 3], ids]))


@pytest.mark.parametrize("field", ["input_ids", "position_ids", "token_type_ids"])
@pytest.mark.parametrize("value", [-1, 1000])
def test_bad_ids_on_the_device_give_nan_for_their_sequence(
    field: str, value: int, tiny: EncoderWeights, make_batch: MakeBatch, make: Callable, triton_device: torch.device
) -> None:
    batch = make_batch([7, 5, 6], pairs=True)
    rows = rows_of(batch.to(triton_device))
    wrong = getattr(rows, field).clone()
    wrong[17] = value
    features = make(tiny).forward(replace(rows, **{field: wrong}))
    assert torch.isnan(features[2]).all()
    assert torch.equal(features[:2], make(tiny).forward(rows)[:2])


def test_tensors_that_are_not_contiguous(tiny: EncoderWeights, make_batch: MakeBatch, make: Callable) -> None:
    layer = tiny.layers[0]
    strided = replace(layer, ffn_weight=layer.ffn_weight.T.contiguous().T, ffn_bias=layer.ffn_bias.repeat(2, 1).T[:, 0])
    assert not strided.ffn_weight.is_contiguous()
    batch = make_batch([4, 2, 9])
    every_second = batch.input_ids.repeat_interleave(2)[::2]
    assert not every_second.is_contiguous()
    features = make(replace(tiny, layers=(strided,)))(replace(batch, input_ids=every_second))
    assert_near(features, reference.encode(tiny, batch).features)


def test_unaligned_tensors_give_the_same_bits(tiny: EncoderWeights, make_batch: MakeBatch, make: Callable) -> None:
    batch = make_batch([4, 2, 9], pairs=True)
    moved = make(tiny.mapped(lambda _, tensor: unaligned(tensor)))
    assert torch.equal(moved(unaligned_batch(batch)), make(tiny)(batch))


@pytest.mark.parametrize("place", NAN_PLACES)
def test_a_nan_among_the_weights_gives_no_number(place: str, build: Build, make: Callable) -> None:
    weights = weights_from_module(build("albert-tiny", hidden_act="relu"))
    features = make(with_nan(weights, place))(PackedBatch.from_lists([[2, 7, 3], [2, 5, 6, 7, 3]]))
    assert torch.isnan(features).any(dim=1).all()


def test_what_the_kernels_cannot_take_says_why(
    tiny: EncoderWeights, triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config
    assert why_not(config, torch.bfloat16, torch.float32) == ""
    assert "float64" in why_not(config, torch.float64, torch.float64)
    assert "activation 'swish'" in why_not(replace(config, activation="swish"), torch.float32, torch.float32)
    wide = replace(config, hidden_size=1024, num_heads=2)
    assert "512 are wider" in why_not(wide, torch.float32, torch.float32)
    assert "not in torch.float32" in support.why_no_flash(config, torch.float32)
    assert "multiple of 8" in support.why_no_flash(replace(config, hidden_size=60), torch.bfloat16)
    with pytest.raises(UserError, match="use kernel portable"):
        PackedGpuEncoder(tiny, torch.float64)
    monkeypatch.setattr(support, "find_spec", lambda _: None)
    assert why_not(config, torch.bfloat16, torch.float32) == "triton is not installed"


def test_the_smoke_test_passes_and_can_fail(
    tiny: EncoderWeights, triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isotrain.kernels.cuda import triton_kernels

    config = tiny.config
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for activation in triton_kernels.ACTIVATIONS:
            assert smoke_test(triton_device, dtype, replace(config, activation=activation)) == ""
    with monkeypatch.context() as patch:
        patch.setattr(triton_kernels, "attention", lambda q, *_, **__: torch.zeros_like(q))
        assert "wrong results here (attention, 64" in smoke_test(triton_device, torch.bfloat16, config)
    monkeypatch.setattr(triton_kernels, "add_norm", lambda *_: 1 / 0)
    assert "don't run here (ZeroDivisionError" in smoke_test(triton_device, torch.float32, config)

    def assertion(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(triton_kernels, "add_norm", assertion)
    assert "don't run here (AssertionError: AssertionError)" in smoke_test(triton_device, torch.float32, config)


@pytest.mark.parametrize("row", [[0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 2, 0]])
def test_a_mask_that_is_not_padding_on_the_right_is_no_number(
    row: list[int], tiny: EncoderWeights, make: Callable, triton_device: torch.device
) -> None:
    mask = torch.tensor([[1, 1, 0], row], device=triton_device)
    batch = PaddedBatch(torch.ones(2, 3, dtype=torch.int64, device=triton_device), mask)
    features = torch.cat([make(tiny, chunk_tokens=3).forward(rows) for rows in split(batch, 3)])
    assert torch.isfinite(features[0]).all()
    assert torch.isnan(features[1]).all()


def test_autocast_around_it_changes_nothing(
    tiny: EncoderWeights, make_batch: MakeBatch, make: Callable, triton_device: torch.device
) -> None:
    gpu_encoder, batch = make(tiny), make_batch([4, 2])
    features = gpu_encoder(batch)
    with torch.autocast(triton_device.type, dtype=torch.bfloat16):
        assert torch.equal(gpu_encoder(batch), features)
    assert not features.requires_grad
