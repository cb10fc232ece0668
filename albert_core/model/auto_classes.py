"""Encoder and head as the models that transformers' AutoModelForSequenceClassification and ForQuestionAnswering load.

The heads `pooler_linear` and for questions are transformers' own. It has none like the MLP head: `register_models` adds
model types for that one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from .head import ClassificationHead, PoolerHead, SpanHead


class AlbertMlpConfig(AlbertConfig):
    """An ALBERT encoder below an MLP head with `mlp_hidden_size` units."""

    model_type = "isotrain_albert_mlp"
    mlp_hidden_size: int = 100


class BertMlpConfig(BertConfig):
    """A BERT encoder below an MLP head with `mlp_hidden_size` units."""

    model_type = "isotrain_bert_mlp"
    mlp_hidden_size: int = 100


class AlbertMlpForSequenceClassification(AlbertForSequenceClassification):
    """transformers' class with isotrain's MLP head in place of pooler and classifier."""

    config_class = AlbertMlpConfig

    def __init__(self, config: AlbertMlpConfig) -> None:
        super().__init__(config)
        self.albert.pooler = nn.Linear(config.hidden_size, config.mlp_hidden_size)
        self.albert.pooler_activation = nn.GELU()
        self.classifier = nn.Linear(config.mlp_hidden_size, config.num_labels)
        self.post_init()


class BertMlpForSequenceClassification(BertForSequenceClassification):
    """transformers' class with isotrain's MLP head in place of pooler and classifier."""

    config_class = BertMlpConfig

    def __init__(self, config: BertMlpConfig) -> None:
        super().__init__(config)
        self.bert.pooler.dense = nn.Linear(config.hidden_size, config.mlp_hidden_size)
        self.bert.pooler.activation = nn.GELU()
        self.classifier = nn.Linear(config.mlp_hidden_size, config.num_labels)
        self.post_init()


_MLP_MODELS: dict[str, tuple[Any, Any]] = {
    "albert": (AlbertMlpConfig, AlbertMlpForSequenceClassification),
    "bert": (BertMlpConfig, BertMlpForSequenceClassification),
}
_POOLER_MODELS = {"albert": AlbertForSequenceClassification, "bert": BertForSequenceClassification}
_SPAN_MODELS = {"albert": AlbertForQuestionAnswering, "bert": BertForQuestionAnswering}


def register_models() -> None:
    """Lets transformers' Auto classes load exports with an MLP head (`isotrain export --format transformers`)."""
    for config, model in _MLP_MODELS.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForSequenceClassification.register(config, model, exist_ok=True)


def with_transformers_head(encoder: Any, head: ClassificationHead | PoolerHead | SpanHead) -> Any:
    """A new transformers model with copies of these weights.

    Args:
        encoder: An AlbertModel or BertModel without pooler, whose configuration names the labels.
        head: A SpanHead, PoolerHead or ClassificationHead.

    Returns:
        A model for questions or for sequence classification, in eval mode. Its dropout is the head's.
    """
    kind, values = encoder.config.model_type, encoder.config.to_dict()
    # They are those of the encoder alone.
    for name in ("model_type", "architectures"):
        values.pop(name, None)
    pooler, dropout = {
        "albert": ("albert.pooler", "classifier_dropout_prob"),
        "bert": ("bert.pooler.dense", "classifier_dropout"),
    }[kind]
    build: Any
    if isinstance(head, SpanHead):
        config, build, layers = type(encoder.config), _SPAN_MODELS[kind], {"output": "qa_outputs"}
    else:
        values[dropout] = head.dropout.p
        config, build = type(encoder.config), _POOLER_MODELS[kind]
        layers = {"pooler": pooler, "hidden": pooler, "output": "classifier"}
        if isinstance(head, ClassificationHead):
            config, build = _MLP_MODELS[kind]
            values["mlp_hidden_size"] = head.hidden.out_features
    # transformers draws initial weights from torch's own generator, which is left to dropout.
    with torch.random.fork_rng(devices=()):
        model = build(config(**values))
    state = {f"{kind}.{name}": tensor for name, tensor in encoder.state_dict().items()}
    for name, tensor in head.state_dict().items():
        layer, _, part = name.rpartition(".")
        state[f"{layers[layer]}.{part}"] = tensor
    model.load_state_dict(state, strict=True)
    return model.eval()
