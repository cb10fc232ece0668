"""All keys of a training run's configuration: type, default and meaning."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ...backends import CompileMode
from .lora import LoraOptions
from .schedule import ScheduleName, ScheduleOptions

# Limits of whole numbers: of counts, and of sizes that allocate memory at once. Beyond them, torch or the system would
# end the run with an error of its own.
MOST = 10**9
LARGEST = 10**6
MOST_THREADS = 1024
# The largest rate or decay. float32 can represent it.
LARGEST_FACTOR = 1e30

# What spreadsheets and data frames write for a missing value.
MISSING_MARKERS = ("NA", "N/A", "#N/A", "<NA>", "NaN", "-NaN", "null", "None")

# Keys of training on texts, which a workload doesn't read: it has its own model, batches, loss and figures.
OF_TEXTS = (
    *("dataset_id", "model_name", "max_length", "num_labels", "mlp_hidden_size", "batch_size"),
    *("gradient_checkpointing", "training_type", "training_model_type", "tokenizer_name", "task", "text_column"),
    *("text_pair_column", "label_column", "label_columns", "label_separator", "label_threshold", "label_rules"),
    *("missing_markers", "drop_missing", "evaluation_split", "test_fraction", "max_train_samples"),
    *("max_eval_samples", "doc_stride", "n_best_size", "max_answer_length", "null_threshold", "push_to_hub"),
    "loss_over_padding",
    *("copy_encoder", "freeze_encoder", "lora", "feature_cache", "kernel", "layout", "head", "head_dropout"),
    *("head_dtype", "eval_batch_size", "label_smoothing_factor", "class_weights", "fused_head"),
)

# What tt-blacksmith's experiments call the ways to train.
TrainingType = Literal["lora", "adapters", "full"]


class Keys(BaseModel):
    """Flat keys. The first 41 are those of tt-blacksmith's Banking77 baseline, under its names."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # Data and model
    dataset_id: str = Field(
        "mteb/banking77", min_length=1, description="Hub id, local file or folder, or embedded:intents"
    )
    model_name: str = Field(
        "albert/albert-base-v2",
        min_length=1,
        description="Hub id, local folder, demo:minilm (pretrained, by extra `demo`), or random:albert-base-v2, "
        "random:albert-large-v2, random:tiny",
    )
    max_length: int = Field(128, ge=2, le=LARGEST, description="tokens a text is truncated to, special tokens included")
    num_labels: int | None = Field(
        None, ge=1, le=LARGEST, description="outputs of the head; taken from the data when absent"
    )
    mlp_hidden_size: int = Field(256, ge=1, le=LARGEST, description="width of the head's hidden layer")
    dtype: str = Field(
        "bfloat16",
        description="encoder dtype: float32, bfloat16, float16 or float64, with or without 'torch.'; of frozen "
        "encoders also int8 (cpu, cuda) or float8_e4m3 (cuda)",
    )

    # Optimisation
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, le=LARGEST_FACTOR, description="peak learning rate")
    weight_decay: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        le=LARGEST_FACTOR,
        description="decoupled for adamw, L2 for the others; applied to all parameters",
    )
    batch_size: int = Field(8, ge=1, le=LARGEST, description="texts a micro-batch")
    gradient_accumulation_steps: int = Field(1, ge=1, le=MOST, description="micro-batches an optimizer step")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in backward (needs freeze_encoder: false)"
    )
    num_epochs: int = Field(5, ge=1, le=MOST, description="passes over the training split")
    optim: Literal["adamw_torch", "adamw", "adam", "sgd", "adafactor", "rmsprop", "adagrad"] = Field(
        "adamw_torch", description="optimizer"
    )

    # Logging
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="what reaches the terminal; the run's train.log has everything"
    )
    use_wandb: bool = Field(False, description="the same as trackers: [wandb], Weights & Biases")
    wandb_project: str = Field("isotrain", description="project of W&B and Trackio, experiment of MLflow")
    wandb_run_name: str | None = Field(None, description="the run's name in trackers; its own when absent")
    wandb_tags: list[str] = Field(default_factory=list, description="W&B tags")
    wandb_watch_mode: Literal["gradients", "parameters", "all"] | None = Field(
        None, description="what W&B records of the trained weights"
    )
    wandb_log_freq: int = Field(1000, ge=1, le=MOST, description="steps between W&B's weight records")
    model_to_wandb: bool = Field(False, description="upload the final model to W&B as an artifact")
    steps_freq: int = Field(
        10,
        ge=1,
        le=MOST,
        description="optimizer steps between log lines, and between checkpoints with save_strategy: step",
    )
    epoch_freq: int = Field(
        1, ge=1, le=MOST, description="epochs between evaluations, and between checkpoints with save_strategy: epoch"
    )

    # Checkpoints
    resume_from_checkpoint: bool | Literal["auto"] = Field(
        False,
        description="continue an earlier run instead of starting a new one; auto continues run_name where it is "
        "there, and starts it where it is not",
    )
    resume_option: Literal["last", "best", "path"] = Field("last", description="which checkpoint to continue from")
    checkpoint_path: str = Field("", description="the checkpoint folder for resume_option: path")
    checkpoint_metric: str = Field(
        "eval/loss",
        description="what makes a checkpoint best, by its name in the library evaluate; eval/f1 is the second label's "
        "of two, or the answers', and eval/f1_macro and eval/f1_micro are of all labels; of a workload, eval/ and the "
        "name of a figure of its evaluate",
    )
    checkpoint_metric_mode: Literal["min", "max"] | None = Field(
        None,
        description="whether lower or higher is better; when absent, min for eval/loss and eval/rmse, else max; a "
        "workload's own figure needs it",
    )
    keep_last_n: int = Field(3, ge=0, le=MOST, description="newest checkpoints kept; 0 keeps none after the run")
    keep_best_n: int = Field(1, ge=0, le=MOST, description="best checkpoints kept beside them")
    save_strategy: Literal["epoch", "step", "no"] = Field("epoch", description="when checkpoints are written")
    project_dir: str = Field("runs", min_length=1, description="folder under which each run gets its own")
    save_optim: bool = Field(
        True, description="keep optimizer state in older checkpoints; the newest of an unfinished run always has it"
    )
    storage_backend: Literal["local", "fsspec"] = Field(
        "local", description="how remote_path is read: a path, or any fsspec URL"
    )
    sync_to_storage: bool = Field(False, description="copy each checkpoint to remote_path")
    load_from_storage: bool = Field(False, description="fetch the newest checkpoint from remote_path before resuming")
    remote_path: str = Field("", description="where checkpoints are copied to and fetched from")

    # Reproducibility and the remaining keys of the tt-blacksmith baseline
    seed: int = Field(
        23, ge=0, lt=2**63, description="order of the data, initial head, random: encoder weights, dropout"
    )
    deterministic: bool = Field(
        False, description="torch's deterministic algorithms, everywhere; an operator without one is an error"
    )
    framework: Literal["pytorch"] = Field("pytorch", description="only pytorch exists")
    use_tt: bool = Field(False, description="the same as backend: tt; --backend on the command line wins")

    # Later keys of the tt-blacksmith baseline
    val_steps_freq: int | None = Field(None, ge=1, le=MOST, description="also evaluate every so many optimizer steps")
    training_type: TrainingType | None = Field(
        None,
        description="adapters: the head alone is trained; full: the same as freeze_encoder: false; lora: the head "
        "alone unless lora.rank is set, since the baseline doesn't read this key",
    )
    training_model_type: TrainingType | None = Field(None, description="the later name of training_type")
    parallelism_strategy: Literal["single"] = Field("single", description="one device; for several, use torchrun")
    mesh_shape: list[int] | None = Field(None, description="device mesh; only null or [1, 1], one device")
    mesh_axis_names: list[str] | None = Field(None, description="names of the axes of mesh_shape")

    # isotrain's own
    backend: str | None = Field(
        None, description="cpu, cuda, cuda:1, xla, tt, ...; cpu when absent and use_tt is false"
    )
    run_name: str | None = Field(
        None,
        pattern=r"^[\w][\w.-]*$",
        description="the run's folder under project_dir; config name and time when absent",
    )
    workload: str | None = Field(
        None,
        description="a model of your own with its batches and loss, trained instead of one on texts: FILE.py:NAME, "
        "MODULE:NAME, or an installed workload's name",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="workload: several processes hold the whole model each, or by fsdp (torch's fully_shard) a part of "
        "its weights, gradients and optimizer state",
    )
    tokenizer_name: str | None = Field(
        None, description="tokenizer.json, folder or Hub id; the model's own when absent"
    )
    task: Literal[
        "classification", "multi_label_classification", "regression", "question_answering", "question_answering_v2"
    ] = Field(
        "classification",
        description="what is learned of texts or pairs: a label, any number of labels, or numbers; or the spans that "
        "answer questions, with v2 also that there is no answer (SQuAD 2.0)",
    )
    text_column: str | None = Field(
        None, description="column of the text (or question); found by its usual names when absent"
    )
    text_pair_column: str | None = Field(
        None, description="column of the second text of a pair (or context); found by its usual names when absent"
    )
    label_column: str | None = Field(
        None, description="column of the label (or answers); found by its usual names when absent"
    )
    label_columns: list[str] = Field(
        default_factory=list,
        description="several columns instead of label_column: 0 or 1 for each label of multi_label_classification, a "
        "number each for regression",
    )
    label_separator: str = Field(
        ",", min_length=1, description="multi_label_classification: what stands between the labels in a text"
    )
    label_threshold: float = Field(
        0.5, gt=0, lt=1, description="multi_label_classification: labels with a higher probability are given"
    )
    label_rules: list[str] = Field(
        default_factory=list,
        description="labels are texts, one class where these make them alike: unicode, placeholders, urls, emails, "
        "numbers, case, punctuation, white_space, s/pattern/replacement/; in their order",
    )
    missing_markers: list[str] = Field(
        default_factory=lambda: list(MISSING_MARKERS),
        description="labels that say there is none, in any letter case; [] makes classes of them",
    )
    drop_missing: bool = Field(
        False, description="leave out rows without a label or a text, which are refused otherwise"
    )
    evaluation_split: Literal["test", "validation"] | None = Field(
        None, description="which split is evaluated; test, else validation (or valid, val, dev) when absent"
    )
    test_fraction: float | None = Field(
        None, gt=0, lt=1, description="share split off for evaluation when the data is one file"
    )
    max_train_samples: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="train on so many of the training split's rows, chosen by seed; all when absent",
    )
    max_eval_samples: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="evaluate so many of the evaluation split's rows, chosen by seed; all when absent",
    )
    doc_stride: int = Field(
        128, ge=0, le=LARGEST, description="question_answering: tokens of the context that neighbouring windows share"
    )
    n_best_size: int = Field(20, ge=1, le=LARGEST, description="question_answering: spans kept of a question")
    max_answer_length: int = Field(
        30, ge=1, le=LARGEST, description="question_answering: tokens of the longest answer given"
    )
    null_threshold: float | None = Field(
        None,
        ge=-1e6,
        le=1e6,
        allow_inf_nan=False,
        description="question_answering_v2: no answer is given where its score exceeds the best span's by more; the "
        "threshold with the best F1 of the evaluation when absent",
    )
    loss_over_padding: bool = Field(
        False,
        description="question_answering: padding up to max_length counts among the tokens to point at, as in "
        "transformers' own loss; layout auto is padded then",
    )
    push_to_hub: str | None = Field(
        None, description="send the finished run to this repository of the Hugging Face Hub, as `isotrain push` does"
    )
    copy_encoder: bool = Field(
        True, description="keep a copy of the encoder in the run's folder, which then predicts on any machine"
    )
    freeze_encoder: bool = Field(True, description="train the head alone; false trains the whole model")
    lora: LoraOptions = Field(
        LoraOptions(), description="low-rank adapters in the whole model: rank, alpha, dropout, targets"
    )
    feature_cache: bool = Field(
        True, description="compute a frozen encoder's features once; false runs it at every step"
    )
    kernel: str = Field(
        "auto",
        description="frozen forward: auto, portable, native (on cpu), triton or flash (on cuda), compile (by "
        "torch.compile, on both), or transformers; native also trains whole models (packed, bfloat16), all others "
        "leave that to transformers' module",
    )
    torch_compile: CompileMode | None = Field(
        None,
        description="torch.compile of the whole model's training step (cpu, cuda, tpu; needs freeze_encoder: false), "
        "one program a batch shape; off when absent",
    )
    layout: Literal["auto", "packed", "dynamic", "bucketed", "padded"] = Field(
        "auto",
        description="batches for the encoder: packed (no padding), dynamic (padded to the longest text), bucketed (the "
        "same in few lengths, for devices that compile each shape), padded to max_length; auto is the device's choice",
    )
    strict_dtype: bool = Field(False, description="compute in dtype even where the device only emulates it")
    head: Literal["mlp", "pooler_linear"] = Field(
        "mlp",
        description="head on [CLS]: mlp (Linear, GELU, Linear), or pooler_linear (transformers' own: the pretrained "
        "pooler, tanh, Linear)",
    )
    head_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the last layer of a head on [CLS]")
    head_dtype: str = Field("float32", description="dtype of the head, its loss and the optimizer's state")
    eval_batch_size: int = Field(256, ge=1, le=LARGEST, description="texts a batch in evaluation and prediction")
    eval_on_start: bool = Field(False, description="also evaluate before the first step; it never counts as best")
    early_stopping_patience: int | None = Field(
        None, ge=1, le=MOST, description="end after so many evaluations in a row whose checkpoint_metric is not better"
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, le=LARGEST_FACTOR, allow_inf_nan=False, description="better means by more than this"
    )
    label_smoothing_factor: float = Field(
        0.0, ge=0, lt=1, description="classification: share of each target that is spread over all labels"
    )
    class_weights: list[float] | Literal["balanced"] | None = Field(
        None,
        description="classification: what a row of each label counts in the loss, in the order of labels.json; "
        "balanced makes all labels count the same",
    )
    lr_scheduler_type: ScheduleName = Field("constant", description="learning rate after the warm-up")
    lr_scheduler_kwargs: ScheduleOptions = Field(
        ScheduleOptions(), description="parameters of lr_scheduler_type, under transformers' names"
    )
    warmup_steps: int = Field(0, ge=0, le=MOST, description="optimizer steps of linear warm-up")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="the same as a share of all steps")
    no_decay: list[str] = Field(
        default_factory=list,
        description="trained weights that weight_decay leaves alone: bias, layer_norm, or a part of a parameter's name",
    )
    fused_head: bool = Field(
        True, description="a head on frozen features trains by the device's fused step, where it has one"
    )
    stop_on_collapse: bool = Field(
        False, description="end the run when the model is back at guessing; seen and said in any case"
    )
    max_grad_norm: float | None = Field(
        None, gt=0, le=1e30, allow_inf_nan=False, description="clip the gradient's norm to this"
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first beta")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second beta")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, allow_inf_nan=False, description="Adam's epsilon")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd and rmsprop")
    max_steps: int | None = Field(None, ge=1, le=MOST, description="end the schedule after so many optimizer steps")
    stop_at_step: int | None = Field(
        None, ge=1, le=MOST, description="stop there with a checkpoint, schedule unchanged: for time-limited jobs"
    )
    threads: int | None = Field(None, ge=1, le=MOST_THREADS, description="CPU threads; torch's choice when absent")
    process_timeout: int = Field(
        600,
        ge=1,
        le=10**7,
        description="seconds that processes started by torchrun wait for one of them before they give up",
    )
    chart: list[str] = Field(
        default_factory=list, description="metrics drawn over the epochs: in the terminal, chart.html and chart.png"
    )
    use_tensorboard: bool = Field(False, description="the same as trackers: [tensorboard]")
    trackers: list[str] = Field(
        default_factory=list,
        description="where figures go beside metrics.jsonl: wandb, tensorboard, mlflow, trackio (each an extra of that "
        "name), or a tracker that an installed package adds",
    )
