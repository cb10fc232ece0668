"""Tasks by name: what the loop trains a model to do."""

from __future__ import annotations

from .task import Evaluation, Prediction, Split, Task, TaskData, find_task

__all__ = ["Evaluation", "Prediction", "Split", "Task", "TaskData", "find_task"]
