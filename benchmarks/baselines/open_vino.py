"""OpenVINO on the CPU: converted from the torch module, one request at a time with all threads."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ...albert_core.model.encoder import LoadedEncoder
from ...backends import Backend
from ...kernels.packed import PaddedBatch
from .base import BaselineEncoder, baseline_policy, cls_module, example_inputs, quiet, require_host, running

PRECISIONS = {"bfloat16": "bf16", "float32": "f32"}


def _stay_silent() -> None:
    """Keeps OpenVINO's converter from sending usage statistics, which it does by default.

    If its telemetry package can't be imported, it uses a stub.
    """
    # None makes an import fail, but the type checker expects a module.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)


class OpenVinoEncoder(BaselineEncoder):
    """A model with dynamic shapes, or in the static layout one model per shape.

    It computes in bfloat16 if OpenVINO says that this processor supports it, else in float32.
    """

    name = "openvino"

    def __init__(self, encoder: LoadedEncoder, backend: Backend, dtype: str, layout: str) -> None:
        require_host(backend, self.name)
        _stay_silent()
        import openvino

        self.version = openvino.__version__.partition("-")[0]
        self.core = openvino.Core()
        able = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.policy = baseline_policy(backend, dtype)
        if dtype not in PRECISIONS or (dtype == "bfloat16" and "BF16" not in able):
            self.policy = baseline_policy(
                backend, dtype, "float32", f"OpenVINO computes {dtype} in float32 on this CPU"
            )
        elif dtype == "bfloat16":
            self.policy = baseline_policy(backend, dtype, "bfloat16", "OpenVINO's inference precision hint is bf16")
        self.static = layout == "static"
        self.requests: dict[tuple[int, ...], Any] = {}
        with running(self.name), quiet(), torch.no_grad():
            ids, mask = example_inputs(encoder.config.vocab_size)
            example = {"input_ids": ids, "attention_mask": mask}
            self.model = openvino.convert_model(cls_module(encoder), example_input=example)
        self.notes = (f"{'static' if self.static else 'dynamic'} shapes, latency mode, one stream",)

    def features(self, batch: PaddedBatch) -> torch.Tensor:
        shape = tuple(batch.input_ids.shape) if self.static else ()
        request = self.requests.get(shape)
        if request is None:
            request = self.requests[shape] = self._request(shape)
        found = request.infer([batch.input_ids.numpy(), batch.attention_mask.numpy()], share_inputs=True)
        return torch.from_numpy(next(iter(found.values())).copy())

    def compile_count(self) -> int:
        return len(self.requests)

    def _request(self, shape: tuple[int, ...]) -> Any:
        model = self.model
        if shape:
            model = self.model.clone()
            model.reshape({item: list(shape) for item in model.inputs})
        hints = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.policy.compute],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        }
        return self.core.compile_model(model, "CPU", hints).create_infer_request()
