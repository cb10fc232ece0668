"""What stands behind a key, in a file or on the command line, becomes the value that the key's type says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.config.schema import TrainConfig

pytestmark = pytest.mark.core


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(source: Path | None, *sets: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(source, sets)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 600
    return message


# Ten anchors, each of the one before ten times.
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefghij")
)

# Written the same behind --set and in a file.
ALIKE: list[tuple[str, str, Any]] = [
    ("run_name", "20261128", "20261128"),
    ("run_name", "010", "010"),
    ("wandb_project", "1:30", "1:30"),
    ("wandb_project", "2024-13-45", "2024-13-45"),
    ("wandb_project", "2024-01-01 10:00:00", "2024-01-01 10:00:00"),
    ("wandb_project", "0x1F", "0x1F"),
    ("wandb_project", "1e3", "1e3"),
    ("wandb_project", ".inf", ".inf"),
    ("wandb_project", "<<", "<<"),
    ("wandb_project", "=", "="),
    ("label_column", "no", "no"),
    ("label_column", "off", "off"),
    ("label_column", "True", "True"),
    ("text_column", "null", None),
    ("text_column", "", None),
    ("num_labels", "null", None),
    ("checkpoint_path", "", ""),
    ("save_strategy", "no", "no"),
    ("seed", "010", 10),
    ("seed", "+7", 7),
    ("seed", str(2**63 - 1), 2**63 - 1),
    ("batch_size", "1e3", 1000),
    ("batch_size", "8.0", 8),
    ("learning_rate", "1e-3", 1e-3),
    ("learning_rate", ".5", 0.5),
    ("learning_rate", "1", 1.0),
    ("use_wandb", "yes", True),
    ("use_wandb", "OFF", False),
    ("wandb_tags", "a", ["a"]),
    ("wandb_tags", "a, no,010", ["a", "no", "010"]),
    ("wandb_tags", '["a, b", no, 1.50]', ["a, b", "no", "1.50"]),
    ("wandb_tags", "", []),
    ("chart", "eval/loss", ["eval/loss"]),
]


@pytest.mark.parametrize(("key", "written", "value"), ALIKE)
def test_a_value_is_read_by_its_keys_type(tmp_path: Path, key: str, written: str, value: Any) -> None:
    assert getattr(load_config(None, [f"{key}={written}"]).config, key) == value
    if written != "=":
        assert getattr(load_config(write(tmp_path, f"{key}: {written}\n")).config, key) == value


@pytest.mark.parametrize(
    "text", ["run #2", "a: b", " padded ", "'quoted'", '"', "[x", "{", "&a", "*a", "!!int 3", "%", "- a", "日本"]
)
def test_set_takes_a_text_as_it_stands(text: str) -> None:
    assert load_config(None, [f"dataset_id={text}"]).config.dataset_id == text


def test_quotes_in_a_file_make_a_text_of_any_word(tmp_path: Path) -> None:
    file = write(tmp_path, "text_column: 'null'\nwandb_project: \"~\"\nwandb_tags: ['null', \"a,b\"]\n")
    config = load_config(file).config
    assert (config.text_column, config.wandb_project, config.wandb_tags) == ("null", "~", ["null", "a,b"])


@pytest.mark.parametrize(
    ("key", "written", "said"),
    [
        ("seed", "0x10", "decimal digits"),
        ("seed", "1_000", "write 1000"),
        ("seed", "9" * 5000, "decimal digits"),
        ("num_epochs", "1:30", "decimal digits"),
        ("num_epochs", "2.5", "whole number"),
        ("num_epochs", "１", "decimal digits"),
        ("num_epochs", "", "whole number"),
        ("num_epochs", "true", "whole number"),
        ("learning_rate", ".nan", "decimal digits"),
        ("learning_rate", "-.inf", "decimal digits"),
        ("learning_rate", "1e999", "too large"),
        ("learning_rate", "1e99999999999", "decimal digits"),
        ("learning_rate", "1_0.5", "write 10.5"),
        ("use_wandb", "maybe", "write true or false"),
        ("batch_size", "[1]", "whole number"),
        ("wandb_tags", "a,,b", "empty item"),
        ("wandb_tags", "[a, [b]]", "one value is wanted"),
        ("lora", "8", "'key: value'"),
        ("lora.rank", "eight", "lora.rank"),
        ("lora.targets", "[]", "lora.targets"),
        ("lora.targets", '[""]', "names no layer"),
        ("tt.optimization_level", "3", "0, 1 or 2"),
    ],
)
def test_other_values_are_refused_with_place_and_fix(tmp_path: Path, key: str, written: str, said: str) -> None:
    given = refusal(None, f"{key}={written}")
    assert said in given
    assert "--set" in given
    section, dot, inner = key.partition(".")
    text = f"{section}:\n  {inner}: {written}\n" if dot else f"# a line\n{key}: {written}\n"
    message = refusal(write(tmp_path, text))
    assert key in message
    assert "job.yaml:2" in message


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("seed: 1\nnum_epochs: !!int x\n", 2, "tags"),
        ("seed: !!python/object:os.system x\n", 1, "tags"),
        ("a: &a [*a]\n", 1, "nested"),
        ("wandb_tags: " + "[" * 5000 + "\n", 1, "nested"),
        (LAUGHS, 1, "anchors"),
        ("seed: 1\nx: \x07\n", 2, "U+0007"),
        ('seed: 1\ndataset_id: "\\ud800"\n', 2, "surrogate"),
        ('dataset_id: "a\\0b"\n', 1, "NUL"),
        ("seed: 1\n<<: {a: 1}\n", 2, "merge keys"),
        ("seed: 1\n? [a]\n: b\n", 2, "key that is a list"),
        ("seed: 1\n---\nseed: 2\n", 2, "not valid YAML"),
        ("lora:\n  rank: 1\n  rank: 2\n", 3, "second time (first in line 2)"),
        ("lora:\n  rank: 1\n  rnk: 2\n", 3, "did you mean 'lora.rank'?"),
        ("project_dir: ~\n", 1, "leave the key out"),
        ("warmup_ratio: 0.1\nseed: 1\nwarmup_steps: 3\n", 3, "keep one"),
        ("seed: " + "x" * 100_000 + "\n", 1, "more ..."),
        ("x" * 1000 + ": 1\n", 1, "more ..."),
    ],
)
def test_a_file_that_cant_be_read_is_refused_by_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    message = refusal(write(tmp_path, text))
    assert f"job.yaml:{line}" in message
    assert said in message


@pytest.mark.parametrize("text", ["seed =3", " seed=3", "seed= \udcff", "dataset_id=caf\udce9", "seed", "=3"])
def test_a_set_option_that_is_no_pair_is_refused(text: str) -> None:
    assert "--set" in refusal(None, text)


def test_sections_are_set_whole_or_by_key(tmp_path: Path) -> None:
    file = write(tmp_path, "freeze_encoder: no\nlora:\n  rank: 04\n  targets: query\n")
    resolved = load_config(file, ["lora.alpha=8", 'tt={"arch": "blackhole", "fp32_dest_acc_en": false}'])
    assert (resolved.config.lora.rank, resolved.config.lora.alpha, resolved.config.lora.targets) == (4, 8.0, ("query",))
    told = resolved.config.backend_options["tt"]
    assert (told["arch"], told["fp32_dest_acc_en"]) == ("blackhole", False)
    assert load_config(write(tmp_path, resolved.to_yaml())).config == resolved.config


@pytest.mark.parametrize("written", ["query", "[query]", "query,value", "all-linear"])
def test_adapter_targets_are_one_or_several(written: str) -> None:
    expected = tuple(written.strip("[]").split(","))
    assert load_config(None, [f"lora.targets={written}"]).config.lora.targets == expected
    assert TrainConfig(lora={"targets": list(expected)}).lora.targets == expected


def test_every_number_has_bounds() -> None:
    """Else a typing error ends in torch's or the system's words, hours later or at once."""
    sections = TrainConfig.sections().values()
    fields = [(name, field) for model in (TrainConfig, *sections) for name, field in model.model_fields.items()]
    numbers = [(name, field) for name, field in fields if re.search("int|float", str(field.annotation))]
    assert len(numbers) > 25
    for name, field in numbers:
        if "Literal" in str(field.annotation) or name == "mesh_shape":
            continue
        limits = {kind for bound in field.metadata for kind in ("ge", "gt", "le", "lt") if hasattr(bound, kind)}
        assert limits & {"ge", "gt"}, name
        assert limits & {"le", "lt"}, name


@pytest.mark.parametrize("item", ["threads=9223372036854775807", "mlp_hidden_size=1000000000", "learning_rate=1e300"])
def test_numbers_out_of_bounds_are_refused(item: str) -> None:
    assert "less than or equal to" in refusal(None, item)
