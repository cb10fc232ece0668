"""What the judge is asked: operations, operands and options, with our own exact result of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from isotrain.kernels.tt import ops, vector
from isotrain.kernels.tt.arithmetic import GRID_COLUMNS, Arithmetic, ttnn_block_tiles
from isotrain.kernels.tt.formats import device_pack, host_convert, truncate
from isotrain.kernels.tt.linear import add, linear, multiply_bf16, packed
from isotrain.kernels.tt.model import PHASES
from isotrain.kernels.tt.unary import FUNCTIONS, unary

# Operations with functions of float32 values whose kernels differ between the architectures: exp and rsqrt.
NEAR = ("layer_norm", "softmax", "softmax-default")
BLOCK = "K-tiles"
# Values of which one in sixteen is infinite or NaN, for which no vector shows the device's results.
SPECIAL = "inf,nan"
EPSILON = 1e-5


@dataclass(frozen=True)
class Case:
    """One call of ttnn.

    Attributes:
        operation: As in the table: linear, linear+bias, BLOCK, add, sub, mul, a name of `unary.FUNCTIONS`,
            reciprocal (of float32 values), layer_norm, softmax, softmax-default, sum or mean.
        shapes: Of each operand: [m, k], [k, n] and [1, n] of a linear layer, else [rows, width].
        formats: Of each operand: float32, bfloat16, bfp_bf8 or bfp_bf4.
        arithmetic: The options. ttnn's own where `config` is False.
        grid: The last core of the grid that the judge offers, "" for all of them. A small one saves time.
        values: How operands are drawn: normal, positive, integers, wide (magnitudes over 40 powers of two) or SPECIAL.
    """

    operation: str
    shapes: tuple[tuple[int, int], ...]
    formats: tuple[str, ...]
    arithmetic: Arithmetic
    config: bool = True
    grid: str = "1,1"
    values: str = "normal"
    output: str = "bfloat16"
    seed: int = 0

    @property
    def known(self) -> bool:
        return self.operation not in NEAR and self.values != SPECIAL

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What is one row of the table: operation, formats, fidelity and destination."""
        if self.operation == BLOCK:
            return self.operation, "any", "any", f"{GRID_COLUMNS[self.arithmetic.arch]}-columns"
        matrix = self.operation.startswith("linear")
        return (
            f"{self.operation}/{SPECIAL}" if self.values == SPECIAL else self.operation,
            " x ".join(dict.fromkeys(self.formats[:2]) if not matrix else self.formats[:2]),
            self.arithmetic.math_fidelity if matrix else "",
            ("float32" if self.arithmetic.fp32_dest_acc_en else "bfloat16") if self.config else "ttnn's",
        )

    def operands(self) -> list[torch.Tensor]:
        """float32 values that the formats hold, drawn from the seed."""
        rng = np.random.default_rng([self.seed, *(size for shape in self.shapes for size in shape)])
        drawn = [torch.from_numpy(_draw(rng, shape, self.values)) for shape in self.shapes]
        return [x if name == "float32" else host_convert(x, name) for x, name in zip(drawn, self.formats, strict=True)]

    def ours(self) -> torch.Tensor:
        """The exact emulation's result, float32 [rows, columns]."""
        arithmetic, x = self.arithmetic, self.operands()
        if self.operation == BLOCK:
            (rows, k), (_, columns) = self.shapes
            return torch.tensor([[float(ttnn_block_tiles(rows, k, columns, arithmetic.arch))]])
        if self.operation.startswith("linear"):
            return linear(x[0], x[1], x[2][0] if len(x) > 2 else None, arithmetic, self.output)
        if self.operation in ("add", "sub"):
            dest = add(*x, arithmetic.fp32_dest_acc_en, self.operation == "sub", arithmetic.arch)
            return packed(dest, arithmetic, self.output)
        if self.operation == "mul":
            return multiply_bf16(*x)
        if self.operation in FUNCTIONS:
            return unary(self.operation, x[0])
        if self.operation == "reciprocal":
            return torch.from_numpy(vector.reciprocal(x[0].numpy(), arithmetic.arch))
        if self.operation == "layer_norm":
            return ops.layer_norm(x[0], x[1][0], x[2][0], EPSILON, arithmetic)
        if self.operation.startswith("softmax"):
            return ops.softmax(x[0], arithmetic, approximate=self.operation == "softmax-default")
        scale = 1.0
        if self.operation == "mean":
            # ttnn truncates the scale to bfloat16.
            scale = float(truncate(torch.tensor([1.0 / x[0].shape[1]]), 7))
        sums = ops.reduce_rows(x[0], scale, arithmetic.math_fidelity, fp32_dest=True, arch=arithmetic.arch)
        return device_pack(sums, "bfloat16", fp32_dest=True)


def _draw(rng: np.random.Generator, shape: tuple[int, int], values: str) -> np.ndarray:
    x = rng.standard_normal(shape).astype(np.float32)
    if values == "positive":
        return np.abs(x)
    if values == "integers":
        return rng.integers(-60, 60, shape).astype(np.float32)
    if values == SPECIAL:
        return np.where(rng.random(shape) < 1 / 16, rng.choice([np.inf, -np.inf, np.nan], shape), x).astype(np.float32)
    if values == "wide":
        return x * np.exp2(rng.integers(-20, 20, shape)).astype(np.float32)
    return x


