"""The experiment itself: its configuration, the real data, real pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from isotrain.albert_core.config_file import load_config
from isotrain.albert_core.train import train


@pytest.mark.shared
@pytest.mark.slow
def test_the_experiment_reaches_its_accuracy(shared_data: Path, minilm_folder: Path, tmp_path: Path) -> None:
    """A plain transformers script over the same features and epochs reached 0.903."""
    sets = [f"dataset_id={shared_data / 'banking77'}", f"model_name={minilm_folder}", f"project_dir={tmp_path}"]
    result = train(load_config("banking77", sets))
    assert (result.status, result.total_steps) == ("completed", 5 * 1251)
    assert result.metrics["eval/accuracy"] >= 0.89
