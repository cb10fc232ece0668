"""The Banking77 experiment's own training loop, re-created from tt-blacksmith's published one, and timed.

``python -m isotrain.benchmarks.end_to_end.blacksmith_loop`` with its specification on stdin; a process times some of
its steps and validation batches, which the parent extrapolates to the end-to-end run.

What is done as published, though each is a defect (`albert_core.train` has none of them):

* tokenising text by text through ``datasets.map``, each text as a tensor of its own; ``pad_token = eos_token``
* ``DataCollatorWithPadding(padding=True, max_length=...)``: the length has no effect, batches are padded to their
  longest text ("dynamic"); "padded" is what a device with static shapes needs instead, ``padding="max_length"``
* ``drop_last=True``, in validation too: the last texts of either split are never seen
* the frozen encoder in every step of every epoch, with its pooler, which nothing reads
* the whole model in ``dtype``, head, loss and optimizer state included
* ``loss.item()`` before ``backward()``, and two of them for each validation batch
* AdamW over every parameter, frozen ones included, without a fused or foreach step of its own choosing

What is not: it validates every ten steps over the whole test split, 38 times its training work. Here it validates once
an epoch, as often as what it is compared with. Checkpoints, trackers and progress bars are left out, in its favour.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ... import UserError
from ...backends.host.memory import process_memory
from ..harness.answer import answer
from ..outcome.end_to_end import TimedBatch, TimedLoop
from .specs import LoopSpec

INPUTS = ("input_ids", "attention_mask", "labels")
# Its first steps allocate and dispatch; leaving them out is in its favour.
WARM_UP_STEPS = 3


def measure_loop(spec: LoopSpec) -> TimedLoop:
    """Seconds of the parts of one run: those that happen once, each timed step, each timed validation batch.

    Also what each of these batches was (`step_batches`, `validation_batches`).
    """
    once: dict[str, float] = {}
    with _timed(once, "import"):
        import torch
        from torch.nn import CrossEntropyLoss

        from ...albert_core.data.datasets import load_dataset
        from ...albert_core.model.encoder import load_encoder
        from ...albert_core.model.names import model_source
        from ...albert_core.tokens.tokenizer import load_tokenizer
        from ...backends import get_backend
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    with _timed(once, "load"):
        backend = get_backend(spec.backend)
        raw = load_dataset(spec.dataset, seed=spec.seed)
        encoder = load_encoder(spec.model, spec.seed)
        model = build_model(encoder, spec.mlp_hidden_size, len(raw.label_names))
        model = model.to(getattr(torch, spec.dtype)).to(backend.device)
        # The loop is given the same ids as ours: where that trains a tokenizer, the loop gets it as a gift.
    tokenizer = load_tokenizer(
        spec.tokenizer, model_source(spec.model), texts=raw.train.texts, vocab_size=encoder.config.vocab_size
    )
    with tempfile.TemporaryDirectory(prefix="isotrain-experiment-") as folder, _timed(once, "tokenise"):
        train_loader, test_loader = make_loaders(spec, raw, tokenizer, Path(folder))
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate)
    loss_fn = CrossEntropyLoss()

    model.train()
    running, steps, step_batches = 0.0, [], []
    start = time.perf_counter_ns()
    for batch in _limited(train_loader, WARM_UP_STEPS + spec.steps):
        optimizer.zero_grad()
        placed = backend.place(dict(batch))
        ids, mask, labels = (placed[name] for name in INPUTS)
        logits = model(ids, mask)
        loss = loss_fn(logits, labels)
        running += loss.item()
        loss.backward()
        optimizer.step()
        backend.synchronize(*(parameter for parameter in model.parameters() if parameter.requires_grad))
        # From one step's end to the next one's: collating the batch is part of the loop.
        stop = time.perf_counter_ns()
        steps.append((stop - start) / 1e9)
        step_batches.append(_shape(batch))
        start = time.perf_counter_ns()

    model.eval()
    correct, validation, validation_batches = 0, [], []
    start = time.perf_counter_ns()
    with torch.no_grad():
        for batch in spread(test_loader, spec.validation_batches):
            placed = backend.place(dict(batch))
            ids, mask, labels = (placed[name] for name in INPUTS)
            logits = model(ids, mask)
            running += loss_fn(logits, labels).item()
            correct += int((torch.argmax(logits, dim=-1) == labels).sum().item())
            stop = time.perf_counter_ns()
            validation.append((stop - start) / 1e9)
            validation_batches.append(_shape(batch))
            start = time.perf_counter_ns()
    return TimedLoop(
        once=once,
        steps=steps[WARM_UP_STEPS:],
        validation=validation,
        step_batches=step_batches[WARM_UP_STEPS:],
        validation_batches=validation_batches,
        steps_per_epoch=len(raw.train.texts) // spec.batch_size,
        validation_batches_per_epoch=len(raw.test.texts) // spec.batch_size,
        train_texts=len(raw.train.texts),
        test_texts=len(raw.test.texts),
        finite=running == running and abs(running) != float("inf"),
        peak_bytes=process_memory().peak_bytes,
        model=encoder.label,
        random_weights=encoder.random,
        device=backend.info().name,
    )


def _shape(batch: Any) -> TimedBatch:
    texts, length = batch.input_ids.shape
    return TimedBatch(texts=texts, length=length, real_tokens=int(batch.attention_mask.sum()))


def build_model(encoder: Any, mlp_hidden_size: int, num_labels: int) -> Any:
    """The experiment's model: the whole pretrained model with its pooler, frozen, and an MLP on its [CLS] state."""
    from torch import nn

    from ..baselines.eager import with_pooler

    class ExperimentModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = with_pooler(encoder).requires_grad_(False)
            hidden = encoder.config.hidden_size
            self.classifier = nn.Sequential(
                nn.Linear(hidden, mlp_hidden_size), nn.GELU(), nn.Linear(mlp_hidden_size, num_labels)
            )

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
            return self.classifier(output.last_hidden_state[:, 0, :])

    return ExperimentModel()


