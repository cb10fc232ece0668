"""A workload that can't be used, by the command: exit code 2, and one line with the user's file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.command import Invoke
from support.workloads import LINE, own_settings, write_workload

EVALUATE = (
    LINE
    + """
    def evaluate(self, model, batches):
        return {}
"""
)
MORE = "range(4 + (seed > 23))"
OF_FIGURES = LINE.replace(".mean()", ".mean(), FIGURES")
OPTIMIZER = (
    LINE
    + """
    def optimizer(self, parameters):
        return {}
"""
)
SCHEDULE = (
    LINE
    + """
    def schedule(self, optimizer, steps):
        return {}
"""
)
LATE = """self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 6: batch.mul_(2)
        """
FIVE = """

class Five(list):
    def __len__(self):
        return 5
"""
SPARSE = (
    LINE.replace("(3, 4)", "(3, 4, bias=False)").replace("nn.Linear(3, 4, bias=False)", "Words(), nn.Linear(3, 4)")
    + """

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(2, 3, sparse=True)

    def forward(self, batch):
        return batch + self.words(torch.ones(5, dtype=torch.long))
"""
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EVALUATE.format("{'accuracy': 1.0}"), "evaluate returned no 'loss'; return it, beside accuracy"),
        (EVALUATE.format("[1.0]"), "evaluate returned a list; return figures by name"),
        (EVALUATE.format("{'loss': torch.ones(3)}"), "evaluate returned 'loss', which is no number"),
        (EVALUATE.format("{'loss': 1.0, 'rough': None}"), "evaluate returned 'rough', which is no number"),
        (OF_FIGURES.replace("FIGURES", "0.5"), "loss returned a float; return figures by name"),
        (OF_FIGURES.replace("FIGURES", "{'rough': batch}"), "loss returned 'rough', which is no number"),
        (OF_FIGURES.replace("FIGURES", "{}, 3"), "loss returned a tuple of 3; return the loss, or the loss and"),
        (OPTIMIZER.format("None"), "optimizer returned a NoneType; return a torch.optim.Optimizer"),
        (OPTIMIZER.format("torch.optim.LBFGS(parameters)"), "LBFGS computes the loss itself, several times a step"),
        (OPTIMIZER.format("torch.optim.SGD([torch.ones(1)])"), "SGD has none of the parameters that it was given"),
        (SCHEDULE.format("None"), "schedule returned a NoneType; return a scheduler"),
        (SCHEDULE.format("torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)"), "schedule returned a ReduceLROnPla"),
        (LINE.replace("nn.Linear(3, 4)", "nn.LazyLinear(4)"), "'0.weight' of model(23) has no shape yet"),
        (LINE + "    def samples(self, batch):\n        return batch.no\n", "samples raised AttributeError"),
        (LINE.replace("range(4)", MORE), "batches(24) has another number of batches than batches(23), which has 4"),
        (LINE.replace("range(4)", "range(4 - (seed > 23))"), "batches(24) has another number"),
        (LINE.replace("5, 3,", "5, 3 - (one > 2),").replace("for _", "for one"), "aten.addmm can't run on backend cpu"),
        (LINE.replace(".mean()", ""), "shape (5, 1)"),
        (LINE.replace(".mean()", ".mean().detach()"), "depends on no trained parameter"),
        (LINE.replace(".mean()", ".mean() / 0"), "the loss of the initial weights is inf"),
        (LINE.replace("torch.manual_seed(seed)", "torch.seed()"), "isn't deterministic"),
        (LINE.replace("    return nn", "    raise OSError('gone')\n        return nn"), "model raised OSError: gone"),
        (LINE + "    def samples(self, batch):\n        return 0\n", "samples returned 0; return at least 1"),
        (LINE.replace("    return nn", "    exit(0)\n        return nn"), "model raised SystemExit: 0"),
        (LINE.replace("return (model", "exit(0)\n        return (model"), "loss raised SystemExit: 0"),
        (LINE.replace("return (model", LATE.replace("batch.mul_(2)", "exit(0)") + "return (model"), "SystemExit: 0"),
        (LINE.replace(".mean()", ".mean() + (model[0].bias * 0).sum().sqrt()"), "its gradient for '0.bias' is not"),
        (SPARSE, "the gradient of '0.words.weight' is sparse"),
        (
            LINE.replace("return (model(batch)", "found = model(batch)\n        " + LATE + "return (found"),
            "a step with it",
        ),
        (LINE.replace("return [", "return Five([").replace("(4)]", "(4)])") + FIVE, "than its length, 5; correct"),
    ],
)
def test_what_is_wrong_with_a_workload_is_told_with_its_line(
    invoke: Invoke, tmp_path: Path, text: str, message: str
) -> None:
    write_workload(tmp_path, text)
    words = [word for one in own_settings("own.py", tmp_path, num_epochs=2)[1:] for word in ("--set", one)]
    code, _, err = invoke("train", "own.py:Line", *words)
    assert code == 2, err
    (line,) = (line for line in err.splitlines() if line.startswith("isotrain: error: "))
    assert re.match(r"isotrain: error: own\.py:\d+: ", line), line
    assert message in line
    assert "Traceback" not in err
