"""Matrix products and attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from ...backends import Backend
from .operation import Example, Layout, Numerics, Operation, laid_out
from .rows import LONG, normal, softmax, softmax_gradient
from .uncertain import Uncertain

# Rows, terms of a sum, columns: ALBERT's and MiniLM's layers with few rows, 77 labels for a training step's 1,024 rows,
# odd ones, no rows at all.
SHAPES = (
    *((16, 768, 3072), (16, 3072, 768), (17, 384, 1536), (1024, 768, 77)),
    *((127, 768, 3), (3, 127, 17), (1, 1, 1), (0, 768, 3)),
)
# Batch, heads, tokens and width of a head. The third has an odd number of everything.
ATTENTION = ((2, 12, 64, 64), (2, 12, 17, 32), (3, 1, 127, 3), (1, 3, 1, 17), (0, 12, 17, 64))


def _matmul_examples(generator: torch.Generator) -> Iterator[Example]:
    for rows, terms, columns in SHAPES:
        yield Example(
            f"{rows}x{terms} by {terms}x{columns}", (normal(generator, rows, terms), normal(generator, terms, columns))
        )
    yield from laid_out(normal(generator, 17, 127), normal(generator, 127, 3))


def _bmm_examples(generator: torch.Generator) -> Iterator[Example]:
    for batch, rows, terms, columns in ((12, 64, 64, 64), (3, 17, 127, 1), (1, 1, 3, 17), (12, 0, 64, 3)):
        inputs = (normal(generator, batch, rows, terms), normal(generator, batch, terms, columns))
        yield Example(f"{batch} of {rows}x{terms} by {terms}x{columns}", inputs)
    yield from laid_out(normal(generator, 3, 17, 127), normal(generator, 3, 127, 17))


def _linear_examples(generator: torch.Generator) -> Iterator[Example]:
    for rows, terms, columns in SHAPES:
        weight = normal(generator, columns, terms) / math.sqrt(terms)
        yield Example(
            f"{rows}x{terms} to {columns}", (normal(generator, rows, terms), weight, normal(generator, columns))
        )
    inputs = (normal(generator, 3, 17, 127), normal(generator, 17, 127), normal(generator, 17))
    yield Example("3x17x127 to 17", inputs)
    yield from laid_out(*inputs)


def _long_products(generator: torch.Generator) -> Iterator[Example]:
    """Sums of 65,536 products: with random signs, with pairs that cancel, and of one sign."""
    half = LONG // 2
    order = torch.randperm(LONG, generator=generator)
    left = normal(generator, 3, half).repeat(1, 2)[:, order]
    paired = normal(generator, half, 2)
    cancelling = torch.cat((paired, -paired))[order]
    signed = left.sign().T[:, :1] * torch.rand(LONG, 1, generator=generator, dtype=torch.float64) / 4
    columns = torch.cat((cancelling, normal(generator, LONG, 2), signed), dim=1)
    yield Example("65,536 terms", (left, columns))


def _long_linear(generator: torch.Generator) -> Iterator[Example]:
    """Long sums forward, and in the gradients of weight and bias."""
    for example in _long_products(generator):
        x, weight = example.inputs
        yield Example("65,536 terms", (x, weight.T.contiguous(), normal(generator, weight.shape[1])))
        yield Example("65,536 rows", (x.T.contiguous(), normal(generator, 3, 3), normal(generator, 3)))


def _product(numerics: Numerics, left: Uncertain, right: Uncertain) -> Uncertain:
    return numerics.product(left, right)


def _product_gradients(
    numerics: Numerics, upstream: Uncertain, left: Uncertain, right: Uncertain
) -> Sequence[Uncertain]:
    return numerics.product(upstream, right.mT), numerics.product(left.mT, upstream)


def _run_linear(backend: Backend, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A placed layer, since a backend may give modules an arithmetic of its own."""
    layer = backend.place(nn.utils.skip_init(nn.Linear, *weight.T.shape, dtype=weight.dtype))
    result: torch.Tensor = functional_call(layer, {"weight": weight, "bias": bias}, (x,))
    return result


def _linear(numerics: Numerics, x: Uncertain, weight: Uncertain, bias: Uncertain) -> Uncertain:
    """The bias is the first term of the sum, or is added to the rounded product."""
    first = numerics.wide(x).matmul(numerics.wide(weight).mT, start=numerics.wide(bias))
    return numerics.narrow(first).or_worse(numerics.product(x, weight.mT) + bias)


