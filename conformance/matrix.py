"""The matrix: platforms across, features down; each cell its grade and its count. Markdown, and one page of HTML.

Of kernels compiled for chips that need not be there, what each takes of the chip stands below.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .bundle import Bundle
from .case import GOOD, Verdict
from .runner import GRADES, Result
from .summary import SHOWN_FAILURES, KernelSummary, Summary, column_of, kernels_of

LEVELS = {0: "Contract", 1: "Ops", 2: "Attention", 3: "Graphs", 4: "Engine", 5: "Roofline"}
MARKS = {"good": "✓", "part": "◐", "bad": "✗", "none": "\N{EN DASH}"}
MEANINGS = {
    "good": "all pass", "part": "some are refused, with a reason, excused, or a library's", "bad": "some fail",
    "none": "refused, or not run",
}
WORDS = {
    Verdict.FAIL: "failed", Verdict.ERROR: "errors", Verdict.TIMEOUT: "timed out", Verdict.XPASS: "passed though excused",
    Verdict.UNSUPPORTED: "refused", Verdict.XFAIL: "excused", Verdict.UNCOMPILED: "a library's",
}
"""What is not a pass, as the page says it."""
KERNELS = "Kernels compiled for chips that need not be there: configurations, and the most that one of them takes."

@dataclass(frozen=True)
class Cell:
    """One feature, or one level, on one platform."""

    counts: Counter[Verdict]
    grade: str
    """The weakest among its results."""

    @property
    def kind(self) -> str:
        """bad, none, part or good: how it is coloured, and the mark beside the colour."""
        if any(verdict not in GOOD for verdict in self.counts):
            return "bad"
        if not self.counts[Verdict.PASS]:
            return "none"
        return "good" if set(self.counts) == {Verdict.PASS} else "part"

    @property
    def count(self) -> str:
        return f"{self.counts[Verdict.PASS]:,}/{self.counts.total():,}"

    @property
    def rest(self) -> str:
        """What did not pass, in words."""
        return ", ".join(f"{self.counts[verdict]:,} {word}" for verdict, word in WORDS.items() if self.counts[verdict])

    def __add__(self, other: Cell) -> Cell:
        return Cell(self.counts + other.counts, max(self.grade, other.grade, key=GRADES.index))


@dataclass(frozen=True)
class Matrix:
    """rows: (level, feature); columns: platforms, in the order of the bundles. cells: (feature or level, platform)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, str], ...]
    cells: dict[tuple[str | int, str], Cell]
    failures: dict[str, list[Result]]
    kernels: tuple[KernelSummary, ...]


def matrix(bundles: Sequence[Bundle | Summary]) -> Matrix:
    """A case that several bundles of one platform tell counts once, and as failed if one of them says so.

    A summary holds no cases, so it fills the columns that no bundle has; of several for one column, each what those before it lack.
    """
    told: dict[tuple[str, str], Result] = {}
    columns: dict[str, None] = {}
    for bundle in bundles:
        columns |= dict.fromkeys(_columns(bundle))
        for result in bundle.results if isinstance(bundle, Bundle) else ():
            key = column_of(bundle.platform, result.target), result.case
            if key not in told or result.verdict not in GOOD:
                told[key] = result
    found = [(column, result.level, result.feature, Cell(Counter([result.verdict]), result.grade))
             for (column, _), result in told.items()]
    failures = {column: [one for (place, _), one in told.items() if place == column and one.verdict not in GOOD] for column in columns}
    full, known = {column for column, *_ in found}, set[tuple[str, str]]()
    for summary in (one for one in bundles if isinstance(one, Summary)):
        for column, rows in summary.rows.items():
            if column in full:
                continue
            failures[column] = [*failures[column], *summary.failures.get(column, [])]
            found += [(column, level, feature, Cell(Counter({Verdict(one): n for one, n in counts.items()}), grade))
                      for feature, (level, grade, counts) in rows.items() if (column, feature) not in known]
            known |= {(column, feature) for feature in rows}
    cells: dict[tuple[str | int, str], Cell] = {}
    for column, level, feature, one in found:
        for row in (feature, level):
            cells[row, column] = cells[row, column] + one if (row, column) in cells else one
    return Matrix(tuple(columns), tuple(sorted({(level, feature) for _, level, feature, _ in found})), cells, failures, _kernels(bundles))


def _columns(bundle: Bundle | Summary) -> list[str]:
    if isinstance(bundle, Summary):
        return list(bundle.rows)
    return [column_of(bundle.platform, target) for target in bundle.selection.targets or ("",)]


def _kernels(bundles: Sequence[Bundle | Summary]) -> tuple[KernelSummary, ...]:
    """Of bundles together; of a summary, what no bundle tells."""
    codes = {name: code for bundle in bundles if isinstance(bundle, Bundle) for name, code in bundle.codes.items()}
    kept = {(one.kernel, one.target): one for bundle in bundles if isinstance(bundle, Summary) for one in bundle.kernels}
    kept |= {(one.kernel, one.target): one for one in kernels_of(codes.values())}
    return tuple(one for _, one in sorted(kept.items()))


