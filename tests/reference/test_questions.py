"""The packaged SQuAD recipe's losses over twenty steps, float32, against the plain transformers script beside it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from isotrain.albert_core.config.load import as_set, load_config
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.model.head import SpanHead
from isotrain.albert_core.tokens.order import epoch_order
from reference import plain_questions
from support.small_job import losses
from support.small_questions import squad

STEPS, HIDDEN, SEED = 20, 32, 23


def write_data(folder: Path, words: list[str], context: tuple[int, int] = (10, 70)) -> None:
    """train.json, with contexts of so many words, questions of 2 to 6 and answers of 1 to 6, and a small dev.json."""
    draw = random.Random(5)
    folder.mkdir()
    for name, count in (("train", 190), ("dev", 6)):
        made = []
        for number in range(count):
            said = draw.choices(words, k=draw.randint(*context))
            first = draw.randrange(len(said) - 6)
            answer = " ".join(said[first : first + draw.randint(1, 6)])
            start = len(" ".join([*said[:first], ""]))
            asked = " ".join(draw.choices(words, k=draw.randint(2, 6)))
            answers = [{"text": answer, "answer_start": start}]
            made.append((" ".join(said), [{"id": f"q{number}", "question": asked, "answers": answers}]))
        (folder / f"{name}.json").write_text(json.dumps(squad(made)))


@pytest.mark.parametrize(("frozen", "rate"), [(False, 2e-5), (True, 1e-2)], ids=["whole", "frozen"])
@pytest.mark.parametrize("layout", ["packed", "bucketed"])
@pytest.mark.parametrize("model", ["albert", "bert"])
def test_losses_are_those_of_the_plain_script(
    model: str, layout: str, frozen: bool, rate: float, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    folder = tiny_models[model]
    words = list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])[4:]
    write_data(tmp_path / "data", words)
    keys = {
        "dataset_id": str(tmp_path / "data"),
        "model_name": str(folder),
        "dtype": "float32",
        "freeze_encoder": frozen,
        "learning_rate": rate,
        "layout": layout,
        "max_length": 40,
        "doc_stride": 12,
        "loss_over_padding": False,
        "num_epochs": 1,
        "steps_freq": 1,
        "save_strategy": "no",
        "threads": 1,
        "project_dir": str(tmp_path / "runs"),
    }
    result = train(load_config("squad", [as_set(key, value) for key, value in keys.items()]))
    got = [loss for _, loss in losses(result)][:STEPS]
    recipe = plain_questions.Recipe(
        learning_rate=rate,
        batch_size=8,
        accumulation=2,
        steps=STEPS,
        total_steps=result.total_steps,
        max_length=40,
        stride=12,
        weight_decay=0.01,
        frozen=frozen,
        clip=1.0,
    )
    examples = plain_questions.windows(folder, tmp_path / "data" / "train.json", recipe)
    assert len(examples) > 1.5 * 190, "contexts of one window would leave the windows untested"
    assert 0.1 < np.mean([example["answer"] == (0, 0) for example in examples]) < 0.9
    weights = dict(SpanHead(HIDDEN, 2, SEED).state_dict())
    order = epoch_order(len(examples), SEED, 0).tolist()
    expected = plain_questions.train(folder, examples, weights, order, recipe)
    assert len(got) == len(expected) == STEPS
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0)
    assert np.ptp(expected) > 1e-3, "losses that never move would prove nothing"
