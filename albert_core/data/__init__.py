"""From a data set's name to tokens: reading, labels, tokenizers, the token store and its cache."""

from __future__ import annotations

from .columns import choose_text_column
from .datasets import RawDataset, RawSplit, load_dataset
from .lengths import BANKING77_LENGTHS, banking77_lengths
from .summary import SplitSummary, summarize_split
from .tabular import Table, read_table
from .tokenizer import TextTokenizer, load_tokenizer
from .tokenstore import TokenStore, build_token_store

__all__ = [
    "BANKING77_LENGTHS",
    "RawDataset",
    "RawSplit",
    "SplitSummary",
    "Table",
    "TextTokenizer",
    "TokenStore",
    "banking77_lengths",
    "build_token_store",
    "choose_text_column",
    "load_dataset",
    "load_tokenizer",
    "read_table",
    "summarize_split",
]
