"""The SQuAD recipe as a plain transformers script, run by hand beside `isotrain train squad`.

    python tests/reference/finetune_squad.py MODEL TRAIN.json.gz DEV.json.gz IDS.json OUT.json [--epochs 2]

It imports nothing of isotrain: DataLoader with its own shuffle, transformers' tokenizer, windows and dynamic padding,
AdamW and schedule, bfloat16 autocast, a Linear on every token's state, the best start with the best end behind it.
IDS.json is ``{"train": [...], "dev": [...]}``, the ids of the questions to take. The answers in OUT.json are in SQuAD's
format, for any scorer.

The ids that a run of isotrain takes:

    from isotrain.albert_core.config.load import load_config
    from isotrain.albert_core.loop.job import sampled
    from isotrain.albert_core.tasks import find_task

    config = load_config("squad", ["dataset_id=squad/", "max_train_samples=2000", "max_eval_samples=500"]).config
    data = sampled(find_task(config.task).load(config), config)
    Path("ids.json").write_text(json.dumps({"train": data.train.ids, "dev": data.test.ids}))

docs/recipes.md has figures of MODEL with train.json.gz, dev.json.gz and ``--rate 2e-4 --warmup 0.1 --epochs 2``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, get_scheduler

LONGEST_ANSWER = 30


def main() -> None:
    """Trains, prints a line every ten steps, and writes the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "dev", "ids", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--warmup", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoder = AutoModel.from_pretrained(options.model, add_pooling_layer=False, dtype=torch.float32)
    head = nn.Linear(encoder.config.hidden_size, 2)
    parameters = [*encoder.parameters(), *head.parameters()]

    ids = json.loads(options.ids.read_text())
    train = windows(read(options.train, set(ids["train"])), tokenizer)
    dev = windows(read(options.dev, set(ids["dev"])), tokenizer)

    def collate(rows: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[dict[str, Any]]]:
        inputs = [{"input_ids": row["ids"], "token_type_ids": row["types"]} for row in rows]
        batch = tokenizer.pad(inputs, padding=True, return_tensors="pt")
        return batch, torch.tensor([row["answer"] for row in rows]), rows

    def logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            state = encoder(**batch).last_hidden_state
        return head(state.float()).masked_fill(batch["attention_mask"][..., None] == 0, -1e9)

    loader = DataLoader(train, 8, shuffle=True, collate_fn=collate)
    per_epoch = -(-len(loader) // 2)
    total = per_epoch * options.epochs
    # Biases and the weights of layer norms, which have one dimension, don't decay.
    groups = [
        {"params": [part for part in parameters if part.dim() > 1], "weight_decay": 0.01},
        {"params": [part for part in parameters if part.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.rate)
    scheduler = get_scheduler("linear", optimizer, int(options.warmup * total), total)
    print(f"{len(train)} windows of {len(ids['train'])} questions, {total} steps", flush=True)

    began, step, running = time.perf_counter_ns(), 0, []
    encoder.train()
    for _ in range(options.epochs):
        for number, (batch, answers, _) in enumerate(loader, start=1):
            loss = nn.functional.cross_entropy(logits(batch), answers)
            (loss / 2).backward()
            running.append(loss.item())
            if number % 2 == 0 or number == len(loader):
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
                if step % 10 == 0:
                    mean, seconds = sum(running) / len(running), (time.perf_counter_ns() - began) / 1e9
                    print(f"step {step}/{total}: loss {mean:.4f}, {seconds:.0f} s", flush=True)
                    running = []

    encoder.eval()
    best: dict[str, tuple[float, str]] = {}
    with torch.no_grad():
        for batch, _, rows in DataLoader(sorted(dev, key=lambda row: len(row["ids"])), 32, collate_fn=collate):
            for values, row in zip(logits(batch), rows, strict=True):
                found = best_span(values[: len(row["ids"])], row)
                best[row["id"]] = max(found, best.get(row["id"], (float("-inf"), "")))
    options.out.write_text(json.dumps({name: text for name, (_, text) in best.items()}, ensure_ascii=False))
    print(f"{len(best)} answers in {options.out}, {(time.perf_counter_ns() - began) / 1e9:.0f} s", flush=True)


def read(path: Path, ids: set[str]) -> list[dict[str, Any]]:
    """The questions called `ids`, each with its context and first answer."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    return [
        {"id": asked["id"], "question": asked["question"], "context": paragraph["context"], **asked["answers"][0]}
        for article in articles
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
        if asked["id"] in ids
    ]


def windows(questions: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Windows of 384 tokens that share 128 of the context, labelled with the answer's tokens or [CLS]."""
    encoded = tokenizer(
        [row["question"] for row in questions],
        [row["context"] for row in questions],
        max_length=384,
        stride=128,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for number, row_number in enumerate(encoded["overflow_to_sample_mapping"]):
        row = questions[row_number]
        start, stop = row["answer_start"], row["answer_start"] + len(row["text"])
        spans = [
            span if role == 1 else None
            for span, role in zip(encoded["offset_mapping"][number], encoded.sequence_ids(number), strict=True)
        ]
        inside = [token for token, span in enumerate(spans) if span and span[1] > start and span[0] < stop]
        whole = inside and spans[inside[0]][0] <= start and spans[inside[-1]][1] >= stop
        found.append(
            {
                "id": row["id"],
                "context": row["context"],
                "ids": encoded["input_ids"][number],
                "types": encoded["token_type_ids"][number],
                "spans": spans,
                "answer": (inside[0], inside[-1]) if whole else (0, 0),
            }
        )
    return found


def best_span(logits: torch.Tensor, window: dict[str, Any]) -> tuple[float, str]:
    """The score and the text of a window's best span, over all pairs that are near enough."""
    outside = torch.tensor([span is None for span in window["spans"]])
    start, end = logits.masked_fill(outside[:, None], float("-inf")).T
    further = torch.arange(len(end)) - torch.arange(len(end))[:, None]
    pairs = (start[:, None] + end).masked_fill((further < 0) | (further >= LONGEST_ANSWER), float("-inf"))
    first, last = divmod(int(pairs.argmax()), len(end))
    return float(pairs[first, last]), window["context"][window["spans"][first][0] : window["spans"][last][1]]


if __name__ == "__main__":
    main()
