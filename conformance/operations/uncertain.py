"""Running error analysis: float64 values together with the variance of a device's rounding errors in them.

This is Wilkinson's running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2002, 3.3) with
variances instead of bounds. The first-order errors of single roundings are taken as independent and uniform within one
unit roundoff. Higham and Mary (SIAM J. Sci. Comput. 41(5), 2019, and 42(5), 2020) show why such errors grow with the
square root of the number of terms, and why random data lets them grow less than any bound by absolute values says.

A sum is taken in order, one term after the other. Every other order (blocks, trees, several accumulators) errs less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

# How many standard deviations an error may have: one of 5e8 normal errors is larger.
SIGMAS = 6.0
# Units in the last place by which an exponential, tanh or erf may differ. CUDA's are documented to be within 2, XLA's
# rational approximations are within 4, and the C library's within 1.
FUNCTION_ULPS = 2.0
# The same for the erf of GELU, in units of 1. The vectorised one of torch 2.13 is within 3 on a host.
ERF_ULPS = 4.0


@dataclass(frozen=True)
class Precision:
    """The rounding of a dtype: its unit roundoff, and its smallest normal number. Smaller results may become 0."""

    unit: float
    smallest: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Precision:
        limits = torch.finfo(dtype)
        # The squares of smaller numbers are 0 in float64, and so would their variances be.
        return cls(limits.eps / 2, max(limits.tiny, 1e-140))


@dataclass(frozen=True)
class Uncertain:
    """The float64 values of a tensor, the variance of their errors, and the precision that the tensor is kept in.

    Each operation adds the rounding of its result. Of two operands, the more precise one determines the result's
    precision, as in torch.
    """

    value: torch.Tensor
    variance: torch.Tensor
    precision: Precision

    @classmethod
    def exact(cls, value: torch.Tensor, precision: Precision) -> Uncertain:
        """Values without an error."""
        value = value.double()
        return cls(value, torch.zeros_like(value), precision)

    def at(self, precision: Precision) -> Uncertain:
        """The same values, from now on computed with in a wider `precision`."""
        return replace(self, precision=precision)

    def stored(self, precision: Precision) -> Uncertain:
        """The values rounded to `precision`, if that is narrower."""
        if precision.unit <= self.precision.unit:
            return self.at(precision)
        return _rounded(self.value, self.variance, precision)

    def shaped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Uncertain:
        """The same elements in another shape or order: `change` of the values and of the variances."""
        return replace(self, value=change(self.value), variance=change(self.variance))

    @property
    def mT(self) -> Uncertain:  # noqa: N802 (torch's name)
        """The matrices transposed."""
        return self.shaped(lambda tensor: tensor.mT)

    def __add__(self, other: Uncertain | float) -> Uncertain:
        other = self._with(other)
        return _rounded(self.value + other.value, self.variance + other.variance, self._finer(other))

    def __neg__(self) -> Uncertain:
        return replace(self, value=-self.value)

    def __sub__(self, other: Uncertain | float) -> Uncertain:
        return self + (-other)

    def __mul__(self, other: Uncertain | float) -> Uncertain:
        other = self._with(other)
        variance = self.variance * other.value.square() + self.value.square() * other.variance
        return _rounded(self.value * other.value, variance, self._finer(other))

    def __truediv__(self, other: Uncertain | float) -> Uncertain:
        other = self._with(other)
        value = self.value / other.value
        variance = (self.variance + value.square() * other.variance) / other.value.square()
        return _rounded(value, variance, self._finer(other))

    def __matmul__(self, other: Uncertain) -> Uncertain:
        """Matrix products."""
        return self.matmul(other, Uncertain.exact(torch.zeros(()), self.precision))

    def matmul(self, other: Uncertain, start: Uncertain) -> Uncertain:
        """Matrix products that are added to `start`, term by term. Terms are rounded, too: not all devices fuse."""
        precision, terms = self._finer(other), self.value.shape[-1]
        total = self.value @ other.value
        squares = self.value.square() @ other.value.square()
        variance = self.variance @ other.value.square() + self.value.square() @ other.variance + start.variance
        variance = variance + precision.unit**2 / 3 * squares
        variance = variance + _in_order(terms, squares, start.value, total, precision)
        return _rounded(start.value + total, variance, precision)

    def or_worse(self, other: Uncertain) -> Uncertain:
        """The larger of the two variances, for two ways to compute the same."""
        return replace(self, variance=torch.maximum(self.variance, other.variance))

    def sum(self, dim: int | tuple[int, ...], keepdim: bool = False) -> Uncertain:
        """The sum over dimensions, in one order over all of them."""
        value = self.value.sum(dim, keepdim)
        terms = self.value.numel() // max(1, value.numel())
        squares = self.value.square().sum(dim, keepdim)
        variance = self.variance.sum(dim, keepdim) + _in_order(terms, squares, 0.0, value, self.precision)
        return replace(self, value=value, variance=variance)

    def mean(self, dim: int | tuple[int, ...], keepdim: bool = False) -> Uncertain:
        total = self.sum(dim, keepdim)
        return total / float(self.value.numel() // max(1, total.value.numel()))

    def function(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        derivative: Callable[[torch.Tensor], torch.Tensor],
        ulps: float = FUNCTION_ULPS,
    ) -> Uncertain:
        """`function` of each element, within so many units in the last place."""
        value = function(self.value)
        return _rounded(value, derivative(self.value).square() * self.variance, self.precision, 2.0 * ulps)

    def erf(self) -> Uncertain:
        """The error function as GELU uses it, where only its absolute error matters."""
        slope = 2.0 / math.sqrt(math.pi) * torch.exp(-self.value.square())
        variance = slope.square() * self.variance + (2.0 * ERF_ULPS * self.precision.unit) ** 2 / 3
        return replace(self, value=torch.erf(self.value), variance=variance)

    def exp(self) -> Uncertain:
        return self.function(torch.exp, torch.exp)

    def tanh(self) -> Uncertain:
        return self.function(torch.tanh, lambda x: 1.0 - torch.tanh(x).square())

    def sqrt(self) -> Uncertain:
        """The square root, correctly rounded as IEEE 754 asks. That of 0 is exact."""
        return self.function(torch.sqrt, lambda x: 0.5 / x.sqrt().clamp(min=1e-140), ulps=0.5)

    def budget(self) -> torch.Tensor:
        """The largest error that is allowed for each element."""
        # The values are computed in float64 themselves. Their own error comes besides, with the same variance if the
        # device computes in float64, too.
        own = (Precision.of(torch.float64).unit / self.precision.unit) ** 2
        return SIGMAS * (self.variance * (1.0 + own)).sqrt()

    def share(self, found: torch.Tensor) -> torch.Tensor:
        """The error of each element of `found` as a share of its budget; infinite where NaN or inf isn't expected."""
        error = (found.double() - self.value).abs()
        shares = error / self.budget()
        shares = torch.where(error == 0, 0.0, shares)
        return torch.where(shares.isnan(), torch.inf, shares)

    def _with(self, other: Uncertain | float) -> Uncertain:
        if isinstance(other, Uncertain):
            return other
        return Uncertain.exact(torch.tensor(other, dtype=torch.float64), self.precision)

    def _finer(self, other: Uncertain) -> Precision:
        return min(self.precision, other.precision, key=lambda precision: precision.unit)


def _rounded(value: torch.Tensor, variance: torch.Tensor, precision: Precision, units: float = 1.0) -> Uncertain:
    """`value` with an error that is uniform within so many unit roundoffs, or as large as itself if it is subnormal."""
    subnormal = (value != 0) & (value.abs() < precision.smallest)
    variance = variance + (units * precision.unit * value).square() / 3 + subnormal.double() * precision.smallest**2
    return Uncertain(value, variance, precision)


def _in_order(
    terms: int, squares: torch.Tensor, start: torch.Tensor | float, total: torch.Tensor, precision: Precision
) -> torch.Tensor:
    """The variance of a sum in order, whose partial sums are a random walk from `start` to `start` + `total`.

    The square of the k-th partial sum of n is about that of start + k / n * total, plus k / n * sum(x^2). Each has one
    rounding.

    Args:
        squares: The sum of the squared terms.
    """
    if terms < 2:
        return torch.zeros_like(total)
    end = start + total
    return precision.unit**2 / 3 * terms * (squares / 2 + (start * start + start * end + end * end) / 3)
