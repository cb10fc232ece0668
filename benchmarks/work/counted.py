"""The matrix FLOPs and the weights of a module's own step, counted while the step runs on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
# These read only the rows of a table that they are asked for.
LOOKUPS = {aten.embedding, aten.index_select, aten.index, aten.gather, aten.embedding_dense_backward}


class Counted(NamedTuple):
    """What a step computes and reads.

    Attributes:
        flops: Of matrix products, convolutions and attention, as torch's FlopCounterMode counts them: a multiply-add
            counts 2, and causal attention counts in full.
        weight_bytes: Of the parameters and buffers that operations read, each once.
        trained_bytes: Of the parameters that got a gradient.
    """

    flops: int
    weight_bytes: int
    trained_bytes: int


def count_step(module: nn.Module, step: Callable[[], object]) -> Counted:
    """Runs a step and counts its work. The module's gradients are cleared before it.

    Args:
        module: On the host.
        step: Its forward pass, and its backward pass if the module is trained.
    """
    module.zero_grad(set_to_none=True)
    weights = _WeightReads([*module.parameters(), *module.buffers()])
    with FlopCounterMode(display=False, custom_mapping=_HOST_ATTENTION) as counter, weights:
        step()
    trained = sum(_size(parameter) for parameter in module.parameters() if parameter.grad is not None)
    return Counted(counter.get_total_flops(), sum(weights.read.values()), trained)


class _WeightReads(TorchDispatchMode):
    """The bytes that operations read of each weight: the most of all operations."""

    supports_higher_order_operators = True

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.read: dict[int, int] = {}
        self._sizes = {tensor.untyped_storage().data_ptr(): _size(tensor) for tensor in weights if tensor.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not getattr(func, "is_view", False) and getattr(func, "overloadpacket", func) not in LOOKUPS:
            for value in tree_leaves(args):
                if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                    place = value.untyped_storage().data_ptr()
                    if place in self._sizes:
                        size = min(_size(value), self._sizes[place])
                        self.read[place] = max(size, self.read.get(place, 0))
        return func(*args, **(kwargs or {}))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# FlopCounterMode knows the attention kernels of CUDA, but not the host's.
_HOST_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def moved_bytes(counted: Counted, batch_bytes: int, state_bytes: int, trained: bool) -> int:
    """The fewest bytes that a step must move, without activations.

    A forward pass reads the weights and the batch. A training step reads the weights once more, writes and reads the
    gradients, and reads and writes the trained weights and the optimizer's state.
    """
    if not trained:
        return counted.weight_bytes + batch_bytes
    return 2 * counted.weight_bytes + 4 * counted.trained_bytes + 2 * state_bytes + batch_bytes
