"""The vector unit's functions of one bfloat16 value, each as a table of all 65,536 results.

The tables contain the results of the vendor's kernels on the functional simulator for every finite bfloat16
(unary_bf16.npz: differences between neighbouring results, which compress a hundredfold). Infinities and NaN were not
run. For these it is the mathematical limit, as torch gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ... import UserError
from .formats import bits_of, from_bits

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "exp_fast": torch.exp,
    "gelu": torch.nn.functional.gelu,
    "gelu_fast": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "rsqrt": torch.rsqrt,
    "recip": torch.reciprocal,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "sqrt": torch.sqrt,
    "log": torch.log,
    "silu": torch.nn.functional.silu,
    "square": torch.square,
}

# From transformers' name of an activation to the device's function for it.
OF_ACTIVATION = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "tanh": "tanh",
}


def unary(name: str, values: torch.Tensor) -> torch.Tensor:
    """`name` of each bfloat16 value: float32 values that are bfloat16, the same shape and device.

    Raises:
        UserError: The name is unknown.
    """
    if name not in FUNCTIONS:
        raise UserError(f"TT function {name!r} is unknown; allowed are {', '.join(FUNCTIONS)}")
    table = torch.from_numpy(_tables()[name]).to(values.device)
    return table[bits_of(values) >> 16]


@cache
def _tables() -> dict[str, np.ndarray]:
    """For each function float32 [65536], indexed by the bits of a bfloat16."""
    patterns = torch.arange(1 << 16, dtype=torch.int64)
    inputs = from_bits(patterns << 16)
    tables = {}
    with np.load(Path(__file__).with_name("unary_bf16.npz")) as file:
        for name, function in FUNCTIONS.items():
            bits = np.cumsum(file[name], dtype=np.uint16).astype(np.uint32) << 16
            limits = function(inputs).numpy()
            limits[np.isnan(limits)] = math.nan
            tables[name] = np.where(torch.isfinite(inputs).numpy(), bits.view(np.float32), limits)
    return tables
