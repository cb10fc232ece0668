"""Configurations and data as strangers write them: valid ones changed at random by tokens, lines and cells."""

from __future__ import annotations

import json
import random

from .job import Home
from .judge import Outcome, Verdict, spoke

ON = ("cached",)

# Kept small: whatever a changed configuration asks for is resolved, not trained.
_CONFIGURATION = """\
# a comment
dataset_id: "data"
model_name: random:tiny
dtype: float32
max_length: 32
learning_rate: 1.0e-3
weight_decay: 0.01
freeze_encoder: false
lora:
  rank: 2
  targets: [query, value]
label_rules:
  - case
wandb_tags: [a, b]
num_epochs: 2
seed: 7
run_name: 'run-1'
project_dir: runs
chart: ["eval/loss"]
max_steps: null
"""
_SETS = (
    "learning_rate=1e-3",
    "dataset_id=run #2",
    "seed=10",
    "lora.rank=4",
    "lora.targets=query",
    "wandb_tags=[a, b]",
    "freeze_encoder=true",
    "max_steps=null",
    "dtype=bfloat16",
    "chart=eval/loss",
    "threads=2",
    "tt.math_fidelity=hifi2",
    "label_rules=[]",
)
_WORDS = ("lost card", "new loan, please", 'a "quoted" fee', "naïve – ﬁrst", "日本語", "")
_LABELS = ("card", "loan", "fee")
# What has a meaning to some grammar, or to none.
_TOKENS = (
    *"\"',;:|#&*!%@`{}[]()<>?\\/=-+~^$._ \t\n\r",
    *("\x00", "\x1b[31m", "\u202e", "\ufeff", "\u2028", "\x85", "\ud800", "\U0001f600", "é", "\x7f"),
    *(
        "null",
        "~",
        "true",
        "yes",
        "NaN",
        ".inf",
        "-0",
        "010",
        "0x1F",
        "1_000",
        "1:30",
        "1e999",
        "9" * 400,
        "9" * 5000,
        "2024-13-45",
    ),
    *("!!int x", "!!python/object:os.system x", "&a *a", "<<: *b", "---\n", "...\n", "? ", "- - -", "|\n", ">-\n"),
    *("x" * 3000, "[" * 2000, "{" * 2000, '{"a":' * 500, "NA", "None", "''", '""', '"', "\\u0000", "\\ud800", "\\"),
)


def plan(home: Home, tries: int) -> list[int]:
    """Inputs are cheap and their kinds many: twelve for each try asked for."""
    del home
    return list(range(12 * tries))


def attempt(home: Home, number: int, chance: random.Random) -> Outcome:
    """Changes one input of one kind and gives it to the command that reads it."""
    if not home.run.exists():
        home.completed()
    kind = list(KINDS)[number % len(KINDS)]
    text, arguments, file = KINDS[kind](chance)
    changed = text
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        changed = change(changed, chance)
    data = changed.encode("utf-8", errors="surrogatepass")
    if chance.random() < 0.1 and data:
        at = chance.randrange(len(data))
        data = data[:at] + chance.choice((b"\xff", b"\x80", b"\x00", b"\xfe\xff")) + data[at:]
    if file:
        path = home.folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    else:
        value = data.replace(b"\x00", b"").decode("utf-8", errors="surrogateescape")
        arguments = (*arguments, "--set", value)
    ended = home.isotrain(arguments)
    outcome = spoke(ended, (0, 2))
    if outcome.verdict is Verdict.WELL:
        return outcome
    return Outcome(outcome.verdict, f"{kind} {data[:300]!r}: {outcome.seen}")


