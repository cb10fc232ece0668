"""Observes a training run from inside: the figures of each step, the inputs of the head, and logits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.modules.dropout import _DropoutNd

from ....albert_core.features.compute import InputSource
from ....albert_core.loop.build import Training, text_job
from ....albert_core.loop.job import trains_on_features
from ....albert_core.tokens.order import Window
from ....albert_core.tokens.store import TokenStore
from ..trace import HEAD_STEPS, SERIES

# The logits of so many first texts of the evaluation split are kept.
PROBE_TEXTS = 64


class Steps:
    """The loss and correct answers of each step, and the norms of the gradient and the update of `parameters`.

    The gradient is computed from the change of Adam's first moment: m' = b m + (1 - b) g, solved for g. So it is the
    gradient that the step really used, in every form of the step.
    """

    def __init__(self, training: Training, parameters: Sequence[torch.Tensor]) -> None:
        self.parameters = list(parameters)
        self._values: list[tuple[float, ...]] = []
        self._weights = on_host(self.parameters)
        self._moments: list[torch.Tensor] | None = None
        self._gradient = 0.0
        groups = training.optimizer.param_groups
        if isinstance(training.optimizer, torch.optim.Adam | torch.optim.AdamW):
            self._moments = [torch.zeros_like(weight) for weight in self._weights]
            betas = {parameter: group["betas"][0] for group in groups for parameter in group["params"]}
            self._betas = [betas[parameter] for parameter in self.parameters]
        else:
            # Without Adam, autograd makes the step, and its gradients can be read before they are used.
            training.optimizer.register_step_pre_hook(self._see_gradients)

    def add(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        """Reads the state after the step over `window`. `sums` is what the step returned, float32 [2]."""
        weights = on_host(self.parameters)
        update = norm(now - then for now, then in zip(weights, self._weights, strict=True))
        loss, right = float(sums[0]) / window.num_samples, float(sums[1])
        self._values.append((loss, self._gradient_norm(training), update, right))
        self._weights = weights

    def arrays(self) -> dict[str, np.ndarray]:
        """The figures by name, float64 [S] each."""
        names = (*SERIES, "right")
        table = np.array(self._values, dtype=np.float64).reshape(-1, len(names))
        return {name: table[:, place].copy() for place, name in enumerate(names)}

    def _gradient_norm(self, training: Training) -> float:
        if self._moments is None:
            return self._gradient
        state = training.optimizer.state
        moments = on_host(state[parameter].get("exp_avg", torch.zeros_like(parameter)) for parameter in self.parameters)
        pairs = zip(moments, self._moments, self._betas, strict=True)
        size = norm(torch.mul(then, -beta).add_(now).div_(1 - beta) for now, then, beta in pairs)
        self._moments = moments
        return size

    def _see_gradients(self, *_: Any) -> None:
        self._gradient = norm(on_host(parameter.grad for parameter in self.parameters))


class HeadInputs:
    """The inputs of the head: the features of each step's texts, in order, and of the probe texts.

    For a whole model, they are the encoder's [CLS] states at that step.
    """

    def __init__(self, training: Training) -> None:
        self.steps: list[np.ndarray] = []
        self.probes: list[np.ndarray] = []
        self._taken: list[Any] = []
        self._last: torch.Tensor | None = None
        if trains_on_features(training.job.config):
            training.source = _Watched(training.source, self._taken)
        else:
            self._model = training.model
            head: Any = training.model.head
            head.register_forward_pre_hook(self._see)

    def _see(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._model.training:
            self._taken.append(inputs[0].detach())
        else:
            self._last = inputs[0].detach()

    def stepped(self, window: Window) -> None:
        """Keeps the inputs of the step over `window`, if it is one of the first steps."""
        if len(self.steps) < HEAD_STEPS:
            sizes = (stop - start for start, stop in window.micro_batches)
            parts = [part[:size].cpu() for part, size in zip(self._taken, sizes, strict=True)]
            self.steps.append(torch.cat(parts).numpy())
        self._taken.clear()

    def probed(self, inputs: Any, rows: int) -> None:
        """Keeps the head's inputs for the probe texts in the last evaluation. `inputs` are the model's."""
        given = inputs if self._last is None else self._last
        self.probes.append(given[:rows].cpu().numpy())

    def arrays(self, training: Training) -> dict[str, np.ndarray]:
        """features [rows, H]; probe_features [E + 1, P, H], or for a frozen encoder [1, P, H]."""
        if not self.steps:
            return {}
        frozen = trains_on_features(training.job.config)
        probes = self.probes[:1] if frozen else self.probes
        return {"features": np.concatenate(self.steps), "probe_features": np.stack(probes)}


class _Watched:
    """A source of features that keeps what it returned."""

    def __init__(self, source: InputSource, taken: list[Any]) -> None:
        self.source, self.taken = source, taken

    def start_epoch(self, order: np.ndarray) -> None:
        self.source.start_epoch(order)

    def batch(self, start: int, stop: int) -> tuple[Any, torch.Tensor]:
        inputs, labels = self.source.batch(start, stop)
        self.taken.append(inputs)
        return inputs, labels


def probe(training: Training) -> tuple[Any, np.ndarray]:
    """The model's inputs of the first evaluation texts, and their logits [texts, labels], on the host."""
    size = min(training.job.config.eval_batch_size, text_job(training).test_tokens.num_texts)
    source, model = training.test_source, training.model
    training_mode = model.training
    model.eval()
    source.start_epoch(np.arange(text_job(training).test_tokens.num_texts))
    with torch.no_grad():
        inputs = source.batch(0, size)[0]
        logits = model(inputs)
    model.train(training_mode)
    return inputs, on_host_wide(logits[: min(size, PROBE_TEXTS)])


