"""Checks of the frozen encoder: each kernel and layout on both architectures, against `kernels/reference.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from ... import UserError
from ...albert_core.features.compute import Batch
from ...albert_core.tokens.store import TokenStore
from ...backends import DTYPES, EIGHT_BIT, CastPolicy, FrozenEncoder
from ...benchmarks.parity.bands import Check, tensor_checks
from ...kernels import reference
from ...kernels.packed import PackedBatch
from ...kernels.weights import EncoderWeights
from ..case import Case, Checks, Device, Passed, UnsupportedError, ViolationError
from ..common.draws import draws, factor, judged
from ..common.texts import random_texts, single_text
from .models import ALBERT, ARCHITECTURES, BERT, MAX_TOKENS, random_weights
from .passes import all_texts, encoded, encoded_in_turn, exact_replay, exact_states, layer_states

LENGTHS = (511, 1, 2, 512, 3, 17, 64)
# Texts of one length need no padding in a padded batch. It is a length of every grid.
MIXED, EQUAL = (5, 1, 9, 30, 2), (32,) * 4
# In any layout, a batch of these has the shape of one of MIXED.
OTHERS = (7, 3, 4, 30, 3)
# Of the large batch, for which the host takes long.
LARGE_DTYPES = ("float32", "bfloat16")
# A word that no random text has.
RARE = 3
# It takes seconds to compile an encoder, so these kernels have one check of their own.
COMPILED = ("compile",)
# One tensor of each kind of operation.
BROKEN = ("word_embeddings", "layers.0.key_weight", "layers.0.ffn_bias", "layers.0.output_norm_weight")

EVERY_DTYPE = (*DTYPES, *EIGHT_BIT)
check = Checks("encoder", time_limit=300.0)


def cases() -> list[Case]:
    """Every case of this group."""
    return check.cases


@dataclass(frozen=True)
class _Trial:
    """Texts that an encoder reads in some layouts. Rows of padded batches have `max_length` tokens."""

    weights: EncoderWeights
    store: TokenStore
    layouts: tuple[str, ...]
    max_length: int


# From a pass over a trial's texts in a layout: arrays to compare, by name.
Run = Callable[[Device, FrozenEncoder, _Trial, str], dict[str, np.ndarray]]


def _short(device: Device, *, pairs: bool = False) -> Iterator[_Trial]:
    """Short texts for each architecture, of mixed lengths where nothing is padded and of one length elsewhere."""
    layouts = device.backend.traits.layouts
    for config in ARCHITECTURES:
        weights = random_weights(config, device.seed)
        for lengths, packed in ((MIXED, True), (EQUAL, False)):
            chosen = tuple(layout for layout in layouts if (layout == "packed") == packed)
            if chosen:
                texts = random_texts(lengths, device.generator(), pairs=pairs)
                yield _Trial(weights, texts, chosen, EQUAL[0])


def _of_each(device: Device, texts: TokenStore, layouts: tuple[str, ...], max_length: int) -> list[_Trial]:
    """The same texts for each architecture."""
    return [_Trial(random_weights(config, device.seed), texts, layouts, max_length) for config in ARCHITECTURES]


@check(
    "features",
    "The features of texts of 1 to 512 tokens are those of float64 within the dtype's error budget.",
    EVERY_DTYPE,
)
def _features(device: Device, dtype: str) -> Passed:
    texts = random_texts(LENGTHS, device.generator())
    trials = _of_each(device, texts, device.backend.traits.layouts, MAX_TOKENS)
    return _compared(device, dtype, trials, _exact_features, _read_features)


@check(
    "compiled-kernel",
    "A kernel that torch compiles has float64's features in any shape, and compiles nothing in a second pass.",
)
def _compiled_kernel(device: Device) -> Passed:
    layouts = tuple(layout for layout in device.backend.traits.layouts if layout != "packed")
    trials = _of_each(device, random_texts(LENGTHS, device.generator()), layouts, MAX_TOKENS)

    def run(one: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
        found = _read_features(one, encoder, trial, layout)
        before = one.backend.compile_count()
        _read_features(one, encoder, trial, layout)
        more = one.backend.compile_count() - before
        if more:
            raise ViolationError(f"kernel {encoder.name} compiles {more} times in the second pass ({layout})")
        return found

    return _compared(device, device.policies()[0].requested, trials, _exact_features, run, kernels=COMPILED)


@check("token-types", "The features depend on the token types.", EVERY_DTYPE)
def _token_types(device: Device, dtype: str) -> Passed:
    return _compared(device, dtype, _short(device, pairs=True), _exact_features, _read_features)


@check("padding", "What stands at padded positions changes no feature.", EVERY_DTYPE)
def _padding(device: Device, dtype: str) -> Passed:
    layouts = tuple(layout for layout in device.backend.traits.layouts if layout != "packed")
    if not layouts:
        raise UnsupportedError("it takes packed batches only")
    trials = _of_each(device, random_texts(MIXED, device.generator()), layouts, 2 * EQUAL[0])

    def run(one: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
        return {"features": encoded(one, encoder, trial.store, layout, trial.max_length, _other_padding)}

    return _compared(device, dtype, trials, _exact_features, run)


def _other_padding(batch: Batch) -> Batch:
    """`batch` with a word in the place of the padding token."""
    if isinstance(batch, PackedBatch):
        return batch
    return replace(batch, input_ids=torch.where(batch.attention_mask.bool(), batch.input_ids, RARE))


@check(
    "company",
    "A text's features don't depend on the other texts of its batch, to the bit if the kernel promises it.",
    EVERY_DTYPE,
)
def _company(device: Device, dtype: str) -> Passed:
    def run(one: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
        texts = [single_text(trial.store, row) for row in range(trial.store.num_texts)]
        alone = np.concatenate([encoded(one, encoder, text, layout, trial.max_length) for text in texts])
        together = encoded(one, encoder, trial.store, layout, trial.max_length)
        if encoder.batch_invariant and not np.array_equal(alone, together):
            row = int(np.argmax((alone != together).any(axis=1)))
            raise ViolationError(
                f"text {row} has other bits alone than in a batch on kernel {encoder.name} ({layout}), which promises "
                "the same"
            )
        return {"features of a text alone": alone, "features in a batch": together}

    def exact(trial: _Trial) -> dict[str, np.ndarray]:
        features = reference.encode(trial.weights, all_texts(trial.store)).features.numpy()
        return {"features of a text alone": features, "features in a batch": features}

    return _compared(device, dtype, _short(device), exact, run)


@check(
    "batches",
    "Batches of one shape have the features of their own texts, lengths and token types when all are read at the end.",
    EVERY_DTYPE,
)
def _batches(device: Device, dtype: str) -> Passed:
    generator = device.generator()
    stores = [random_texts(lengths, generator, pairs=True) for lengths in (MIXED, OTHERS)]
    trials = _of_each(device, stores[0], device.backend.traits.layouts, EQUAL[0])

    def named(features: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        return {f"features of batch {number}": array for number, array in enumerate(features, start=1)}

    def run(one: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
        return named(encoded_in_turn(one, encoder, stores, layout, trial.max_length))

    def exact(trial: _Trial) -> dict[str, np.ndarray]:
        each = (_exact_features(replace(trial, store=store)) for store in stores)
        return named(features for found in each for features in found.values())

    return _compared(device, dtype, trials, exact, run)


@check("overflow", "A text whose states overflow changes no other text's features.", EVERY_DTYPE)
def _overflow(device: Device, dtype: str) -> Passed:
    """The last text has a word whose embedding is the largest number."""
    largest = min(torch.finfo(getattr(torch, name)).max for name in (device.policy(dtype).param, "float32"))
    trials = []
    for trial in _short(device):
        words, ids = trial.weights.word_embeddings.clone(), trial.store.ids.copy()
        words[RARE], ids[-1] = largest, RARE
        trials.append(
            replace(
                trial,
                weights=replace(trial.weights, word_embeddings=words),
                store=replace(trial.store, ids=ids),
            )
        )

    def run(one: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
        return {name: array[:-1] for name, array in _read_features(one, encoder, trial, layout).items()}

    def exact(trial: _Trial) -> dict[str, np.ndarray]:
        return {name: array[:-1] for name, array in _exact_features(trial).items()}

    return _compared(device, dtype, trials, exact, run)


@check("large", "A batch of more tokens than the device is given at once has float64's features.", LARGE_DTYPES)
def _large(device: Device, dtype: str) -> Passed:
    """Shapes that only a large launch has: other kernels than for small batches, several chunks, wide offsets."""
    layouts = device.backend.traits.layouts
    layout = "packed" if "packed" in layouts else layouts[-1]
    config = replace(BERT, weights_of_layer=BERT.weights_of_layer[:2])
    lengths = (*MIXED, *(MAX_TOKENS,) * (large_tokens(device) // MAX_TOKENS), 3)
    texts = random_texts(lengths, device.generator())
    trial = _Trial(random_weights(config, device.seed), texts, (layout,), MAX_TOKENS)

    def run(one: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
        if layout != "packed":
            return _read_features(one, encoder, trial, layout)
        (features,) = one.read(encoder(one.backend.place(all_texts(trial.store))))
        return {"features": features.double().numpy()}

    return _compared(device, dtype, [trial], _exact_features, run)


def large_tokens(device: Device) -> int:
    """The tokens of a batch that the device gets in parts."""
    return device.backend.traits.feature_batch_tokens + MAX_TOKENS


@check(
    "layers",
    "The states before the first layer and after each layer are those of float64 within the error budget.",
    EVERY_DTYPE,
)
def _layers(device: Device, dtype: str) -> Passed:
    def run(one: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
        count = trial.weights.config.num_layers + 1
        return _named(layer_states(one, encoder, trial.store, layout, trial.max_length, count))

    def exact(trial: _Trial) -> dict[str, np.ndarray]:
        return _named([state.numpy() for state in exact_states(trial.weights, trial.store)])

    return _compared(device, dtype, _short(device), exact, run, _state_eps(device, dtype))


@check("replay", "In a replay, each layer is applied to the states that it is given, not to its own.", EVERY_DTYPE)
def _replay(device: Device, dtype: str) -> Passed:
    """Replays the states of other texts, so that own states would be wrong."""
    wide = getattr(torch, device.policy(dtype).accumulate)

    def given(trial: _Trial) -> list[torch.Tensor]:
        others = random_texts(trial.store.lengths.tolist(), torch.Generator().manual_seed(device.seed + 1))
        return [state.to(wide) for state in exact_states(trial.weights, others)[:-1]]

    def run(one: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
        count = trial.weights.config.num_layers
        states = layer_states(one, encoder, trial.store, layout, trial.max_length, count, given(trial))
        return _named(states, first=1)

    def exact(trial: _Trial) -> dict[str, np.ndarray]:
        states = [state.double() for state in given(trial)]
        return _named([state.numpy() for state in exact_replay(trial.weights, trial.store, states)], first=1)

    return _compared(device, dtype, _short(device), exact, run, _state_eps(device, dtype))


def _compared(
    device: Device,
    dtype: str,
    trials: Iterable[_Trial],
    exact: Callable[[_Trial], dict[str, np.ndarray]],
    run: Run,
    eps: float = torch.finfo(torch.float32).eps,
    kernels: Sequence[str] = (),
) -> Passed:
    """Judges `run` on each kernel and layout of each trial by `exact` and the draws of the dtype's error budget.

    Args:
        eps: See `tensor_checks`.
        kernels: By default all but COMPILED.
    """
    policy = device.policy(dtype)
    checks: list[Check] = []
    lacks: dict[str, None] = {}
    for trial in trials:
        right = exact(trial)
        drawn = [
            run(draw.device, draw.device.backend.frozen_encoder(trial.weights, draw.policy), trial, "packed")
            for draw in draws(device.backend, policy)
        ]
        built, missing = _built(device, policy, trial.weights, kernels)
        lacks |= dict.fromkeys(missing)
        for (kernel, encoder), layout in product(built.items(), trial.layouts):
            found = run(device, encoder, trial, layout)
            for name, array in right.items():
                checks += tensor_checks(
                    f"{name} (kernel {kernel}, {layout}, {trial.weights.config.kind})",
                    0,
                    array,
                    found[name],
                    [one[name] for one in drawn],
                    factor(policy),
                    eps=eps,
                )
    return judged(checks, "; ".join(lacks))


def _exact_features(trial: _Trial) -> dict[str, np.ndarray]:
    return {"features": reference.encode(trial.weights, all_texts(trial.store)).features.numpy()}


def _read_features(device: Device, encoder: FrozenEncoder, trial: _Trial, layout: str) -> dict[str, np.ndarray]:
    return {"features": encoded(device, encoder, trial.store, layout, trial.max_length)}


def _named(states: list[np.ndarray], first: int = 0) -> dict[str, np.ndarray]:
    """The outputs of the layers from number `first` on. Number 0 is the embedding."""
    return {f"layer {number}" if number else "the embedding": state for number, state in enumerate(states, first)}


def _state_eps(device: Device, dtype: str) -> float:
    return float(torch.finfo(getattr(torch, device.policy(dtype).accumulate)).eps)


def _built(
    device: Device, policy: CastPolicy, weights: EncoderWeights, kernels: Sequence[str]
) -> tuple[dict[str, FrozenEncoder], list[str]]:
    """An encoder by each of `kernels` that can run `weights` under `policy`, and why the others can't.

    Raises:
        UnsupportedError: None can.
    """
    built, missing = {}, []
    known = device.backend.kernels()
    for name in [name for name in known if (name in kernels if kernels else name not in COMPILED)]:
        state = known[name]
        try:
            if not state.ok:
                raise UserError(f"kernel {name} can't run: {state.reason}")
            built[name] = device.backend.frozen_encoder(weights, policy, name)
        except UserError as error:
            missing.append(str(error))
    if not built:
        raise UnsupportedError("; ".join(missing) or "it has no kernel that torch compiles")
    return built, missing


@check("kernels", "Each available kernel builds an encoder, and any other is refused by a UserError.", time_limit=60.0)
def _kernels(device: Device) -> Passed:
    backend, weights = device.backend, random_weights(ALBERT, device.seed)
    policies, available = device.policies(), backend.kernels()
    if backend.traits.kernels and set(backend.traits.kernels) != set(available):
        raise ViolationError(f"its traits name the kernels {backend.traits.kernels}, and it has {tuple(available)}")
    for policy in policies:
        backend.frozen_encoder(weights, policy)
    for name, state in available.items():
        reasons = []
        for policy in policies:
            try:
                backend.frozen_encoder(weights, policy, name)
            except UserError as error:
                reasons.append(str(error))
        if state.ok and len(reasons) == len(policies):
            raise ViolationError(f"kernel {name} is said to be available, and is refused: {reasons[0]}")
        if not state.ok and len(reasons) < len(policies):
            raise ViolationError(f"kernel {name} is said to be unavailable ({state.reason}), and builds an encoder")
    absent = [f"kernel {name}: {state.reason}" for name, state in available.items() if not state.ok]
    if absent:
        raise UnsupportedError("; ".join(absent))
    return Passed(detail=", ".join(available))


@check(
    "broken-weights",
    "Weights with a NaN or an infinity are refused by a UserError that names the tensor.",
    time_limit=60.0,
)
def _broken_weights(device: Device) -> Passed:
    weights, policy = random_weights(ALBERT, device.seed), device.policies()[0]
    available = [name for name, state in device.backend.kernels().items() if state.ok]
    for kernel, place, value in product(("auto", *available), BROKEN, (float("nan"), float("inf"))):

        def spoil(name: str, tensor: torch.Tensor, place: str = place, value: float = value) -> torch.Tensor:
            spoilt = tensor.clone()
            if name == place:
                spoilt.view(-1)[-1] = value
            return spoilt

        try:
            device.backend.frozen_encoder(weights.mapped(spoil), policy, kernel)
        except UserError as error:
            if place not in str(error):
                raise ViolationError(f"the refusal of a {value} in {place} doesn't name the tensor: {error}") from error
        else:
            raise ViolationError(f"kernel {kernel} takes weights with a {value} in {place}")
    return Passed(detail=f"{len(BROKEN)} tensors, kernels {', '.join(available)}")
