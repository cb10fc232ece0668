"""Trackers by name: the built-in ones, and those that installed packages add through entry points.

A package adds one by ``[project.entry-points."isotrain.trackers"] comet = "its.module:CometTracker"``.
"""

from __future__ import annotations

from ....kernels.plugins import Plugins
from .base import Tracker

# The distribution has an extra of the same name for each.
BUILT_IN = {
    "wandb": "WandbTracker",
    "tensorboard": "TensorBoardTracker",
    "mlflow": "MlflowTracker",
    "trackio": "TrackioTracker",
}

TRACKERS = Plugins("tracker", Tracker, {name: f"{__package__}.{name}:{kind}" for name, kind in BUILT_IN.items()})


def tracker_class(name: str) -> type[Tracker]:
    """The class of the tracker called `name`. Its own package isn't imported before it is opened.

    Raises:
        UserError: The name is unknown, or an installed package doesn't register a tracker under it.
    """
    return TRACKERS.find(name)
