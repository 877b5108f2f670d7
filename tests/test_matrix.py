"""The matrix shows every cell to a person: in Markdown, in HTML, in a real browser, wide and narrow, light and dark."""
from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from inferplane.conformance import matrix
from inferplane.conformance.bundle import Bundle, judgement
from inferplane.conformance.case import Case, Verdict
from inferplane.conformance.cases import FAMILIES
from inferplane.conformance.runner import Result
from inferplane.conformance.select import Selection
from inferplane.conformance.summary import summary_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars",
)
MARKUP = '<b onclick="x">&acme|*</b>'
EACH = 4
"""Cases of a family in a made-up bundle."""


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [case for family in FAMILIES.values() for case in list(family.cases())[:EACH]]


def made(platform: str, cases: Sequence[Case], grade: str = "device", **verdicts: Verdict) -> Bundle:
    """Every case passes but the last of each feature that begins with a name in `verdicts`."""
    last = {case.feature: case for case in cases}
    results = []
    for case in cases:
        told = [verdict for start, verdict in verdicts.items() if case.feature.startswith(start) and last[case.feature] is case]
        results.append(Result(case.id, case.feature, case.level, told[0] if told else Verdict.PASS, grade, f"<i>{platform}</i>", (), 0.1))
    environment = {
        "suite": "1.0", "written": "2027-01-02T03:04:05+00:00", "made_on": [{"machine": "Linux <6>", "python": "3.11.9", "packages": {}}],
        "manifest": "", "selection": {},
    }
    selection = Selection()
    return Bundle(Path("nowhere"), platform, selection, environment, results, judgement(results, selection, cases, ()))


@pytest.fixture(scope="module")
def bundles(cases: list[Case]) -> list[Bundle]:
    ops = [case for case in cases if case.level < 3]
    return [
        made("reference", cases), made(MARKUP, cases, "interpreted", attention=Verdict.FAIL, sample=Verdict.TIMEOUT),
        made("tpu:v5e", ops, "compiled", rope=Verdict.UNSUPPORTED, norm=Verdict.XFAIL),
    ]


@pytest.fixture(scope="module")
def table(bundles: list[Bundle]) -> matrix.Matrix:
    return matrix.matrix(bundles)


