"""Forward and backward of an encoder's layers in native code, for training whole models on the host.

One autograd function computes all layers of a packed batch: bfloat16 products with float32 sums on AMX or AVX-512 BF16,
everything else in float32. The float32 parameters are rounded and packed at every call, for both products with them.
What backward needs is kept in bfloat16, or computed again. Gradients have the same bits for any number of threads, and
without dropout a sequence's states have the same bits in every batch.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from ... import UserError
from ..packed.batch import IntArray
from ..weights import DropoutRates, EncoderWeights, LayerWeights
from .encoder import shape_of, usable
from .library import TrainingBatch
from .recycled import Recycled

_ERROR_BYTES = 512
# native/train.h, enum Keep.
_NOTHING, _INPUTS, _EVERYTHING = range(3)


class TrainedLayers:
    """The layers of an encoder with ALBERT's projection before them: ``layers(embedded, lengths, key, rates)``.

    Args:
        weights: The trained parameters themselves, float32 on the host.
        recompute: Whether backward computes each layer's activations again from its input (Chen et al. 2016).
        recycled: Memory for gradients. By default its own.
        isa: An instruction set of `library.ISAS`. By default the fastest.
        threads: The number of threads. By default torch's number at each call.

    Raises:
        UserError: The extension or the instruction set is missing, or the shape or the activation is not supported.
    """

    def __init__(
        self,
        weights: EncoderWeights,
        recompute: bool = False,
        recycled: Recycled | None = None,
        isa: str | None = None,
        threads: int | None = None,
    ) -> None:
        library, isa = usable(weights.config, isa)
        self.config = weights.config
        self.isa = isa
        self.threads = threads
        self.recompute = recompute
        self._library = library
        self._parameters = [weights.projection_weight, weights.projection_bias]
        for layer in weights.layers:
            self._parameters += [getattr(layer, field.name) for field in fields(LayerWeights)]
        self._free_tapes: list[_Tape] = []
        self._recycled = recycled or Recycled()
        shape = shape_of(weights)
        order = (ctypes.c_int32 * self.config.num_layers)(*self.config.weights_of_layer)
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        self._handle = library.isotrain_cpu_train_create(isa.encode(), ctypes.byref(shape), order, error, _ERROR_BYTES)
        if not self._handle:
            raise UserError(f"kernel native can't train these weights: {error.value.decode()}")
        weakref.finalize(self, library.isotrain_cpu_train_destroy, self._handle)

    def __call__(self, embedded: torch.Tensor, lengths: IntArray, key: int, rates: DropoutRates) -> torch.Tensor:
        """States after the last layer, float32 [T, hidden], differentiable by `embedded` and the parameters.

        Args:
            embedded: float32 [T, embedding_size]: after the embedding's LayerNorm and dropout, before a projection.
            lengths: Integers [B], the tokens of each sequence. They add up to T.
            key: Chooses what is dropped. The same key drops the same values.
            rates: What the layers drop.
        """
        trained = [p for p in self._parameters if p is not None]
        keep = _NOTHING
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (embedded, *trained)):
            keep = _INPUTS if self.recompute else _EVERYTHING
        return _Layers.apply(self, _Pass(lengths, key, rates, keep), embedded, *self._parameters)

    @torch.no_grad()
    def states(
        self, embedded: torch.Tensor, lengths: IntArray, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """The first layer's input, then each layer's output, without dropout: float32 [T, hidden] each.

        With `given`, one such tensor for each layer, each layer is applied to its own one, and only outputs are
        returned.
        """
        count, tokens, hidden = self.config.num_layers, len(embedded), self.config.hidden_size
        inputs = None
        if given is not None:
            inputs = torch.stack([x.detach().float() for x in given])
            if inputs.shape != (count, tokens, hidden):
                raise UserError(f"a replay takes {count} states [{tokens}, {hidden}], not {tuple(inputs.shape)}")
        states = torch.empty(count + 1, tokens, hidden)
        tape = self.take_tape()
        self.forward(tape, embedded, _Pass(lengths, 0, DropoutRates(), _NOTHING), inputs, states)
        self.give_back(tape)
        return list(states if given is None else states[1:])

    def forward(
        self,
        tape: _Tape,
        embedded: torch.Tensor,
        run: _Pass,
        given: torch.Tensor | None = None,
        layer_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        lengths, rates = run.lengths, run.rates
        embedded = embedded.detach().float().contiguous()
        if embedded.shape != (lengths.sum(), self.config.embedding_size) or lengths.min() < 1:
            raise UserError(
                f"the embedding {tuple(embedded.shape)} doesn't fit {len(lengths)} sequences of {lengths.sum()} tokens "
                f"and embedding_size {self.config.embedding_size}"
            )
        bounds = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=bounds[1:])
        batch = TrainingBatch(
            bounds.ctypes.data, len(lengths), run.key, rates.attention, rates.attention_output, rates.output, run.keep,
            self.threads or torch.get_num_threads(),
        )  # fmt: skip
        states = torch.empty(len(embedded), self.config.hidden_size)
        # Packed at every call: fused optimizers change parameters without raising their versions.
        masters = [None if p is None else p.detach().float().contiguous() for p in self._parameters]
        self._run(
            self._library.isotrain_cpu_train_forward,
            tape.handle,
            ctypes.byref(batch),
            _pointers(masters),
            embedded.data_ptr(),
            states.data_ptr(),
            None if given is None else given.data_ptr(),
            None if layer_states is None else layer_states.data_ptr(),
        )
        return states

    def backward(
        self, tape: _Tape, gradient: torch.Tensor, wanted: Sequence[bool]
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """The gradients of the embedding and of the parameters, as far as they are wanted."""
        gradient = gradient.float().contiguous()
        embedded = torch.empty(len(gradient), self.config.embedding_size) if wanted[0] else None
        gradients = [
            self._recycled.empty(p.shape) if p is not None and want else None
            for p, want in zip(self._parameters, wanted[1:], strict=True)
        ]
        self._run(
            self._library.isotrain_cpu_train_backward,
            tape.handle,
            self.threads or torch.get_num_threads(),
            gradient.data_ptr(),
            None if embedded is None else embedded.data_ptr(),
            _pointers(gradients),
        )
        return embedded, gradients

    def _run(self, function: Any, *arguments: Any) -> None:
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        if function(self._handle, *arguments, error, _ERROR_BYTES):
            raise UserError(error.value.decode())

    def take_tape(self) -> _Tape:
        return self._free_tapes.pop() if self._free_tapes else _Tape(self._library)

    def give_back(self, tape: _Tape) -> None:
        self._free_tapes.append(tape)


@dataclass(frozen=True)
class _Pass:
    """What a pass computes, besides its tensors. `keep` is for backward."""

    lengths: IntArray
    key: int
    rates: DropoutRates
    keep: int


class _Tape:
    """The memory of one forward pass and its backward pass. It is freed with this object."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.handle = library.isotrain_cpu_train_tape()
        if not self.handle:
            raise MemoryError("no memory is left for a training step")
        weakref.finalize(self, library.isotrain_cpu_train_destroy_tape, self.handle)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: TrainedLayers, run: _Pass, embedded: torch.Tensor, *parameters: torch.Tensor | None
    ) -> torch.Tensor:
        tape = layers.take_tape()
        states = layers.forward(tape, embedded, run)
        if run.keep == _NOTHING:
            layers.give_back(tape)
            return states
        ctx.layers, ctx.tape = layers, tape
        # So that autograd refuses a backward pass after a change of the parameters: it would mix two steps' weights.
        ctx.save_for_backward(*parameters)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _ = ctx.saved_tensors
        if ctx.tape is None:
            raise RuntimeError("the native training step keeps its activations for one backward pass")
        embedded, gradients = ctx.layers.backward(ctx.tape, gradient, ctx.needs_input_grad[2:])
        ctx.layers.give_back(ctx.tape)
        ctx.tape = None
        return None, None, embedded, *gradients


def _pointers(tensors: Sequence[torch.Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
