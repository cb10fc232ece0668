"""The report as a file: what stands in it, how it is labelled, that it can be read aloud, that it appears whole."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from isotrain import RunError
from isotrain.albert_core.output.charts import BarChart, LineChart, StackedChart
from isotrain.albert_core.output.draw import draw_svg
from isotrain.benchmarks.reports.blocks import Table, chart_table
from isotrain.benchmarks.reports.html.contents import contents
from isotrain.benchmarks.reports.html.loading import load_results
from isotrain.benchmarks.reports.html.write import page_of, write_report
from isotrain.cli.main import main
from support.results import LAYERS, STEPS, loss_at, parity

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """A page's elements as (tag, attributes, the tags that they stand in), and its text by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values, tuple(self.open)))
        if tag == "section":
            self._section = values["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.sections[self._section] = self.sections.get(self._section, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [values for name, values, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(report: Path) -> str:
    return report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_has_every_section_in_order(page: Page) -> None:
    wanted = ["summary", "losses", "growth", "throughput", "roofline", "training", "phases"]
    wanted += ["results", "environment", "notes"]
    assert [values["id"] for values in page.all("section")] == wanted
    assert [values["href"] for values in page.all("a")] == ["#main", *(f"#{key}-content" for key in wanted)]
    ids = {values["id"]: parents for _, values, parents in page.elements if "id" in values}
    assert {key: "details" in ids[f"{key}-content"] for key in wanted} == {key: key != "summary" for key in wanted}


def test_the_page_is_named_after_the_folder_or_as_told(results_folder: Path, text: str) -> None:
    assert "<h1>isotrain report: all results</h1>" in text
    assert "<h1>isotrain report: a &lt;b&gt;</h1>" in page_of(load_results(results_folder), "a <b>")


def test_it_needs_nothing_beside_it(text: str, page: Page) -> None:
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not {"script", "iframe", "img", "object"} & {tag for tag, *_ in page.elements}
    assert [values["href"] for values in page.all("link")] == ["data:,"]
    policy = next(values["content"] for values in page.all("meta") if "http-equiv" in values)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_tables_and_drawings_can_be_read_aloud_and_reached_by_keys(page: Page) -> None:
    tags = Counter(tag for tag, *_ in page.elements)
    assert tags["table"] == tags["caption"] == tags["thead"] > 25
    assert all(values.get("scope") in ("col", "row") for values in page.all("th"))
    regions = [values for values in page.all("div") if values.get("role") == "group"]
    assert len(regions) == tags["table"]
    assert all(values["tabindex"] == "0" and values["aria-label"] for values in regions)
    drawings = [values for values in page.all("svg") if values["class"] == "chart"]
    assert len(drawings) == 2 * tags["figure"] == 2 * tags["figcaption"]
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))
    for values in drawings:
        assert values["role"] == "img"
        assert set((values["aria-labelledby"] or "").split()) <= set(ids)
    assert tags["details"] == tags["figure"] + tags["section"] - 1, "every chart has its table; the answers are open"
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, *_ in page.elements if re.fullmatch(r"h\d", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels)), "no level is left out"


def test_every_figure_and_table_says_that_the_weights_are_random(results_folder: Path) -> None:
    sections = {section.key: section for section in contents(load_results(results_folder))}
    for key in ("summary", "losses", "growth", "throughput", "roofline", "phases", "training"):
        for block in sections[key].blocks:
            title = getattr(block, "title", None) or getattr(block, "caption", None)
            if title is not None and title != "Reasons":
                assert "random weights" in title, title


def test_an_emulated_card_has_no_throughput_anywhere(results_folder: Path, page: Page) -> None:
    sections = {section.key: section for section in contents(load_results(results_folder))}
    bars = next(block for block in sections["throughput"].blocks if isinstance(block, BarChart))
    assert len(bars.bars) == 5
    assert not [bar.name for bar in bars.bars if "tt" in bar.name.split()]
    assert "EMULATED: tt-emulated is arithmetic on this host; its times are the host's" in page.sections["throughput"]
    table = next(block for block in sections["throughput"].blocks if getattr(block, "caption", "").startswith("All"))
    row = table.rows[5]
    assert row[:3] == ("tt-emulated train_step bucketed auto x8", "emulated", "none")
    assert [column.header for column in table.columns[9:11]] == ["J/sample", "peak MiB"]
    assert not any(row[3:10])
    assert [row[9] for row in table.rows[:2]] == ["n/a", "0.5 (0.4 to 0.6)"]
    assert "energy of cpu: unavailable: a test" in page.sections["throughput"]
    assert "tt-emulated" not in page.sections["roofline"].partition("bench.json")[2]
    runs = next(block for block in sections["training"].blocks if getattr(block, "caption", "").startswith("Runs"))
    assert "none (emulated)" in runs.rows[1]
    assert "runs/second, tt-emulated bfloat16" in page.sections["training"]
    assert not re.search(r"\btt\b(?!-emulated)", " ".join(page.sections.values()))


