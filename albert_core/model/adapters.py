"""Low-rank adapters in a whole model (LoRA, Hu et al. 2021, 2106.09685), built by peft (extra `lora`).

The encoder's weights are frozen. A product ``x W`` of a targeted layer becomes ``x W + (alpha / rank) x A B``, where A
and B are trained together with the head. peft only builds the layers; the loop, the optimizer and the checkpoints are
the same as in every other run.
"""

from __future__ import annotations

import copy
import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import UserError
from ...kernels.install import install_hint
from ..config.lora import ALL_LINEAR, LoraOptions
from ..runs.files import write_bytes
from ..terminal.text import quoted

log = logging.getLogger("isotrain")


def add_adapters(encoder: Any, options: LoraOptions, seed: int) -> Any:
    """Copies a transformers encoder, sharing its frozen weights, and adds adapters that don't change its output yet.

    A is drawn from its own host generator, uniform in +-1/sqrt(inputs). B is zero.

    Raises:
        UserError: peft is missing, or a target is no linear layer of this encoder.
    """
    config = adapter_config(encoder, options)
    from peft import inject_adapter_in_model

    shared = copy.deepcopy(encoder, {id(parameter): parameter for parameter in encoder.parameters()})
    adapted: Any = inject_adapter_in_model(config, shared)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if ".lora_A." in name:
                bound = 1.0 / math.sqrt(parameter.shape[1])
                parameter.uniform_(-bound, bound, generator=generator)
            elif ".lora_B." in name:
                parameter.zero_()
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in encoder.parameters())
    log.info(
        "adapters of rank %d on %s: %s weights trained beside the head, %s frozen",
        options.rank,
        ", ".join(options.targets),
        f"{trained:,}",
        f"{total:,}",
    )
    return adapted


def adapter_config(encoder: Any, options: LoraOptions) -> Any:
    """peft's description of the adapters of a plain `encoder`. Raises UserError as `add_adapters` does."""
    if find_spec("peft") is None:
        raise UserError(f"lora.rank needs peft, which is not installed: `{install_hint('lora')}`; or set lora.rank: 0")
    linear = [name for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)]
    targets = linear if ALL_LINEAR in options.targets else list(options.targets)
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(
                f"lora.targets names {quoted(target)}, no linear layer of this encoder ends so; there are {ends}, and "
                f"{ALL_LINEAR} for all of them"
            )
    from peft import LoraConfig

    return LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=targets)


def write_adapters(encoder: Any, config: Any, folder: Path) -> None:
    """Writes the adapters of `encoder` as peft's two files, which `peft.PeftModel.from_pretrained` adds to the base
    model.

    Args:
        encoder: What `add_adapters` returned, trained.
        config: Its `adapter_config`.
        folder: Gets ``adapter_model.safetensors`` and ``adapter_config.json``.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    # peft reads this from a model that it made itself.
    encoder.peft_config = {"default": config}
    found = get_peft_model_state_dict(encoder, save_embedding_layers=False)
    tensors = {f"base_model.model.{name}": tensor.float().contiguous() for name, tensor in found.items()}
    write_bytes(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    config.save_pretrained(folder)


def merged(encoder: Any) -> Any:
    """A copy of `encoder` with the adapters added to their weights: a plain transformers encoder."""
    plain = copy.deepcopy(encoder)
    for name, layer in list(plain.named_modules()):
        if hasattr(layer, "base_layer"):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, layer.base_layer)
    return plain.requires_grad_(True)