def change(text: str, chance: random.Random) -> str:
    """`text` with one thing changed somewhere."""
    at = chance.randrange(len(text) + 1)
    length = chance.choice((1, 1, 2, 5, 20))
    lines = text.splitlines(keepends=True) or [""]
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    match chance.randrange(8):
        case 0:
            return text[:at] + text[at + length :]
        case 1 | 2:
            return text[:at] + chance.choice(_TOKENS) + text[at:]
        case 3:
            return text[:at] + chance.choice(_TOKENS) + text[at + length :]
        case 4:
            lines[one] = lines[one] * chance.choice((2, 3))
        case 5:
            del lines[one]
        case 6:
            lines[one], lines[other] = lines[other], lines[one]
        case 7:
            head, mark, tail = lines[one].partition(chance.choice((":", ",", "\t", "=", " ")))
            lines[one] = head + mark + chance.choice(_TOKENS) + ("\n" if tail.endswith("\n") else "")
    return "".join(lines)


def _configuration(chance: random.Random) -> tuple[str, tuple[str, ...], str]:
    return _CONFIGURATION, ("config", "strange.yaml"), "strange.yaml"


def _set(chance: random.Random) -> tuple[str, tuple[str, ...], str]:
    return chance.choice(_SETS), ("config", "job.yaml"), ""


def _rows(chance: random.Random) -> list[tuple[str, str]]:
    return [(f"{chance.choice(_WORDS)} {number}", _LABELS[number % 3]) for number in range(9)]


def _train(name: str) -> tuple[str, ...]:
    return _train_on(f"dataset_id=strange/{name}", "test_fraction=0.3")


def _train_on(*keys: str) -> tuple[str, ...]:
    keys = (*keys, "max_steps=1", "run_name=null", "project_dir=strange-runs")
    return ("train", "job.yaml", *(part for key in keys for part in ("--set", key)))


def _predict(name: str) -> tuple[str, ...]:
    return ("predict", "runs/run", "--csv", f"strange/{name}", "--json")


def _table(name: str, separator: str, chance: random.Random) -> tuple[str, tuple[str, ...], str]:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & {'"', separator, "\n"} else text

    lines = [("text", "label"), *_rows(chance)]
    text = "".join(f"{cell(one)}{separator}{cell(label)}\n" for one, label in lines)
    return text, chance.choice((_train, _predict))(name), f"strange/{name}"


def _csv(chance: random.Random) -> tuple[str, tuple[str, ...], str]:
    return _table("rows.csv", ",", chance)


def _tsv(chance: random.Random) -> tuple[str, tuple[str, ...], str]:
    return _table("rows.tsv", "\t", chance)


def _jsonl(chance: random.Random) -> tuple[str, tuple[str, ...], str]:
    text = "".join(
        json.dumps({"text": one, "label": label}, ensure_ascii=chance.random() < 0.5) + "\n"
        for one, label in _rows(chance)
    )
    return text, chance.choice((_train, _predict))("rows.jsonl"), "strange/rows.jsonl"


def _json(chance: random.Random) -> tuple[str, tuple[str, ...], str]:
    rows = [{"text": one, "label": label} for one, label in _rows(chance)]
    text = json.dumps(rows, ensure_ascii=chance.random() < 0.5, indent=chance.choice((None, 1)))
    return text, chance.choice((_train, _predict))("rows.json"), "strange/rows.json"


def _squad(chance: random.Random) -> tuple[str, tuple[str, ...], str]:
    context = "The card was lost on Monday. A loan was open."
    questions = [
        {
            "id": str(number),
            "question": f"What was {word}?",
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        for number, (word, answer) in enumerate([("lost", "card"), ("open", "loan"), ("it", "Monday")])
    ]
    paragraphs = [
        {
            "context": f"{context} {copy}",
            "qas": [question | {"id": f"{question['id']}-{copy}"} for question in questions],
        }
        for copy in range(3)
    ]
    document = {"version": "1.1", "data": [{"title": "a", "paragraphs": paragraphs}]}
    text = json.dumps(document, indent=1)
    name = "strange/questions.json"
    keys = (
        f"dataset_id={name}",
        "task=question_answering",
        "freeze_encoder=false",
        "test_fraction=0.3",
        "doc_stride=8",
    )
    return text, _train_on(*keys), name


KINDS = {
    "yaml": _configuration,
    "--set": _set,
    "csv": _csv,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "json": _json,
    "squad": _squad,
}
