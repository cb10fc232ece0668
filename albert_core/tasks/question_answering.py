"""Answers questions with a span of their context, as in SQuAD v1.1: cross entropy of the span's two ends.

Every token of a window gets two logits, for being the first and the last token of the answer. The loss is the mean of
the two cross entropies over the window's tokens. Padding is left out, so that the loss doesn't depend on the layout,
unless `loss_over_padding` asks for transformers' own. A window without the answer should point at [CLS] (see
`tokens.windows`). The answer to a question is the best span of all its windows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ... import UserError
from ...kernels.words import count
from ..config.schema import TrainConfig
from ..data.hub import saved_parts
from ..data.questions import QUESTIONS, QuestionDataset, load_questions
from ..data.squad_file import QuestionSplit, question_parts
from ..data.tabular import Table, shown
from ..model.head import SpanHead
from ..runs.files import write_json
from ..runs.folder import RunFolder, read_strings
from ..tokens.order import IGNORED
from ..tokens.store import Progress, TokenStore
from ..tokens.tokenizer import TextTokenizer
from ..tokens.windows import WindowStore, build_window_store
from .spans import Answers, Span, WindowLogits, found_answers, probabilities
from .squad_score import score_predictions
from .task import Evaluation, Outputs, Task

log = logging.getLogger("isotrain")

# Logits for the first and the last token of an answer.
ENDS = 2


@dataclass(frozen=True)
class AnswerPrediction:
    """The best span of a context for a question, and its probability among the n best.

    `start` is counted in characters of the context. The answer is "" if the context has no token to point at.
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


