"""Operations on elements and on rows: activations, sums, LayerNorm, softmax, embeddings, cross entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional

from ...backends import Backend
from .operation import Example, Numerics, Operation, laid_out
from .uncertain import Uncertain

# Rows and their lengths: ALBERT's states of 8 texts, its and MiniLM's widths, odd ones, no rows at all.
SHAPES = ((1024, 768), (17, 3072), (127, 384), (3, 17), (1, 1), (0, 768))
# The same for LayerNorm. None without rows, since the XLA devices of torch 2.9 give those no gradient.
NORMS = ((1024, 768), (127, 384), (17, 3), (1, 17))
LONG = 65_536
# ALBERT's epsilon.
EPSILON = 1e-12
IGNORED = -100
HUGE = 1e4
# Rows of an embedding table, their width, and ids: ALBERT's words, MiniLM's positions, more rows than 16 bits count,
# odd ones, no id at all.
TABLES = ((30_000, 128, 64), (70_000, 3, 17), (512, 384, 17), (17, 3, 127), (2, 1, 1), (17, 127, 0))


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float64 values."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _rows(generator: torch.Generator, scale: float = 1.0) -> Iterator[Example]:
    for rows, width in SHAPES:
        yield Example(f"{rows}x{width}", (scale * normal(generator, rows, width),))
    yield from laid_out(scale * normal(generator, 17, 127))


def _activations(generator: torch.Generator, scale: float = 1.0) -> Iterator[Example]:
    yield from _rows(generator, scale)
    # Where exponentials overflow that a formula may have.
    yield Example("3x17 up to 100", (torch.linspace(-100.0, 100.0, 51, dtype=torch.float64).view(3, 17),))


def _long_rows(generator: torch.Generator) -> Iterator[Example]:
    """Rows of 65,536 values: with random signs, in pairs that cancel, and of one sign."""
    half = normal(generator, LONG // 2)
    cancelling = torch.cat((half, -half))[torch.randperm(LONG, generator=generator)]
    positive = torch.rand(LONG, generator=generator, dtype=torch.float64) / 2
    yield Example(f"{LONG:,} terms", (torch.stack((normal(generator, LONG), cancelling, positive)),))


def _sum(numerics: Numerics, x: Uncertain) -> Uncertain:
    return numerics.narrow(numerics.wide(x).sum(-1))


def _mean(numerics: Numerics, x: Uncertain) -> Uncertain:
    return numerics.narrow(numerics.wide(x).mean(-1))


def _sum_gradient(numerics: Numerics, upstream: Uncertain, x: Uncertain) -> Sequence[Uncertain]:
    del numerics
    return (upstream.shaped(lambda tensor: tensor[..., None].expand_as(x.value)),)


def _mean_gradient(numerics: Numerics, upstream: Uncertain, x: Uncertain) -> Sequence[Uncertain]:
    return _sum_gradient(numerics, upstream / float(x.value.shape[-1]), x)


def _tanh(numerics: Numerics, x: Uncertain) -> Uncertain:
    del numerics
    return x.tanh()


def _tanh_gradient(numerics: Numerics, upstream: Uncertain, x: Uncertain) -> Sequence[Uncertain]:
    del numerics
    y = x.tanh()
    return (upstream * (-(y * y) + 1.0),)


def _normal_cdf(x: Uncertain) -> Uncertain:
    """The standard normal distribution function by erf, as GELU is defined (Hendrycks and Gimpel 2016)."""
    return ((x * math.sqrt(0.5)).erf() + 1.0) * 0.5


def _tanh_parts(x: Uncertain) -> tuple[Uncertain, Uncertain]:
    """tanh(a), and the derivative of a, where a = sqrt(2 / pi) (x + 0.044715 x^3)."""
    squares = x * x
    root = math.sqrt(2.0 / math.pi)
    return (x * (squares * 0.044715 + 1.0) * root).tanh(), (squares * (3 * 0.044715) + 1.0) * root


def _gelu_erf(numerics: Numerics, x: Uncertain) -> Uncertain:
    del numerics
    return x * _normal_cdf(x)


def _gelu_erf_gradient(numerics: Numerics, upstream: Uncertain, x: Uncertain) -> Sequence[Uncertain]:
    del numerics
    density = (x * x * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))
    return (upstream * (_normal_cdf(x) + x * density),)


def _gelu_tanh(numerics: Numerics, x: Uncertain) -> Uncertain:
    del numerics
    return x * 0.5 * (_tanh_parts(x)[0] + 1.0)


def _gelu_tanh_gradient(numerics: Numerics, upstream: Uncertain, x: Uncertain) -> Sequence[Uncertain]:
    del numerics
    tanh, slope = _tanh_parts(x)
    return (upstream * ((tanh + 1.0) * 0.5 + x * 0.5 * (-(tanh * tanh) + 1.0) * slope),)


def _norm_examples(generator: torch.Generator) -> Iterator[Example]:
    for rows, width in NORMS:
        yield Example(f"{rows}x{width}", (normal(generator, rows, width), *_norm_weights(generator, width)))
    yield from laid_out(normal(generator, 17, 127), *_norm_weights(generator, 127))
    # A wrong epsilon shows where the variance is small.
    yield Example("17x127, small values", (1e-2 * normal(generator, 17, 127), *(normal(generator, 127) for _ in "wb")))


def _norm_weights(generator: torch.Generator, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 1.0 + 0.1 * normal(generator, width), normal(generator, width)


def _run_norm(_: Backend, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, EPSILON)


def moments(x: Uncertain) -> tuple[Uncertain, Uncertain]:
    """Mean and variance of each row.

    XLA computes the variance as E[x^2] - E[x]^2, which loses digits in a row whose values are nearly equal (Chan, Golub
    and LeVeque 1983). Both ways are allowed: the larger of their errors counts.
    """
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    variance = (centred * centred).mean(-1, keepdim=True)
    in_one_pass = (x * x).mean(-1, keepdim=True) - mean * mean
    return mean, replace(variance, variance=torch.maximum(variance.variance, in_one_pass.variance))


def _statistics(x: Uncertain) -> tuple[Uncertain, Uncertain]:
    """Mean and 1 / standard deviation of each row (Ba et al. 2016)."""
    mean, variance = moments(x)
    deviation = (variance + EPSILON).sqrt()
    return mean, Uncertain.exact(torch.ones_like(deviation.value), deviation.precision) / deviation


def _norm(numerics: Numerics, x: Uncertain, weight: Uncertain, bias: Uncertain) -> Uncertain:
    x = numerics.wide(x)
    mean, scale = _statistics(x)
    return numerics.narrow((x - mean) * scale * weight + bias)


def _norm_gradients(
    numerics: Numerics, upstream: Uncertain, x: Uncertain, weight: Uncertain, bias: Uncertain
) -> Sequence[Uncertain]:
    """On a host, torch keeps the statistics, and adds up the weights' gradients, in the dtype of the tensors."""
    del bias
    x, upstream = numerics.wide(x), numerics.wide(upstream)
    mean, scale = (numerics.wide(numerics.narrow(one)) for one in _statistics(x))
    normalised = (x - mean) * scale
    weighted = upstream * weight
    projected = normalised * (weighted * normalised).mean(-1, keepdim=True)
    found = (
        scale * (weighted - weighted.mean(-1, keepdim=True) - projected),
        (upstream * normalised).at(numerics.compute).sum(0),
        upstream.at(numerics.compute).sum(0),
    )
    return [numerics.narrow(one) for one in found]


