"""The portable encoder's padded form under torch.compile: one program for batches of every shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from ... import UserError
from ..inductor import compiled
from .batch import PackedBatch, PaddedBatch
from .portable import PortableEncoder, tensors_mapped

# The batch that the program is compiled with. inductor tunes it for this many tokens of each sequence.
EXAMPLE_LENGTH = 64


class CompiledPortable(PortableEncoder):
    """A `PortableEncoder` for padded batches whose passes run in a program of torch.compile. Packed ones are refused.

    The number of sequences and their length are symbols of the program. It is compiled before the first batch, with an
    example of its own, so features don't depend on which batch came first. Weights are constants of it (inductor's
    freezing), which are laid out for the device's products once. `layer_states` are the portable kernel's.
    """

    name = "compile"
    version = f"{PortableEncoder.version} torch {torch.__version__}"

    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features, float32 [sequences, hidden].

        Raises:
            UserError: The batch is packed or doesn't fit the encoder, or torch can't compile the encoder.
        """
        if isinstance(batch, PackedBatch):
            raise UserError("kernel compile takes padded batches only; set layout: padded or bucketed")
        return super().__call__(batch)

    def padded_block(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        """See `PortableEncoder.padded_block`."""
        rows, length = ids.shape
        inputs = torch.stack((ids, mask, torch.zeros_like(ids) if types is None else types)).long()
        # torch.compile never takes a size of 1 as a symbol.
        if rows == 1:
            inputs = inputs.repeat(1, 2, 1)
        if length == 1:
            inputs = functional.pad(inputs, (0, 1))
        return self._program(inputs)[:rows]

    @cached_property
    def _program(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """From ids, mask and token types, int64 [3, B, L], to features. B and L are at least 2."""
        import torch._dynamo
        import torch._inductor.config as inductor

        def constant(tensor: torch.Tensor) -> torch.Tensor:
            torch._dynamo.mark_static_address(tensor, guard=True)
            return tensor

        tensors_mapped(list(vars(self).values()), constant)
        portable = super().padded_block
        program = compiled(lambda inputs: portable(*inputs.unbind()), "set another kernel")
        length = min(EXAMPLE_LENGTH, self.config.max_positions)
        example = torch.ones(3, max(2, self.chunk_tokens // length), length, dtype=torch.int64, device=self.device)
        torch._dynamo.maybe_mark_dynamic(example, (1, 2))
        settings: Any = inductor
        with settings.patch(freezing=True):
            program(example)
        return program
