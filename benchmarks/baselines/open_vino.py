"""OpenVINO on the CPU: converted from the torch module, one request at a time with all threads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ... import UserError
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
        self.precision = PRECISIONS[self.policy.compute]
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
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        }
        return self.core.compile_model(model, "CPU", hints).create_infer_request()


class OpenVinoInt8Encoder(OpenVinoEncoder):
    """The same model in 8 bits, by NNCF's post-training quantisation, which OpenVINO's documents recommend.

    What it leaves out is computed in bfloat16, or in float32 if the processor has no bfloat16.
    """

    name = "openvino int8"

    def __init__(self, encoder: LoadedEncoder, backend: Backend, dtype: str, layout: str) -> None:
        if dtype != "int8":
            raise UserError(f"{self.name} computes in int8, not in {dtype}; give --dtype int8")
        super().__init__(encoder, backend, "bfloat16", layout)
        self.policy = replace(backend.cast_policy(dtype), reason="quantised by NNCF after training, fixed scales")

    def prepare(self, batches: Sequence[PaddedBatch]) -> None:
        """Quantises the model, with these batches to find the scales of its activations."""
        import nncf

        samples = [[batch.input_ids.numpy(), batch.attention_mask.numpy()] for batch in batches]
        with running(self.name), quiet():
            kind = nncf.ModelType.TRANSFORMER
            self.model = nncf.quantize(self.model, nncf.Dataset(samples), model_type=kind, subset_size=len(samples))
        self.notes = (*self.notes, f"NNCF {nncf.__version__}, scales from the measured texts")
        super().prepare(batches)
