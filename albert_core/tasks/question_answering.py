"""Answering questions with a span of their context, as SQuAD v1.1 asks: cross entropy of the span's two ends.

Every token of a window gets two logits, of being the answer's first and its last; the loss is the mean of both cross
entropies over the window's tokens, padding left out, so that it doesn't depend on the layout. A window that doesn't
hold the answer is to point at [CLS] (see `data.windows`). An answer is the best span of all windows of its question.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.nn import functional

from ... import UserError
from ..data.questions import QuestionDataset, load_questions
from ..data.squad_file import QuestionSplit, question_parts
from ..data.tabular import Table, shown
from ..model.head import SpanHead
from ..runs.files import write_json
from ..runs.folder import RunFolder, read_strings
from ..tokens.order import IGNORED
from ..tokens.store import Progress
from ..tokens.tokenizer import TextTokenizer
from ..tokens.windows import WindowStore, build_window_store
from .spans import Span, WindowLogits, best_spans, probabilities
from .squad_score import score_predictions
from .task import Evaluation, Task

if TYPE_CHECKING:
    from torch import nn

    from ..config.schema import TrainConfig
    from ..features.compute import InputSource
    from ..inference.predict import Predictor
    from ..loop.job import Job

log = logging.getLogger("isotrain")

# The first and the last token of an answer.
ENDS = 2


@dataclass(frozen=True)
class AnswerPrediction:
    """The best span of a context for a question, and its probability among the n best.

    `start` counts the context's characters; the answer is "" where the context has no token to point at.
    """

    question: str
    context: str
    text: str
    start: int
    probability: float

    def asked(self) -> dict[str, str]:
        return {"question": self.question, "context": self.context}

    def answer(self) -> dict[str, str | int | float]:
        return {"answer": self.text, "score": self.probability, "answer_start": self.start}


def load(config: TrainConfig) -> QuestionDataset:
    """The questions that the configuration names."""
    if config.label_rules:
        raise UserError("label_rules make labels alike, and task question_answering has none; drop label_rules")
    return load_questions(
        config.dataset_id,
        question_column=config.text_column,
        context_column=config.text_pair_column,
        answers_column=config.label_column,
        evaluation_split=config.evaluation_split,
        test_fraction=config.test_fraction,
        seed=config.seed,
    )


def outputs(config: TrainConfig, dataset: QuestionDataset) -> int:
    """Two, whatever the data."""
    if config.num_labels not in (None, ENDS):
        raise UserError(
            f"num_labels is {config.num_labels}, and an answer to {dataset.name} has {ENDS} ends; drop num_labels"
        )
    return ENDS


def metrics_of(dataset: QuestionDataset) -> tuple[str, ...]:
    """The same for all questions."""
    del dataset
    return tuple(TASK.metrics)


def tokenise(
    split: QuestionSplit, tokenizer: TextTokenizer, config: TrainConfig, use_cache: bool, progress: Progress | None
) -> WindowStore:
    """One row a window; says how many a split takes, and which answers are lost to them."""
    store = build_window_store(
        split, tokenizer, config.max_length, config.doc_stride, use_cache=use_cache, progress=progress
    )
    if any(split.answers):
        log.info(
            "%s: %s questions in %s windows, %s of them without the answer; %s contexts take several",
            split.origin,
            *(f"{count:,}" for count in (len(split), store.num_texts, store.num_without_answer, store.num_split)),
        )
        if store.num_lost:
            log.warning(
                "%s: %d of %d answers are whole in no window, and so lost to training; raise max_length or doc_stride",
                split.origin,
                store.num_lost,
                len(split),
            )
    return store


def head(hidden_size: int, outputs: int, config: TrainConfig) -> SpanHead:
    """The linear layer on every token's state."""
    return SpanHead(hidden_size, outputs, config.seed)


def apply_head(head: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits [B, L, 2] of the last states [B, L, hidden]; those of padding are as low as the dtype goes."""
    logits = head(states)
    return logits.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(logits.dtype).min)


def loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits [B, L, 2] and positions int64 [B, 2]: the windows' summed loss in nats, the mean of both ends' cross
    entropies, and how many windows had both ends classified correctly.
    """
    right = (logits.detach().argmax(dim=1) == labels).all(dim=-1).sum()
    return functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED) / ENDS, right


def evaluate(model: nn.Module, source: InputSource, job: Job) -> Evaluation:
    """Mean loss a window, exact match and F1 a question; the answers as SQuAD's prediction file, and the n best."""
    split: QuestionSplit = job.dataset.test
    store = cast(WindowStore, job.test_tokens)
    logits, mean_loss = _logits_of(model, source, store, job)
    spans = _best_spans(split, store, logits, job.config)
    answers = {name: best[0].text if best else "" for name, best in zip(split.ids, spans, strict=True)}
    given = zip(split.ids, split.answers, strict=True)
    score = score_predictions(answers, {name: [answer.text for answer in known] for name, known in given})
    return Evaluation(
        {"eval/loss": mean_loss, "eval/exact_match": score.exact_match, "eval/f1": score.f1},
        {
            "predictions.json": answers,
            "nbest_predictions.json": {name: _described(best) for name, best in zip(split.ids, spans, strict=True)},
        },
    )


