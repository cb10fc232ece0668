"""Runs cases through the vendor's ``ttnn`` on the simulated card: python vendor.py FOLDER, with the judge's own Python.

FOLDER has cases.json and the operands, uint32 patterns of float32 values. Each result is written as soon as it is
there, so that a crash or a time limit costs only the cases after it. Nothing of isotrain is imported.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import ttnn

DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "bfp_bf8": "bfloat8_b", "bfp_bf4": "bfloat4_b"}
FIDELITIES = {"lofi": "LoFi", "hifi2": "HiFi2", "hifi3": "HiFi3", "hifi4": "HiFi4"}


def run(case, operands, device, kernels):
    """The result of one case, float32 [rows, columns]."""
    x = [on_device(values, name, device) for values, name in zip(operands, case["formats"], strict=True)]
    options = {"compute_kernel_config": kernel_config(case)} if case["config"] else {}
    operation, dtype = case["operation"], getattr(ttnn, DTYPES[case["output"]])
    if operation == "K-tiles":
        return block_of(lambda: ttnn.linear(x[0], x[1], **options), kernels)
    if operation.startswith("linear"):
        bias = x[2] if len(x) > 2 else None
        return on_host(ttnn.linear(x[0], x[1], bias=bias, dtype=dtype, **options))
    if operation in ("add", "sub", "mul"):
        return on_host({"add": ttnn.add, "sub": ttnn.subtract, "mul": ttnn.multiply}[operation](x[0], x[1]))
    if operation == "layer_norm":
        return on_host(ttnn.layer_norm(x[0], weight=x[1], bias=x[2], epsilon=case["epsilon"], **options))
    if operation.startswith("softmax"):
        return on_host(ttnn.softmax(x[0], dim=-1, **options))
    if operation in ("sum", "mean"):
        return on_host(getattr(ttnn, operation)(x[0], dim=-1, keepdim=True))
    return on_host(getattr(ttnn, operation)(x[0]))


def block_of(product, kernels):
    """The tiles of K in a block of a product, as its kernel was compiled (an equal one isn't compiled again)."""
    before = set(kernels.rglob("kernel_args_generated.h"))
    product().cpu()
    made = (path.read_text() for path in set(kernels.rglob("kernel_args_generated.h")) - before)
    found = [re.search(r"in0_block_w\{(\d+)u\}", text) for text in made if "out_subblock_num_tiles" in text]
    return np.array([[float(match[1])] for match in found if match], np.float32)


def kernel_config(case):
    """Every field set, since the defaults differ between versions."""
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=getattr(ttnn.MathFidelity, FIDELITIES[case["fidelity"]]),
        math_approx_mode=False,
        fp32_dest_acc_en=case["fp32_dest"],
        packer_l1_acc=case["l1_acc"],
    )


def on_device(values, name, device):
    return ttnn.Tensor(values, getattr(ttnn, DTYPES[name]), device=device, layout=ttnn.TILE_LAYOUT)


def on_host(tensor):
    return ttnn.to_dtype(tensor.cpu(), ttnn.float32).to_numpy()


def main(folder):
    cases = json.loads((folder / "cases.json").read_text())
    device = ttnn.open_device(device_id=0)
    for case in cases:
        patterns = [np.load(folder / name) for name in case["operands"]]
        operands = [values.view(np.float32) for values in patterns]
        result = np.ascontiguousarray(run(case, operands, device, folder / "kernels"))
        part = folder / f"{case['result']}.part"
        with part.open("wb") as file:
            np.save(file, result.view(np.uint32))
        part.replace(folder / case["result"])
    ttnn.close_device(device)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
