"""What a model can be trained to do: one class per task. The loop calls tasks; they know nothing of the loop."""

from __future__ import annotations

from .classification import Classification
from .multi_label import MultiLabel
from .question_answering import QuestionAnswering
from .question_answering_v2 import QuestionAnsweringV2
from .regression import Regression
from .task import Prediction, Task

__all__ = ["TASKS", "Prediction", "Task"]

# By the value of the key `task`.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (Classification(), MultiLabel(), Regression(), QuestionAnswering(), QuestionAnsweringV2())
}
