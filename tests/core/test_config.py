"""Configuration files: what is accepted, what is refused, and that every refusal names its fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from isotrain import UserError
from isotrain.albert_core.config.load import find_config, load_config
from isotrain.albert_core.config.schema import TrainConfig

pytestmark = pytest.mark.core

# The Banking77 experiment's own 41 parameters, and the three its later versions add.
KEYS = """
dataset_id model_name max_length num_labels mlp_hidden_size dtype learning_rate weight_decay batch_size
gradient_accumulation_steps gradient_checkpointing num_epochs optim log_level use_wandb wandb_project wandb_run_name
wandb_tags wandb_watch_mode wandb_log_freq model_to_wandb steps_freq epoch_freq resume_from_checkpoint resume_option
checkpoint_path checkpoint_metric checkpoint_metric_mode keep_last_n keep_best_n save_strategy project_dir save_optim
storage_backend sync_to_storage load_from_storage remote_path seed deterministic framework use_tt
"""
EXPERIMENT_KEYS = KEYS.split()
LATER_KEYS = ["val_steps_freq", "mesh_shape", "mesh_axis_names"]


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_parameter_of_the_experiment_is_a_key() -> None:
    assert len(EXPERIMENT_KEYS) == 41
    assert set(EXPERIMENT_KEYS + LATER_KEYS) <= set(TrainConfig.flat_keys())


def test_the_packaged_experiment_sets_all_41_by_name() -> None:
    resolved = load_config("banking77")
    from_file = {key for key, source in resolved.sources.items() if source.startswith("banking77.yaml:")}
    assert from_file == set(EXPERIMENT_KEYS)
    config = resolved.config
    assert (config.learning_rate, config.batch_size, config.num_epochs, config.seed) == (1e-3, 8, 5, 23)
    assert config.dtype == "bfloat16"


@pytest.mark.parametrize("name", [path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.yaml")])
def test_every_packaged_configuration_loads(name: str) -> None:
    assert load_config(name).stem == name


def test_later_sources_win_and_are_named(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\nbatch_size: 4\nnum_epochs: 2\nuse_tt: true\n")
    resolved = load_config(file, ["batch_size=16", "num_epochs=3"], {"backend": "cpu", "threads": None})
    config = resolved.config
    assert (config.seed, config.batch_size, config.num_epochs) == (1, 16, 3)
    assert resolved.sources["seed"] == "config.yaml:1"
    assert resolved.sources["batch_size"] == "--set"
    assert resolved.sources["backend"] == "--backend"
    assert resolved.sources["threads"] == "default"
    assert config.backend_name == "cpu", "--backend on the command line wins over use_tt"


def test_use_tt_means_backend_tt(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "use_tt: true")).config.backend_name == "tt-emulated"
    assert load_config(write(tmp_path, "use_tt: false")).config.backend_name == "cpu"


@pytest.mark.parametrize("written", ["torch.bfloat16", "bfloat16", "bf16", '"torch.bfloat16"'])
def test_dtype_is_parsed(tmp_path: Path, written: str) -> None:
    assert load_config(write(tmp_path, f"dtype: {written}")).config.dtype == "bfloat16"


def test_dtype_is_never_evaluated(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    with pytest.raises(UserError, match="no dtype"):
        load_config(write(tmp_path, f"dtype: \"__import__('pathlib').Path('{victim}').touch()\""))
    assert not victim.exists()


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3 without a dot as a string.
    assert load_config(write(tmp_path, "learning_rate: 1e-3")).config.learning_rate == 1e-3


@pytest.mark.parametrize("mode", ["off", "none", "null", '""', "false"])
def test_watch_mode_off(tmp_path: Path, mode: str) -> None:
    assert load_config(write(tmp_path, f"wandb_watch_mode: {mode}")).config.wandb_watch_mode is None


def test_a_bare_no_is_the_word(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "save_strategy: no")).config.save_strategy == "no"
    assert load_config(None, ["save_strategy=no"]).config.save_strategy == "no"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rte: 1", "did you mean 'learning_rate'"),
        ("zzzz: 1", "isotrain config --keys"),
        ("batch_size: 0", "batch_size"),
        ("batch_size: eight", "batch_size"),
        ("learning_rate: -1", "learning_rate"),
        ("learning_rate: .nan", "learning_rate"),
        ("dtype: int4", "float32, bfloat16, float16, float64, int8, float8_e4m3"),
        ("optim: lion", "adamw_torch"),
        ("framework: jax", "pytorch"),
        ("lr_scheduler_type: cosin", "did you mean cosine?"),
        ("save_strategy: never", "epoch"),
        ("resume_option: path", "checkpoint_path"),
        ("sync_to_storage: true", "remote_path"),
        ("load_from_storage: true", "remote_path"),
        ("remote_path: s3://bucket/x", "storage_backend: fsspec"),
        ("gradient_checkpointing: true", "freeze_encoder: false"),
        ("warmup_steps: 3\nwarmup_ratio: 0.1", "keep one"),
        ("use_tt: true\nbackend: cuda", "contradict"),
        ("mesh_shape: [1, 2]", "one device"),
        ("seed: 1\nseed: 2", "second time"),
        ("- a\n- b", "no mapping"),
        ("a: [1", "not valid YAML"),
        ("layout: packed\nkernel: transformers", "set kernel: auto, or layout: padded or bucketed"),
        ("run_name: ../elsewhere", "run_name"),
        ("head_dtype: float16", "float32 or bfloat16"),
        ("head_dtype: int8", "use float32 or bfloat16"),
    ],
)
def test_refusals_are_one_line_that_names_the_fix(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text))
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist.*quickstart"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_config(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"project_dir: caf\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(latin)


def test_an_empty_file_is_all_defaults_and_a_bom_is_no_key(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")).config == TrainConfig()
    marked = tmp_path / "bom.yaml"
    marked.write_bytes(b"\xef\xbb\xbfseed: 7\n")
    assert load_config(marked).config.seed == 7


def test_a_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    resolved = load_config("banking77", ["seed=5", "wandb_tags=[a, b]"])
    again = load_config(write(tmp_path, resolved.to_yaml()))
    assert again.config == resolved.config
    assert yaml.safe_load(resolved.to_yaml())["wandb_tags"] == ["a", "b"]


@pytest.mark.parametrize("item", ["batch_size", "=3", "batch_size=[1"])
def test_malformed_set_options_are_refused(item: str) -> None:
    with pytest.raises(UserError, match="--set"):
        load_config(None, [item])


def test_a_folder_of_a_packaged_configurations_name_is_not_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data sets lie in folders called squad or mrpc."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squad").mkdir()
    (tmp_path / "mine").mkdir()
    assert find_config("squad").suffix == ".yaml"
    with pytest.raises(UserError, match="'mine' is a folder"):
        find_config("mine")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("run_name: ..", "write letters, digits"),
        ("run_name: a/b", "write letters, digits"),
        ('run_name: "-x"', "write letters, digits"),
        ('dataset_id: ""', "is empty; give a value"),
        ("lora: {targets: []}", "is empty; name at least one"),
    ],
)
def test_a_refusal_is_in_plain_words(tmp_path: Path, written: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_config(write(tmp_path, written))
    assert "should" not in str(caught.value)
