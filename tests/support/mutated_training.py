"""Broken backends: the host with one member wrong in a way that devices can be, and the checks that must find it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from isotrain import UserError
from isotrain.backends import Backend, CastPolicy
from isotrain.backends.cpu import CpuBackend
from isotrain.conformance.case import Case, Device
from isotrain.conformance.worker import judge
from isotrain.kernels.packed import PackedBatch, PaddedBatch
from isotrain.kernels.weights import EncoderWeights
from torch.nn import functional

Batch = PackedBatch | PaddedBatch


def failing(backend: Backend, cases: Iterable[Case], seed: int = 0) -> dict[str, str]:
    """What each check that fails says, by the check's name."""
    found = {case.name: judge(case, Device(backend, seed)) for case in cases}
    return {name: one.detail for name, one in found.items() if one.status == "FAIL"}


@dataclass(frozen=True)
class Mutant:
    """`caught`: the subjects of the checks that fail. The first is that of the clause that the backend breaks.

    Others are those that can't hold, either: a wrong feature is wrong in every check that reads features.
    `said`: a part of what one of them says.
    """

    make: Callable[[], CpuBackend]
    caught: tuple[str, ...]
    said: str = ""


# --- frozen encoders

SMALLEST_LARGE = 256


class Wrapped:
    """An encoder as the host builds it."""

    batch_invariant = False

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.name, self.version = encoder, encoder.name, encoder.version
        self.skips_padding = encoder.skips_padding

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self.encoder(self.seen(batch))

    def layer_states(self, batch: Batch, given: Any = None) -> list[torch.Tensor]:
        return self.encoder.layer_states(self.seen(batch), given)

    def seen(self, batch: Batch) -> Batch:
        """What the encoder reads in the place of `batch`."""
        return batch


class ConstantFeatures(Wrapped):
    def __call__(self, batch: Batch) -> torch.Tensor:
        return torch.ones_like(super().__call__(batch))


class AnotherDimension(Wrapped):
    def __call__(self, batch: Batch) -> torch.Tensor:
        return super().__call__(batch)[None]


class LeftOnMeta(Wrapped):
    """The features are on another device."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        return super().__call__(batch).to("meta")


class NeighbourRows(Wrapped):
    def __call__(self, batch: Batch) -> torch.Tensor:
        return super().__call__(batch).roll(1, dims=0)


class PaddingAttended(Wrapped):
    def seen(self, batch: Batch) -> Batch:
        if isinstance(batch, PackedBatch):
            return batch
        return replace(batch, attention_mask=torch.ones_like(batch.attention_mask), host_lengths=None)


class TokenTypesIgnored(Wrapped):
    def seen(self, batch: Batch) -> Batch:
        return replace(batch, token_type_ids=None)


class ReplayOfOwnStates(Wrapped):
    def layer_states(self, batch: Batch, given: Any = None) -> list[torch.Tensor]:
        states = super().layer_states(batch)
        return states if given is None else states[1:]


class OneNanForAll(Wrapped):
    """As with a scale that all rows share."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        features = super().__call__(batch)
        return features if bool(torch.isfinite(features).all()) else torch.full_like(features, torch.nan)