def softmax(numerics: Numerics, scores: Uncertain, mask: torch.Tensor | None = None) -> Uncertain:
    """Softmax over the last dimension. `mask` is True where a score counts."""
    scores = numerics.wide(scores)
    counted = torch.ones_like(scores.value) if mask is None else mask.expand_as(scores.value).double()
    if scores.value.shape[-1]:
        highest = scores.value.masked_fill(counted == 0, -math.inf).amax(-1, keepdim=True)
        scores = (scores - Uncertain.exact(highest, scores.precision)).shaped(lambda tensor: tensor * counted)
    exponentials = scores.exp().shaped(lambda tensor: tensor * counted)
    return numerics.narrow(exponentials / exponentials.sum(-1, keepdim=True))


def softmax_gradient(
    numerics: Numerics, upstream: Uncertain, probabilities: Uncertain, mean: Uncertain | None = None
) -> Uncertain:
    """The gradient by the scores. `mean` is that of `upstream` under the probabilities, if it is known otherwise."""
    probabilities, upstream = numerics.wide(probabilities), numerics.wide(upstream)
    if mean is None:
        mean = (probabilities * upstream).sum(-1, keepdim=True)
    return numerics.narrow(probabilities * (upstream - mean))


def _softmax_gradients(numerics: Numerics, upstream: Uncertain, scores: Uncertain) -> Sequence[Uncertain]:
    return (softmax_gradient(numerics, upstream, softmax(numerics, scores)),)


