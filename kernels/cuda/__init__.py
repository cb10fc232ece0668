"""The packed encoder on NVIDIA GPUs: Triton kernels, torch's products, shapes that CUDA graphs can repeat.

Importing this package imports no Triton; `why_not` says whether it can be used. Everything here takes tensors of any
device: under Triton's interpreter (``TRITON_INTERPRET=1``) it all runs on a CPU, which is how it is tested where no
GPU is at hand. Streams, graphs and devices belong to the backend.
"""

from __future__ import annotations

from .buckets import BucketRunner, Capture
from .encoder import PackedGpuEncoder
from .support import Operators, smoke_test, why_no_triton, why_not
from .varlen import VarlenAttention

__all__ = [
    "BucketRunner",
    "Capture",
    "Operators",
    "PackedGpuEncoder",
    "VarlenAttention",
    "smoke_test",
    "why_no_triton",
    "why_not",
]