def on_host_wide(values: torch.Tensor) -> np.ndarray:
    """Values on the host in at least float32. What is masked, by the lowest value of its dtype or by -inf, is 0."""
    host = values.detach().cpu()
    # It would hide every error.
    host = host.masked_fill(host <= torch.finfo(host.dtype).min / 2, 0.0)
    return host.to(torch.promote_types(host.dtype, torch.float32)).numpy()


def trained(training: Training) -> list[torch.Tensor]:
    """The parameters that the optimizer updates. In a model with adapters, the adapted weights aren't among them."""
    return [parameter for group in training.optimizer.param_groups for parameter in group["params"]]


def adam_on_device(optimizer: torch.optim.Optimizer) -> list[float] | None:
    """Adam's betas if its step counter is on the device, so that its bias corrections are float32; else None."""
    group = optimizer.param_groups[0]
    return [float(beta) for beta in group["betas"]] if group.get("capturable") else None


def without_dropout(model: torch.nn.Module) -> bool:
    """Switches dropout off, and returns whether there was any.

    Attention and recurrent layers have no dropout module: they read a number that is named after it.
    """
    found = False
    for part in model.modules():
        names = [name for name in vars(part) if "dropout" in name]
        for name in ("p",) if isinstance(part, _DropoutNd) else names:
            value = getattr(part, name)
            if isinstance(value, float) and value > 0:
                setattr(part, name, 0.0)
                found = True
    return found


def batch_hash(store: TokenStore, rows: np.ndarray) -> str:
    """SHA-256 of the token ids, token types and labels of the texts `rows`, in this order."""
    digest = hashlib.sha256()
    for row in rows.tolist():
        span = slice(int(store.offsets[row]), int(store.offsets[row + 1]))
        digest.update(np.asarray(store.ids[span], dtype="<i8").tobytes())
        if store.token_type_ids is not None:
            digest.update(np.asarray(store.token_type_ids[span], dtype="<i8").tobytes())
    digest.update(np.asarray(store.labels[rows], dtype="<f4" if store.labels.dtype.kind == "f" else "<i8").tobytes())
    return digest.hexdigest()


def on_host(tensors: Iterable[torch.Tensor | None]) -> list[torch.Tensor]:
    """Copies on the host, since the next step overwrites the originals."""
    return [tensor.detach().cpu().to_dense().clone() for tensor in tensors if tensor is not None]


def norm(parts: Iterable[torch.Tensor]) -> float:
    """The L2 norm of all parts together, in float64."""
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    return float(torch.linalg.vector_norm(torch.stack(norms)))