class QuestionAnswering(Task):
    """Answers questions, each with a span of its context.

    Args:
        padded_to: The tokens of every window where padding takes part in the loss; None where it doesn't.

    Attributes:
        unanswerable: Whether questions may have no answer.
    """

    unanswerable: ClassVar[bool] = False
    name = "question_answering"
    on_features = False
    metrics: ClassVar = {"eval/loss": "loss", "eval/exact_match": "exact match", "eval/f1": "F1"}
    sequence = "window"

    def __init__(self, padded_to: int | None = None) -> None:
        self._padded_to = padded_to

    def load(self, config: TrainConfig) -> QuestionDataset:
        return load_questions(
            config.dataset_id,
            question_column=config.text_column,
            context_column=config.text_pair_column,
            answers_column=config.label_column,
            evaluation_split=config.evaluation_split,
            test_fraction=config.test_fraction,
            seed=config.seed,
            unanswerable=self.unanswerable,
        )

    def outputs(self, config: TrainConfig, dataset: QuestionDataset) -> int:
        if config.num_labels not in (None, ENDS):
            raise UserError(
                f"num_labels is {config.num_labels}, and an answer to {dataset.name} has {ENDS} ends; drop num_labels"
            )
        return ENDS

    def configured(
        self,
        config: TrainConfig,
        dataset: QuestionDataset,
        outputs: int,
        place: Callable[[torch.Tensor], torch.Tensor],
    ) -> QuestionAnswering:
        del dataset, outputs, place
        if not config.loss_over_padding:
            return self
        log.info(
            "windows are padded to %d tokens, and padding counts in the loss, as in transformers' own; "
            "loss_over_padding: false leaves it out and trains faster",
            config.max_length,
        )
        return type(self)(config.max_length)

    def tokenise(
        self,
        split: QuestionSplit,
        tokenizer: TextTokenizer,
        config: TrainConfig,
        use_cache: bool,
        progress: Progress | None,
    ) -> WindowStore:
        """One row per window. Logs how many windows a split needs and which answers don't fit into one."""
        store = build_window_store(
            split, tokenizer, config.max_length, config.doc_stride, use_cache=use_cache, progress=progress
        )
        if any(split.answers):
            log.info(
                "%s: %s in %s, %s of them without the answer; contexts in several: %s",
                split.origin,
                count(len(split), "question"),
                count(store.num_texts, "window"),
                f"{store.num_without_answer:,}",
                f"{store.num_split:,}",
            )
            answered = sum(map(bool, split.answers))
            lost = store.num_lost - (len(split) - answered)
            if lost:
                log.warning(
                    "%s: whole in no window, and so lost to training: %d of %d answers; raise max_length or doc_stride",
                    split.origin,
                    lost,
                    answered,
                )
        return store

    def head(self, hidden_size: int, outputs: int, config: TrainConfig) -> SpanHead:
        return SpanHead(hidden_size, outputs, config.seed)

    def apply_head(self, head: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, L, 2]. Those of padding are the lowest value of the dtype, unless padding counts in the loss."""
        logits: torch.Tensor = head(states)
        if self._padded_to is not None:
            return logits
        return logits.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(logits.dtype).min)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss in nats (mean of both ends' cross entropies), and the number of rows with both ends correct.

        Logits are [B, L, 2]. Labels are positions, int64 [B, 2].
        """
        right = (logits.detach().argmax(dim=1) == labels).all(dim=-1).sum()
        return functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED) / ENDS, right

    def evaluation_order(self, store: TokenStore) -> np.ndarray:
        """By length, so that batches need little padding."""
        return np.argsort(store.lengths, kind="stable")

    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """All logits."""
        return logits

    def judge(
        self, dataset: QuestionDataset, store: TokenStore, outputs: Outputs, loss: float, config: TrainConfig
    ) -> Evaluation:
        """Mean loss per window, exact match and F1 per question, SQuAD's prediction file, and the n best answers."""
        split = dataset.test
        spans = [found.spans for found in found_in(split.contexts, store, outputs, config)]
        answers = {name: best[0].text if best else "" for name, best in zip(split.ids, spans, strict=True)}
        given = zip(split.ids, split.answers, strict=True)
        score = score_predictions(answers, {name: [answer.text for answer in known] for name, known in given})
        return Evaluation(
            {"eval/loss": loss, "eval/exact_match": score.exact_match, "eval/f1": score.f1},
            {
                "predictions.json": answers,
                "nbest_predictions.json": {name: described(best) for name, best in zip(split.ids, spans, strict=True)},
            },
        )

    def chance_loss(self, store: TokenStore) -> float:
        """The loss in nats of a model that points at all tokens equally: the mean of ln(tokens) over the windows."""
        return float(np.log(self._tokens(store)).mean())

    def _tokens(self, store: TokenStore) -> np.ndarray:
        """How many tokens each window can point at, int64 [N]."""
        return store.lengths if self._padded_to is None else np.full_like(store.lengths, self._padded_to)

    def record(self, run: RunFolder, dataset: QuestionDataset) -> None:
        """Writes inputs.json, the names of the columns of questions and contexts."""
        write_json(run.inputs, list(dataset.text_columns))

    def recall(self, run: RunFolder) -> tuple[str, ...]:
        return tuple(read_strings(run.inputs))

    def output_names(self, recalled: tuple[str, ...], outputs: int) -> list[str]:
        del recalled, outputs
        return ["start", "end"]

    def meaning(self, recalled: tuple[str, ...]) -> list[Any]:
        return list(self.output_names(recalled, ENDS))

    def columns(
        self, table: Table, recalled: tuple[str, ...], text_column: str | None, text_pair_column: str | None
    ) -> tuple[str, str]:
        """The requested columns, else those of the training data if the table has them, else question and context."""
        found = []
        for asked, trained, usual in zip(
            (text_column, text_pair_column), recalled, ("question", "context"), strict=True
        ):
            name = asked or (trained if trained in table.columns else usual)
            if name not in table.columns:
                option = "--text-column" if usual == "question" else "--pair-column"
                raise UserError(
                    f"{table.origin} has no column {name!r}, it has {shown(table.columns)}; name that of the {usual}s "
                    f"by {option}"
                )
            found.append(name)
        return found[0], found[1]

    def parts(self, file: Path) -> Iterator[Table]:
        return saved_parts(file) if QUESTIONS.is_saved(file) else question_parts(file)

    def reads_pairs(self, recalled: tuple[str, ...]) -> bool:
        del recalled
        return True

    def inputs(self, recalled: tuple[str, ...], texts: Sequence[str], pairs: Sequence[str] | None) -> QuestionSplit:
        del recalled
        if pairs is None:
            raise UserError("this run answers questions on contexts; give each question its context (--context)")
        names = [str(number) for number in range(len(texts))]
        return QuestionSplit("the questions", names, list(texts), list(pairs), [()] * len(texts))

    def answers(
        self, recalled: tuple[str, ...], split: QuestionSplit, store: TokenStore, outputs: Outputs, config: TrainConfig
    ) -> list[AnswerPrediction]:
        """The best span of each context for its question."""
        del recalled
        found = []
        given = found_in(split.contexts, store, outputs, config)
        for question, context, answers in zip(split.questions, split.contexts, given, strict=True):
            best = self.best_first(answers, config)
            if best:
                found.append(AnswerPrediction(question, context, best[0].text, best[0].begin, probabilities(best)[0]))
            else:
                found.append(AnswerPrediction(question, context, "", 0, 0.0))
        return found

    def best_first(self, answers: Answers, config: TrainConfig) -> list[Span]:
        """The possible answers to one question, the given one first."""
        del config
        return answers.spans


def found_in(contexts: Sequence[str], store: TokenStore, outputs: Outputs, config: TrainConfig) -> list[Answers]:
    """What can be answered from each context, by the logits [n, L, 2] of its windows."""
    store = cast(WindowStore, store)
    # The positions of the windows' tokens in the store. Padding is dropped.
    logits = np.empty((store.num_tokens, ENDS), dtype=np.float32)
    for rows, part in outputs:
        for row, values in zip(rows, part.float().numpy(), strict=True):
            start, stop = store.offsets[row], store.offsets[row + 1]
            logits[start:stop] = values[: stop - start]
    first_window = np.searchsorted(store.questions, np.arange(len(contexts) + 1))
    found = []
    for row, context in enumerate(contexts):
        windows = []
        for window in range(first_window[row], first_window[row + 1]):
            tokens = slice(store.offsets[window], store.offsets[window + 1])
            windows.append(WindowLogits(logits[tokens, 0], logits[tokens, 1], store.spans[tokens]))
        found.append(found_answers(context, windows, config.n_best_size, config.max_answer_length))
    return found


def described(spans: Sequence[Span]) -> list[dict[str, str | float]]:
    """The n best answers as the file describes them."""
    return [
        {"text": span.text, "probability": probability, "start_logit": span.start_logit, "end_logit": span.end_logit}
        for span, probability in zip(spans, probabilities(spans), strict=True)
    ]
