"""What a model can be trained to do: one class per task. The loop calls tasks; they know nothing of the loop."""

from __future__ import annotations

from .classification import Classification
from .question_answering import QuestionAnswering
from .task import Prediction, Task

__all__ = ["TASKS", "Prediction", "Task"]

# By the value of the key `task`.
TASKS: dict[str, Task] = {task.name: task for task in (Classification(), QuestionAnswering())}