def test_an_invalid_target_is_hatched_named_and_explained(results_folder: Path, page: Page) -> None:
    sections = {section.key: section for section in contents(load_results(results_folder))}
    bars = next(block for block in sections["throughput"].blocks if isinstance(block, BarChart))
    assert [bar.hatched for bar in bars.bars] == [True, False, False, False, False]
    assert bars.bars[0].words == "invalid"
    assert "3 compilations inside the timed region" in page.sections["throughput"]
    roof = next(block for block in sections["roofline"].blocks if isinstance(block, LineChart))
    assert [line.name for line in roof.lines if line.invalid] == ["cpu forward padded auto x8 (invalid)"]
    assert "1 invalid" in page.sections["results"]


def test_a_pattern_means_invalid_and_nothing_else(bench_result: dict[str, Any], tmp_path: Path) -> None:
    invalid, *others = bench_result["targets"][:4]
    for place, target in enumerate(others):
        target["workload"] = ("forward", "train_step", "head_step")[place]
        target["label"] = f"cpu {target['workload']} padded auto x{place + 1}"
        target |= {"valid": True, "reasons": [], "device": {**target["device"], "emulated": False}}
    known = ("figures", "share_of_peak", "roofline")
    failed = {key: value for key, value in others[0].items() if key not in known}
    failed |= {"label": "cpu forward packed auto x9", "valid": False, "status": "failed", "reasons": ["was killed"]}
    bench_result["targets"] = [invalid | {"valid": False, "reasons": ["NaN"]}, *others, failed]
    (tmp_path / "bench.json").write_text(json.dumps(bench_result))
    sections = {section.key: section for section in contents(load_results(tmp_path))}
    chart = next(block for block in sections["throughput"].blocks if isinstance(block, BarChart))
    drawn = ElementTree.fromstring(draw_svg(chart, 1080, "x"))
    bars = [node for node in drawn.iter() if node.get("class") == "bar"]
    fills = [re.search("fill: ([^;]+)", path.get("style", "")) for bar in bars for path in bar.iter("path")]
    assert [fill[1][:4] if fill else None for fill in fills] == ["url(", "var(", "var(", "var("]
    assert [fill[1] for fill in fills[1:] if fill] == [f"var(--s{style})" for style in range(3)]
    assert [fill.name for fill in chart.legend()] == [
        "forward",
        "train_step",
        "head_step",
        "hatched: invalid, to be used for nothing",
    ]
    assert [(bar.name, bar.words, bar.figures) for bar in chart.bars if bar.empty] == [
        ("cpu forward packed auto x9", "failed", "no figures")
    ]
    text = " ".join(drawn.itertext())
    assert "cpu forward packed auto x9" in text
    assert "no figures" in text
    without = replace(chart, bars=chart.bars[1:4])
    assert "<pattern" in draw_svg(chart, 1080, "x")
    assert "<pattern" not in draw_svg(without, 1080, "x")
    assert not any(fill.hatched for fill in without.legend())


def test_an_estimate_is_called_one(results_folder: Path, page: Page) -> None:
    sections = {section.key: section for section in contents(load_results(results_folder))}
    whole = [block for block in sections["throughput"].blocks if isinstance(block, BarChart)][1]
    assert [bar.words for bar in whole.bars] == ["", "extrapolated from 50 of 6,255 steps"]


def test_a_quick_look_and_a_partial_result_are_called_so(bench_result: dict[str, Any], tmp_path: Path) -> None:
    bench_result["method"]["quick"] = True
    bench_result["status"] = "partial"
    (tmp_path / "bench.json").write_text(json.dumps(bench_result), encoding="utf-8")
    for section in contents(load_results(tmp_path)):
        for chart in section.charts:
            assert chart.title.endswith("random weights · smoke run, no result · partial: interrupted")


