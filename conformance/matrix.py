"""The matrix: platforms across, features down; each cell its grade and its count. Markdown, and one page of HTML."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .bundle import Bundle
from .case import GOOD, Verdict

LEVELS = {0: "Contract", 1: "Ops", 2: "Attention", 3: "Graphs", 4: "Engine", 5: "Roofline"}
GRADES = ("device", "compiled", "interpreted")
"""From the strongest proof to the weakest; a cell shows the weakest among its results."""


@dataclass(frozen=True)
class Cell:
    """One feature on one platform."""

    counts: Counter[str]
    grade: str

    @property
    def passed(self) -> int:
        return self.counts[Verdict.PASS]

    @property
    def asked(self) -> int:
        """Cases that the platform did not refuse."""
        return sum(self.counts.values()) - self.counts[Verdict.UNSUPPORTED]

    @property
    def kind(self) -> str:
        """bad, none, part or good: how it is coloured, and the word behind the colour."""
        if any(verdict not in GOOD for verdict in self.counts):
            return "bad"
        if not self.passed:
            return "none"
        return "part" if self.counts[Verdict.UNSUPPORTED] or self.counts[Verdict.XFAIL] else "good"

    @property
    def words(self) -> str:
        """Every count, for a reader who points at the cell."""
        return ", ".join(f"{n} {verdict}" for verdict, n in sorted(self.counts.items()))


MARKS = {"good": "✓", "part": "◐", "bad": "✗", "none": "–"}


@dataclass(frozen=True)
class Matrix:
    """rows: (level, feature); columns: platforms, in the order of the bundles."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, str], ...]
    cells: dict[tuple[str, str], Cell]


def matrix(bundles: Sequence[Bundle]) -> Matrix:
    cells: dict[tuple[str, str], Cell] = {}
    rows: dict[tuple[int, str], None] = {}
    for bundle in bundles:
        for result in bundle.results:
            rows[result.level, result.feature] = None
            place = (result.feature, bundle.platform)
            old = cells.get(place, Cell(Counter(), GRADES[0]))
            grade = max(old.grade, result.grade, key=lambda one: GRADES.index(one) if one in GRADES else len(GRADES))
            cells[place] = Cell(old.counts + Counter([str(result.verdict)]), grade)
    columns = tuple(dict.fromkeys(bundle.platform for bundle in bundles))
    return Matrix(columns, tuple(sorted(rows, key=lambda row: row[0])), cells)


def write(folder: Path, bundles: Sequence[Bundle]) -> list[Path]:
    """matrix.md and matrix.html."""
    folder.mkdir(parents=True, exist_ok=True)
    table = matrix(bundles)
    files = [(folder / "matrix.md", markdown(table, bundles)), (folder / "matrix.html", page(table, bundles))]
    for path, text in files:
        path.write_text(text, encoding="utf-8")
    return [path for path, _ in files]


def markdown(table: Matrix, bundles: Sequence[Bundle]) -> str:
    lines = [f"| | {' | '.join(table.columns)} |", f"|---|{'---|' * len(table.columns)}"]
    for level, feature in table.rows:
        shown = (table.cells.get((feature, column)) for column in table.columns)
        lines.append(f"| L{level} {feature} | {' | '.join(_short(cell) for cell in shown)} |")
    legend = "✓ all pass, ◐ some are refused or excused, ✗ some fail, – refused or not run; passed/asked, and the grade unless it is device."
    return "\n".join([*lines, "", legend, "", *(f"- **{bundle.platform}**: {_about(bundle)}" for bundle in bundles), ""])


