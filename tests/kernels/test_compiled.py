"""The kernel "compile": one program for every padded batch, with the features of float64, or one line why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.backends import CastPolicy, get_backend
from isotrain.kernels import inductor, reference
from isotrain.kernels.packed import PackedBatch
from isotrain.kernels.packed.compiled import CompiledPortable
from isotrain.kernels.weights import EncoderWeights

Build = Callable[..., torch.nn.Module]
MakeBatch = Callable[..., PackedBatch]

FLOAT32 = CastPolicy("float32", "float32", "float32", "float32", "")
# Rows x length of padded batches, beginning with what torch.compile likes least.
SHAPES = ([1], [5], [3, 1, 7], [64] * 16, [2, 30], [9] * 40)


@pytest.fixture(scope="module")
def weights(build: Build) -> EncoderWeights:
    return weights_from_module(build("albert-one-layer"))


def compiles() -> int:
    return get_backend("cpu").compile_count()


def check_features(encoder: CompiledPortable, weights: EncoderWeights, make_batch: MakeBatch) -> None:
    """All shapes, with and without token types, of both kinds of integers: one compilation."""
    before = compiles()
    for lengths in SHAPES:
        for pairs in (False, True):
            batch = make_batch(lengths, pairs=pairs).to_padded()
            narrow = replace(batch, input_ids=batch.input_ids.int())
            exact = reference.encode(weights, batch).features
            for one in (batch, narrow):
                features = encoder(one)
                assert (features.dtype, features.shape) == (torch.float32, exact.shape)
                torch.testing.assert_close(features.double(), exact, rtol=0, atol=1e-5)
        if lengths is SHAPES[0]:
            assert compiles() > before
            before = compiles()
    assert compiles() == before, "a shape was compiled anew"


@pytest.mark.slow
def test_one_program_has_the_features_of_every_shape(weights: EncoderWeights, make_batch: MakeBatch) -> None:
    if reason := inductor.why_no_compiler("cpu"):
        pytest.skip(reason)
    encoder = get_backend("cpu").frozen_encoder(weights, FLOAT32, "compile")
    assert isinstance(encoder, CompiledPortable)
    check_features(encoder, weights, make_batch)


def test_the_graph_is_one_for_every_shape(
    weights: EncoderWeights, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "COMPILER", "eager")
    check_features(CompiledPortable(weights), weights, make_batch)


def test_features_do_not_depend_on_the_first_batch(
    weights: EncoderWeights, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is compiled with an example of its own."""
    seen = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        seen.append(str(graph.graph))
        return graph.forward

    monkeypatch.setattr(inductor, "COMPILER", compiler)
    for lengths in ([7] * 3, [30]):
        CompiledPortable(weights)(make_batch(lengths).to_padded())
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_what_it_refuses(weights: EncoderWeights, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "COMPILER", "eager")
    with pytest.raises(UserError, match="kernel compile takes padded batches only; set layout: padded or bucketed"):
        CompiledPortable(weights)(make_batch([3, 4]))
    monkeypatch.setenv("CXX", "no-such-compiler")
    backend = get_backend("cpu")
    lacking = "inductor needs a C++ compiler, and no-such-compiler is not installed"
    assert backend.kernels()["compile"].reason == lacking
    for refused in (
        lambda: backend.frozen_encoder(weights, FLOAT32, "compile"),
        lambda: backend.compile(torch.relu, "default"),
    ):
        with pytest.raises(UserError) as caught:
            refused()
        assert lacking in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_failure_of_the_compiler_is_one_line(
    weights: EncoderWeights, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("the compiler crashed\nin its second pass")

    monkeypatch.setattr(inductor, "COMPILER", broken)
    with pytest.raises(UserError) as caught:
        CompiledPortable(weights)(make_batch([3, 4]).to_padded())
    assert "torch.compile can't compile this model (" in str(caught.value)
    assert "the compiler crashed" in str(caught.value)
    assert str(caught.value).endswith("; set another kernel")
    assert "\n" not in str(caught.value)
