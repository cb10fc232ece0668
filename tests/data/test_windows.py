"""Windows: transformers' own for the same call, nothing of a context or an answer lost, and what is lost counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from isotrain import UserError
from isotrain.albert_core.data.questions import load_questions
from isotrain.albert_core.data.squad_file import Answer, QuestionSplit
from isotrain.albert_core.tokens.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from isotrain.albert_core.tokens.windows import WindowStore, build_window_store
from support.small_questions import write_questions


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> QuestionSplit:
    return load_questions(str(write_questions(tmp_path_factory.mktemp("questions"), sentences=8))).train


@pytest.fixture(scope="module")
def tokenizer(split: QuestionSplit) -> TextTokenizer:
    return train_tokenizer(split.corpus, 300)


def windows_of(store: WindowStore, row: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(spans, label) of each window of a question."""
    return [
        (store.spans[store.offsets[window] : store.offsets[window + 1]], store.labels[window])
        for window in np.flatnonzero(store.questions == row)
    ]


def stripped(context: str, begin: int, end: int) -> tuple[int, int]:
    """A range of characters without the white space at its ends: some tokens stand for the space before a word too."""
    text = context[begin:end]
    return end - len(text.lstrip()), begin + len(text.rstrip())


def test_windows_are_those_of_transformers(split: QuestionSplit, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer.save(tmp_path)
    judge = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<pad>")
    wanted = judge(
        split.questions,
        split.contexts,
        max_length=48,
        stride=12,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    store = build_window_store(split, tokenizer, 48, 12, use_cache=False)
    assert store.num_texts == len(wanted["input_ids"]) > 2 * len(split)
    assert store.questions.tolist() == wanted["overflow_to_sample_mapping"]
    assert store.lengths.max() == 48
    for window, (start, stop) in enumerate(zip(store.offsets[:-1], store.offsets[1:], strict=True)):
        assert store.ids[start:stop].tolist() == wanted["input_ids"][window]
        assert store.token_type_ids is not None
        assert store.token_type_ids[start:stop].tolist() == wanted["token_type_ids"][window]
        offsets = [
            pair if role == 1 else (-1, -1)
            for pair, role in zip(wanted["offset_mapping"][window], wanted.sequence_ids(window), strict=True)
        ]
        assert list(map(tuple, store.spans[start:stop].tolist())) == list(map(tuple, offsets))


@pytest.mark.parametrize(("max_length", "stride"), [(48, 12), (64, 30), (384, 128)])
def test_no_character_and_no_answer_is_lost(
    split: QuestionSplit, tokenizer: TextTokenizer, max_length: int, stride: int
) -> None:
    store = build_window_store(split, tokenizer, max_length, stride, use_cache=False)
    assert store.num_questions == len(split)
    assert store.num_lost == 0
    assert (store.num_split > 0) == (max_length < 100)
    for row, context in enumerate(split.contexts):
        answer, windows = split.answers[row][0], windows_of(store, row)
        seen = {place for spans, _ in windows for begin, end in spans[spans[:, 0] >= 0] for place in range(begin, end)}
        assert seen >= {place for place, sign in enumerate(context) if not sign.isspace()}
        held = [(spans, label) for spans, label in windows if label[1]]
        assert held
        for spans, (first, last) in held:
            assert stripped(context, spans[first][0], spans[last][1]) == (answer.start, answer.end)
        for spans, _ in (window for window in windows if not window[1][1]):
            # Not labelled, so it must not hold all of the answer.
            whole = {place for begin, end in spans[spans[:, 0] >= 0] for place in range(begin, end)}
            assert not whole >= {place for place in range(answer.start, answer.end) if not context[place].isspace()}


def one(context: str, *answers: Answer) -> QuestionSplit:
    return QuestionSplit("one", ["q"], ["who keeps it?"], [context], [answers])


def test_an_answer_that_no_window_holds_is_counted(tokenizer: TextTokenizer) -> None:
    context = "Anna keeps a red bicycle in the cellar. " * 6
    long, short = Answer(context[:200], 0), Answer("Anna", 120)
    assert build_window_store(one(context, long), tokenizer, 40, 10, use_cache=False).num_lost == 1
    kept = build_window_store(one(context, short, long), tokenizer, 40, 10, use_cache=False)
    assert (kept.num_lost, kept.num_split) == (0, 1)
    assert 0 < kept.num_without_answer < kept.num_texts
    # The same text elsewhere is another answer.
    places = {
        stripped(context, spans[first][0], spans[last][1]) for spans, (first, last) in windows_of(kept, 0) if last
    }
    assert places == {(120, 124)}
    # Without answers, as when predicting, no window has one.
    asked = build_window_store(one(context), tokenizer, 40, 10, use_cache=False)
    assert not asked.labels.any()
    assert np.array_equal(asked.ids, kept.ids)


@pytest.mark.parametrize("text", ["  ledger  ", "ledger", "the", "(two)", "two"])
def test_an_answer_has_its_own_tokens_alone(tokenizer: TextTokenizer, text: str) -> None:
    """Neither the white space that it was given with, nor the sign that stands beside it without a space."""
    context = "Anna keeps the  ledger  here, and (two) keys."
    store = build_window_store(one(context, Answer(text, context.index(text))), tokenizer, 64, 10, use_cache=False)
    ((spans, (first, last)),) = windows_of(store, 0)
    assert context[spans[first][0] : spans[last][1]].strip() == text.strip()


def test_a_question_that_leaves_no_room_is_named(split: QuestionSplit, tokenizer: TextTokenizer) -> None:
    long = QuestionSplit("one", ["q"], ["where " * 30], ["a tin box"], [()])
    with pytest.raises(UserError, match="doc_stride 12 needs more than 12; raise max_length") as caught:
        build_window_store(long, tokenizer, 40, 12, use_cache=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no questions"):
        build_window_store(split.rows([]), tokenizer, 40, 12)


def test_the_cache_gives_the_same_and_knows_what_changes_it(
    split: QuestionSplit, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    made = build_window_store(split, tokenizer, 48, 12, cache_dir=tmp_path)
    kept = build_window_store(split, tokenizer, 48, 12, cache_dir=tmp_path)
    assert (made.from_cache, kept.from_cache) == (False, True)
    assert made.fingerprint == kept.fingerprint
    for name in ("ids", "offsets", "labels", "token_type_ids", "questions", "spans"):
        assert np.array_equal(getattr(made, name), getattr(kept, name))
    moved = split.rows(range(len(split)))
    moved.answers[3] = (Answer("x", 0),)
    for other in (
        build_window_store(split, tokenizer, 48, 13, cache_dir=tmp_path),
        build_window_store(split, tokenizer, 49, 12, cache_dir=tmp_path),
        build_window_store(moved, tokenizer, 48, 12, cache_dir=tmp_path),
    ):
        assert not other.from_cache


@pytest.mark.shared
@pytest.mark.slow
def test_no_answer_of_the_real_questions_is_lost(shared_data: Path) -> None:
    """203 of SQuAD's dev questions take more than 384 tokens with their paragraph, as the data's README counted."""
    split = load_questions(str(shared_data / "squad")).test
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"), "random:albert-base-v2", vocab_size=30000)
    store = build_window_store(split, tokenizer, 384, 128, use_cache=False)
    assert (store.num_questions, store.num_split, store.num_lost) == (10_570, 203, 0)
    inside = 0
    for window, row in enumerate(store.questions):
        first, last = store.labels[window]
        if last:
            spans = store.spans[store.offsets[window] : store.offsets[window + 1]]
            inside += split.answers[row][0].text in split.contexts[row][spans[first][0] : spans[last][1]]
    assert inside == store.num_texts - store.num_without_answer