def _short(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    grade = "" if cell.grade == "device" else f" {cell.grade}"
    return f"{MARKS[cell.kind]} {cell.passed}/{cell.asked}{grade}"


def _about(bundle: Bundle) -> str:
    found, said = bundle.judgement, bundle.environment
    verdict = "certificate" if found.certificate else "passed, no certificate" if found.passed else "failed"
    return f"{verdict}; {sum(found.counts.values()):,} cases of suite {said['suite']}, {said['written'][:10]}, {said['machine']}, Python {said['python']}"


def page(table: Matrix, bundles: Sequence[Bundle]) -> str:
    """Self-contained: no script, no font and no style from elsewhere."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body, level = [], None
    for row_level, feature in table.rows:
        if row_level != level:
            level = row_level
            body.append(f'<tr class="level"><th scope="colgroup" colspan="{len(table.columns) + 1}">L{level} · {LEVELS.get(level, "")}</th></tr>')
        cells = "".join(_cell(table.cells.get((feature, column)), column) for column in table.columns)
        body.append(f'<tr><th scope="row">{escape(feature)}</th>{cells}</tr>')
    cards = "".join(_card(bundle) for bundle in bundles)
    legend = "".join(f'<li><span class="mark {kind}">{MARKS[kind]}</span> {text}</li>' for kind, text in (
        ("good", "all pass"), ("part", "some are refused, with a reason, or excused"), ("bad", "some fail"), ("none", "refused, or not run")))
    return PAGE.format(style=STYLE, head=head, body="\n".join(body), cards=cards, legend=legend)


def _cell(cell: Cell | None, column: str) -> str:
    if cell is None:
        return f'<td class="none" data-platform="{escape(column)}"><span class="mark none">–</span></td>'
    grade = f'<small>{escape(cell.grade)}</small>'
    return (f'<td class="{cell.kind}" data-platform="{escape(column)}" title="{escape(cell.words)}">'
            f'<span class="mark {cell.kind}">{MARKS[cell.kind]}</span> <b>{cell.passed:,}</b>/{cell.asked:,} {grade}</td>')


def _card(bundle: Bundle) -> str:
    kind = "good" if bundle.judgement.certificate else "part" if bundle.judgement.passed else "bad"
    return f'<li class="card"><span class="mark {kind}">{MARKS[kind]}</span><div><b>{escape(bundle.platform)}</b><p>{escape(_about(bundle))}</p></div></li>'


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5d6671; --paper: #ffffff; --line: #dfe3e8; --band: #f4f6f8;
  --good: #12733a; --part: #8a5a00; --bad: #b3261e; --none: #6b7480; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --dim: #a2abb5; --paper: #14171a; --line: #2c3238; --band: #1c2024;
  --good: #5fd38a; --part: #f0b650; --bad: #ff8a80; --none: #8e98a3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem; color: var(--ink); background: var(--paper);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; } p { margin: 0; color: var(--dim); }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; margin: 1rem 0; }
.card { flex: 1 1 18rem; display: flex; gap: .6rem; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.card p { font-size: .85rem; }
.wrap { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .75rem; text-align: left; border-top: 1px solid var(--line); white-space: nowrap; }
thead th { border-top: 0; position: sticky; top: 0; background: var(--band); }
tbody th[scope=row], thead th:first-child { position: sticky; left: 0; background: var(--paper); font-weight: 500; }
thead th:first-child { background: var(--band); z-index: 1; }
.level th { background: var(--band); font-size: .8rem; letter-spacing: .03em; color: var(--dim); text-transform: uppercase; }
td { font-variant-numeric: tabular-nums; } td small { color: var(--dim); }
.mark { font-weight: 700; } .mark.good { color: var(--good); } .mark.part { color: var(--part); }
.mark.bad { color: var(--bad); } .mark.none { color: var(--none); }
@media (max-width: 40rem) { body { padding: 1rem .5rem 2rem; font-size: 14px; } th, td { padding: .35rem .5rem; } td small { display: block; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Inferplane conformance</title>
<style>{style}</style>
</head>
<body>
<h1>Inferplane conformance</h1>
<p>What each platform was shown to do: cases passed of those it did not refuse, and the grade of the proof.</p>
<ul>{cards}</ul>
<ul>{legend}</ul>
<div class="wrap"><table>
<thead><tr><th scope="col">feature</th>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
</body>
</html>
"""
