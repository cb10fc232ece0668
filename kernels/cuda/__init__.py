"""The packed encoder on NVIDIA GPUs: Triton kernels, torch's products, and shapes that CUDA graphs can replay.

Importing this package doesn't import Triton. `why_not` says whether it can be used. Everything here works on tensors of
any device. With Triton's interpreter (``TRITON_INTERPRET=1``) it all runs on a CPU, so it is tested without a GPU.
Streams, graphs and devices belong to the backend.
"""

from __future__ import annotations

from .buckets import BucketRunner, Capture, CaptureError, Repeated
from .encoder import PackedGpuEncoder
from .support import Operators, smoke_test, why_no_triton, why_not
from .varlen import VarlenAttention

__all__ = [
    "BucketRunner",
    "Capture",
    "CaptureError",
    "Operators",
    "PackedGpuEncoder",
    "Repeated",
    "VarlenAttention",
    "smoke_test",
    "why_no_triton",
    "why_not",
]