class LargeCutOff(Wrapped):
    """The last row of a batch of SMALLEST_LARGE tokens is left out."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        features = super().__call__(batch)
        if batch.num_tokens >= SMALLEST_LARGE:
            features[-1] = 0
        return features


class BrokenPromise(Wrapped):
    """The last bit depends on the size of the batch."""

    batch_invariant = True

    def __call__(self, batch: Batch) -> torch.Tensor:
        features = super().__call__(batch)
        return features if len(features) == 1 else torch.nextafter(features, torch.tensor(torch.inf))


class OneBuffer(Wrapped):
    """Each batch overwrites the features of the one before it that has the same shape."""

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder)
        self.buffers: dict[torch.Size, torch.Tensor] = {}

    def __call__(self, batch: Batch) -> torch.Tensor:
        features = super().__call__(batch)
        return self.buffers.setdefault(features.shape, torch.empty_like(features)).copy_(features)


class KeepsFirst(Wrapped):
    """Keeps the first batch of each shape."""

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder)
        self.kept: dict[torch.Size, Any] = {}

    def first(self, batch: Batch) -> Any:
        return self.kept.setdefault(batch.input_ids.shape, batch)


class FirstMask(KeepsFirst):
    def seen(self, batch: Batch) -> Batch:
        if isinstance(batch, PackedBatch):
            return batch
        return replace(batch, attention_mask=self.first(batch).attention_mask, host_lengths=None)


class FirstTokenTypes(KeepsFirst):
    def seen(self, batch: Batch) -> Batch:
        return replace(batch, token_type_ids=self.first(batch).token_type_ids)


class WithEncoder(CpuBackend):
    """A host whose encoders are wrapped."""

    def __init__(self, wrap: type[Wrapped]) -> None:
        super().__init__()
        self.wrap = wrap

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> Any:
        return self.wrap(super().build_encoder(weights, policy, kernel))


class LastLayerSkipped(CpuBackend):
    """In the pass that gives features, not in the one that shows states."""

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> Any:
        whole = super().build_encoder(weights, policy, kernel)
        config = replace(weights.config, weights_of_layer=weights.config.weights_of_layer[:-1])
        short: Any = Wrapped(super().build_encoder(replace(weights, config=config), policy, kernel))
        short.layer_states = whole.layer_states
        return short


class OtherEpsilon(CpuBackend):
    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> Any:
        config = replace(weights.config, layer_norm_eps=1e-5)
        return super().build_encoder(replace(weights, config=config), policy, kernel)


class NanAccepted(CpuBackend):
    def frozen_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str = "auto") -> Any:
        return self.build_encoder(weights, policy, kernel)


class KernelThatIsNotThere(CpuBackend):
    """It is said to be available."""

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> Any:
        if kernel == "portable":
            raise UserError("kernel portable can't run: its library is missing")
        return super().build_encoder(weights, policy, kernel)


class WrongProgram(CpuBackend):
    """Its compiled kernel always gives the same features of one architecture."""

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> Any:
        if kernel == "compile" and weights.config.kind == "bert":
            return ConstantFeatures(super().build_encoder(weights, policy, "portable"))
        return super().build_encoder(weights, policy, kernel)


_FEATURES = ("features", "padding", "token-types", "company", "batches", "overflow", "large")
ENCODERS = {
    "constant features": Mutant(lambda: WithEncoder(ConstantFeatures), _FEATURES),
    "features of another shape": Mutant(
        lambda: WithEncoder(AnotherDimension), _FEATURES[:-1], " texts are torch.float32 (1, "
    ),
    "features elsewhere": Mutant(lambda: WithEncoder(LeftOnMeta), _FEATURES, "features of a batch on cpu are on meta"),
    "features of the neighbour": Mutant(lambda: WithEncoder(NeighbourRows), _FEATURES),
    "padding attended": Mutant(lambda: WithEncoder(PaddingAttended), ("padding", "features", "batches")),
    "token types ignored": Mutant(lambda: WithEncoder(TokenTypesIgnored), ("token-types", "batches")),
    "last layer skipped": Mutant(LastLayerSkipped, _FEATURES),
    "another epsilon": Mutant(OtherEpsilon, ("layers", "replay", *_FEATURES)),
    "replay of its own states": Mutant(lambda: WithEncoder(ReplayOfOwnStates), ("replay",)),
    "NaN weights accepted": Mutant(NanAccepted, ("broken-weights",)),
    "one buffer for all features": Mutant(lambda: WithEncoder(OneBuffer), ("batches",)),
    "the first mask for ever": Mutant(lambda: WithEncoder(FirstMask), ("batches",)),
    "the first token types for ever": Mutant(lambda: WithEncoder(FirstTokenTypes), ("batches",)),
    "one NaN for the whole batch": Mutant(lambda: WithEncoder(OneNanForAll), ("overflow",)),
    "bits that depend on the batch": Mutant(lambda: WithEncoder(BrokenPromise), ("company",)),
    "a large batch cut off": Mutant(lambda: WithEncoder(LargeCutOff), ("large",)),
    "a kernel that is not there": Mutant(KernelThatIsNotThere, ("kernels",)),
    "a wrong program": Mutant(WrongProgram, ("compiled-kernel",)),
}


# --- steps


class Fused:
    """A right fused step, made by autograd."""

    def __init__(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = list(parameters), optimizer

    def __call__(self, features: torch.Tensor, labels: torch.Tensor, num_samples: int) -> torch.Tensor:
        hidden, hidden_bias, output, output_bias = self.parameters
        inner = functional.gelu(functional.linear(features.to(hidden.dtype), hidden, hidden_bias))
        logits = functional.linear(inner, output, output_bias)
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        (loss / self.divisor(labels, num_samples)).backward()
        self.update()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack((loss.detach(), (logits.argmax(dim=1) == labels).sum().to(loss.dtype)))

    def divisor(self, labels: torch.Tensor, num_samples: int) -> int:
        return num_samples

    def update(self) -> None:
        self.optimizer.step()


class NoBiasGradient(Fused):
    def update(self) -> None:
        bias = self.parameters[1]
        assert bias.grad is not None
        bias.grad.zero_()
        super().update()


class FirstRateForEver(Fused):
    rates: Sequence[float] = ()

    def update(self) -> None:
        groups = self.optimizer.param_groups
        self.rates = self.rates or [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        super().update()


class OneDecay(Fused):
    """All parameters decay as those of the first group."""

    def update(self) -> None:
        with one_decay(self.optimizer):
            super().update()


@contextmanager
def one_decay(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """All groups have the first one's decay for a while."""
    groups = optimizer.param_groups
    before = [group["weight_decay"] for group in groups]
    for group in groups:
        group["weight_decay"] = before[0]
    yield
    for group, decay in zip(groups, before, strict=True):
        group["weight_decay"] = decay


