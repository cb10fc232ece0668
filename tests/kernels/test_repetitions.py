"""What encoders show of their layers, judged by the float64 oracle: one after the other, and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from isotrain.albert_core.features.source import module_layer_states
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.kernels import reference
from isotrain.kernels.cpu import NativeEncoder
from isotrain.kernels.cpu.library import EMULATED_ISA, best_isa, native, why_not
from isotrain.kernels.cuda import PackedGpuEncoder
from isotrain.kernels.ideal import IdealEncoder
from isotrain.kernels.packed import PackedBatch, PortableEncoder
from isotrain.kernels.tt.encoder import TtEncoder

Build = Callable[..., torch.nn.Module]
LENGTHS = [5, 1, 9, 3]

# The largest relative L2 distance of a state, for encoders that multiply float32 and those that multiply bfloat16.
FINE, COARSE = 2e-6, 2e-2


class Module:
    """The transformers module as an encoder."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def layer_states(self, batch: Any, given: Any = None) -> list[torch.Tensor]:
        return module_layer_states(self.module, batch, given)


def encoders(module: torch.nn.Module, gpu: torch.device) -> dict[str, tuple[Any, float]]:
    weights = weights_from_module(module)
    found: dict[str, tuple[Any, float]] = {
        "portable": (PortableEncoder(weights), FINE),
        "transformers": (Module(module), FINE),
        "ideal": (IdealEncoder(weights, torch.float32, "float32", 1), FINE),
        "ideal bfloat16": (IdealEncoder(weights, torch.bfloat16, "bfloat16", 1), COARSE),
        "triton": (PackedGpuEncoder(weights.to(gpu), torch.float32), FINE),
        "tt": (TtEncoder(weights), COARSE),
    }
    if why_not() is None:
        found["native"] = (NativeEncoder(weights), COARSE)
    if native().library is not None and best_isa():
        found["native, AMX emulated"] = (NativeEncoder(weights, EMULATED_ISA), COARSE)
    return found


def flat(states: list[torch.Tensor], mask: torch.Tensor | None) -> list[torch.Tensor]:
    return [(state if mask is None else state[mask]).cpu().double() for state in states]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("architecture", ["albert-grouped", "bert-small"])
def test_layers_and_their_replay_are_the_oracles(
    build: Build, make_batch: Callable[..., PackedBatch], triton_device: torch.device, architecture: str, layout: str
) -> None:
    module = build(architecture)
    packed = make_batch(LENGTHS, pairs=True)
    oracle = reference.encode(weights_from_module(module), packed, keep_layer_states=True)
    exact = [torch.cat(states) for states in zip(*oracle.layer_states, strict=True)]
    batch: Any = packed if layout == "packed" else packed.to_padded()
    mask = None if layout == "packed" else batch.attention_mask.bool()
    given = exact[:-1]
    if mask is not None:
        given = [
            torch.zeros(*mask.shape, state.shape[-1]).double().masked_scatter(mask[..., None], state) for state in given
        ]
    for name, (encoder, limit) in encoders(module, triton_device).items():
        if name == "transformers" and layout == "packed":
            continue
        for states, expected in (
            (encoder.layer_states(batch), exact),
            (encoder.layer_states(batch, given), exact[1:]),
        ):
            assert len(states) == len(expected)
            for found, state in zip(flat(states, mask), expected, strict=True):
                distance = ((found - state).norm() / state.norm()).item()
                assert distance < limit, f"{name}: {distance}"


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_the_native_features_are_those_of_its_watched_layers(
    build: Build, make_batch: Callable[..., PackedBatch]
) -> None:
    """What parity looks at is what training reads, to the bit."""
    encoder = NativeEncoder(weights_from_module(build("albert-tiny")))
    batch = make_batch([40, 1, 7, 200])
    last = encoder.layer_states(batch)[-1]
    assert torch.equal(encoder(batch), last[batch.cu_seqlens[:-1].long()])


def test_draws_of_the_ideal_differ_by_its_rounding(build: Build, make_batch: Callable[..., PackedBatch]) -> None:
    weights = weights_from_module(build("albert-tiny"))
    batch = make_batch(LENGTHS)
    exact = reference.encode(weights, batch).features
    for name in ("float32", "bfloat16", "float16"):
        dtype = getattr(torch, name)
        one, again, other = (IdealEncoder(weights, dtype, name, seed)(batch).double() for seed in (1, 1, 2))
        assert torch.equal(one, again)
        apart = (one - other).norm() / exact.norm()
        assert 0.05 * torch.finfo(dtype).eps < apart < 20 * torch.finfo(dtype).eps
