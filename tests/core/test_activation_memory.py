"""Gradient checkpointing trades memory for time: what backward keeps is counted, not timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.features.compute import token_batch
from isotrain.albert_core.loop.job import TextJob, open_job
from isotrain.albert_core.model.whole import WholeModel


def kept_bytes(job: TextJob, checkpointing: bool) -> tuple[int, float]:
    """Bytes that autograd keeps for the backward of one batch, weights aside, each storage once; and the loss."""
    encoder = job.encoder.module()
    head = job.task.head(encoder.config.hidden_size, job.num_labels, job.config)
    model = WholeModel(encoder, head, job.task.apply_head, job.backend, job.policy, recompute=checkpointing).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            # Held, so that no later tensor takes the address of one that is gone.
            kept.append(tensor)
        return tensor

    rows = torch.arange(16).numpy()
    batch = token_batch(job.train_tokens, rows, job.layout, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = job.task.loss(model(batch), torch.from_numpy(job.train_tokens.labels[rows]))
    loss.backward()
    return sum(storages.values()), float(loss.detach())


@pytest.mark.parametrize("model", ["albert", "bert"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["bucketed", "packed"])
def test_checkpointed_layers_keep_a_fraction_of_the_activations(
    configure: Callable[..., ResolvedConfig], tmp_path: Path, model: str, dtype: str, layout: str
) -> None:
    from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

    size = {
        "vocab_size": 8000,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
    }
    config, kind = (AlbertConfig, AlbertModel) if model == "albert" else (BertConfig, BertModel)
    torch.manual_seed(0)
    kind(
        config(**size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), add_pooling_layer=False
    ).save_pretrained(tmp_path / "m")
    tokenizer = open_job(configure().config).tokenizer
    tokenizer.save(tmp_path / "m")

    def job() -> TextJob:
        keys = {"model_name": str(tmp_path / "m"), "freeze_encoder": False, "dtype": dtype, "layout": layout}
        return open_job(configure(**keys).config)

    plain, loss = kept_bytes(job(), checkpointing=False)
    less, same_loss = kept_bytes(job(), checkpointing=True)
    assert same_loss == loss
    assert 0 < less < plain / 4
