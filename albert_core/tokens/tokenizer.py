"""Fast tokenizers by name: a ``tokenizer.json``, a folder, a Hub id, or one trained on the data itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import UserError
from ...kernels.words import count
from ..config.parsing import read_json_object, read_text
from ..data.hub import HUB_ID, hub_is_away
from ..data.tabular import shown
from ..runs.files import make_folder, write_json, write_text
from ..terminal.text import reason_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EMBEDDED = "embedded"
EMBEDDED_LABEL = "embedded (trained on this data set)"
EMBEDDED_VOCABULARY = 8000

TOKENIZER_FILE = "tokenizer.json"
META_FILE = "isotrain_tokenizer.json"

_RANDOM_PREFIX = "random:"
_PAD_TOKENS = ("<pad>", "[PAD]")
_USABLE_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True, eq=False)
class EncodedWindows:
    """W windows of questions and contexts, T tokens in total.

    Attributes:
        ids: int32 [T]. Window w is ``ids[offsets[w]:offsets[w + 1]]``.
        offsets: int64 [W + 1].
        token_type_ids: uint8 [T].
        questions: int64 [W], the question of each window, ascending.
        spans: int32 [T, 2], the characters [begin, end) of the context for each token, or -1 outside the context.
    """

    ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray
    questions: np.ndarray
    spans: np.ndarray


class TextTokenizer:
    """A `tokenizers.Tokenizer` without the padding and truncation settings of its file.

    Attributes:
        label: Its name in tables.
        fingerprint: SHA-256 (hex) of its definition.
        vocab_size: The largest id + 1.
    """

    def __init__(self, tokenizer: Tokenizer, label: str, pad_id: int | None = None) -> None:
        stored_padding = tokenizer.padding
        # A file may contain both (sentence-transformers writes 128), which would silently override max_length.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if tokenizer.num_special_tokens_to_add(False) < 1:
            raise UserError(
                f"tokenizer {label} adds no special tokens, and the head reads the first position ([CLS]); give a "
                "tokenizer whose template is [CLS] text [SEP]"
            )
        self._tokenizer = tokenizer
        self.label = label
        self._definition = tokenizer.to_str()
        self.fingerprint = hashlib.sha256(self._definition.encode()).hexdigest()
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.pad_id = _pad_id(tokenizer, stored_padding) if pad_id is None else pad_id

    def encode_batch(
        self, texts: Sequence[str], max_length: int, pairs: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Encodes many texts into flat arrays.

        Args:
            max_length: Limit in tokens, including special ones. A longer text is cut at its end; of a pair, the longer
                text.

        Returns:
            ids int32 [T], offsets int64 [texts + 1] (text i is ``ids[offsets[i]:offsets[i + 1]]``), and token types
            uint8 [T] of pairs, else None.

        Raises:
            UserError: max_length leaves no room for text, or pairs don't match texts.
        """
        special = self._tokenizer.num_special_tokens_to_add(pairs is not None)
        if max_length <= special:
            raise UserError(
                f"max_length {max_length} leaves no room beside {special} special tokens; set at least {special + 1}"
            )
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f"{count(len(texts), 'text')} with {count(len(pairs), 'second text')}; give one each")
        self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        batch: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = self._tokenizer.encode_batch_fast(batch)
        offsets = np.zeros(len(encodings) + 1, dtype=np.int64)
        np.cumsum([len(encoding) for encoding in encodings], out=offsets[1:])
        total = int(offsets[-1])
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), dtype=np.int32, count=total)
        types = None
        if pairs is not None:
            types = np.fromiter(
                chain.from_iterable(encoding.type_ids for encoding in encodings), dtype=np.uint8, count=total
            )
        return ids, offsets, types

    def encode_windows(
        self, questions: Sequence[str], contexts: Sequence[str], max_length: int, stride: int
    ) -> EncodedWindows:
        """Encodes questions with their contexts, in as many windows as hold the whole context.

        A window is ``[CLS] question [SEP] part of the context [SEP]`` with at most `max_length` tokens. Neighbouring
        windows share `stride` tokens of the context.

        Raises:
            UserError: A question leaves no more room than `stride`. The message names it.
        """
        self._tokenizer.no_truncation()
        lengths = [
            len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(questions), add_special_tokens=False)
        ]
        longest = int(np.argmax(lengths))
        room = max_length - self._tokenizer.num_special_tokens_to_add(True) - lengths[longest]
        if room <= stride:
            raise UserError(
                f"max_length {max_length} leaves {count(max(room, 0), 'token')} of context beside the "
                f"{lengths[longest]} of question {shown([questions[longest]])}, and doc_stride {stride} needs "
                f"more than {stride}; raise max_length, lower doc_stride, or shorten the question"
            )
        self._tokenizer.enable_truncation(max_length, stride=stride, strategy="only_second")
        # encode_batch_fast would not keep offsets.
        found = self._tokenizer.encode_batch(list(zip(questions, contexts, strict=True)))
        rows = [row for row, first in enumerate(found) for _ in range(1 + len(first.overflowing))]
        windows = [window for first in found for window in (first, *first.overflowing)]
        offsets = np.zeros(len(windows) + 1, dtype=np.int64)
        np.cumsum([len(window) for window in windows], out=offsets[1:])
        spans = np.concatenate([np.array(window.offsets, dtype=np.int32) for window in windows])
        spans[[role != 1 for window in windows for role in window.sequence_ids]] = -1
        return EncodedWindows(
            ids=np.fromiter(chain.from_iterable(window.ids for window in windows), np.int32, int(offsets[-1])),
            offsets=offsets,
            token_type_ids=np.fromiter(chain.from_iterable(window.type_ids for window in windows), np.uint8),
            questions=np.array(rows, dtype=np.int64),
            spans=spans,
        )

    def tokens(self, text: str) -> list[str]:
        """The tokens of one text as strings, including special ones, not truncated."""
        self._tokenizer.no_truncation()
        return self._tokenizer.encode(text).tokens

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` and a small file with label, padding id and fingerprint to `folder`."""
        make_folder(folder)
        write_text(folder / TOKENIZER_FILE, self._definition)
        write_json(folder / META_FILE, {"label": self.label, "pad_id": self.pad_id, "fingerprint": self.fingerprint})


def load_tokenizer(
    tokenizer_name: str | None,
    model_name: str,
    *,
    texts: Sequence[str] | None = None,
    vocab_size: int | None = None,
    label: str | None = None,
) -> TextTokenizer:
    """Loads a tokenizer by name.

    Args:
        tokenizer_name: A ``tokenizer.json``, a folder with one (or a BERT's ``vocab.txt``), a Hub id, ``embedded`` for
            one trained on `texts`, or None for the model's own. ``embedded`` is for ``random:`` models only, as their
            default.
        vocab_size: The model's vocabulary size.
        label: What logs call the model's own tokenizer. By default its name.

    Raises:
        UserError: A name that can't be loaded, an ALBERT folder with only ``spiece.model``, or a tokenizer with ids
            that the model lacks.
    """
    name = tokenizer_name or (EMBEDDED if model_name.startswith(_RANDOM_PREFIX) else model_name)
    check_tokenizer_name(name, model_name)
    if name == EMBEDDED:
        if not texts:
            raise UserError(
                "tokenizer_name embedded is trained on the data's texts, and there are none here; give a tokenizer.json"
            )
        tokenizer = train_tokenizer(texts, min(vocab_size or EMBEDDED_VOCABULARY, EMBEDDED_VOCABULARY))
    else:
        tokenizer = _named_tokenizer(name)
        if tokenizer_name is None and label is not None:
            tokenizer.label = label
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.label} has ids up to {tokenizer.vocab_size - 1}, {model_name} has {vocab_size} "
            "embeddings: it belongs to another model; set tokenizer_name to this model's"
        )
    return tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> TextTokenizer:
    """Trains a lower-casing BPE tokenizer of at most `vocab_size` tokens on `texts`, with ALBERT's special tokens.

    It is BPE because that trainer gives the same tokens and ids on every run and with any number of threads. Those for
    WordPiece and Unigram in `tokenizers` don't. Raises UserError if the characters alone need more tokens.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"the texts have {tokenizer.get_vocab_size() - len(special)} different characters, and a vocabulary of "
            f"{vocab_size} can't hold them; give a tokenizer.json, or a model with a larger vocabulary"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    return TextTokenizer(tokenizer, EMBEDDED_LABEL, pad_id=0)


def check_tokenizer_name(name: str, model_name: str) -> None:
    """Raises UserError for a name that no tokenizer of the model can have, before anything is loaded."""
    path = Path(name).expanduser()
    if name == EMBEDDED:
        if not model_name.startswith(_RANDOM_PREFIX):
            raise UserError(
                f"tokenizer_name embedded numbers its pieces anew, and {model_name} was trained on other numbers; give "
                "that model's own tokenizer, or drop tokenizer_name"
            )
    elif path.is_file():
        if path.suffix != ".json":
            raise UserError(
                f"tokenizer {name!r} is a {path.suffix or 'nameless'} file; allowed is a tokenizer.json, or the folder "
                "that holds it"
            )
    elif not path.is_dir() and (name.startswith((".", "/", "~")) or name.endswith(".json")):
        raise UserError(
            f"tokenizer {name!r} is read as a local path, and nothing is there; give a tokenizer.json, a folder that "
            "holds one, or a Hub id"
        )
    elif not path.is_dir() and not HUB_ID.fullmatch(name):
        raise UserError(
            f"tokenizer {name!r} is neither a path nor a Hub id; give a tokenizer.json, a folder that holds one, or a "
            "Hub id"
        )


def _named_tokenizer(name: str) -> TextTokenizer:
    path = Path(name).expanduser()
    if path.is_file():
        return _from_file(path, name)
    if path.is_dir():
        return _from_folder(path, name)
    return _from_folder(_hub_folder(name), name)


def _from_file(path: Path, label: str, pad_id: int | None = None) -> TextTokenizer:
    from tokenizers import Tokenizer

    definition = read_text(path, "give an intact tokenizer.json")
    try:
        tokenizer = Tokenizer.from_str(definition)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"tokenizer {label!r} is no tokenizer.json ({reason_of(error)}); give an intact one") from error
    return TextTokenizer(tokenizer, label, pad_id)


def _from_folder(folder: Path, label: str) -> TextTokenizer:
    if (folder / TOKENIZER_FILE).is_file():
        meta = _meta(folder)
        return _from_file(folder / TOKENIZER_FILE, meta.get("label", label), meta.get("pad_id"))
    if (folder / "vocab.txt").is_file():
        return _from_bert_vocabulary(folder, label)
    if (folder / "spiece.model").is_file():
        raise UserError(
            f"tokenizer {label!r} has spiece.model and no tokenizer.json; what transformers builds from it alone gives "
            "wrong ids (it begins a new word after '-' and the like); put ALBERT's tokenizer.json beside it, or set "
            "tokenizer_name to one"
        )
    found = sorted(entry.name for entry in folder.iterdir())
    raise UserError(
        f"tokenizer {label!r} is a folder without tokenizer.json or vocab.txt, it has {shown(found) or 'nothing'}; set "
        "tokenizer_name to a tokenizer.json"
    )


def _meta(folder: Path) -> dict[str, Any]:
    """What `TextTokenizer.save` wrote beside the tokenizer. Empty for a folder of another origin."""
    path = folder / META_FILE
    if not path.is_file():
        return {}
    meta = read_json_object(path, "remove it, or give an intact folder")
    if not isinstance(meta.get("label"), str) or not isinstance(meta.get("pad_id"), int):
        raise UserError(f"{path} lacks label or pad_id; remove it, or give an intact folder")
    return meta


def _from_bert_vocabulary(folder: Path, label: str) -> TextTokenizer:
    from transformers import BertTokenizer

    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            read_json_object(folder / name, "give an intact tokenizer", nan=True)
    # from_pretrained reads do_lower_case from tokenizer_config.json. The constructor would ignore vocab_file.
    try:
        fast = BertTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    # Files of unknown origin may contain anything, so transformers and tokenizers may fail in any way.
    except Exception as error:
        raise UserError(
            f"tokenizer {label!r} can't be built from its vocab.txt ({reason_of(error)}); give an intact one"
        ) from error
    return TextTokenizer(fast.backend_tokenizer, label)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        with _no_progress_bars():
            return Path(snapshot_download(name, allow_patterns=list(_USABLE_FILES), local_files_only=hub_is_away()))
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"tokenizer {name!r} is read as a Hub id and can't be loaded ({reason_of(error)}); without a network set "
            "tokenizer_name to a local tokenizer.json"
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _pad_id(tokenizer: Tokenizer, stored_padding: dict[str, Any] | None) -> int:
    if stored_padding is not None:
        return int(stored_padding["pad_id"])
    known = (tokenizer.token_to_id(token) for token in _PAD_TOKENS)
    # Padding is masked, so any id of the vocabulary gives the same features.
    return next((number for number in known if number is not None), 0)
