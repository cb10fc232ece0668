"""The model that is trained: the head alone, or encoder and head together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ... import UserError
from ...backends import Backend, CastPolicy, TrainedEncoder
from ...kernels.packed import PackedBatch, PaddedBatch
from ..processes.sharding import part_like
from ..terminal.text import SHORT, quoted, reason_of, shorten
from .packed_module import packed_states, padded, take_packed
from .transformers_module import (
    dropout_rates,
    encoder_layers,
    fuse_activations,
    padded_states,
    weights_from_module,
)

log = logging.getLogger("isotrain")


def checkpoint_activations(encoder: Any, arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """Makes every layer of a transformers encoder recompute its activations in backward (Chen et al. 2016, 1604.06174).

    Wraps each layer in torch.utils.checkpoint, because transformers has no gradient checkpointing for ALBERT. The
    losses keep their bits, since a layer's dropout generator is restored for the second run.

    Args:
        encoder: A transformers AlbertModel or BertModel.
        arithmetic: The context of the forward pass, which the second run needs, too.
    """

    def again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # A compiler has traced the context around it.
        with nullcontext() if torch.compiler.is_compiling() else arithmetic():
            return forward(*args, **kwargs)

    for layer in encoder_layers(encoder):
        layer.forward = partial(checkpoint, partial(again, layer.forward), use_reentrant=False)


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The part of the model's state that training changes: without the frozen parameters beneath adapters."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained_state(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Restores a `trained_state`, or a whole ``state_dict``.

    Raises:
        UserError: A tensor is missing, unknown, of another shape, or not finite.
    """
    fix = "these are not this run's weights; name a checkpoint of this run"
    absent = trained_state(model).keys() - saved.keys()
    if absent:
        raise UserError(f"the saved model lacks {shorten(', '.join(sorted(absent)))}: {fix}")
    held = model.state_dict()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in saved.items():
        if name in parameters and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"the saved weight {quoted(name)} is NaN or inf; take an earlier checkpoint")
    try:
        parts = {name: part_like(tensor, held.get(name, tensor)) for name, tensor in saved.items()}
        model.load_state_dict(held | parts, strict=True)
    except RuntimeError as error:
        reason = reason_of(error, SHORT)
        raise UserError(f"the saved model does not fit ({reason}): {fix}") from error


class WholeModel(nn.Module):
    """Encoder and head in one. `apply_head` decides what the head reads of ``last_hidden_state``.

    An encoder with a trained weight is in training mode. One without stays in evaluation mode, without dropout.

    Master weights are in the policy's accumulate dtype (float32 for bfloat16). The encoder's products run in its
    compute dtype under the backend's autocast. The head and the loss run in the head's own dtype. Packed batches are
    accepted if the backend has that layout. Its own kernel computes them if it has one, else the module does.

    Args:
        kernel: "auto", one of the backend's `trained_kernels`, or any other name for the module.
        recompute: Whether backward computes each layer's activations again.

    Raises:
        UserError: The kernel can't train this encoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        apply_head: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor],
        backend: Backend,
        policy: CastPolicy,
        kernel: str = "auto",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder.to(getattr(torch, policy.accumulate))
        fuse_activations(self.encoder)
        self._packs = "packed" in backend.traits.layouts
        if self._packs:
            take_packed(self.encoder)
        if recompute:
            checkpoint_activations(self.encoder, partial(backend.autocast, policy))
        self.trained = _trained_encoder(self.encoder, backend, policy, kernel, recompute)
        self.head = head
        self._apply_head = apply_head
        self._backend = backend
        self._policy = policy

    @property
    def kernel(self) -> str:
        """The kernel of packed batches."""
        return "transformers" if self.trained is None else self.trained.name

    def train(self, mode: bool = True) -> WholeModel:
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def forward(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Logits (sequences, outputs), or (sequences, length, outputs) if the head reads every token.

        The length is that of a padded batch, or of the longest sequence of a packed batch.
        """
        with self._backend.autocast(self._policy), self._backend.named_range("encoder"):
            if isinstance(batch, PackedBatch) and self.trained is not None:
                states, mask = padded(self.trained(batch, dropout_rates(self.encoder)), batch.places(), batch)
            elif isinstance(batch, PackedBatch):
                states, mask = packed_states(self.encoder, batch, self._backend)
            else:
                lazy = self._backend.static_shapes is not None or self._backend.traits.reads_wait
                static = lazy or torch.compiler.is_compiling()
                own = None if static or not self._packs else self._backend.attention()
                states, mask = padded_states(self.encoder, batch, static=static, attention=own), batch.attention_mask
        with self._backend.named_range("head"):
            return self._apply_head(self.head, states, mask)


def _trained_encoder(
    encoder: Any, backend: Backend, policy: CastPolicy, kernel: str, recompute: bool
) -> TrainedEncoder | None:
    """The kernel that trains `encoder` on packed batches, or None. Raises UserError if `kernel` can't."""
    names = backend.traits.trained_kernels
    if not names or kernel not in ("auto", *names):
        return None
    if any(hasattr(layer, "base_layer") for layer in encoder.modules()):
        if kernel != "auto":
            raise UserError(f"kernel {kernel} trains no adapters inside the encoder; set kernel: auto, or lora.rank: 0")
        log.info("the encoder is trained by its transformers module: kernel %s trains no adapters inside it", names[0])
        return None
    weights = weights_from_module(encoder, trained=True)
    return backend.trained_encoder(weights, policy, kernel, encoder.embeddings.word_embeddings, recompute)
