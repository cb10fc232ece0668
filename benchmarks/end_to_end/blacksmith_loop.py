"""The Banking77 experiment's training loop, re-created from the one that tt-blacksmith published, and timed.

``python -m isotrain.benchmarks.end_to_end.blacksmith_loop`` reads its specification from stdin. The process times some
steps and validation batches. The parent extrapolates them to the end-to-end run.

These defects are kept as published; `isotrain train` has none of them:

* It tokenises text by text through ``datasets.map``, each text as a separate tensor, with ``pad_token = eos_token``.
* In ``DataCollatorWithPadding(padding=True, max_length=...)`` the length has no effect, and batches are padded to their
  longest text ("dynamic"). A device with static shapes needs ``padding="max_length"`` instead ("padded").
* ``drop_last=True`` also applies to validation, so the last texts of both splits are never seen.
* The frozen encoder runs in every step of every epoch, with its pooler, which nothing reads.
* The whole model is in ``dtype``, including head, loss and optimizer state.
* It calls ``loss.item()`` before ``backward()``, and twice for each validation batch.
* AdamW gets every parameter, including frozen ones, and doesn't ask for a fused or foreach step.

One thing differs: the published loop validates every ten steps on the whole test split, which is 38 times its training
work. Here it validates once per epoch, like the run that it is compared with. Checkpoints, trackers and progress bars
are left out, in its favour.
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
# The first steps allocate and dispatch. Leaving them out is in the loop's favour.
WARM_UP_STEPS = 3


def measure_loop(spec: LoopSpec) -> TimedLoop:
    """Times the parts of one run: what happens once, some steps and some validation batches, with their shapes."""
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
        # The loop gets the same ids as our run, and a trained tokenizer costs it nothing.
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
        # From the end of one step to the end of the next, since collating the batch is part of the loop.
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
    """The experiment's model: the frozen pretrained model with its pooler, and an MLP on the [CLS] state."""
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
    """Loaders of the training split (shuffled) and the test split. Both drop the last incomplete batch."""
    import datasets
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    tokenizer.save(folder)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), padding_side="right")
    # As published, the padding token also ends every text. The mask hides it.
    ending = fast.convert_ids_to_tokens(fast("a").input_ids[-1])
    fast.pad_token = fast.eos_token = ending
    padded = spec.padding == "padded"
    # The published loop doesn't truncate, but a static shape requires it.
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
    """`count` batches spread evenly over an unshuffled loader, since the test split is sorted by label."""
    from torch.utils.data import DataLoader, Subset

    size, total = loader.batch_size, len(loader)
    chosen = [total * number // count for number in range(min(count, total))]
    rows = [row for batch in chosen for row in range(batch * size, (batch + 1) * size)]
    yield from DataLoader(Subset(loader.dataset, rows), batch_size=size, collate_fn=loader.collate_fn)


def _limited(batches: Any, count: int) -> Iterator[Any]:
    """`count` batches, from several epochs if one has fewer."""
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
