"""The token store and its cache: exact, reused, and never used when anything about it is wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from isotrain import UserError
from isotrain.albert_core.data.datasets import RawSplit, load_dataset
from isotrain.albert_core.tokens.store import TokenStore, build_token_store
from isotrain.albert_core.tokens.tokenizer import TextTokenizer, load_tokenizer
from isotrain.backends.host.cache import cache_root
from support import forks
from tokenizers import Tokenizer

FILES = ("ids.npy", "offsets.npy", "labels.npy", "manifest.json")


@pytest.fixture(scope="module")
def split() -> RawSplit:
    return load_dataset("embedded:intents?train=2500&test=77").train


@pytest.fixture(scope="module")
def tokenizer(split: RawSplit) -> TextTokenizer:
    return load_tokenizer(None, "random:tiny", texts=split.texts, vocab_size=30000)


@pytest.fixture
def small() -> RawSplit:
    return RawSplit(["top up my card", "where is my card", "close the account", "x"], [1, 0, 2, 1])


def same(first: TokenStore, second: TokenStore) -> bool:
    ours, theirs = first.arrays(), second.arrays()
    return first.fingerprint == second.fingerprint and all(
        np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours | theirs
    )


def entry(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


def test_the_store_holds_each_texts_tokens(split: RawSplit, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    golden = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    golden.enable_truncation(16)
    expected = [encoding.ids for encoding in golden.encode_batch(split.texts)]
    store = build_token_store(split, tokenizer, 16, use_cache=False)
    assert [store.ids[a:b].tolist() for a, b in pairwise(store.offsets)] == expected
    assert store.labels.tolist() == split.labels
    assert store.lengths.tolist() == [len(ids) for ids in expected]
    assert (store.num_texts, store.num_tokens) == (2500, sum(map(len, expected)))
    assert store.token_type_ids is None
    assert [array.dtype for array in store.arrays().values()] == [np.int32, np.int64, np.int64]
    assert max(store.lengths) == 16


@pytest.mark.shared
def test_lengths_of_real_data_are_as_published(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"), "random:albert-base-v2", vocab_size=30000)
    published = {
        ("banking77", "train"): (10_003, 77, 16.2, 13, 28, 98),
        ("banking77", "test"): (3_080, 77, 15.0, 13, 23, 83),
        ("subj", "train"): (8_000, 2, 33.1, 31, 50, 164),
        ("subj", "test"): (2_000, 2, 33.1, 31, 50, 180),
    }
    for (name, part), (rows, labels, mean, p50, p90, longest) in published.items():
        store = build_token_store(getattr(load_dataset(str(shared_data / name)), part), tokenizer, 512)
        assert (store.num_texts, len(np.unique(store.labels)), store.lengths.max()) == (rows, labels, longest)
        assert [round(x) for x in np.percentile(store.lengths, [50, 90])] == [p50, p90]
        assert round(store.lengths.mean(), 1) == mean
        if (name, part) == ("banking77", "train"):
            assert store.num_tokens == 162_289


def test_the_second_time_it_comes_from_the_cache(
    split: RawSplit, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_token_store(split, tokenizer, 64, cache_dir=tmp_path)
    monkeypatch.setattr(tokenizer, "encode_batch", None)  # tokenising again would fail
    second = build_token_store(split, tokenizer, 64, cache_dir=tmp_path)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert same(first, second)
    assert isinstance(second.ids, np.memmap)
    assert second.labels.flags.writeable, "torch takes no read-only arrays"
    assert not list(tmp_path.glob(".*"))
    assert sorted(file.name for file in entry(tmp_path).iterdir()) == sorted(FILES)


def test_whatever_the_tokens_follow_from_is_in_the_key(
    small: RawSplit, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    other = load_tokenizer(None, "random:tiny", texts=["other words", "than these"], vocab_size=30000)
    variants = [
        (small, tokenizer, 12),
        (small, tokenizer, 13),
        (small, other, 12),
        (RawSplit([*small.texts[:3], "x "], small.labels), tokenizer, 12),
        (RawSplit(small.texts, [1, 0, 2, 0]), tokenizer, 12),
        (RawSplit(small.texts, small.labels, ["a", "b", "c", "d"]), tokenizer, 12),
        (RawSplit(small.texts[::-1], small.labels), tokenizer, 12),
    ]
    for variant in variants:
        assert not build_token_store(*variant, cache_dir=tmp_path).from_cache
    assert len(list(tmp_path.iterdir())) == len(variants)
    for variant in variants:
        assert build_token_store(*variant, cache_dir=tmp_path).from_cache


def test_fingerprint_is_of_what_training_reads(small: RawSplit, tokenizer: TextTokenizer) -> None:
    store = build_token_store(small, tokenizer, 12, use_cache=False)
    # A longer limit that cuts nothing gives the same batches, and so the same data.
    assert build_token_store(small, tokenizer, 40, use_cache=False).fingerprint == store.fingerprint
    relabelled = RawSplit(small.texts, [1, 0, 2, 0])
    reordered = RawSplit(small.texts[::-1], small.labels)
    changed = [build_token_store(part, tokenizer, 12, use_cache=False) for part in (relabelled, reordered)]
    changed.append(build_token_store(small, tokenizer, 4, use_cache=False))
    assert len({store.fingerprint, *(other.fingerprint for other in changed)}) == 4


def test_pairs_are_stored_with_types(small: RawSplit, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    pairs = RawSplit(small.texts, small.labels, ["my account", "x y", "z", "top up"])
    built = build_token_store(pairs, tokenizer, 32, cache_dir=tmp_path)
    cached = build_token_store(pairs, tokenizer, 32, cache_dir=tmp_path)
    assert cached.from_cache
    assert same(built, cached)
    ids, _, types = tokenizer.encode_batch(pairs.texts, 32, pairs.pairs)
    assert cached.token_type_ids is not None
    assert types is not None
    assert cached.ids.tolist() == ids.tolist()
    assert cached.token_type_ids.tolist() == types.tolist()


def test_progress_moves_and_ends_at_the_total(split: RawSplit, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_token_store(split, tokenizer, 64, cache_dir=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]
    seen.clear()
    build_token_store(split, tokenizer, 64, cache_dir=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2500, 2500)]


def check_rebuilt(good: TokenStore, small: RawSplit, tokenizer: TextTokenizer, cache: Path) -> None:
    rebuilt = build_token_store(small, tokenizer, 12, cache_dir=cache)
    assert not rebuilt.from_cache
    assert same(rebuilt, good)
    repaired = build_token_store(small, tokenizer, 12, cache_dir=cache)
    assert repaired.from_cache
    assert same(repaired, good)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_cache_is_made_anew(
    name: str, small: RawSplit, tokenizer: TextTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = build_token_store(small, tokenizer, 12, cache_dir=tmp_path)
    target = entry(tmp_path) / name
    # Without the line end of a text file, whose loss harms nothing.
    raw = target.read_bytes().rstrip(b"\n") if name == "manifest.json" else target.read_bytes()
    damages = [raw[:-1], raw[: len(raw) // 2], b"", bytes(len(raw)), raw + b"\0"]
    # White space and brackets of the manifest's layout carry nothing: flip bytes that do.
    places = (
        range(0, len(raw), 7) if name != "manifest.json" else [raw.index(b'"key"') + 9, raw.rindex(b'"sha256"') + 12]
    )
    damages += [raw[:at] + bytes([raw[at] ^ 0x04]) + raw[at + 1 :] for at in places]
    for damaged in damages:
        target.write_bytes(damaged)
        caplog.clear()
        check_rebuilt(good, small, tokenizer, tmp_path)
        assert "damaged" in caplog.text
    target.unlink()
    check_rebuilt(good, small, tokenizer, tmp_path)


def test_a_foreign_cache_is_not_used(small: RawSplit, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    good = build_token_store(small, tokenizer, 12, cache_dir=tmp_path)
    ours = entry(tmp_path)
    foreign = RawSplit(["other text", "and more", "third", "fourth"], [0, 1, 2, 0])
    build_token_store(foreign, tokenizer, 12, cache_dir=tmp_path)
    theirs = next(folder for folder in tmp_path.iterdir() if folder != ours)
    shutil.rmtree(ours)
    theirs.rename(ours)
    check_rebuilt(good, small, tokenizer, tmp_path)
    # Consistent in itself but of another format.
    manifest = json.loads((ours / "manifest.json").read_text())
    changes: list[dict[str, object]] = [{"format": "other"}, {"arrays": {}}, {"arrays": []}]
    for change in changes:
        (ours / "manifest.json").write_text(json.dumps(manifest | change))
        check_rebuilt(good, small, tokenizer, tmp_path)
    (ours / "manifest.json").write_text("[]")
    check_rebuilt(good, small, tokenizer, tmp_path)


def test_an_empty_folder_or_a_file_in_its_place(small: RawSplit, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    good = build_token_store(small, tokenizer, 12, cache_dir=tmp_path)
    ours = entry(tmp_path)
    shutil.rmtree(ours)
    ours.mkdir()
    check_rebuilt(good, small, tokenizer, tmp_path)
    shutil.rmtree(ours)
    ours.write_text("not a folder")
    check_rebuilt(good, small, tokenizer, tmp_path)


def test_what_a_killed_process_left_is_ignored_and_swept_when_old(
    small: RawSplit, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    build_token_store(small, tokenizer, 12, cache_dir=tmp_path)
    key = entry(tmp_path).name
    entry(tmp_path).rename(tmp_path / f".tmp-another.host-1-0123abcd-{key}")
    recent = tmp_path / f".tmp-another.host-2-0123abcd-{key}"
    recent.mkdir()
    os.utime(tmp_path / f".tmp-another.host-1-0123abcd-{key}", (1, 1))
    assert not build_token_store(small, tokenizer, 12, cache_dir=tmp_path).from_cache
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted([key, recent.name])


def test_a_cache_that_cannot_be_written_costs_a_warning(
    small: RawSplit, tokenizer: TextTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="isotrain"):
        store = build_token_store(small, tokenizer, 12, cache_dir=tmp_path / "file" / "cache")
    assert same(store, build_token_store(small, tokenizer, 12, use_cache=False))
    assert "nothing is cached for the next run" in caplog.text


LIMITED = """
import resource, sys
from pathlib import Path
from isotrain.albert_core.data.datasets import load_dataset
from isotrain.albert_core.tokens.store import build_token_store
from isotrain.albert_core.tokens.tokenizer import load_tokenizer
split = load_dataset("embedded:intents?train=2500&test=77").train
tokenizer = load_tokenizer(None, "random:tiny", texts=split.texts, vocab_size=30000)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
store = build_token_store(split, tokenizer, 64, cache_dir=Path(sys.argv[1]))
print(store.fingerprint)
"""


def test_a_full_disk_costs_a_warning_and_leaves_nothing(
    split: RawSplit, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    # A limit on file sizes stands in for the full disk: the write fails half-way, in the kernel.
    done = forks.run(["-c", LIMITED, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == build_token_store(split, tokenizer, 64, use_cache=False).fingerprint
    assert "nothing is cached for the next run" in done.stderr
    assert list(tmp_path.iterdir()) == []


RACER = """
import sys
from pathlib import Path
from isotrain.albert_core.data.datasets import load_dataset
from isotrain.albert_core.tokens.store import build_token_store
from isotrain.albert_core.tokens.tokenizer import load_tokenizer
cache = Path(sys.argv[1])
split = load_dataset("embedded:intents?train=200&test=77").train
tokenizer = load_tokenizer(None, "random:tiny", texts=split.texts, vocab_size=30000)
print("ready", flush=True)
sys.stdin.readline()
for max_length in range(8, 48):
    print(build_token_store(split, tokenizer, max_length, cache_dir=cache).fingerprint)
"""


def test_processes_that_race_all_succeed(tmp_path: Path) -> None:
    racers = [
        forks.Popen(["-c", RACER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], outputs
    assert len({output for output, _ in outputs}) == 1
    assert [errors for _, errors in outputs] == ["", "", ""]
    assert len(list(tmp_path.iterdir())) == 40


def test_the_cache_lives_where_the_environment_says(
    small: RawSplit, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    build_token_store(small, tokenizer, 12)
    assert len(list((tmp_path / "here" / "tokens").iterdir())) == 1
    build_token_store(small, tokenizer, 13, use_cache=False)
    assert len(list((tmp_path / "here" / "tokens").iterdir())) == 1
    monkeypatch.delenv("ISOTRAIN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "isotrain"


def test_an_empty_split_and_no_room_are_refused(small: RawSplit, tokenizer: TextTokenizer) -> None:
    with pytest.raises(UserError, match="no texts"):
        build_token_store(RawSplit([], []), tokenizer, 12)
    with pytest.raises(UserError, match="max_length 2"):
        build_token_store(small, tokenizer, 2)
