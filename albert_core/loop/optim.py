"""Optimizers by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ... import UserError
from ...backends import Backend
from ..config.schema import TrainConfig
from ..data.tabular import shown
from ..processes.sharding import part_like, whole
from ..terminal.text import quoted


def build_optimizer(model: nn.Module, config: TrainConfig, backend: Backend) -> torch.optim.Optimizer:
    """The configured optimizer (`config.optim`) for the trained parameters of `model`.

    Raises:
        UserError: `no_decay` names a parameter that doesn't exist.
    """
    groups = parameter_groups(model, config)
    rate, decay = config.learning_rate, config.weight_decay
    betas = (config.adam_beta1, config.adam_beta2)
    match config.optim:
        case "adamw_torch" | "adamw":
            return torch.optim.AdamW(groups, rate, betas, config.adam_epsilon, decay, **backend.adam_options())
        case "adam":
            return torch.optim.Adam(groups, rate, betas, config.adam_epsilon, decay, **backend.adam_options())
        case "sgd":
            return torch.optim.SGD(groups, rate, momentum=config.momentum, weight_decay=decay)
        case "adafactor":
            return torch.optim.Adafactor(groups, rate, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(groups, rate, momentum=config.momentum, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(groups, rate, weight_decay=decay)


def takes_rows(config: TrainConfig) -> bool:
    """Whether the configured optimizer changes only what has a gradient, so that an embedding's may be sparse."""
    changes = config.optim == "adagrad" or (config.optim == "sgd" and not config.momentum)
    return changes and not config.weight_decay


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The trained parameters of `model`: one group, or two if `no_decay` exempts some from weight decay."""
    spared = set().union(*(_named_by(entry, model) for entry in config.no_decay))
    trained = _trained(model)
    kept = [parameter for name, parameter in trained.items() if name not in spared]
    rest = [parameter for name, parameter in trained.items() if name in spared]
    if not config.weight_decay or not kept or not rest:
        decay = 0.0 if rest and not kept else config.weight_decay
        return [{"params": list(trained.values()), "weight_decay": decay}]
    return [{"params": kept}, {"params": rest, "weight_decay": 0.0}]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _named_by(entry: str, model: nn.Module) -> set[str]:
    """The names of the trained parameters that an entry of `no_decay` matches. Biases or norms may be absent."""
    trained = _trained(model)
    if entry == "bias":
        return {name for name in trained if "bias" in name.rpartition(".")[2]}
    if entry == "layer_norm":
        norms = [name for name, part in model.named_modules() if "norm" in type(part).__name__.lower()]
        return {name for name in trained if name.rpartition(".")[0] in norms}
    found = {name for name in trained if f".{entry}." in f".{name}."}
    if not found:
        raise UserError(
            f"no_decay names {quoted(entry)}, and no trained parameter has that in its name; allowed are bias, "
            f"layer_norm, and names or whole parts of them between dots, such as {shown(trained, 4)}"
        )
    return found


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The optimizer's ``state_dict()`` as if all trained parameters were in one group, in the model's order.

    A checkpoint then doesn't depend on which parameters decay, so a resumed run may change that, like the decay itself.
    """
    saved = optimizer.state_dict()
    places = _places(optimizer, model)
    state = {
        places[index]: {name: _whole(value) for name, value in entry.items()} for index, entry in saved["state"].items()
    }
    group = saved["param_groups"][0] | {"params": list(range(len(places)))}
    return {"state": dict(sorted(state.items())), "param_groups": [group]}


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Restores what `optimizer_state` returned. The settings of the groups stay those of `optimizer`."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    places = _places(optimizer, model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {name: _part(value, parameter) for name, value in saved["state"][place].items()}
        for index, (place, parameter) in enumerate(zip(places, parameters, strict=True))
        if place in saved["state"]
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, configured in zip(optimizer.param_groups, settings, strict=True):
        group.update(configured)


def _whole(value: Any) -> Any:
    """A value of an optimizer's state, with the parts of all processes."""
    return whole(value) if isinstance(value, torch.Tensor) else value


def _part(value: Any, parameter: torch.Tensor) -> Any:
    """A value of an optimizer's state, shared out as its parameter is."""
    return part_like(value, parameter) if isinstance(value, torch.Tensor) and value.shape == parameter.shape else value


def _places(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[int]:
    """Indices of the optimizer's parameters, group after group, among the model's trained parameters."""
    numbers = {id(parameter): number for number, parameter in enumerate(_trained(model).values())}
    return [numbers[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