class OwnDivisor(Fused):
    """The number of samples that it is given is not used."""

    def divisor(self, labels: torch.Tensor, num_samples: int) -> int:
        return len(labels)


class OwnMoments(Fused):
    """Adam's moments and step count are kept in the device, where no checkpoint sees them."""

    def __init__(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        super().__init__(parameters, optimizer)
        settings = ("params", "betas", "eps", "weight_decay")
        self.own = torch.optim.AdamW([{key: group[key] for key in settings} for group in optimizer.param_groups])

    def update(self) -> None:
        for own, group in zip(self.own.param_groups, self.optimizer.param_groups, strict=True):
            own["lr"] = group["lr"]
        self.own.step()


class WithFusedStep(CpuBackend):
    """A host with a fused step for AdamW."""

    def __init__(self, fused: type[Fused] = Fused) -> None:
        super().__init__()
        self.fused = fused

    def head_step(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> Any:
        return self.fused(parameters, optimizer) if isinstance(optimizer, torch.optim.AdamW) else None


class StaleResult(WithFusedStep):
    """A captured step replays the first result and updates nothing."""

    def capture_step(self, step: Callable[..., torch.Tensor], optimizer: Any) -> Callable[..., torch.Tensor]:
        kept: list[torch.Tensor] = []

        def replay(*inputs: torch.Tensor) -> torch.Tensor:
            if not kept:
                kept.append(step(*inputs))
            return kept[0]

        return replay


class StaleBatch(WithFusedStep):
    """A captured step reads the first batch of each shape for ever."""

    def capture_step(self, step: Callable[..., torch.Tensor], optimizer: Any) -> Callable[..., torch.Tensor]:
        first: dict[Any, tuple[torch.Tensor, ...]] = {}
        return lambda *inputs: step(*first.setdefault(tuple(part.shape for part in inputs), inputs))


class CapturedOneDecay(WithFusedStep):
    """In captured steps, all parameters decay as those of the first group."""

    def capture_step(self, step: Callable[..., torch.Tensor], optimizer: Any) -> Callable[..., torch.Tensor]:
        def run(*inputs: torch.Tensor) -> torch.Tensor:
            with one_decay(optimizer):
                return step(*inputs)

        return run


class StaleDropout(WithFusedStep):
    """A captured step drops the same values in each call."""

    def capture_step(self, step: Callable[..., torch.Tensor], optimizer: Any) -> Callable[..., torch.Tensor]:
        def run(*inputs: torch.Tensor) -> torch.Tensor:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return step(*inputs)

        return run


class FirstRateForAll(CpuBackend):
    """All parameter groups have the first one's learning rate."""

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, *rates: float) -> None:
        super().set_learning_rate(optimizer, rates[0])


class FirstShapeForEver(WithFusedStep):
    """A compiled function cuts its inputs to the rows of the first call, or repeats them."""

    def compile(self, fn: Any, mode: str | None = None) -> Any:
        first: list[int] = []

        def run(inputs: Any, labels: torch.Tensor) -> Any:
            if not isinstance(inputs, torch.Tensor):
                return fn(inputs, labels)
            first.append(len(inputs))
            rows = torch.arange(first[0]) % len(inputs)
            return fn(inputs[rows], labels[rows])

        return run


class FirstScalarForEver(CpuBackend):
    """A changing number is a constant of the program that was compiled first."""

    def __init__(self) -> None:
        super().__init__()
        self.constant: float | None = None

    def scalar(self, value: float) -> float:
        self.constant = value if self.constant is None else self.constant
        return self.constant


class GeneratorsNotRestored(CpuBackend):
    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        pass


class CompilesEachStep(CpuBackend):
    def __init__(self) -> None:
        super().__init__()
        self.compiled = 0

    def step_boundary(self) -> None:
        self.compiled += 1

    def device_compilations(self) -> int:
        return self.compiled


class AlmostTrained(CpuBackend):
    """A kernel that trains another function than the module's: its states are a twentieth too large."""

    def trained_encoder(self, *given: Any) -> Any:
        encoder = super().trained_encoder(*given)
        return encoder and TooLarge(encoder)


@dataclass
class TooLarge:
    encoder: Any
    name: str = "native"
    version: str = "too large"

    def __call__(self, *given: Any) -> torch.Tensor:
        states: torch.Tensor = self.encoder(*given)
        return 1.05 * states


class NarrowProducts(CpuBackend):
    """bfloat16 products where the policy says float32."""

    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16)


