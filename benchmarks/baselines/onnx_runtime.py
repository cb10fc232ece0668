"""ONNX Runtime: exported once with dynamic shapes, and fused by its transformers optimizer."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ...albert_core.model.encoder import LoadedEncoder
from ...backends import Backend
from ...kernels.packed import PaddedBatch
from .base import BaselineEncoder, baseline_policy, cls_module, example_inputs, quiet, require_host, running

INPUTS = ("input_ids", "attention_mask")


class OnnxEncoder(BaselineEncoder):
    """Computes in float32: ONNX Runtime's CPU provider has no bfloat16 products, and int8 would be another model."""

    name = "onnxruntime"

    def __init__(self, encoder: LoadedEncoder, backend: Backend, dtype: str, layout: str) -> None:
        del layout
        require_host(backend, self.name)
        # Since 1.29, its Linux builds send usage statistics in a background thread unless this is set.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        self.version = onnxruntime.__version__
        self.policy = baseline_policy(
            backend, dtype, "float32", "ONNX Runtime's CPU provider computes products in float32 only"
        )
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        with running(self.name), tempfile.TemporaryDirectory(prefix="isotrain-onnx-") as folder:
            model, self.notes = _exported(encoder, Path(folder))
            self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        taken = {item.name for item in self.session.get_inputs()}
        self.inputs = [name for name in INPUTS if name in taken]

    def features(self, batch: PaddedBatch) -> torch.Tensor:
        values = {"input_ids": batch.input_ids.numpy(), "attention_mask": batch.attention_mask.numpy()}
        (features,) = self.session.run(None, {name: values[name] for name in self.inputs})
        return torch.from_numpy(features)


def _exported(encoder: LoadedEncoder, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Exports the graph to a file in `folder`, fused if that works. Returns the file and notes on what was done."""
    plain, fused = folder / "plain.onnx", folder / "fused.onnx"
    module = cls_module(encoder)
    # The exporter of torch 2.9 and later needs one more package, and this graph without branches doesn't need it.
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "length"} for name in INPUTS}
    with quiet(), torch.no_grad():
        torch.onnx.export(
            module,
            example_inputs(encoder.config.vocab_size),
            str(plain),
            input_names=list(INPUTS),
            output_names=["features"],
            dynamic_axes=axes | {"features": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
        try:
            counts = _fuse(plain, fused, encoder.config)
        except Exception as error:  # noqa: BLE001 (a fusion that fails leaves a graph that runs)
            return plain, (f"not fused: {type(error).__name__}",)
    done = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return fused, (f"float32; fused by its transformers optimizer: {done or 'nothing'}",)


def _fuse(source: Path, target: Path, config: Any) -> dict[str, int]:
    from onnxruntime.transformers.optimizer import optimize_model

    optimized = optimize_model(
        str(source), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    optimized.save_model_to_file(str(target))
    counts: dict[str, int] = optimized.get_fused_operator_statistics()
    return counts
