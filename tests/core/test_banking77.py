"""The experiment itself: its configuration, the real data, real pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import train
from support.small_job import metrics


@pytest.mark.shared
@pytest.mark.slow
def test_the_experiment_reaches_its_accuracy(shared_data: Path, minilm_folder: Path, tmp_path: Path) -> None:
    """A plain transformers script over the same features and epochs reached 0.903.

    The last evaluation moves by half a per cent with the seed and the device's rounding (0.895, 0.900 and 0.908 for
    three seeds). With the recipe's seed it is 2,757 of 3,080, so another device's rounding may take it below 0.895.
    """
    sets = [f"dataset_id={shared_data / 'banking77'}", f"model_name={minilm_folder}", f"project_dir={tmp_path}"]
    result = train(load_config("banking77", sets))
    assert (result.status, result.total_steps) == ("completed", 5 * 1251)
    reached = [item["eval/accuracy"] for item in metrics(result) if "eval/accuracy" in item]
    assert len(reached) == 5
    assert max(reached) >= 0.895
    assert reached[-1] >= 0.89
    assert result.metrics["eval/accuracy"] == reached[-1]
