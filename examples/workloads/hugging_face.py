"""A classifier of transformers with its head: by the name or folder in MODEL, else a tiny one with random weights."""

import os

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

LABELS, LENGTH = 3, 16
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}


class Classifier:
    def model(self, seed):
        torch.manual_seed(seed)
        name = os.environ.get("MODEL")
        if name:
            return AutoModelForSequenceClassification.from_pretrained(name, num_labels=LABELS)
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", num_labels=LABELS, **TINY))

    def batches(self, seed):
        """Random tokens. The label says how many of the first three are in the upper half of the vocabulary."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(TINY["vocab_size"], (10, 8, LENGTH), generator=generator)
        labels = (tokens[:, :, :3] >= 50).sum(2) % LABELS
        mask = torch.ones_like(tokens)
        return [
            {"input_ids": ids, "attention_mask": seen, "labels": label}
            for ids, seen, label in zip(tokens, mask, labels, strict=True)
        ]

    def loss(self, model, batch):
        return model(**batch).loss

    def evaluate(self, model, batches):
        losses, right = [], []
        for batch in batches:
            found = model(**batch)
            losses.append(found.loss)
            right.append((found.logits.argmax(1) == batch["labels"]).float().mean())
        return {"loss": torch.stack(losses).mean().item(), "accuracy": torch.stack(right).mean().item()}
