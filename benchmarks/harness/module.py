"""A workload of the user's own as a target: the forward pass of its module, or a whole training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ... import UserError
from ...albert_core.config.schema import TrainConfig
from ...albert_core.loop.optim import build_optimizer
from ...albert_core.workload.batches import cast, cost_class, placed, samples, shape_advice, tensors
from ...albert_core.workload.checks import (
    check_repeats,
    checked_gradients,
    checked_loss,
    make_batches,
    make_model,
    operations_named,
    own_optimizer,
    split_loss,
    trial,
)
from ...albert_core.workload.load import LoadedWorkload, load_workload
from ...albert_core.workload.step import Loss, loss_of, place_model, workload_step
from ...backends import Backend, CastPolicy
from ...backends.training.loss_scale import loss_scale
from ..work.counted import Counted, count_step, moved_bytes
from .answer import Stages
from .document import RUN, TARGET, Data, KernelUsed, Model, Work
from .plan import Options, TargetSpec
from .workloads import Prepared, Steps, Trained

# The most outputs of a batch that are judged, evenly spread over all of them.
JUDGED_OUTPUTS = 256


class ModuleForward(Steps):
    """The loss of each batch without gradients, from batches on the host."""

    def __init__(
        self, backend: Backend, policy: CastPolicy, loaded: LoadedWorkload, model: nn.Module, batches: Sequence[Any]
    ) -> None:
        kinds = [cost_class(loaded, batch) for batch in batches]
        super().__init__(backend, [kinds.index(kind) for kind in kinds])
        self.policy, self.loaded, self.model, self.batches = policy, loaded, model, batches
        self.uncompiled = loss_of(loaded.workload, model, backend, policy)
        self.loss: Loss = backend.compile(self.uncompiled)
        self.prepare()

    @property
    def judged(self) -> list[int]:
        """The numbers of the judged batches: the first of each class."""
        return sorted(set(self.classes))

    def prepare(self) -> None:
        """Sets the module's mode."""
        self.model.eval()

    def context(self) -> AbstractContextManager[Any]:
        return operations_named(self.loaded, self.backend, self.retry)

    def retry(self) -> None:
        """Runs a step once more, uncompiled."""
        with torch.no_grad():
            self.uncompiled(self.placed(0))

    def placed(self, index: int) -> Any:
        with self.backend.named_range("copy"):
            return placed(self.batches[index], self.backend, self.policy)

    def judge(self) -> None:
        """Computes the answers of the initial weights, without dropout. Called before the first step."""
        self.model.eval()
        found = []
        for index in self.judged:
            found.append(answers(self.uncompiled, self.model, self.placed(index)))
            self.backend.step_boundary()
        self.backend.synchronize(*found)
        self.probe = {index: tensor.cpu().tolist() for index, tensor in zip(self.judged, found, strict=True)}

    @torch.no_grad()
    def run(self, index: int) -> torch.Tensor:
        return self.loss(self.placed(index))[0]

    def fence(self) -> None:
        self.backend.synchronize(*self._results)

    def read(self) -> list[str]:
        if not self._results:
            return []
        losses = torch.stack([result.cpu().float() for result in self._results])
        for index, loss in zip(self._ran, losses.tolist(), strict=True):
            if index in self.probe:
                # The timed loss takes the place of the one that was computed for the outputs.
                self.probe[index][0] = loss
        bad = int((~torch.isfinite(losses)).sum())
        problems = [f"{bad} losses of {len(losses)} were NaN or infinite"] if bad else []
        return problems + self.changed(losses.numpy())

    def problems(self) -> list[str]:
        return []


class ModuleStep(Trained, ModuleForward):
    """A training step: forward, backward and update, by the workload's optimizer or the default one."""

    def prepare(self) -> None:
        config = TrainConfig.model_validate({})
        self.model.train()
        own = own_optimizer(self.loaded, self.model)
        self.optimizer = own or build_optimizer(self.model, config, self.backend)
        self.rates = {float(group["lr"]) for group in self.optimizer.param_groups}
        self.backend.prepare_optimizer(self.optimizer)
        scaling = loss_scale(self.backend, self.policy)
        self._step = workload_step(self.loss, self.model, self.backend, self.optimizer, scaling)
        self.watch(self.model)

    def retry(self) -> None:
        self.uncompiled(self.placed(0))[0].backward()
        self.model.zero_grad(set_to_none=True)

    def judge(self) -> None:
        super().judge()
        self.model.train()

    def run(self, index: int) -> torch.Tensor:
        if len(self.rates) == 1:
            # As in training. Groups with rates of their own keep them.
            self.backend.set_learning_rate(self.optimizer, next(iter(self.rates)))
        return self._step([self.placed(index)]).loss

    def losses(self, results: torch.Tensor) -> list[float]:
        return results.tolist()

    @property
    def state_bytes(self) -> int:
        """The bytes of the optimizer's state."""
        held = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(_bytes(value) for value in held if isinstance(value, torch.Tensor))