def _huge_rows(generator: torch.Generator) -> Iterator[Example]:
    """Scores between -1e4 and 1e4. Without the subtraction of the maximum, their exponentials overflow."""
    ends = torch.tensor([[HUGE, 0.0, -HUGE], [HUGE, HUGE, HUGE], [-HUGE, -HUGE, -HUGE - 64]], dtype=torch.float64)
    yield Example("3x3", (ends,))
    yield Example("3x127", (HUGE * (2 * torch.rand(3, 127, generator=generator, dtype=torch.float64) - 1),))


def _embedding_examples(generator: torch.Generator) -> Iterator[Example]:
    for words, width, tokens in TABLES:
        ids = torch.randint(words, (tokens,), generator=generator)
        yield Example(f"{tokens} of {words} rows of {width}", (ids, normal(generator, words, width)))
    yield Example("one row 64 times", (torch.ones(4, 16, dtype=torch.int64), normal(generator, 3, 17)))


def _embedding(numerics: Numerics, ids: torch.Tensor, table: Uncertain) -> Uncertain:
    del numerics
    return table.shaped(lambda tensor: tensor[ids])


def _embedding_gradient(
    numerics: Numerics, upstream: Uncertain, ids: torch.Tensor, table: Uncertain
) -> Sequence[Uncertain]:
    """Repeated ids add up in the dtype of the table, one after the other."""
    del numerics
    chosen = functional.one_hot(ids.flatten(), table.value.shape[0]).double().T
    rows = upstream.shaped(lambda tensor: tensor.flatten(0, ids.dim() - 1))
    return (Uncertain.exact(chosen, upstream.precision) @ rows,)


def _class_examples(generator: torch.Generator, scale: float = 3.0) -> Iterator[Example]:
    for rows, classes in ((8, 77), (1024, 128), (127, 150), (17, 3), (1, 2)):
        labels = torch.randint(classes, (rows,), generator=generator)
        yield Example(f"{rows}x{classes}", (scale * normal(generator, rows, classes), labels))
    labels = torch.randint(17, (16,), generator=generator)
    labels[::3] = IGNORED
    yield Example("16x17, six ignored", (scale * normal(generator, 16, 17), labels))


def _huge_classes(generator: torch.Generator) -> Iterator[Example]:
    for example in _huge_rows(generator):
        (logits,) = example.inputs
        yield replace(example, inputs=(logits, torch.arange(len(logits)) % logits.shape[1]))


def _log_softmax(numerics: Numerics, logits: Uncertain) -> Uncertain:
    logits = numerics.wide(logits)
    shifted = logits - Uncertain.exact(logits.value.amax(-1, keepdim=True), logits.precision)
    # On a host, torch keeps it in the dtype of the logits.
    total = numerics.wide(numerics.narrow(shifted.exp().sum(-1, keepdim=True)))
    return numerics.narrow(shifted - total.function(torch.log, torch.reciprocal))