def _logits_of(model: nn.Module, source: InputSource, store: WindowStore, job: Job) -> tuple[np.ndarray, float]:
    """The logits of all tokens, float32 [T, 2], and the mean loss of a window; of several processes each computes a
    share.
    """
    backend, size, ranks = job.backend, job.config.eval_batch_size, job.ranks
    training = model.training
    model.eval()
    # By length, so that a batch is padded by little.
    order = np.argsort(store.lengths, kind="stable")
    source.start_epoch(order)
    loss_sum: torch.Tensor = backend.place(torch.zeros(()))
    found = np.zeros((store.num_tokens, ENDS), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(order), size):
            stop = min(start + size, len(order))
            rows = order[slice(*ranks.share(start, stop))]
            inputs, labels = source.batch(start, stop)
            logits = model(inputs)
            loss_sum = loss_sum + loss(logits, labels)[0]
            backend.step_boundary()
            _keep(found, store, rows, logits.cpu())
    model.train(training)
    # Every token is one process's, and 0 in the others.
    return np.sum(ranks.gather(found), axis=0), float(ranks.total(loss_sum)) / len(order)


def _keep(found: np.ndarray, store: WindowStore, rows: Iterable[int], logits: torch.Tensor) -> None:
    """Puts a batch's logits [B, L, 2] where the tokens of its windows `rows` are in the store.

    Padding goes nowhere, and so do rows behind those, which only fill a batch up.
    """
    for row, values in zip(rows, logits.float().numpy(), strict=False):
        start, stop = store.offsets[row], store.offsets[row + 1]
        found[start:stop] = values[: stop - start]


def _best_spans(split: QuestionSplit, store: WindowStore, logits: np.ndarray, config: TrainConfig) -> list[list[Span]]:
    """The n best spans of each question."""
    first_window = np.searchsorted(store.questions, np.arange(len(split) + 1))
    found = []
    for row, context in enumerate(split.contexts):
        windows = []
        for window in range(first_window[row], first_window[row + 1]):
            part = slice(store.offsets[window], store.offsets[window + 1])
            windows.append(WindowLogits(logits[part, 0], logits[part, 1], store.spans[part]))
        found.append(best_spans(context, windows, config.n_best_size, config.max_answer_length))
    return found


def _described(spans: Sequence[Span]) -> list[dict[str, str | float]]:
    """The n best as the file names them."""
    return [
        {
            "text": span.text,
            "probability": probability,
            "start_logit": span.start_logit,
            "end_logit": span.end_logit,
        }
        for span, probability in zip(spans, probabilities(spans), strict=True)
    ]


def chance_loss(job: Job) -> float:
    """The loss in nats of a model that points at every token alike: the mean of ln(tokens) over the windows."""
    return float(np.log(job.train_tokens.lengths).mean())


def record(run: RunFolder, dataset: QuestionDataset) -> None:
    """Writes inputs.json, what the columns of questions and contexts were called."""
    write_json(run.inputs, list(dataset.text_columns))


def recall(run: RunFolder) -> tuple[str, ...]:
    """What `record` wrote. Raises UserError for a file that is missing or damaged."""
    return tuple(read_strings(run.inputs))


def output_names(recalled: tuple[str, ...]) -> list[str]:
    """The two ends of a span."""
    del recalled
    return ["start", "end"]


def columns(
    table: Table, recalled: tuple[str, ...], text_column: str | None, text_pair_column: str | None
) -> tuple[str, str]:
    """The columns asked for, else those of the training where the table has them, else question and context."""
    found = []
    for asked, trained, usual in zip((text_column, text_pair_column), recalled, ("question", "context"), strict=True):
        name = asked or (trained if trained in table.columns else usual)
        if name not in table.columns:
            option = "--text-column" if usual == "question" else "--pair-column"
            raise UserError(
                f"{table.origin} has no column {name!r}, it has {shown(table.columns)}; name that of the {usual}s by "
                f"{option}"
            )
        found.append(name)
    return found[0], found[1]


def predict(predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None) -> list[AnswerPrediction]:
    """The best span of each context for its question."""
    if pairs is None:
        raise UserError("this run answers questions on contexts; give each question its context (--context)")
    names = [str(number) for number in range(len(texts))]
    split = QuestionSplit("the questions", names, list(texts), list(pairs), [()] * len(texts))
    store = tokenise(split, predictor.tokenizer, predictor.config, False, None)
    logits = np.empty((store.num_tokens, ENDS), dtype=np.float32)
    for rows, part in predictor.outputs(store):
        _keep(logits, store, rows, part)
    found = []
    for question, context, best in zip(texts, pairs, _best_spans(split, store, logits, predictor.config), strict=True):
        if best:
            found.append(AnswerPrediction(question, context, best[0].text, best[0].begin, probabilities(best)[0]))
        else:
            found.append(AnswerPrediction(question, context, "", 0, 0.0))
    return found


TASK = Task(
    name="question_answering",
    on_features=False,
    metrics={"eval/loss": "loss", "eval/exact_match": "exact match", "eval/f1": "F1"},
    sequences="windows",
    load=load,
    outputs=outputs,
    metrics_of=metrics_of,
    tokenise=tokenise,
    head=head,
    apply_head=apply_head,
    loss=loss,
    evaluate=evaluate,
    chance_loss=chance_loss,
    record=record,
    recall=recall,
    output_names=output_names,
    parts=question_parts,
    columns=columns,
    predict=predict,
)