def make_loaders(spec: LoopSpec, raw: Any, tokenizer: Any, folder: Path) -> tuple[Any, Any]:
    """Loaders of the training and the test split, tokenised text by text; the first shuffled, last texts dropped."""
    import datasets
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    tokenizer.save(folder)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), padding_side="right")
    # As published: a padding token that is also the end of every text. The mask hides it.
    ending = fast.convert_ids_to_tokens(fast("a").input_ids[-1])
    fast.pad_token = fast.eos_token = ending
    padded = spec.padding == "padded"
    # The published loop doesn't truncate; a static shape has to.
    cut = {"truncation": True, "max_length": spec.max_length} if padded else {"truncation": False}

    def tokenize(example: dict[str, Any]) -> dict[str, Any]:
        text, label = (example[name] for name in ("text", "label"))
        encoding = fast(text, padding=False, return_tensors="pt", **cut)
        return dict(
            zip(INPUTS, (encoding.input_ids.squeeze(0), encoding.attention_mask.squeeze(0), label), strict=True)
        )

    datasets.disable_progress_bars()
    collator = DataCollatorWithPadding(
        tokenizer=fast, padding="max_length" if padded else True, max_length=spec.max_length
    )

    def loader(split: Any, shuffle: bool) -> Any:
        table = datasets.Dataset.from_dict({"text": list(split.texts), "label": [int(label) for label in split.labels]})
        tokens = table.map(tokenize).remove_columns(["text", "label"])
        return DataLoader(tokens, batch_size=spec.batch_size, collate_fn=collator, shuffle=shuffle, drop_last=True)

    return loader(raw.train, True), loader(raw.test, False)


def spread(loader: Any, count: int) -> Iterator[Any]:
    """`count` batches evenly over a loader that doesn't shuffle: the test split is in order of its labels."""
    from torch.utils.data import DataLoader, Subset

    size, total = loader.batch_size, len(loader)
    chosen = [total * number // count for number in range(min(count, total))]
    rows = [row for batch in chosen for row in range(batch * size, (batch + 1) * size)]
    yield from DataLoader(Subset(loader.dataset, rows), batch_size=size, collate_fn=loader.collate_fn)


def _limited(batches: Any, count: int) -> Iterator[Any]:
    """`count` batches, over several epochs where one has fewer."""
    done = 0
    while done < count:
        for batch in batches:
            yield batch
            done += 1
            if done == count:
                return
        if done == 0:
            raise UserError("the training split has fewer texts than a batch; give data with more")


@contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter_ns()
    yield
    phases[name] = (time.perf_counter_ns() - start) / 1e9


if __name__ == "__main__":
    sys.exit(answer(LoopSpec, measure_loop))
