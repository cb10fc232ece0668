"""The MRPC and SUBJ recipes with an MLP head as a plain transformers script, run by hand beside `isotrain train`.

    python tests/reference/finetune.py mrpc MODEL_FOLDER DATA_FOLDER [--epochs 3] [--steps N]

It imports nothing of isotrain: DataLoader with its own shuffle, transformers' tokenizer, dynamic padding, AdamW and
schedule, bfloat16 autocast, an MLP head on the [CLS] state, scikit-learn's accuracy and F1.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, get_scheduler

RECIPES = {
    "mrpc": {"columns": ("sentence1", "sentence2"), "evaluation": "dev", "rate": 3e-5, "batch": 8, "epochs": 3,
             "decay": 0.01, "schedule": "linear", "warmup": 0.0, "clip": math.inf},
    "subj": {"columns": ("text",), "evaluation": "test", "rate": 4e-5, "batch": 16, "epochs": 5,
             "decay": 0.0, "schedule": "cosine", "warmup": 0.2, "clip": 1.0},
}  # fmt: skip


def main() -> None:
    """Trains and prints a line a tenth of an epoch and one an evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--steps", type=int, help="end the schedule after so many steps")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    torch.manual_seed(options.seed)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoder = AutoModel.from_pretrained(options.model, add_pooling_layer=False, dtype=torch.float32)
    head = nn.Sequential(nn.Linear(encoder.config.hidden_size, 256), nn.GELU(), nn.Linear(256, 2))
    parameters = [*encoder.parameters(), *head.parameters()]

    def read(name: str) -> list[tuple[list[str], int]]:
        with (options.data / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            return [([row[c] for c in recipe["columns"]], int(row["label"])) for row in csv.DictReader(file)]

    def collate(rows: list[tuple[list[str], int]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        columns = [list(column) for column in zip(*(texts for texts, _ in rows), strict=True)]
        batch = tokenizer(*columns, truncation=True, max_length=128, padding=True, return_tensors="pt")
        return batch, torch.tensor([label for _, label in rows])

    def logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            state = encoder(**batch).last_hidden_state[:, 0]
        return head(state.float())

    loader = DataLoader(read("train"), recipe["batch"], shuffle=True, collate_fn=collate)
    evaluation = DataLoader(read(recipe["evaluation"]), recipe["batch"], collate_fn=collate)
    epochs = options.epochs or recipe["epochs"]
    total = min(options.steps or len(loader) * epochs, len(loader) * epochs)
    optimizer = torch.optim.AdamW(parameters, lr=recipe["rate"], weight_decay=recipe["decay"])
    scheduler = get_scheduler(recipe["schedule"], optimizer, math.ceil(recipe["warmup"] * total), total)

    began, step, running = time.perf_counter_ns(), 0, []
    while step < total:
        encoder.train()
        for batch, labels in loader:
            loss = nn.functional.cross_entropy(logits(batch), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, recipe["clip"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            running.append(loss.item())
            step += 1
            if step % 50 == 0:
                print(
                    f"step {step}/{total}: loss {sum(running[-50:]) / 50:.4f}, {seconds(began):.0f} s",
                    flush=True,
                )
            if step == total:
                break
        encoder.eval()
        with torch.no_grad():
            parts = [(logits(batch), labels) for batch, labels in evaluation]
        found, truth = torch.cat([part for part, _ in parts]), torch.cat([labels for _, labels in parts])
        predicted = found.argmax(dim=1)
        print(
            f"step {step}/{total}: training loss {sum(running) / len(running):.4f}, validation loss "
            f"{nn.functional.cross_entropy(found, truth):.4f}, accuracy {accuracy_score(truth, predicted):.4f}, "
            f"F1 {f1_score(truth, predicted):.4f}, {seconds(began):.0f} s",
            flush=True,
        )
        running = []


def seconds(began: int) -> float:
    return (time.perf_counter_ns() - began) / 1e9


if __name__ == "__main__":
    main()