def write(folder: Path, bundles: Sequence[Bundle | Summary]) -> list[Path]:
    """matrix.md and matrix.html."""
    folder.mkdir(parents=True, exist_ok=True)
    table = matrix(bundles)
    files = [(folder / "matrix.md", markdown(table, bundles)), (folder / "matrix.html", page(table, bundles))]
    for path, text in files:
        path.write_text(text, encoding="utf-8")
    return [path for path, _ in files]


def markdown(table: Matrix, bundles: Sequence[Bundle | Summary]) -> str:
    lines = [f"| | {' | '.join(map(_plain, table.columns))} |", f"|---|{'---|' * len(table.columns)}"]
    for level, feature in table.rows:
        shown = (table.cells.get((feature, column)) for column in table.columns)
        lines.append(f"| L{level} {_plain(feature)} | {' | '.join(map(_short, shown))} |")
    legend = ", ".join(f"{MARKS[kind]} {meaning}" for kind, meaning in MEANINGS.items())
    about = (f"- **{_plain(bundle.platform)}**: {'; '.join(_about(bundle))}" for bundle in bundles)
    return "\n".join([*lines, "", f"Passed of all; the grade unless it is device. {legend}.", "", *about, "", *_kernel_lines(table)])


def _targets(table: Matrix) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.target for one in table.kernels))


def _kernel_lines(table: Matrix) -> list[str]:
    if not table.kernels:
        return []
    targets, found = _targets(table), {(one.kernel, one.target): one for one in table.kernels}
    lines = [KERNELS, "", f"| | {' | '.join(map(_plain, targets))} |", f"|---|{'---|' * len(targets)}"]
    for kernel in dict.fromkeys(one.kernel for one in table.kernels):
        shown = (found.get((kernel, target)) for target in targets)
        lines.append(f"| {_plain(kernel)} | {' | '.join(f'{MARKS[_fit(one)]} {_taken(one)}'.strip() for one in shown)} |")
    return [*lines, ""]


def _fit(one: KernelSummary | None) -> str:
    return "none" if one is None else "bad" if one.refused else "good"


def _taken(one: KernelSummary | None) -> str:
    """Configurations, and the most that one takes."""
    if one is None:
        return ""
    wrong = [*([f"{one.spilled_bytes} bytes spill"] if one.spilled_bytes else []), *([f"{one.refused:,} refused"] if one.refused else [])]
    return ", ".join([f"{one.configurations:,}: {one.registers} registers", f"{one.shared_bytes / 1024:.3g} KiB", *wrong])


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one cell."""
    return "".join(f"\\{sign}" if sign in "\\|`*_{}[]<>#" else sign for sign in text.replace("\n", " "))


def _short(cell: Cell | None) -> str:
    if cell is None:
        return MARKS["none"]
    words = [*([cell.grade] if cell.grade != GRADES[0] else []), *([cell.rest] if cell.rest else [])]
    return f"{MARKS[cell.kind]} {cell.count} {', '.join(words)}".rstrip()


def _about(bundle: Bundle | Summary) -> list[str]:
    """The verdict, the counts, and what it was made on."""
    found, said, on = bundle.judgement, bundle.environment, bundle.environment["made_on"][0]
    verdict = "certificate" if found.certificate else "passed, no certificate" if found.passed else "failed"
    why = f" ({'; '.join(found.withheld)})" if found.passed and found.withheld else ""
    counts = ", ".join(f"{n:,} {WORDS.get(Verdict(verdict), 'passed')}" for verdict, n in found.counts.items())
    return [f"{verdict}{why}", f"{counts}", f"suite {said['suite']}, {said['written'][:10]}, {on['machine']}, Python {on['python']}"]


def page(table: Matrix, bundles: Sequence[Bundle | Summary]) -> str:
    """Self-contained: no script, no font and no style from elsewhere. Where the table is too wide, its rows become cards."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body, level = [], -1
    members = Counter(level for level, _ in table.rows)
    for row_level, feature in table.rows:
        if row_level != level and members[row_level] > 1:
            body.append(_row(table, row_level, f"L{row_level} {LEVELS[row_level]}", "level"))
        level, alone = row_level, members[row_level] == 1
        body.append(_row(table, feature, f"L{level} {feature}" if alone else feature, "level" if alone else "feature"))
    return PAGE.format(
        style=STYLE.replace("TOO_NARROW", f"{16 + 11 * len(table.columns)}rem"), head=head, body="\n".join(body),
        cards="".join(map(_card, bundles)), failures="".join(_failures(column, table.failures[column]) for column in table.columns),
        legend="".join(f"<li>{_mark(kind)} {meaning}</li>" for kind, meaning in MEANINGS.items()), kernels=_kernel_table(table),
    )