@torch.no_grad()
def answers(loss: Loss, model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss of a batch and a sample of the module's largest output.

    Returns:
        float32 [1 + outputs], on the batch's device.
    """
    seen: list[torch.Tensor] = []

    def look(_: nn.Module, __: Any, output: Any) -> None:
        seen.extend(tensor for _, tensor in tensors(output) if tensor.is_floating_point() and tensor.numel())

    hook = model.register_forward_hook(look)
    try:
        value, _ = loss(batch)
    finally:
        hook.remove()
    parts = [value.reshape(1).float()]
    if seen:
        output = max(seen, key=torch.Tensor.numel).flatten()
        parts.append(output[:: -(-output.numel() // JUDGED_OUTPUTS)].float())
    return torch.cat(parts)


def module_target(
    options: Options, target: TargetSpec, backend: Backend, policy: CastPolicy, stages: Stages
) -> Prepared:
    """Loads, checks and places the user's workload.

    Raises:
        UserError: It can't be used; the message names the user's file and line.
    """
    policy, training = backend.whole_model_policy(policy), target.workload == "full_step"
    with stages.phase("load", RUN):
        loaded = load_workload(target.module)
        host = make_model(loaded, options.seed)
        module = host.module.to(getattr(torch, policy.accumulate))
    with stages.phase("data", RUN):
        found = make_batches(loaded, options.seed, options.batches)
        batches = found.batches
    with stages.phase("reference", RUN):
        kinds = [cost_class(loaded, batch) for batch in batches]
        judged = {kinds.index(kind): cast(batches[kinds.index(kind)], policy) for kind in kinds}
        counted = {index: _counted(loaded, module, batch, options.seed, training) for index, batch in judged.items()}
        check_repeats(loaded, module, next(iter(judged.values())), options.seed)
        expected = {index: _expected(loaded, module, batch, options.seed) for index, batch in judged.items()}
        tokens = _tokens(loaded, batches)
    with stages.phase("prepare", TARGET):
        model = place_model(module, backend, policy)
        steps = (ModuleStep if training else ModuleForward)(backend, policy, loaded, model, batches)
        with steps.context():
            steps.judge()
    warnings = [shape_advice(batches, backend)]
    if not any(one.flops for one in counted.values()):
        warnings.append("no matrix product was counted: its FLOP/s and shares of the peak mean nothing")
    return Prepared(
        backend=backend,
        policy=policy,
        steps=steps,
        expected=expected,
        accounts=lambda: (_kernel(loaded), _work(loaded, steps, counted, tokens)),
        model=Model(
            name=loaded.spec,
            label=f"{loaded.name} ({loaded.file.name if loaded.file else loaded.spec}, weights of seed {options.seed})",
            random_weights=False,
            sha256=host.sha256,
            code_sha256=loaded.sha256,
        ),
        data=Data(
            name=f"batches of {loaded.name}",
            sha256=found.sha256,
            texts=sum(samples(loaded, batch) for batch in batches),
            tokens=sum(real for real, _ in tokens) if tokens else None,
        ),
        warnings=[warning for warning in warnings if warning],
    )


def _counted(loaded: LoadedWorkload, module: nn.Module, batch: Any, seed: int, training: bool) -> Counted:
    """The work of a step on a batch, counted on the host, where the loss is checked, too."""

    check = checked_gradients if training else checked_loss
    with trial(module, seed, training):
        return count_step(module, lambda: check(loaded, module, batch))


def _expected(loaded: LoadedWorkload, module: nn.Module, batch: Any, seed: int) -> list[float]:
    """The answers of the module on the host, without dropout."""
    with trial(module, seed, training=False), loaded.blamed("loss"):
        return answers(lambda given: split_loss(loaded.workload.loss(module, given)), module, batch).tolist()


def _kernel(loaded: LoadedWorkload) -> KernelUsed:
    return KernelUsed(name=loaded.name, version=f"sha256 {loaded.sha256[:12]}")


def _tokens(loaded: LoadedWorkload, batches: Sequence[Any]) -> list[tuple[int, int]]:
    """The real and the computed tokens of each batch; empty if the workload doesn't tell."""
    own: Callable[[Any], tuple[int, int]] | None = loaded.optional("tokens")
    if own is None:
        return []
    with loaded.blamed("tokens"):
        found = [(int(real), int(computed)) for real, computed in map(own, batches)]
    wrong = [pair for pair in found if not 0 < pair[0] <= pair[1]]
    if wrong:
        raise UserError(
            f"{loaded.place_of('tokens')}: tokens returned {wrong[0]}; return the real tokens, at least 1, and "
            "no fewer that are computed"
        )
    return found


def _work(
    loaded: LoadedWorkload, steps: ModuleForward, counted: dict[int, Counted], tokens: list[tuple[int, int]]
) -> Work:
    """The mean work of a step over the batches. The model FLOPs are the real tokens' share of those that were counted.

    Attention's work grows faster than with the tokens, so that this share is an estimate for it.
    """
    number = len(steps.batches)
    each = [counted[kind] for kind in steps.classes]
    state = steps.state_bytes if isinstance(steps, ModuleStep) else 0
    shares = [real / computed for real, computed in tokens] or [1.0] * number
    batch_bytes = sum(_bytes(tensor) for batch in steps.batches for _, tensor in tensors(batch)) // number
    moved = [moved_bytes(one, batch_bytes, state, isinstance(steps, ModuleStep)) for one in each]
    real, computed = (sum(pair[place] for pair in tokens) / number for place in (0, 1))
    return Work(
        samples=sum(samples(loaded, batch) for batch in steps.batches) / number,
        # A step without any is 1, since nothing can be compared with 0.
        model_flops=max(1.0, sum(one.flops * share for one, share in zip(each, shares, strict=True)) / number),
        hardware_flops=max(1.0, sum(one.flops for one in each) / number),
        moved_bytes=max(1.0, sum(moved) / number),
        real_tokens=real if tokens else None,
        padded_tokens=computed if tokens else None,
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
