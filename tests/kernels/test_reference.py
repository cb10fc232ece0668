"""The oracle itself, judged by transformers run in float64."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.kernels import reference
from isotrain.kernels.packed import PackedBatch

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("albert-tiny", {}),
        ("albert-grouped", {}),
        ("albert-base", {}),
        ("bert-small", {}),
        *(("albert-tiny", {"hidden_act": name}) for name in ("gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("hidden_act", "default"),
)
def test_the_oracle_equals_transformers_in_float64(
    architecture: str,
    changes: dict[str, str],
    build: Callable[..., torch.nn.Module],
    make_batch: Callable[..., PackedBatch],
) -> None:
    module = build(architecture, **changes)
    batch = make_batch([5, 1, 17, 9], pairs=True)
    ours = reference.encode(weights_from_module(module), batch, keep_layer_states=True)
    padded = batch.to_padded()
    with torch.no_grad():
        theirs = deepcopy(module).double()(
            input_ids=padded.input_ids,
            attention_mask=padded.attention_mask,
            token_type_ids=padded.token_type_ids,
            output_hidden_states=True,
        )
    torch.testing.assert_close(ours.features, theirs.last_hidden_state[:, 0], rtol=0, atol=1e-10)
    assert ours.features.std() > 0.1
    for row, (length, final, states) in enumerate(
        zip([5, 1, 17, 9], ours.last_hidden_state, ours.layer_states, strict=True)
    ):
        torch.testing.assert_close(final, theirs.last_hidden_state[row, :length], rtol=0, atol=1e-10)
        assert len(states) == len(theirs.hidden_states)
        for state, expected in zip(states, theirs.hidden_states, strict=True):
            torch.testing.assert_close(state, expected[row, :length], rtol=0, atol=1e-10)


def test_a_padded_batch_gives_the_same_rows(
    build: Callable[..., torch.nn.Module], make_batch: Callable[..., PackedBatch]
) -> None:
    weights = weights_from_module(build("albert-tiny"))
    batch = make_batch([4, 1, 6])
    packed, padded = reference.encode(weights, batch), reference.encode(weights, batch.to_padded(length=9))
    assert torch.equal(packed.features, padded.features)
    assert packed.layer_states == []


def test_the_oracle_refuses_what_it_cannot_judge(
    build: Callable[..., torch.nn.Module], make_batch: Callable[..., PackedBatch]
) -> None:
    with pytest.raises(UserError, match="longer than the encoder's 512 positions"):
        reference.encode(weights_from_module(build("albert-tiny")), make_batch([513]))
    with pytest.raises(UserError, match="activation 'mish' is not supported"):
        reference.encode(weights_from_module(build("albert-tiny", hidden_act="mish")), make_batch([3]))
