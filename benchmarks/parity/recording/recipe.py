"""What makes two runs the same training."""

from __future__ import annotations

from typing import Any

from ....albert_core.config.keys import OF_TEXTS
from ....albert_core.config.schema import TrainConfig

# Data, model and tokens are compared by hashes of their contents, and so is a workload.
DATA = (
    "workload",
    "dataset_id",
    "model_name",
    "tokenizer_name",
    "text_column",
    "text_pair_column",
    "label_column",
    "label_columns",
    "label_separator",
    "label_rules",
    "evaluation_split",
    "test_fraction",
    "max_train_samples",
    "max_eval_samples",
    "doc_stride",
)
# These say where and how the run is computed, which is what a comparison varies.
COMPUTED = (
    "backend",
    "use_tt",
    "dtype",
    "head_dtype",
    "strict_dtype",
    "kernel",
    "torch_compile",
    "layout",
    "feature_cache",
    "fused_head",
    "gradient_checkpointing",
    "threads",
    "deterministic",
    "eval_batch_size",
    "process_timeout",
)
# These say what is shown, saved and resumed. Recording switches off whatever would influence the run.
KEPT = (
    "log_level",
    "steps_freq",
    "chart",
    "use_tensorboard",
    "use_wandb",
    "trackers",
    "wandb_project",
    "wandb_run_name",
    "wandb_tags",
    "wandb_watch_mode",
    "wandb_log_freq",
    "model_to_wandb",
    "project_dir",
    "run_name",
    "copy_encoder",
    "save_strategy",
    "save_optim",
    "keep_last_n",
    "keep_best_n",
    "checkpoint_metric",
    "checkpoint_metric_mode",
    "checkpoint_path",
    "resume_from_checkpoint",
    "resume_option",
    "storage_backend",
    "sync_to_storage",
    "load_from_storage",
    "remote_path",
    "stop_on_collapse",
    "early_stopping_patience",
    "early_stopping_threshold",
    "eval_on_start",
    "stop_at_step",
)


def recipe_of(config: TrainConfig, total_steps: int, **own: Any) -> dict[str, Any]:
    """Every key of `config` except those above, so that keys of later versions are compared, too.

    Args:
        config: The run's.
        total_steps: The actual number of steps.
        own: What only this kind of run has, such as the actual number of labels.
    """
    unread = OF_TEXTS if config.workload is not None else ()
    left_out = {*DATA, *COMPUTED, *KEPT, *unread, *config.backend_options}
    asked = {key: value for key, value in config.model_dump(mode="json").items() if key not in left_out}
    return asked | {"max_steps": total_steps} | own