@dataclass
class Plan:
    """The cases of one architecture. `short` is a part that takes a few minutes."""

    arch: str
    seed: int
    short: bool = False
    cases: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        made = [*self._linears(), *self._blocks(), *self._elementwise(), *self._rows(), *self._specials()]
        self.cases = [replace(case, seed=self.seed + index) for index, case in enumerate(made)]

    def _arithmetic(self, fidelity: str = "hifi4", fp32_dest: bool = True) -> Arithmetic:
        """Without sums in L1, which the simulator doesn't make: it overwrites them."""
        return Arithmetic(self.arch, fidelity, fp32_dest, packer_l1_acc=False, mode="exact")

    def _linears(self) -> Iterator[Case]:
        """Several blocks of K with and without a bias; odd shapes; block formats, which this simulator can't read."""
        for fidelity in PHASES:
            for fp32 in (False, True):
                arithmetic, shapes = self._arithmetic(fidelity, fp32), ((64, 96), (96, 64), (1, 64))
                yield Case("linear+bias", shapes, ("bfloat16",) * 3, arithmetic)
                if self.short:
                    continue
                yield Case("linear", ((64, 128), (128, 64)), ("bfloat16",) * 2, arithmetic)
                yield Case("linear", ((33, 70), (70, 45)), ("bfloat16",) * 2, arithmetic, output="float32")
        for weight in () if self.short else ("bfp_bf8", "bfp_bf4"):
            yield Case("linear", ((32, 64), (64, 32)), ("bfloat16", weight), self._arithmetic(), values="wide")

    def _blocks(self) -> Iterator[Case]:
        """Rows, K and columns of products whose blocks differ between 8 and 13 columns of cores, and of narrow ones."""
        shapes = [(64, 768, 64), (64, 1248, 64), (96, 416, 64), (32, 832, 64), (64, 1280, 32), (320, 96, 32)]
        for rows, k, columns in () if self.short else shapes:
            yield Case(BLOCK, ((rows, k), (k, columns)), ("bfloat16",) * 2, self._arithmetic("lofi"), grid="")

    def _elementwise(self) -> Iterator[Case]:
        for shape in [(64, 64)] if self.short else [(128, 128), (33, 45)]:
            for operation in ("add", "sub", "mul"):
                for values in ("normal", "wide"):
                    arithmetic = self._arithmetic(fp32_dest=False)
                    yield Case(operation, (shape, shape), ("bfloat16",) * 2, arithmetic, False, values=values)
            for name in ("gelu", "tanh"):
                yield Case(name, (shape,), ("bfloat16",), self._arithmetic(fp32_dest=False), False)

    def _reductions(self) -> Arithmetic:
        """What ttnn's sum and mean compute with by themselves, as the judge shows; it matters where they scale."""
        return self._arithmetic("hifi3" if self.arch == "wormhole" else "hifi4")

    def _rows(self) -> Iterator[Case]:
        for shape in [(32, 64)] if self.short else [(64, 96), (32, 45)]:
            for operation in ("sum", "mean"):
                yield Case(operation, (shape,), ("bfloat16",), self._reductions(), False)
        if self.short:
            return
        for fp32 in (True, False):
            arithmetic = self._arithmetic(fp32_dest=fp32)
            yield Case("softmax", ((32, 64),), ("bfloat16",), arithmetic)
            yield Case("layer_norm", ((32, 64), (1, 64), (1, 64)), ("bfloat16",) * 3, arithmetic)
        yield Case("softmax-default", ((32, 64),), ("bfloat16",), self._arithmetic(), False)
        yield Case(
            "reciprocal", ((64, 64),), ("float32",), self._arithmetic(), False, values="positive", output="float32"
        )

    def _specials(self) -> Iterator[Case]:
        """Infinities and NaN in each operation."""
        square = (32, 32)
        for operation in ("add", "mul", *(() if self.short else ("sub",))):
            yield Case(
                operation, (square,) * 2, ("bfloat16",) * 2, self._arithmetic(fp32_dest=False), False, values=SPECIAL
            )
        if self.short:
            return
        for name in ("gelu", "tanh"):
            yield Case(name, (square,), ("bfloat16",), self._arithmetic(fp32_dest=False), False, values=SPECIAL)
        for fp32 in (True, False):
            arithmetic = self._arithmetic(fp32_dest=fp32)
            yield Case("linear", (square,) * 2, ("bfloat16",) * 2, arithmetic, values=SPECIAL)
            yield Case("softmax", (square,), ("bfloat16",), arithmetic, values=SPECIAL)
            yield Case("layer_norm", (square, (1, 32), (1, 32)), ("bfloat16",) * 3, arithmetic, values=SPECIAL)
        for operation in ("sum", "mean"):
            yield Case(operation, (square,), ("bfloat16",), self._reductions(), False, values=SPECIAL)