class Cells(HTMLParser):
    """What a page's table says: (row, platform) -> text; every tag and attribute, for what must not be there."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: dict[tuple[str, str], str] = {}
        self.columns: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: dict[str, set[str]] = {}
        self.open: list[str] = []
        self.row = self.platform = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        said = {name: value or "" for name, value in attrs}
        for name, value in said.items():
            self.attributes.setdefault(name, set()).add(value)
        self.open.append(tag)
        if tag == "tr":
            self.row = ""
        if tag == "td":
            self.platform = said["data-platform"]
            self.cells[self.row, self.platform] = ""

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[self.row, self.platform] += data
        elif "thead" in self.open and "th" in self.open:
            self.columns.append(data)
        elif "tbody" in self.open and "th" in self.open:
            self.row += data


# What it counts


def test_a_cell_has_the_counts_and_the_weakest_grade(table: matrix.Matrix) -> None:
    cell = table.cells["attention.decode", MARKUP]
    assert (cell.kind, cell.count, cell.grade, cell.rest) == ("bad", "3/4", "interpreted", "1 failed")
    assert [table.cells[feature, "tpu:v5e"].rest for feature in ("rope.plain", "norm.rms")] == ["1 refused", "1 excused"]
    assert {table.cells["attention.decode", column].kind for column in ("reference", "tpu:v5e")} == {"good"}


def test_a_level_sums_up_its_features(table: matrix.Matrix) -> None:
    whole = [table.cells[feature, MARKUP] for level, feature in table.rows if level == 2]
    assert table.cells[2, MARKUP].counts == sum((cell.counts for cell in whole), Counter())


def test_features_stand_in_the_order_of_levels_then_names(table: matrix.Matrix, cases: list[Case]) -> None:
    assert list(table.rows) == sorted({(case.level, case.feature) for case in cases})
    assert len(table.rows) >= 40


def test_a_case_in_two_bundles_counts_once_and_a_failure_is_not_covered_up(cases: list[Case]) -> None:
    good, bad = made("acme", cases), made("acme", cases, "interpreted", linear=Verdict.ERROR)
    for pair in ([good, bad], [bad, good]):
        cell = matrix.matrix(pair).cells["linear.plain", "acme"]
        assert cell.counts == {Verdict.PASS: EACH - 1, Verdict.ERROR: 1}


def test_a_feature_of_which_all_is_refused_passed_nothing(cases: list[Case]) -> None:
    [one] = [case for case in cases if case.family.name == "linear.plain"][:1]
    cell = matrix.matrix([made("acme", [one], linear=Verdict.UNSUPPORTED)]).cells["linear.plain", "acme"]
    assert (cell.kind, cell.count, cell.rest) == ("none", "0/1", "1 refused")


# Markdown


def test_markdown_has_every_cell(table: matrix.Matrix, bundles: list[Bundle]) -> None:
    lines = matrix.markdown(table, bundles).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): re.split(r"(?<!\\)\|", line)[2:-1] for line in lines[2 : 2 + len(table.rows)]}
    assert list(rows) == [f"L{level} {feature}".replace("_", r"\_") for level, feature in table.rows]
    assert {len(cells) for cells in rows.values()} == {len(table.columns)}
    assert rows["L2 attention.decode"] == [" ✓ 4/4 ", " ✗ 3/4 interpreted, 1 failed ", " ✓ 4/4 compiled "]


def test_markdown_escapes_what_a_platform_is_called(table: matrix.Matrix, bundles: list[Bundle]) -> None:
    text = matrix.markdown(table, bundles)
    assert text.splitlines()[0].count(" | ") == 3
    assert "<b" not in text.replace(r"\<b", "")


# HTML


def expected(table: matrix.Matrix) -> dict[tuple[str, str], matrix.Cell | None]:
    """What the page must say: each feature, and each level that has several."""
    members = Counter(level for level, _ in table.rows)
    shown: dict[str, str | int] = {f"L{level} {feature}" if members[level] == 1 else feature: feature for level, feature in table.rows}
    shown |= {f"L{level} {matrix.LEVELS[level]}": level for level, count in members.items() if count > 1}
    return {(name, column): table.cells.get((row, column)) for name, row in shown.items() for column in table.columns}


def expect_every_cell(page: str, table: matrix.Matrix) -> None:
    found, right = Cells(page), expected(table)
    assert found.columns == ["feature", *table.columns]
    assert found.cells.keys() == right.keys()
    for place, cell in right.items():
        words = found.cells[place].split()
        if cell is None:
            assert words == [matrix.MARKS["none"]]
        else:
            grade, *rest = f"{cell.grade}{cell.rest}".split()
            assert words == [matrix.MARKS[cell.kind], cell.count, grade, *rest]


def test_html_has_every_cell_with_its_grade(table: matrix.Matrix, bundles: list[Bundle]) -> None:
    expect_every_cell(matrix.page(table, bundles), table)


def test_html_escapes_names_and_details(table: matrix.Matrix, bundles: list[Bundle]) -> None:
    found = Cells(matrix.page(table, bundles))
    assert found.tags["b"] == len(bundles), "the cards' own"
    assert found.tags["i"] == 0 and "onclick" not in found.attributes
    assert found.attributes["data-platform"] == {"reference", MARKUP, "tpu:v5e"}


def test_html_needs_nothing_from_elsewhere(table: matrix.Matrix, bundles: list[Bundle]) -> None:
    page = matrix.page(table, bundles)
    found = Cells(page)
    assert not found.tags.keys() & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not found.attributes.keys() & {"src", "href", "srcset", "style"}
    assert not [name for name in found.attributes if name.startswith("on")]
    assert not re.search(r"https?:|//|@import|url\(", page)


def test_html_lists_what_failed_and_says_who_has_a_certificate(table: matrix.Matrix, bundles: list[Bundle], cases: list[Case]) -> None:
    page = matrix.page(table, bundles)
    failures, failing = table.failures[MARKUP], {case.feature for case in cases if case.feature.startswith(("attention", "sample"))}
    assert len(failures) == len(failing) > 8 and all(f"<code>{one.case}</code>" in page for one in failures)
    assert page.count("<details>") == 1 and f"{len(failing)} cases that did not end well" in page
    assert "✓</span> certificate" in page
    assert "passed, no certificate (" in page and "results at grade compiled)" in page


def test_both_files_are_written(bundles: list[Bundle], tmp_path: Path) -> None:
    made = matrix.write(tmp_path / "new", bundles)
    assert [path.name for path in made] == ["matrix.md", "matrix.html"] and all(path.stat().st_size for path in made)


# A real browser

HOST = """<!doctype html><body><iframe width="WIDTH" height="900" style="border: 0" srcdoc="PAGE"></iframe><pre></pre><script>
const frame = document.querySelector('iframe');
frame.onload = () => {
  const page = frame.contentDocument, cells = [...page.querySelectorAll('td[data-platform], tbody th')];
  const whole = cells.filter(c => { const r = c.getBoundingClientRect();
    return r.width > 110 && r.height > 10 && r.left >= 0 && r.right <= frame.width && c.scrollWidth <= c.clientWidth + 1; });
  const colour = (what, name) => frame.contentWindow.getComputedStyle(page.querySelector(what))[name];
  document.body.dataset.probe = [page.documentElement.scrollWidth, cells.length, whole.length,
    colour('body', 'backgroundColor'), colour('td.good .mark', 'color')].join(';');
  document.querySelector('pre').textContent = page.documentElement.outerHTML;
};
</script>"""
"""A page of any width: a window has a least one."""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_a_browser_shows_every_cell(width: int, dark: bool, table: matrix.Matrix, bundles: list[Bundle], tmp_path: Path) -> None:
    host = tmp_path / "host.html"
    host.write_text(HOST.replace("WIDTH", str(width)).replace("PAGE", escape(matrix.page(table, bundles))), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [str(CHROMIUM), *FLAGS, scheme, "--window-size=1300,1000", f"--user-data-dir={tmp_path / 'profile'}",
               "--dump-dom", host.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    probe, shown = re.search(r'data-probe="([^"]*)"', dom), re.search(r"<pre>(.*)</pre>", dom, re.DOTALL)
    assert probe is not None and shown is not None
    scroll, cells, whole, background, mark = probe[1].split(";")
    assert int(scroll) == width, "the page never scrolls sideways"
    assert int(cells) == len({row for row, _ in expected(table)}) * (1 + len(table.columns))
    assert whole == cells, "every cell lies inside the window, and none is cut off"
    assert contrast(background, mark) >= 4.5
    assert (light(background) < 0.2) == dark
    expect_every_cell(unescape(shown[1]), table)


def light(colour: str) -> float:
    """The luminance of a CSS colour, by WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    darker, brighter = sorted((light(one), light(other)))
    return (brighter + 0.05) / (darker + 0.05)


def test_summaries_of_one_platform_fill_each_others_gaps(cases: list[Case]) -> None:
    ops, graphs = ([case for case in cases if case.feature.startswith(name)] for name in ("norm.", "graph."))
    kept = [summary_of(made("acme", some)) for some in (ops, [*ops[:1], *graphs])]
    table = matrix.matrix(kept)
    assert table.columns == ("acme",)
    assert {feature for _, feature in table.rows} == {case.feature for case in [*ops, *graphs]}
    assert sum(table.cells[ops[0].feature, "acme"].counts.values()) == sum(case.feature == ops[0].feature for case in ops)
