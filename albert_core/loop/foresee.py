"""Checks a configuration's names before torch is loaded, so that a wrong one costs no process and no download."""

from __future__ import annotations

from ..config.schema import TrainConfig
from ..config.workload_name import check_workload_name
from ..data.datasets import check_dataset_name
from ..model.names import check_model_name, model_source
from ..tokens.tokenizer import check_tokenizer_name


def check_names(config: TrainConfig) -> None:
    """Checks the names of the model, the data set and the tokenizer, or of the workload.

    Raises:
        UserError: There can't be anything by that name.
    """
    if config.workload is not None:
        check_workload_name(config.workload)
        return
    check_model_name(config.model_name)
    if not config.task.startswith("question_answering"):
        check_dataset_name(config.dataset_id)
    if config.tokenizer_name is not None:
        check_tokenizer_name(config.tokenizer_name, model_source(config.model_name))
