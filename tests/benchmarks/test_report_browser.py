"""The report in a real browser: nothing missing, nothing over anything else, nothing from the network."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from isotrain.albert_core.output import styles
from isotrain.benchmarks.reports.html.write import write_report
from support.browser import CHROMIUM, DRIVER, console_errors, open_browser, show
from support.results import candidate, end_to_end_run, parity, write_run

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
  const inside = [...svg[0].querySelectorAll('.series use, .bar, .part')].filter(mark => {
    const box = mark.getBoundingClientRect(), frame = svg[0].getBoundingClientRect();
    return box.width > 0 && box.height > 0 && box.left >= frame.left - 1 && box.right <= frame.right + 1;
  });
  counts[figure.id] = [inside.length, svg[0].querySelectorAll('.series > path').length];
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


@pytest.fixture(name="page")
def _page(report: Path) -> Path:
    return report


def show_all(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    """Opens the page and everything that is folded in it."""
    show(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details.fold').forEach(fold => { fold.open = true; })")


@pytest.mark.parametrize("width", WIDTHS)
def test_charts_have_their_marks_and_lines(browser: Any, page: Path, width: int) -> None:
    show_all(browser, page, width)
    long_curve = 10
    assert browser.execute_script(MARKS) == {
        # Four valid targets of the bench result and two end-to-end runs.
        "answer": [6, 0],
        # Four candidates of 40 steps each, and the reference, a line without marks.
        "loss-0": [4 * 40, 5],
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
    for look in (show, show_all):
        look(browser, page, width, scheme)
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
    fill = "getComputedStyle(document.querySelector('#answer .bar path')).fill"
    label = "getComputedStyle(document.querySelector('#answer text')).fill"
    for theme, scheme in enumerate(("light", "dark")):
        show(browser, page, 1280, scheme)
        found = browser.execute_script(f"return [getComputedStyle(document.body).backgroundColor, {fill}, {label}]")
        assert found == [rgb(styles.COLOURS[name][theme]) for name in ("page", "s0", "quiet")]


def rgb(colour: str) -> str:
    """A colour as a browser says it."""
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"


def test_the_first_screen_answers(browser: Any, page: Path) -> None:
    show(browser, page, 1280)
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    assert browser.execute_script(bottom, "#answer") < 950
    sentences = browser.execute_script("return [...document.querySelectorAll('#summary p')].map(p => p.innerText)")
    assert sentences[0].startswith("Fastest in forward: cpu forward packed auto x8 (random weights) by portable on")
    assert "Losses agree with cpu:float64: cpu:float32, cpu:bfloat16. Losses do not agree: " in sentences[2]
    assert "Not judged: cuda:float32 (failed), cpu:float32 other (refused)." in sentences[2]


@pytest.mark.parametrize(("width", "most"), [(1280, 8000), (400, 16_000)])
def test_ten_results_are_a_short_page(
    browser: Any, bench_result: dict[str, Any], tmp_path: Path, width: int, most: int
) -> None:
    folder = tmp_path / "ten"
    folder.mkdir()
    for place in range(4):
        (folder / f"bench-{place}.json").write_text(json.dumps(bench_result), encoding="utf-8")
    for place in range(2):
        (folder / f"parity-{place}.json").write_text(json.dumps(parity()), encoding="utf-8")
        (folder / f"whole-{place}.json").write_text(json.dumps(end_to_end_run()), encoding="utf-8")
        write_run(folder / f"run-{place}")
    show(browser, write_report(folder, tmp_path / "ten.html").page, width)
    assert browser.execute_script("return document.documentElement.scrollHeight") < most
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(OVERLAPS) == []


def test_a_link_opens_the_section_that_it_leads_to(browser: Any, page: Path) -> None:
    show(browser, page, 1280)
    table = browser.find_element("css selector", "#environment table")
    assert not table.is_displayed()
    browser.find_element("css selector", "nav a[href='#environment-content']").click()
    assert table.is_displayed()


def test_keys_reach_every_section_and_table(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, page, 400)
    assert "Skip to the results" in reached_by_keys(browser, 1)[0]
    assert {"Throughput", "Verdicts against cpu:float64 · random weights"} <= set(reached_by_keys(browser, 30))
    results = browser.find_element("css selector", "#results summary")
    results.send_keys(Keys.ENTER)
    assert reached_by_keys(browser, 1) == ["What was found, and how it came out"]
    browser.find_element("css selector", "#losses > details > summary").send_keys(Keys.ENTER)
    summary = browser.find_element("css selector", "#loss-0 summary")
    summary.send_keys(Keys.ENTER)
    assert browser.find_element("css selector", "#loss-0 table").is_displayed()


def reached_by_keys(browser: Any, presses: int) -> list[str]:
    """What has the focus after each press of the Tab key."""
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(presses):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.execute_script(FOCUSED))
    return reached


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
    show_all(browser, write_report(folder, tmp_path / "extreme.html").page, width)
    assert browser.execute_script(OVERLAPS) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert console_errors(browser) == []
