"""A whole optimizer step of the classification head in one native call, in float32 on one thread.

Forward, cross entropy, backward and AdamW for ``Linear -> GELU -> Linear``, without a graph, gradient tensors or Python
per parameter. Parameters and the optimizer's own state tensors are updated in place. Checkpoints, and a change back to
the optimizer's `step`, therefore work as usual.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from ... import UserError
from .library import AdamSettings, HeadTensors, native


def head_step_unsupported(parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> str | None:
    """Why `HeadStep` can't replace `optimizer` for these parameters, or None if it can."""
    found = native()
    if found.library is None:
        return found.reason
    if type(optimizer) not in (torch.optim.AdamW, torch.optim.Adam):
        return f"the optimizer is {type(optimizer).__name__}, not Adam or AdamW"
    if len(optimizer.param_groups) != 1:
        return "the optimizer has several parameter groups"
    group = optimizer.param_groups[0]
    if group["amsgrad"] or group["maximize"] or isinstance(group["lr"], torch.Tensor):
        return "the optimizer uses amsgrad, maximize or a tensor as its learning rate"
    if any(p.dtype != torch.float32 or p.device.type != "cpu" or not p.is_contiguous() for p in parameters):
        return "the head is not float32 in the host's memory"
    return None


class HeadStep:
    """``step(features, labels, num_samples)``: one optimizer step. Returns the summed loss and the correct answers,
    float32 [2].

    Features are float32 [b, f] and labels int64 [b]. The summed loss is divided by num_samples before it is
    differentiated. The learning rate and the other settings are read from the optimizer's group at every step.

    Args:
        parameters: Hidden weight [h, f], hidden bias [h], output weight [c, h], output bias [c]; float32, contiguous.
        optimizer: The optimizer whose state is updated in place.

    Raises:
        UserError: A reason of `head_step_unsupported`, or a label without a class in the head.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        reason = head_step_unsupported(parameters, optimizer)
        if reason is not None:
            raise UserError(f"the native head step can't run: {reason}")
        self._library = native().library
        self._parameters = list(parameters)
        self._optimizer = optimizer
        self._settings = AdamSettings(decoupled=isinstance(optimizer, torch.optim.AdamW))
        self._bound: torch.Tensor | None = None
        self._tensors = HeadTensors()
        self._workspace = torch.zeros(0)
        self._batch = 0

    @torch.no_grad()
    def __call__(self, features: torch.Tensor, labels: torch.Tensor, num_samples: int) -> torch.Tensor:
        state = self._optimizer.state
        if self._bound is None or state[self._parameters[0]].get("exp_avg") is not self._bound:
            self._bind()
        batch, width = features.shape
        if width != self._tensors.features or labels.shape != (batch,):
            raise UserError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} don't fit a head of "
                f"{self._tensors.features} features"
            )
        features = features.to(torch.float32).contiguous()
        labels = labels.to(torch.int64).contiguous()
        assert self._library is not None
        if batch > self._batch:
            size = self._library.isotrain_cpu_head_workspace(ctypes.byref(self._tensors), batch)
            self._workspace, self._batch = torch.zeros(size), batch
        group, settings = self._optimizer.param_groups[0], self._settings
        settings.lr, settings.eps, settings.weight_decay = group["lr"], group["eps"], group["weight_decay"]
        settings.beta1, settings.beta2 = group["betas"]
        sums = torch.empty(2)
        place = self._library.isotrain_cpu_head_step(
            ctypes.byref(self._tensors),
            features.data_ptr(),
            labels.data_ptr(),
            batch,
            1.0 / num_samples,
            ctypes.byref(settings),
            self._workspace.data_ptr(),
            sums.data_ptr(),
        )
        if place:
            raise UserError(
                f"label {int(labels[place - 1])} of a training batch is outside the head's 0 to "
                f"{self._tensors.labels - 1}; set num_labels to at least the data's"
            )
        return sums

    def _bind(self) -> None:
        """Stores the addresses of the parameters and of the optimizer's state, which is created if missing."""
        hidden, _, output, _ = self._parameters
        tensors = HeadTensors(features=hidden.shape[1], hidden=hidden.shape[0], labels=output.shape[0])
        for index, parameter in enumerate(self._parameters):
            state = self._optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            for name in ("step", "exp_avg", "exp_avg_sq"):
                if state[name].dtype != torch.float32 or not state[name].is_contiguous():
                    state[name] = state[name].to(torch.float32).contiguous()
            tensors.weight[index] = parameter.data_ptr()
            tensors.moment[index] = state["exp_avg"].data_ptr()
            tensors.square[index] = state["exp_avg_sq"].data_ptr()
            tensors.step[index] = state["step"].data_ptr()
        self._tensors = tensors
        self._bound = self._optimizer.state[hidden]["exp_avg"]
        self._batch = 0