def _linear_gradients(
    numerics: Numerics, upstream: Uncertain, x: Uncertain, weight: Uncertain, bias: Uncertain
) -> Sequence[Uncertain]:
    del bias
    rows, flat = (one.shaped(lambda tensor: tensor.flatten(0, -2)) for one in (upstream, x))
    return (
        numerics.product(upstream, weight),
        numerics.product(rows.mT, flat),
        numerics.narrow(numerics.wide(rows).sum(0)),
    )


def _attention_examples(generator: torch.Generator) -> Iterator[Example]:
    for shape in ATTENTION:
        yield _attention_example(generator, shape, "rows")
    yield _attention_example(generator, ATTENTION[0], "columns")


def _attention_example(generator: torch.Generator, shape: tuple[int, ...], layout: Layout) -> Example:
    batch, heads, tokens, width = shape
    query, key, value = (normal(generator, *shape) for _ in range(3))
    # Each text has another number of real tokens, and at least one.
    lengths = torch.randint(1, tokens + 1, (batch, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths)[:, None, None, :]
    return Example(f"{batch}x{heads}x{tokens}x{width} in {layout}", (query, key, value, mask), layout)


def _run_attention(_: Backend, *inputs: torch.Tensor) -> torch.Tensor:
    query, key, value, mask = inputs
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _run_attention_by_hand(_: Backend, *inputs: torch.Tensor) -> torch.Tensor:
    query, key, value, mask = inputs
    scores = torch.matmul(query, key.mT) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.matmul(torch.softmax(scores, dim=-1), value)


def _probabilities(numerics: Numerics, query: Uncertain, key: Uncertain, mask: torch.Tensor) -> Uncertain:
    """Both factors may be scaled by the root of the scale before their product, or the product by the scale."""
    root = query.value.shape[-1] ** -0.25
    return softmax(numerics, numerics.product(query * root, (key * root).mT), mask)


def _attention(numerics: Numerics, query: Uncertain, key: Uncertain, value: Uncertain, mask: torch.Tensor) -> Uncertain:
    return numerics.product(_probabilities(numerics, query, key, mask), value)


def _attention_gradients(
    numerics: Numerics, upstream: Uncertain, query: Uncertain, key: Uncertain, value: Uncertain, mask: torch.Tensor
) -> Sequence[Uncertain]:
    probabilities = _probabilities(numerics, query, key, mask)
    by_probability = numerics.product(upstream, value.mT)
    # Fused kernels take the mean of each row from the output, which is rounded (Dao et al. 2022, 2205.14135, 3.1).
    output = numerics.product(probabilities, value)
    mean = (numerics.wide(upstream) * numerics.wide(output)).sum(-1, keepdim=True)
    by_score = softmax_gradient(numerics, by_probability, probabilities).or_worse(
        softmax_gradient(numerics, by_probability, probabilities, mean)
    )
    scale = 1.0 / math.sqrt(query.value.shape[-1])
    return (
        numerics.product(by_score, key) * scale,
        numerics.product(by_score.mT, query) * scale,
        numerics.product(probabilities.mT, upstream),
    )


MATMUL = Operation(
    "matmul",
    "the product of two matrices",
    _matmul_examples,
    lambda _, left, right: torch.matmul(left, right),
    _product,
    _product_gradients,
)
LINEAR = Operation("linear", "x W^T + b", _linear_examples, _run_linear, _linear, _linear_gradients)
ATTENTION_BY_HAND = Operation(
    "attention-by-hand",
    "softmax(Q K^T / sqrt(d)) V of the unmasked keys, by matmul and softmax",
    _attention_examples,
    _run_attention_by_hand,
    _attention,
    _attention_gradients,
)
PRODUCTS = (
    MATMUL,
    LINEAR,
    Operation(
        "bmm",
        "products of matrices, pair by pair",
        _bmm_examples,
        lambda _, left, right: torch.bmm(left, right),
        _product,
        _product_gradients,
    ),
    replace(
        ATTENTION_BY_HAND,
        name="attention",
        definition="softmax(Q K^T / sqrt(d)) V of the unmasked keys, by scaled_dot_product_attention",
        run=_run_attention,
    ),
    ATTENTION_BY_HAND,
)
LONG_PRODUCTS = (
    replace(MATMUL, name="matmul-long-sums", definition="sums of 65,536 products", examples=_long_products),
    replace(LINEAR, name="linear-long-sums", definition="sums of 65,536 products", examples=_long_linear),
)
