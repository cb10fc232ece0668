"""The report in a real browser: nothing missing, nothing over anything else, nothing from the network."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from isotrain.benchmarks.reports.html.write import write_report
from support.browser import CHROMIUM, DRIVER, console_errors, open_browser, show
from support.results import candidate, parity, write_run

WIDTHS = (1280, 400)
# Pairs of visible texts of a drawing whose boxes share more than rounding, and texts that reach out of their drawing.
OVERLAPS = """
const shown = [...document.querySelectorAll('svg.chart')].filter(svg => svg.getBoundingClientRect().width > 0);
const found = [];
for (const svg of shown) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  for (const [words, box] of texts) {
    const across = box.left < frame.left - 1 || box.right > frame.right + 1;
    if (across || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) found.push('outside: ' + words);
  }
  for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
    const [one, a] = texts[i], [other, b] = texts[j];
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 0.5 && down > 0.5) found.push(one + ' | ' + other);
  }
}
return found;
"""
MARKS = """
const counts = {};
for (const figure of document.querySelectorAll('figure')) {
  const svg = [...figure.querySelectorAll('svg.chart')].filter(svg => svg.getBoundingClientRect().width > 0);
  if (svg.length !== 1) throw new Error(figure.id + ' shows ' + svg.length + ' drawings');
  const inside = [...svg[0].querySelectorAll('.mark')].filter(mark => {
    const box = mark.getBoundingClientRect(), frame = svg[0].getBoundingClientRect();
    return box.width > 0 && box.height > 0 && box.left >= frame.left - 1 && box.right <= frame.right + 1;
  });
  counts[figure.id] = [inside.length, svg[0].querySelectorAll('path.line').length];
}
return counts;
"""

FOCUSED = "const it = document.activeElement; return it.getAttribute('aria-label') || it.textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[dev]'")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(results_folder: Path, tmp_path: Path) -> Path:
    return write_report(results_folder, tmp_path / "report.html").page


@pytest.mark.parametrize("width", WIDTHS)
def test_charts_have_their_marks_and_lines(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)
    long_curve = 10
    assert browser.execute_script(MARKS) == {
        # Five devices but the failed one, of 40 steps each; the reference is a curve of its own.
        "loss-0": [5 * 40, 5],
        **{f"difference-0-{candidate}": [40, 1] for candidate in range(4)},
        # 13 places, four candidates, and one limit that they share.
        "growth-accumulated-0": [4 * 13, 5],
        "growth-local-0": [4 * 13, 5],
        # Six targets, one of them emulated.
        "throughput-0": [5, 0],
        "whole-runs-0": [2, 0],
        "roofline-0-0": [5, 2],
        "phases-0": [6 * 8, 0],
        "whole-phases-0": [5, 0],
        "training-phases": [4, 0],
        "training-loss": [2 * long_curve, 2],
        "evaluation-loss": [4 + 2, 2],
        "evaluation-accuracy": [4 + 2, 2],
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_text_lies_over_another_and_the_page_does_not_scroll_sideways(
    browser: Any, page: Path, width: int, scheme: str
) -> None:
    show(browser, page, width, scheme)
    assert browser.execute_script(OVERLAPS) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert console_errors(browser) == []


def test_the_check_for_overlaps_sees_one(browser: Any, page: Path) -> None:
    show(browser, page, 1280)
    browser.execute_script("const text = document.querySelector('svg.chart text'); text.after(text.cloneNode(true));")
    assert len(browser.execute_script(OVERLAPS)) == 1


def test_the_page_loads_nothing_and_runs_nothing(browser: Any, page: Path) -> None:
    show(browser, page, 1280)
    assert browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert browser.execute_script("return document.scripts.length") == 0


def test_light_and_dark_follow_the_system(browser: Any, page: Path) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        show(browser, page, 1280, scheme)
        grounds[scheme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}


def test_keys_reach_every_section_and_table(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, page, 400)
    body = browser.find_element("tag name", "body")
    reached = []
    for _ in range(60):
        body.send_keys(Keys.TAB)
        reached.append(
            browser.execute_script(
                "const it = document.activeElement; return it.getAttribute('aria-label') || it.textContent"
            )
        )
    assert "Skip to the results" in reached[0]
    assert {"Throughput", "What was found, and how it came out", "Verdicts · random weights"} <= set(reached)
    summary = browser.find_element("css selector", "#loss-0 summary")
    summary.send_keys(Keys.ENTER)
    assert browser.find_element("css selector", "#loss-0 table").is_displayed()


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_and_extreme_figures_keep_apart(
    browser: Any, bench_result: dict[str, Any], tmp_path: Path, width: int
) -> None:
    folder = tmp_path / "extreme"
    folder.mkdir()
    result = copy.deepcopy(bench_result)
    for place, target in enumerate(result["targets"]):
        target["label"] = (
            f"cpu train_step WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW <b>{'very long ' * 12}{place}"
        )
        for figure in target["figures"]["samples_per_second"]:
            target["figures"]["samples_per_second"][figure] *= 10.0 ** (3 * place)
    result["targets"] += [copy.deepcopy(result["targets"][0]) for _ in range(14)]
    same = candidate("cpu:float32 " + "名" * 40, "float32", 0.0)
    exploded = candidate("xla:float32", "float32", 1e12, "diverged")
    exploded["series"]["loss"][20:] = [None] * 20
    for name, document in (("bench", result), ("parity", parity(same, exploded))):
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    write_run(folder / "one step", steps=1)
    write_run(folder / "none", steps=0, ended=False)
    show(browser, write_report(folder, tmp_path / "extreme.html").page, width)
    assert browser.execute_script(OVERLAPS) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert console_errors(browser) == []