def test_the_curves_are_the_results(results_folder: Path) -> None:
    sections = {section.key: section for section in contents(load_results(results_folder))}
    losses, *differences = (block for block in sections["losses"].blocks if isinstance(block, LineChart))
    reference = dict(losses.lines[0].points)
    assert reference == {step: loss_at(step) for step in range(1, STEPS + 1)}
    assert [line.name.rpartition(", ")[2] for line in losses.lines] == [
        "reference",
        "pass",
        "pass",
        "drift",
        "diverged",
    ]
    (band,) = losses.bands
    assert [(high - low) == pytest.approx(0.04) for _, low, high in band.points] == [True] * STEPS
    for chart, line in zip(differences, losses.lines[1:], strict=True):
        assert chart.lines[0].points == tuple((step, loss - reference[step]) for step, loss in line.points)
        assert [high for *_, high in chart.bands[0].points] == pytest.approx([0.02] * STEPS)
    accumulated, local = (block for block in sections["growth"].blocks if isinstance(block, LineChart))
    assert accumulated.x.names == ("embedding", *map(str, range(1, 13)))
    assert [value for _, value in accumulated.lines[1].points] == [4e-4 * (n + 1) for n in range(len(LAYERS))]
    assert [value for _, value in local.lines[1].points] == [0.0] + [2e-4] * 12


def test_the_roof_and_its_targets_are_where_they_were_measured(
    results_folder: Path, bench_result: dict[str, Any]
) -> None:
    sections = {section.key: section for section in contents(load_results(results_folder))}
    roof, cache, *targets = next(block for block in sections["roofline"].blocks if isinstance(block, LineChart)).lines
    # 1 TFLOP/s over 10 GB/s: the ridge is at 100 FLOP/byte.
    assert (100.0, 1.0) in roof.points
    assert all(value == pytest.approx(min(1.0, 0.01 * x)) for x, value in roof.points)
    assert (50.0, 1.0) in cache.points
    assert cache.name == "fastest copy of as many bytes as a step moves: 20 GB/s"
    for line, target in zip(targets, bench_result["targets"], strict=False):
        assert line.points[0] == (
            target["roofline"]["intensity_flop_per_byte"],
            pytest.approx(target["figures"]["hardware_tflops"]["median"]),
        )
        assert line.lows[0] == pytest.approx(target["figures"]["hardware_tflops"]["low"])
        assert line.highs[0] == pytest.approx(target["figures"]["hardware_tflops"]["high"])
    places = next(block for block in sections["roofline"].blocks if isinstance(block, Table))
    # 1.6e11 FLOPs in 0.2 s are 0.8 TFLOP/s; 60 FLOP/byte at 10 GB/s allow 0.6.
    assert places.rows[1] == ("cpu forward packed auto x8", "60", "0.8", "0.6", "133.3%", "10", "memory", "valid")
    assert places.flagged == {0}


def test_a_target_without_an_intensity_is_named_beside_the_roof(bench_result: dict[str, Any], tmp_path: Path) -> None:
    bench_result["targets"][1]["roofline"] = None
    (tmp_path / "bench.json").write_text(json.dumps(bench_result), encoding="utf-8")
    page = Page(write_report(tmp_path, tmp_path / "r.html").page.read_text(encoding="utf-8"))
    assert "no arithmetic intensity: cpu forward packed auto x8" in page.sections["roofline"]
    for target in bench_result["targets"]:
        target["roofline"] = None
    (tmp_path / "bench.json").write_text(json.dumps(bench_result), encoding="utf-8")
    page = Page(write_report(tmp_path, tmp_path / "r.html").page.read_text(encoding="utf-8"))
    assert "cpu peak in float32, measured in this run: 1 TFLOP/s, copy 10 GB/s" in page.sections["roofline"]


def test_ratios_to_baselines_have_a_table(bench_result: dict[str, Any], tmp_path: Path) -> None:
    ratio = {"median": 3.2, "low": 2.2, "high": 3.7}
    bench_result["comparisons"] = [{"own": "a", "baseline": "b", "ratio": ratio, "valid": False}]
    (tmp_path / "bench.json").write_text(json.dumps(bench_result), encoding="utf-8")
    sections = {section.key: section for section in contents(load_results(tmp_path))}
    table = sections["throughput"].blocks[-1]
    assert table.caption == "Against baselines · random weights"
    assert table.rows == (("a", "b", "3.20x", "2.2 to 3.7", "invalid"),)
    assert table.flagged == {0}


def test_phases_are_those_before_the_steady_state(results_folder: Path) -> None:
    sections = {section.key: section for section in contents(load_results(results_folder))}
    bench, whole, runs = (block for block in sections["phases"].blocks if isinstance(block, StackedChart))
    assert bench.parts == ("import", "open", "load", "data", "prepare", "first step", "warm up", "later compiles")
    assert [stack.total for stack in bench.stacks] == [1.75] * 6
    assert (bench.stacks[0].parts["warm up"], bench.stacks[0].parts["later compiles"]) == (0.15, 0.1)
    assert whole.stacks[0].total == pytest.approx(91.0)
    assert runs.stacks[0].parts["steps, evaluation, rest"] == pytest.approx(15.5)


