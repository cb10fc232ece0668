"""How the CUDA backend moves batches: in order, one ahead, on one stream, and never in the middle of a step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.albert_core.loop.step import step_function
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.albert_core.model.whole import WholeModel
from isotrain.albert_core.tasks import TASKS
from isotrain.backends import CastPolicy
from isotrain.backends.cuda.device import map_tensors
from support.hosted_cuda import HostedCuda, batch_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel

FLOAT32 = CastPolicy("float32", "float32", "float32", "float32", "for a test")


@dataclass(frozen=True)
class Pair:
    tensor: torch.Tensor
    name: str


def test_every_tensor_of_a_batch_is_found() -> None:
    lengths = np.array([3])
    value = {"a": [torch.ones(1), (Pair(torch.ones(1), "x"), 5)], "b": None, "c": lengths}
    changed = map_tensors(value, lambda tensor: tensor + 1)
    assert changed["a"][0] == 2
    assert changed["a"][1][0] == Pair(changed["a"][1][0].tensor, "x")
    assert changed["a"][1][0].tensor == 2
    assert isinstance(changed["a"][1], tuple)
    assert (changed["a"][1][1], changed["b"]) == (5, None)
    assert changed["c"] is lengths
    batch = batch_of([3, 2])
    moved = map_tensors(batch, torch.clone)
    assert moved.input_ids.tolist() == batch.input_ids.tolist()
    assert moved.host_lengths is batch.host_lengths


def test_batches_arrive_in_order_one_ahead() -> None:
    sent: list[int] = []

    class Ordered(HostedCuda):
        def _send(self, batch: Any) -> Any:
            sent.append(batch)
            return batch, f"copied {batch}"

        def _arrived(self, batch: Any, copied: Any) -> Any:
            assert copied == f"copied {batch}"
            return batch

    for position, batch in enumerate(Ordered().prefetch(iter(range(5)))):
        assert batch == position
        assert sent == list(range(min(position + 2, 5)))
    assert list(Ordered().prefetch([])) == []
    assert list(Ordered().prefetch([7])) == [7]


class FakeStream:
    """Counts itself."""

    made = 0

    def __init__(self, *_: Any) -> None:
        FakeStream.made += 1

    def record_event(self) -> None: ...

    def wait_event(self, _: Any) -> None: ...


def test_all_epochs_copy_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStream, "made", 0)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: FakeStream.__new__(FakeStream))
    backend = HostedCuda()
    for _ in range(3):
        assert list(backend.prefetch(range(4))) == [0, 1, 2, 3]
    assert FakeStream.made == 1


@pytest.mark.parametrize(
    ("name", "tflops", "gbps"),
    [
        ("NVIDIA H200", 989.4, 4800.0),
        ("NVIDIA H200 NVL", 835.5, 4800.0),
        ("NVIDIA H100 80GB HBM3", 989.4, 3350.0),
        ("NVIDIA H100 NVL", 835.5, 3938.0),
        ("NVIDIA H100 PCIe", 756.0, 2000.0),
        ("A100-SXM4-40GB", 312.0, 1555.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GH200 480GB", None, None),
        ("NVIDIA L40S", None, None),
        ("NVIDIA H20", None, None),
    ],
)
def test_a_device_has_the_figures_of_its_own_data_sheet(
    name: str, tflops: float | None, gbps: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(name=name, total_memory=1, multi_processor_count=1, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    found = HostedCuda().info()
    assert (found.name, found.vendor_peak_tflops, found.vendor_bandwidth_gbps) == (name, tflops, gbps)


class MetaCuda(HostedCuda):
    """A device whose tensors have shapes only: a read by the host fails."""

    @property
    def device(self) -> torch.device:
        return torch.device("meta")

    def autocast(self, policy: CastPolicy) -> Any:
        return nullcontext()

    def named_range(self, name: str) -> Any:
        return nullcontext()


class CopiesFromHost(TorchDispatchMode):
    """The operators that read a tensor of the host, and write one of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = (
            {leaf.device.type for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.dim()}
            for value in ((args, kwargs), out)
        )
        if "cpu" in read and "meta" in written:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_a_whole_models_step_neither_copies_from_the_host_nor_reads(layout: str) -> None:
    """Such a copy is from pageable memory. It waits until the device has done all work before it, as a read does."""
    backend = MetaCuda()
    sizes = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    module = BertModel(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=16), add_pooling_layer=False)
    task = TASKS["classification"]
    model = WholeModel(module, ClassificationHead(16, 8, 3), task.apply_head, backend, FLOAT32)
    model = backend.place(model).train()
    config = TrainConfig.model_validate({"freeze_encoder": False, "max_grad_norm": 1.0})
    optimizer = torch.optim.AdamW(model.parameters())
    step = step_function(config, backend, model, optimizer, task.loss_of(model))
    with CopiesFromHost() as copies:
        batch = batch_of([3, 9, 1, 3])
        given = batch if layout == "packed" else batch.to_padded()
        inputs, labels = backend.place((given, torch.tensor([0, 1, 2, 0])))
        assert copies.found
        copies.found.clear()
        assert step(4, inputs, labels).shape == (2,)
    assert copies.found == []
