"""What a configuration's names say before torch is loaded. A wrong one costs no process and no download."""

from __future__ import annotations

from ..config.schema import TrainConfig
from ..data.datasets import check_dataset_name
from ..model.names import check_model_name, model_source
from ..tokens.tokenizer import check_tokenizer_name


def check_names(config: TrainConfig) -> None:
    """Raises UserError for a model, a data set or a tokenizer that is none by its name."""
    check_model_name(config.model_name)
    if config.task == "classification":
        check_dataset_name(config.dataset_id)
    if config.tokenizer_name is not None:
        check_tokenizer_name(config.tokenizer_name, model_source(config.model_name))