def test_a_candidate_that_was_not_compared_and_the_test_over_seeds_have_their_rows(page: Page) -> None:
    told = page.sections["losses"]
    for words in ("! failed", "no <GPU> & no driver", "! refused", "its batches are not the reference's"):
        assert words in told
    assert "Final eval/accuracy over 5 seeds, equivalent within 0.01 · random weights" in told
    assert "-0.0300 to -0.0100" in told


def test_where_a_result_comes_from_is_said(page: Page) -> None:
    told = page.sections["environment"]
    for words in (
        "isotrain parity quickstart",
        "SHA-256",
        "Fake CPU",
        "isotrain train quickstart",
        "revision",
        "torch",
    ):
        assert words in told


def test_files_that_can_not_be_used_stand_in_the_notes(page: Page) -> None:
    assert "2 files could not be used" in page.sections["summary"]
    for name in ("future.json", "truncated.json"):
        assert name in page.sections["notes"]


def test_texts_of_the_results_are_text(tmp_path: Path) -> None:
    document = parity()
    document["candidates"][0]["label"] = "<script>alert(1)</script>\ud800\u202e\x00&amp;"
    document["notes"] = ["</style><img src=x onerror=alert(1)>"]
    (tmp_path / "a<b>.json").write_text(json.dumps(document), encoding="utf-8")
    page = Page(write_report(tmp_path, tmp_path / "r.html").page.read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("img")
    assert not page.all("b")
    assert "<script>alert(1)</script>\\ud800\\u202e\\x00&amp;" in page.sections["losses"]
    assert "a<b>.json" in page.sections["losses"]


def test_a_table_of_a_long_curve_says_how_much_of_it_is_there(results_folder: Path) -> None:
    sections = {section.key: section for section in contents(load_results(results_folder))}
    table = chart_table(sections["training"].charts[0])
    assert table.caption.endswith("(60 of 1,200 points)")
    assert (table.rows[0][0], table.rows[-1][0]) == ("1", "1,200")


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    return int(ended.value.code or 0)


def test_the_command_says_what_it_wrote_and_what_it_left_out(
    results_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert run_command(str(results_folder), "-o", str(out)) == 0
    told = capsys.readouterr()
    assert told.out == f"report: {out} (17 charts)\n"
    warnings = told.err.splitlines()
    assert len(warnings) == 3
    assert warnings[-1] == "isotrain: foreign.json is no result of isotrain, and left out"
    for number in range(30):
        (results_folder / f"other-{number}.json").write_text("[]")
    assert run_command(str(results_folder), "-o", str(out)) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    assert warnings[-1] == "isotrain: 31 JSON files, such as foreign.json, are no results of isotrain, and left out"
    for number in range(30):
        (results_folder / f"other-{number}.json").write_text('{"schema": "isotrain.bench/9"}')
    assert run_command(str(results_folder), "-o", str(out)) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 12
    assert warnings[-2] == "isotrain: warning: 22 more are left out; the report's notes name them all"
    assert "other-29.json" in Page(out.read_text(encoding="utf-8")).sections["notes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{empty}", "-o", "{out}"), "it holds no result"),
        (("{nowhere}", "-o", "{out}"), "is no folder"),
        (("{full}", "-o", "{full}/bench.json"), "doesn't end in .html"),
        (("{full}", "-o", "{nowhere}/report.html"), "give a file in a folder that exists"),
        (("{full}", "-o", "{out}", "--png", "{full}/bench.json"), "is a file; give a folder"),
    ],
)
def test_wrong_input_ends_in_one_line_and_code_2_and_writes_nothing(
    arguments: tuple[str, ...],
    words: str,
    results_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"empty": tmp_path / "empty", "nowhere": tmp_path / "nowhere", "full": results_folder}
    before = (results_folder / "bench.json").read_bytes()
    out = tmp_path / "report.html"
    assert run_command(*(argument.format(**names, out=out) for argument in arguments)) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
    assert (results_folder / "bench.json").read_bytes() == before


def test_a_report_that_can_not_be_written_leaves_the_one_before(
    results_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    out.write_text("the one before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_report(results_folder, out)
    assert out.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_the_report_needs_no_torch(results_folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from isotrain.benchmarks.reports.html.write import write_report; from pathlib import Path; "
        f"write_report(Path({str(results_folder)!r}), Path({str(tmp_path / 'r.html')!r})); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