def _kernel_table(table: Matrix) -> str:
    if not table.kernels:
        return ""
    targets, found = _targets(table), {(one.kernel, one.target): one for one in table.kernels}
    rows = []
    for kernel in dict.fromkeys(one.kernel for one in table.kernels):
        shown = ((target, found.get((kernel, target))) for target in targets)
        cells = "".join(f'<td class="{_fit(one)}" data-platform="{escape(target)}">{MARKS[_fit(one)]} {escape(_taken(one))}</td>'
                        for target, one in shown)
        rows.append(f'<tr class="feature"><th scope="row">{escape(kernel)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(target)}</th>' for target in targets)
    return (f'<h2>Kernels compiled</h2><p>{KERNELS}</p><table class="kernels"><thead><tr><th scope="col">kernel</th>{head}</tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table>')


def _row(table: Matrix, row: str | int, name: str, kind: str) -> str:
    cells = "".join(_cell(table.cells.get((row, column)), column) for column in table.columns)
    return f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{cells}</tr>'


def _cell(cell: Cell | None, column: str) -> str:
    place = f'data-platform="{escape(column)}"'
    if cell is None:
        return f'<td class="none" {place}>{_mark("none")}</td>'
    rest = f'<small class="rest">{escape(cell.rest)}</small>' if cell.rest else ""
    return f'<td class="{cell.kind}" {place}>{_mark(cell.kind)} {cell.count} <small>{escape(cell.grade)}</small>{rest}</td>'


def _mark(kind: str) -> str:
    return f'<span class="mark" title="{MEANINGS[kind]}">{MARKS[kind]}</span>'


def _card(bundle: Bundle | Summary) -> str:
    kind = "good" if bundle.judgement.certificate else "part" if bundle.judgement.passed else "bad"
    verdict, *rest = (escape(line) for line in _about(bundle))
    lines = "".join(f"<p>{line}</p>" for line in rest)
    return f'<li class="{kind}"><b>{escape(bundle.platform)}</b><p>{_mark(kind)} {verdict}</p>{lines}</li>'


def _failures(platform: str, failures: Sequence[Result]) -> str:
    if not failures:
        return ""
    shown = "".join(f"<li><code>{escape(one.case)}</code><p>{escape(f'{one.verdict}: {one.detail}')}</p></li>"
                    for one in failures[:SHOWN_FAILURES])
    more = f"<p>and {len(failures) - SHOWN_FAILURES:,} more, in its bundle</p>" if len(failures) > SHOWN_FAILURES else ""
    return f"<details><summary>{escape(platform)}: {len(failures):,} cases that did not end well</summary><ul>{shown}</ul>{more}</details>"


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5d6671; --paper: #ffffff; --line: #dfe3e8; --band: #f2f4f7;
  --good: #12733a; --part: #8a5a00; --bad: #b3261e; --none: #6b7480; --warn: #fdeceb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --dim: #a2abb5; --paper: #14171a; --line: #2c3238; --band: #1e2328;
  --good: #5fd38a; --part: #f0b650; --bad: #ff8a80; --none: #8e98a3; --warn: #3a2020; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem 1rem 3rem; color: var(--ink); background: var(--paper);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 1.5rem 0 .25rem; } p { margin: 0; color: var(--dim); }
.good .mark { color: var(--good); } .part .mark { color: var(--part); }
.bad .mark { color: var(--bad); } .none .mark { color: var(--none); }
.mark { display: inline-block; width: 1.1em; font-weight: 700; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .5rem;
  list-style: none; padding: 0; margin: 1rem 0; }
.cards li { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; font-size: .85rem; }
.cards b { font-size: 1rem; } .cards b + p { color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; color: var(--dim); font-size: .85rem; }
table { border-collapse: separate; border-spacing: 0; width: 100%; border: 1px solid var(--line); border-radius: .5rem; }
th, td { padding: .3rem .75rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); font-weight: 400; }
td { font-variant-numeric: tabular-nums; } small { color: var(--dim); } .rest { display: block; padding-left: 1.35em; }
td.bad { background: var(--warn); } td.bad .rest { color: var(--bad); }
thead th { position: sticky; top: 0; border-top: 0; font-weight: 700; background: var(--band); }
.level th, .level td { font-weight: 700; background: var(--band); } .level small { font-weight: 400; }
details { margin-top: 1rem; } summary { cursor: pointer; font-weight: 700; } code { font-size: .85rem; } details p { font-size: .85rem; }
@media (max-width: TOO_NARROW) {
  table, tbody { display: block; border: 0; } thead { display: none; }
  tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); border: 1px solid var(--line);
    border-radius: .5rem; margin-top: .5rem; overflow: hidden; }
  th[scope=row] { grid-column: 1 / -1; font-weight: 700; border: 0; } td { border: 0; }
  td::before { content: attr(data-platform); display: block; font-size: .75rem; color: var(--dim); }
  tr.level { margin-top: 1.25rem; } th, td { padding: .3rem .6rem; } td { font-size: .9rem; } }
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
<p>What each platform was shown to do: cases that passed of all, and the weakest grade among them.</p>
<ul class="cards">{cards}</ul>
<ul class="legend">{legend}</ul>
<table>
<thead><tr><th scope="col">feature</th>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
{kernels}
{failures}
</body>
</html>
"""