TRAININGS = {
    "no bias gradient": Mutant(
        lambda: WithFusedStep(NoBiasGradient), ("fused-step", "learning-rate", "head", "accumulation")
    ),
    "the first learning rate for ever": Mutant(
        lambda: WithFusedStep(FirstRateForEver), ("learning-rate", "head", "accumulation", "resume")
    ),
    "the first group's learning rate for all": Mutant(FirstRateForAll, ("learning-rate",)),
    "the first group's decay for all": Mutant(lambda: WithFusedStep(OneDecay), ("fused-step", "learning-rate")),
    "the first group's decay for all in a captured step": Mutant(CapturedOneDecay, ("captured-step", "learning-rate")),
    "the same dropout in each captured step": Mutant(StaleDropout, ("captured-step",), "drop the same values"),
    "a divisor of its own": Mutant(lambda: WithFusedStep(OwnDivisor), ("fused-step", "learning-rate")),
    "moments outside the optimizer": Mutant(lambda: WithFusedStep(OwnMoments), ("resume",)),
    "a stale result": Mutant(StaleResult, ("captured-step", "learning-rate", "accumulation")),
    "a stale batch": Mutant(StaleBatch, ("captured-step", "learning-rate", "accumulation")),
    "one compiled shape": Mutant(FirstShapeForEver, ("compiled-step", "torch-compile-step", "accumulation")),
    "a number that became a constant": Mutant(FirstScalarForEver, ("accumulation",)),
    "generators not restored": Mutant(GeneratorsNotRestored, ("resume", "checkpointing")),
    "a compilation each step": Mutant(CompilesEachStep, ("static-grid",)),
    "a trained kernel of another function": Mutant(AlmostTrained, ("trained-kernel",)),
    "products in bfloat16": Mutant(NarrowProducts, ("whole-model", "adapters")),
}
