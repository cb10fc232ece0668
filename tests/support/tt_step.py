"""A training step of a small ALBERT with a head, by hand: each of its operations in the integers of `kernels.tt.model`.

Nothing here knows autograd or the product's compositions. Values are float32 arrays, and those that a card stores are
bfloat16 values. The loss and the head's GELU, which a card computes in float32, are torch's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from isotrain.kernels.tt import model, vector
from isotrain.kernels.tt.arithmetic import Arithmetic
from isotrain.kernels.tt.unary import _tables
from torch.nn import functional

Array = np.ndarray


def bits(values: Array) -> Array:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def floats(patterns: Array) -> Array:
    return np.ascontiguousarray(patterns, np.uint32).view(np.float32)


def bf16(values: Any) -> Array:
    """Rounded to nearest even."""
    b = bits(np.asarray(values, np.float32)).astype(np.uint64)
    return floats((b + 0x7FFF + (b >> 16 & 1)) & 0xFFFF0000)


@dataclass
class Step:
    """The parameters by name, and what the backward pass adds to each one's gradient."""

    arithmetic: Arithmetic
    weights: dict[str, Array]
    heads: int
    eps: float
    gradients: dict[str, Any] = field(default_factory=lambda: defaultdict(lambda: np.float32(0)))

    # --- the units

    def chain(self, in0: Array, in1: Array, fidelity: str, dst: Array | None = None) -> Array:
        a = self.arithmetic
        old = None if dst is None else bits(dst)
        return floats(model.matmul(bits(in0), bits(in1), fidelity, a.fp32_dest_acc_en, a.arch, old))

    def packed(self, dst: Array) -> Array:
        """Dst as the packer writes it in bfloat16: halves away from zero, no denormals."""
        if not self.arithmetic.fp32_dest_acc_en:
            return dst
        b = bits(dst).astype(np.uint64)
        return floats(np.where(b & 0x7F800000, (b + 0x8000) & 0xFFFF0000, 0))

    def linear(
        self, in0: Array, in1: Array, bias: Array | None = None, fidelity: str = "", keep: bool = False
    ) -> Array:
        """in0 @ in1 + bias in blocks of K. `keep`: float32 results, else bfloat16."""
        fidelity = fidelity or self.arithmetic.math_fidelity
        block = self.block(len(in0), *in1.shape)
        parts = [(in0[:, k : k + block], in1[k : k + block]) for k in range(0, in0.shape[1], block)]
        total = self.chain(*parts[0], fidelity)
        for place, part in enumerate(parts[1:], start=2):
            if bias is None and place == len(parts):
                total = self.chain(*part, fidelity, total)
            else:
                total = total + self.chain(*part, fidelity)
                total = total if self.arithmetic.fp32_dest_acc_en else bf16(total)
        if bias is not None:
            total = self.add(total, bias, wide=self.arithmetic.fp32_dest_acc_en)
        return total if keep else self.packed(total)

    def block(self, rows: int, k: int, columns: int) -> int:
        """Two tiles, or one of an odd number, where the result is a line of tiles; else a share of the grid."""
        height, depth, width = (-(-size // 32) for size in (rows, k, columns))
        low, high = sorted((height, width))
        if low == 1 or high >= 9 * low:
            return 64 if depth % 2 == 0 else 32
        share = depth / {"wormhole": 8, "blackhole": 13}[self.arithmetic.arch]
        return 32 * int(share) if share.is_integer() else 32

    def add(self, a: Array, b: Array, subtract: bool = False, wide: bool = False) -> Array:
        a, b = np.broadcast_arrays(a, b)
        zero = np.zeros(a.shape, np.uint32)
        return floats(model.elwadd(bits(a), bits(b), zero, wide, subtract=subtract, arch=self.arithmetic.arch))

    def times(self, a: Array, b: Array, fidelity: str) -> Array:
        """The matrix unit's product of elements, as LayerNorm and softmax use it."""
        a, b = (bits(x) for x in np.broadcast_arrays(a, b))
        out, fp32 = np.zeros(a.shape, np.uint32), self.arithmetic.fp32_dest_acc_en
        for phase in range(model.PHASES[fidelity]):
            out = model.elwmul(a, b, out, phase, fp32, self.arithmetic.arch)
        return floats(out)

    def row_sums(self, x: Array, scale: float = 1.0) -> Array:
        fp32 = self.arithmetic.fp32_dest_acc_en
        column = np.full((x.shape[1], 1), 1.0 if fp32 else scale, np.float32)
        total = self.chain(x, column, "hifi4")
        return self.packed(total * np.float32(scale)) if fp32 else total

    def table(self, name: str, x: Array) -> Array:
        return _tables()[name][bits(x) >> 16]

    # --- operations, forward and backward

    def layer_norm(self, x: Array, name: str) -> Array:
        gamma, beta = bf16(self.weights[name + ".weight"]), bf16(self.weights[name + ".bias"])
        fp32, share = self.arithmetic.fp32_dest_acc_en, np.float32(1.0 / x.shape[1])
        ones = np.ones((x.shape[1], 1), np.float32)
        if fp32:
            centred = self.add(x, self.chain(x, ones, "hifi4") * share, subtract=True, wide=True)
            variance = self.chain(self.times(centred, centred, "hifi4"), ones, "hifi4") * share
            scale = vector.rsqrt(self.add(variance, bf16(self.eps), wide=True), self.arithmetic.arch)
        else:
            centred = self.add(x, self.chain(x, ones * share, "hifi4"), subtract=True)
            variance = self.chain(self.times(centred, centred, "hifi4"), ones * share, "hifi4")
            scale = self.table("rsqrt", self.add(variance, bf16(self.eps)))
        y = self.times(self.times(centred, scale, "hifi4"), gamma, "hifi4")
        return self.packed(self.add(y, beta, wide=fp32))

    def layer_norm_back(self, dy: Array, x: Array, name: str) -> Array:
        gamma, share = bf16(self.weights[name + ".weight"]), 1.0 / x.shape[1]
        centred = self.add(x, self.row_sums(x, share), subtract=True)
        variance = self.row_sums(bf16(centred * centred), share)
        scale = self.table("rsqrt", self.add(variance, bf16(self.eps)))
        normed, slope = bf16(centred * scale), bf16(dy * gamma)
        self.gradients[name + ".weight"] += self.row_sums(bf16(dy * normed).T)[:, 0]
        self.gradients[name + ".bias"] += self.row_sums(dy.T)[:, 0]
        along = bf16(normed * self.row_sums(bf16(slope * normed), share))
        level = self.add(slope, self.row_sums(slope, share), subtract=True)
        return bf16(self.add(level, along, subtract=True) * scale)

    def softmax(self, x: Array) -> Array:
        fp32 = self.arithmetic.fp32_dest_acc_en
        shifted = self.add(x, x.max(axis=1, keepdims=True), subtract=True, wide=fp32)
        e = torch.exp(torch.from_numpy(shifted)).numpy() if fp32 else self.table("exp", shifted)
        total = self.chain(e, np.ones((e.shape[1], 1), np.float32), "hifi4")
        share = (np.float32(1) / total) if fp32 else self.table("recip", total)
        return self.packed(self.times(e, share, "hifi4"))

    def softmax_back(self, dy: Array, y: Array) -> Array:
        return bf16(y * self.add(dy, self.row_sums(bf16(dy * y)), subtract=True))

    def layer(self, name: str, x: Array) -> Array:
        """A linear layer of the encoder."""
        return self.linear(x, bf16(self.weights[name + ".weight"]).T, bf16(self.weights[name + ".bias"]))

    def layer_back(self, name: str, dy: Array, x: Array) -> Array:
        self.gradients[name + ".weight"] += self.linear(dy.T, x)
        self.gradients[name + ".bias"] += self.row_sums(dy.T)[:, 0]
        return self.linear(dy, bf16(self.weights[name + ".weight"]))

    def looked_up(self, name: str, ids: Array) -> Array:
        return bf16(self.weights[name + ".weight"])[ids]

    def looked_up_back(self, name: str, dy: Array, ids: Array, padding: int | None = None) -> None:
        table = np.zeros_like(self.weights[name + ".weight"])
        rows = np.unique(ids)
        table[rows] = self.linear((rows[:, None] == ids).astype(np.float32), dy, fidelity="hifi4")
        if padding is not None:
            table[padding] = 0
        self.gradients[name + ".weight"] += table

    def attention(self, q: Array, k: Array, v: Array, sequences: list[slice]) -> tuple[Array, list[Any]]:
        width = q.shape[1] // self.heads
        out, kept = np.empty_like(q), []
        for rows in sequences:
            for head in range(self.heads):
                part = (rows, slice(head * width, (head + 1) * width))
                scores = bf16(self.linear(q[part], k[part].T) * bf16(width**-0.5))
                shares = self.softmax(scores)
                out[part] = self.linear(shares, v[part])
                kept.append((part, shares))
        return out, kept

    def attention_back(self, dy: Array, q: Array, k: Array, v: Array, kept: list[Any]) -> tuple[Array, Array, Array]:
        factor = bf16((q.shape[1] // self.heads) ** -0.5)
        dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
        for part, shares in kept:
            dv[part] = self.linear(shares.T, dy[part])
            slope = bf16(self.softmax_back(self.linear(dy[part], v[part].T), shares) * factor)
            # The key is the second operand as k^T, and so is its gradient.
            dq[part], dk[part] = self.linear(slope, k[part]), self.linear(q[part].T, slope).T
        return dq, dk, dv

    # --- the model

    def run(self, ids: Array, types: Array, positions: Array, lengths: list[int], layers: int, labels: Any) -> float:
        """The mean loss. `gradients` has the parameters' afterwards, by their names in `weights`."""
        top, group = "encoder.embeddings.", "encoder.encoder.albert_layer_groups.0.albert_layers.0."
        ends = np.cumsum(lengths)
        sequences = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        word = self.looked_up(top + "word_embeddings", ids)
        typed = self.add(word, self.looked_up(top + "token_type_embeddings", types))
        placed = self.add(typed, self.looked_up(top + "position_embeddings", positions))
        normed = self.layer_norm(placed, top + "LayerNorm")
        x = self.layer("encoder.encoder.embedding_hidden_mapping_in", normed)
        kept = []
        for _ in range(layers):
            q, k, v = (self.layer(f"{group}attention.{name}", x) for name in ("query", "key", "value"))
            attended, shares = self.attention(q, k, v, sequences)
            first = self.add(x, self.layer(group + "attention.dense", attended))
            middle = self.layer_norm(first, group + "attention.LayerNorm")
            inner = self.layer(group + "ffn", middle)
            active = self.table("gelu_tanh", inner)
            second = self.add(self.layer(group + "ffn_output", active), middle)
            kept.append((x, q, k, v, shares, attended, first, middle, inner, active, second))
            x = self.layer_norm(second, group + "full_layer_layer_norm")
        starts = ends - lengths
        loss, dx_first = self.head(x[starts], labels)
        dx = np.zeros_like(x)
        dx[starts] = bf16(dx_first)
        for x, q, k, v, shares, attended, first, middle, inner, active, second in reversed(kept):
            d_second = self.layer_norm_back(dx, second, group + "full_layer_layer_norm")
            d_active = self.layer_back(group + "ffn_output", d_second, active)
            d_inner = bf16(d_active * _slope("gelu_tanh", inner))
            d_middle = self.add(self.layer_back(group + "ffn", d_inner, middle), d_second)
            d_first = self.layer_norm_back(d_middle, first, group + "attention.LayerNorm")
            d_attended = self.layer_back(group + "attention.dense", d_first, attended)
            slopes = self.attention_back(d_attended, q, k, v, shares)
            dx = d_first
            for name, slope in reversed(list(zip(("query", "key", "value"), slopes, strict=True))):
                dx = self.add(self.layer_back(f"{group}attention.{name}", slope, x), dx)
        d_normed = self.layer_back("encoder.encoder.embedding_hidden_mapping_in", dx, normed)
        d_placed = self.layer_norm_back(d_normed, placed, top + "LayerNorm")
        self.looked_up_back(top + "word_embeddings", d_placed, ids, padding=0)
        self.looked_up_back(top + "token_type_embeddings", d_placed, types)
        self.looked_up_back(top + "position_embeddings", d_placed, positions)
        return loss

    def head(self, x: Array, labels: Any) -> tuple[float, Array]:
        """The head in float32, and its gradient."""
        w1, b1, w2, b2 = (
            self.weights[f"head.{name}"] for name in ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
        )
        inner = torch.from_numpy(self.linear(x, w1.T, b1, keep=True)).requires_grad_()
        active = functional.gelu(inner)
        hidden = active.detach().numpy()
        logits = torch.from_numpy(self.linear(hidden, w2.T, b2, keep=True)).requires_grad_()
        loss = functional.cross_entropy(logits, labels, reduction="sum") / len(labels)
        d_logits = torch.autograd.grad(loss, logits)[0]
        slope = d_logits.numpy()
        self.gradients["head.output.weight"] += self.linear(slope.T, hidden, keep=True)
        self.gradients["head.output.bias"] += d_logits.sum(dim=0).numpy()
        d_inner = torch.autograd.grad(active, inner, torch.from_numpy(self.linear(slope, w2, keep=True)))[0]
        self.gradients["head.hidden.weight"] += self.linear(d_inner.numpy().T, x, keep=True)
        self.gradients["head.hidden.bias"] += d_inner.sum(dim=0).numpy()
        return float(loss.detach()), self.linear(d_inner.numpy(), w1, keep=True)


def _slope(name: str, x: Array) -> Array:
    """The derivative of GELU's approximation at each value, in float64, then rounded."""
    assert name == "gelu_tanh"
    x = x.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    tanh = np.tanh(inner)
    found = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return bf16(found.astype(np.float32))
