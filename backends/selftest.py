"""The self-test of `isotrain doctor`: a matrix product and a backward pass on the device, compared with float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Backend

_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}


@dataclass(frozen=True)
class Check:
    """One self-test: its name, whether the result agrees with float64, and by how much it differs."""

    name: str
    ok: bool
    detail: str


def self_test(backend: Backend, dtype: str = "float32") -> list[Check]:
    """Runs a matmul and a backward pass on the device and compares both with float64 on the host.

    The error is relative L2. A device fails if it computes in a narrower dtype than it claims.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 96, generator=generator, dtype=torch.float64)
    weight = torch.randn(96, 32, generator=generator, dtype=torch.float64)
    dtype = backend.cast_policy(dtype).compute
    compute = getattr(torch, dtype)

    left, right = backend.place(inputs.to(compute)), backend.place(weight.to(compute))
    product = left @ right
    backend.step_boundary()
    backend.synchronize(product)
    checks = [_judge("matmul", product, inputs.to(compute).double() @ weight.to(compute).double(), dtype)]

    leaf = backend.place(weight.to(compute)).detach().requires_grad_()
    loss = torch.tanh(left @ leaf).square().sum()
    loss.backward()
    backend.step_boundary()
    assert leaf.grad is not None
    backend.synchronize(leaf.grad)
    reference = weight.to(compute).double().requires_grad_()
    torch.tanh(inputs.to(compute).double() @ reference).square().sum().backward()
    assert reference.grad is not None
    checks.append(_judge("backward", leaf.grad, reference.grad, dtype))
    return checks


def _judge(name: str, got: torch.Tensor, want: torch.Tensor, dtype: str) -> Check:
    error = float((got.detach().cpu().double() - want).norm() / want.norm())
    limit = _TOLERANCE[dtype]
    return Check(name, error <= limit, f"relative error {error:.1e}, allowed {limit:.0e} ({dtype})")