def _cross_entropy(numerics: Numerics, logits: Uncertain, labels: torch.Tensor, *, mean: bool) -> Uncertain:
    """Over the labels that count. The losses are added in the dtype of the logits."""
    counted = labels != IGNORED
    rows = torch.arange(len(labels))[counted]
    losses = -_log_softmax(numerics, logits).shaped(lambda tensor: tensor[rows, labels[counted]])
    losses = losses.at(numerics.compute)
    return losses.mean(0) if mean else losses.sum(0)


def _cross_entropy_gradient(
    numerics: Numerics, upstream: Uncertain, logits: Uncertain, labels: torch.Tensor, *, mean: bool
) -> Sequence[Uncertain]:
    counted = (labels != IGNORED).double()[:, None]
    each = upstream / float(counted.sum()) if mean else upstream
    right = functional.one_hot(labels.clamp(min=0), logits.value.shape[1]).double()
    probabilities = numerics.wide(_log_softmax(numerics, logits)).exp()
    by_logit = (probabilities - Uncertain.exact(right, numerics.accumulate)) * each
    return (numerics.narrow(by_logit.shaped(lambda tensor: tensor * counted)),)


def _elementwise(
    name: str,
    definition: str,
    run: Callable[[torch.Tensor], torch.Tensor],
    expected: Callable[..., Uncertain],
    gradients: Callable[..., Sequence[Uncertain]],
    examples: Callable[[torch.Generator], Iterator[Example]] = _rows,
) -> Operation:
    return Operation(name, definition, examples, lambda _, x: run(x), expected, gradients)


SUM = _elementwise("sum", "the sum of each row", lambda x: x.sum(-1), _sum, _sum_gradient)
SOFTMAX = _elementwise(
    "softmax",
    "softmax of each row",
    lambda x: torch.softmax(x, -1),
    softmax,
    _softmax_gradients,
    partial(_rows, scale=3.0),
)


def _loss(reduction: str) -> Operation:
    mean = reduction == "mean"
    return Operation(
        f"cross_entropy-{reduction}",
        f"the {reduction} of the cross entropy over the labels that aren't ignored",
        _class_examples,
        lambda _, logits, labels: functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction),
        partial(_cross_entropy, mean=mean),
        partial(_cross_entropy_gradient, mean=mean),
    )


CROSS_ENTROPY = _loss("mean")
ROW_OPERATIONS = (
    SUM,
    _elementwise("mean", "the mean of each row", lambda x: x.mean(-1), _mean, _mean_gradient),
    _elementwise("tanh", "tanh of each element", torch.tanh, _tanh, _tanh_gradient, _activations),
    _elementwise(
        "gelu-erf",
        "x Phi(x) by erf",
        functional.gelu,
        _gelu_erf,
        _gelu_erf_gradient,
        partial(_activations, scale=2.0),
    ),
    _elementwise(
        "gelu-tanh",
        "GELU by its tanh approximation",
        partial(functional.gelu, approximate="tanh"),
        _gelu_tanh,
        _gelu_tanh_gradient,
        partial(_activations, scale=2.0),
    ),
    Operation(
        "layer_norm", f"LayerNorm of each row, epsilon {EPSILON:g}", _norm_examples, _run_norm, _norm, _norm_gradients
    ),
    SOFTMAX,
    Operation(
        "embedding",
        "rows of a table, and the sum of gradients for each row",
        _embedding_examples,
        lambda _, ids, table: functional.embedding(ids, table),
        _embedding,
        _embedding_gradient,
    ),
    CROSS_ENTROPY,
    _loss("sum"),
)
LONG_ROWS = (
    replace(SUM, name="sum-long-sums", definition="sums of 65,536 terms", examples=_long_rows, gradients=None),
)
HUGE_LOGITS = (
    replace(SOFTMAX, name="softmax-huge-logits", definition="softmax of scores up to 1e4 in size", examples=_huge_rows),
    replace(
        CROSS_ENTROPY,
        name="cross_entropy-mean-huge-logits",
        definition="the mean cross entropy of logits up to 1e4 in size",
        examples=_huge_classes,
    ),
)
