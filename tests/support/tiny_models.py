"""Models small enough for twenty steps in a second, as folders that both sides load by themselves."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

TEXT = (
    "the a this that of in to is was it he she film story hero card loan transfer fee account please help lost "
    "found open closed good bad dull fine great quiet loud old new city river war love said went came saw"
)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}


def _tokenizer() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *TEXT.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer


def write_models(folder: Path, dropout: float = 0.0, **sizes: int) -> dict[str, Path]:
    """The folders of a tiny ALBERT and a tiny BERT with poolers, by their model types.

    Without dropout, losses can be equal. `sizes` replace those of SIZES.
    """
    from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    settings = SIZES | sizes | rates | {"initializer_range": 0.1}

    folders = {}
    tokenizer = _tokenizer()
    size = tokenizer.get_vocab_size()
    for name, config, model in (
        ("albert", AlbertConfig(vocab_size=size, embedding_size=16, **settings), AlbertModel),
        ("bert", BertConfig(vocab_size=size, **settings), BertModel),
    ):
        torch.manual_seed(7)
        folders[name] = folder / name
        encoder, pooled = model(config, add_pooling_layer=False), model(config)
        pooled.load_state_dict(encoder.state_dict(), strict=False)
        pooled.save_pretrained(folders[name])
        tokenizer.save(str(folders[name] / "tokenizer.json"))
    return folders
