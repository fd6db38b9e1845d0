"""Words: the record of a run as JSON, the table on the screen, the page in docs/.

python -m benchmarks.report     render the page again from benchmarks/results/
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks import bars, picture
from benchmarks.contenders import BY_NAME
from benchmarks.model import OURS, Board, Case, Curve, Row, Suite, Summary, judge, show

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "internals" / "benchmarks.md"

Record = dict[str, Any]


# --- the record ---------------------------------------------------------------------------------


def record(
    suite: Suite, cases: Sequence[Case], contenders: Sequence[str], board: Board, skipped: Mapping[str, str]
) -> Record:
    """Put everything a reader or a later program may ask for into one JSON value."""
    present = [name for name in contenders if name not in skipped]
    limits = {row.key: board.summary(suite.limits.key, "machine", row.key) for row in suite.limits.rows}
    rows = [_row(case, row, present, board, limits.get(row.limit or "")) for case in cases for row in case.rows]
    return {
        "suite": suite.name,
        "title": suite.title,
        "contenders": {name: BY_NAME[name].title for name in present},
        "skipped": dict(skipped),
        "rows": rows,
        "limits": {key: _cell(value) for key, value in limits.items() if value and math.isfinite(value.median)},
        "left_behind": _left_behind(cases, present, board),
        "notes": _case_notes(cases, present, board),
    }


def _cell(summary: Summary) -> Record:
    return {"median": summary.median, "low": summary.low, "high": summary.high, "values": list(summary.values)}


def _row(case: Case, row: Row, present: Sequence[str], board: Board, bound: Summary | None) -> Record:
    cells: dict[str, Record] = {}
    for name in present:
        if case.contenders and name not in case.contenders:
            continue
        failures = board.failures(case.key, name)
        found = board.summary(case.key, name, row.key)
        cell: Record = _cell(found) if found else {"reason": board.absence(case.key, name)}
        if failures:
            cell["failed_rounds"] = len(failures)
            cell["failure"] = failures[-1].reason
        if found and bound and bound.median:
            cell["of_limit"] = found.median / bound.median
        cells[name] = cell
    medians = {name: cell["median"] for name, cell in cells.items() if "median" in cell}
    verdict = judge(
        row, medians, failed=bool(board.failures(case.key, OURS)), limit=bound.median if bound is not None else None
    )
    return {
        "key": row.key,
        "case": case.key,
        "title": row.title,
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "limit": row.limit,
        "relative": row.relative,
        "curve": row.curve,
        "at": row.at,
        "line": row.line,
        "target": row.target_text(),
        "best_peer": verdict.best_peer,
        "ratio": verdict.ratio,
        "ratio_to_limit": cells.get(OURS, {}).get("of_limit"),
        "reached": verdict.reached,
        "results": cells,
    }


def _left_behind(cases: Sequence[Case], present: Sequence[str], board: Board) -> dict[str, int]:
    """Most processes that a contender's programs left a second after their end, where there were any."""
    most = {
        name: max((o.left_behind for c in cases for o in board.outcomes(c.key, name)), default=0) for name in present
    }
    return {name: count for name, count in most.items() if count}


def _case_notes(cases: Sequence[Case], present: Sequence[str], board: Board) -> list[str]:
    notes = []
    for case in cases:
        for name in present:
            said = {
                outcome.note for outcome in board.outcomes(case.key, name) if outcome.status == "ok" and outcome.note
            }
            notes += [f"{case.key}, {name}: {text}." for text in sorted(said)]
    return notes


# --- the screen ---------------------------------------------------------------------------------


def cell_text(cell: Mapping[str, Any] | None, unit: str, *, relative: bool = False) -> str:
    if cell is None:
        return ""
    if "median" not in cell:
        return "failed" if "failure" in cell else "n/a"
    multiple = f" ({show(cell['of_limit'], '')})" if relative and "of_limit" in cell else ""
    return show(cell["median"], unit) + multiple + (" !" if "failed_rounds" in cell else "")


def _shown(row: Record, name: str) -> str:
    return cell_text(row["results"].get(name), row["unit"], relative=row.get("relative", False))


def _table_rows(data: Record) -> list[Record]:
    return [row for row in data["rows"] if not row.get("curve")]


def verdict_text(reached: bool | None, target: str) -> str:
    if not target or reached is None:
        return ""
    return "yes" if reached else "no"


def _table_title(data: Record) -> str:
    run = data["run"]
    rounds = f"medians of {run['rounds']} rounds" if run["rounds"] > 1 else "one round"
    return f"{data['title']}: {rounds}{', less of everything than the rows say' if run['quick'] else ''}"


def print_table(data: Record) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # One line per contender and row would be long, one column per contender too wide for most
    # screens: rows down, contenders across, names broken over lines.
    table = Table(box=box.SIMPLE_HEAD, title=_table_title(data), pad_edge=False)
    table.add_column("row", min_width=18, overflow="fold")
    for name in data["contenders"]:
        table.add_column(name.replace("-", "\n"), justify="right")
    for heading in ("÷ best\npeer", "target", "reached"):
        table.add_column(heading, justify="right")
    for row in _table_rows(data):
        cells = [_shown(row, name) for name in data["contenders"]]
        title = f"{row['title']}, {row['unit']}" if row["unit"] else row["title"]
        compared = show(row["ratio"], "")
        table.add_row(title, *cells, compared, row["target"], verdict_text(row["reached"], row["target"]))
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for curve in sorted({row["curve"] for row in data["rows"] if row.get("curve")}):
        if _curve_rows(data, curve):
            console.print(markdown_table(*_curve_cells(data, curve)), markup=False, highlight=False)
    for line in [*_skip_lines(data), *_failure_lines(data), *_left_lines(data), *data["notes"]]:
        console.print(f"- {line}", markup=False, highlight=False)


def _skip_lines(data: Record) -> list[str]:
    return [f"{name} was left out: {reason}." for name, reason in data["skipped"].items()]


def _left_lines(data: Record) -> list[str]:
    return [
        f"{name} left up to {count} processes a second after a program's end."
        for name, count in data["left_behind"].items()
    ]


def _failure_lines(data: Record) -> list[str]:
    lines: dict[str, None] = {}  # in order; the rows of one case failed together
    for row in data["rows"]:
        for name, cell in row["results"].items():
            if "failure" in cell:
                line = f"{name}, {row['case']}: {cell['failed_rounds']} rounds without a figure; {cell['failure']}."
                lines[line] = None
    return list(lines)


# --- the page -----------------------------------------------------------------------------------

HEAD = """\
# Benchmarks

This page is written by `make bench` (`python -m benchmarks.pool` and so on for each part); the text around the tables
is in `benchmarks/report.py` and in the file of each question. Figures say something about the machine they
were measured on and about nothing else: run them on yours.

## Method

- Every case runs in a fresh interpreter, with two workers unless its row says otherwise, and every process of it is
  gone before the next begins.
- Contenders are interleaved: one round runs every row for every contender, side by side, in an order that rotates from
  round to round. A figure is the median of the rounds; the second table shows lowest and highest.
- Each library is used as its manual says, with its defaults, on the same Python. What was set by hand is said below.
- The machine's own limits are measured in each round too: no pool can be faster than the kernel's wake-up.
- A contender without a feature reads n/a, with the reason below the table. A round that failed or hung is counted and
  marked with `!`; a target reached with a failed round does not count as reached.
- Where a figure has another in brackets, that is its multiple of the row's limit, for every contender.
- "÷ best peer" is shoal's figure divided by the best of the others, "÷ limit" the same by what the machine can do at
  best (last table), whichever direction is better.
"""

NOTHING_YET = "No complete run is recorded in this copy of the repository; `make bench` makes one.\n"


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body) + "\n"


def _titled(row: Mapping[str, Any]) -> str:
    return f"{row['title']}, {row['unit']}" if row["unit"] else str(row["title"])


def _machine_lines(data: Record) -> str:
    facts, run = data["machine"], data["run"]
    kind = "virtual machine, " if facts["virtual"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"Machine: {kind}{facts['cpus']} processors ({facts['cpu']}), {facts['memory_gib']:g} GiB; {facts['kernel']}.",
        f"{facts['python']}, {facts['libc']}; {versions}.",
        f"{facts['date']}; rounds: {run['rounds']}, taking {run['took_s']:.0f} s.",
        f"Load before the run {run['load_before']:g}; time the host took away {run['steal_share']:.1%}.",
    ]
    if run["load_before"] > 0.5 or run["steal_share"] > 0.02:
        lines.append("**The machine was not quiet: do not trust these figures.**")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _main_table(data: Record) -> str:
    names = list(data["contenders"])
    header = ["row", *(data["contenders"][name] for name in names), "÷ best peer", "÷ limit", "target", "reached"]
    lines = []
    for row in _table_rows(data):
        cells = [_shown(row, name) for name in names]
        verdict = verdict_text(row["reached"], row["target"])
        compared = [show(row["ratio"], ""), show(row["ratio_to_limit"], "")]
        lines.append([_titled(row), *cells, *compared, row["target"], verdict])
    return markdown_table(header, lines)


def _spread_table(data: Record) -> str:
    names = list(data["contenders"])
    lines = []
    for row in _table_rows(data):
        cells = [row["results"].get(name) or {} for name in names]
        unit = row["unit"]
        texts = [f"{show(c['low'], unit)} to {show(c['high'], unit)}" if "median" in c else "" for c in cells]
        lines.append([_titled(row), *texts])
    return markdown_table(["lowest to highest", *(data["contenders"][name] for name in names)], lines)


def _limits_table(suite: Suite, data: Record) -> str:
    bounded: dict[str, list[str]] = {}
    for row in data["rows"]:
        if row["limit"]:
            bounded.setdefault(row["limit"], []).append(row["key"])
    lines = []
    for row in suite.limits.rows:
        cell = data["limits"].get(row.key)
        if cell and not row.curve:
            range_text = f"{show(cell['low'], row.unit)} to {show(cell['high'], row.unit)}"
            title = f"{row.title}, {row.unit}" if row.unit else row.title
            lines.append([title, show(cell["median"], row.unit), range_text, ", ".join(bounded.get(row.key, ()))])
    return markdown_table(["what the machine can do", "median", "lowest to highest", "bounds row"], lines)


# --- pictures -----------------------------------------------------------------------------------


def _curve_rows(data: Record, curve: str) -> list[Record]:
    """Return the points of a curve, from left to right, as far as anybody got."""
    rows = [row for row in data["rows"] if row.get("curve") == curve]
    return sorted(
        (row for row in rows if any("median" in cell for cell in row["results"].values())), key=itemgetter("at")
    )


def _drawn(suite: Suite, data: Record) -> list[Curve]:
    return [curve for curve in suite.curves if len(_curve_rows(data, curve.key)) > 1]


def _curve_cells(data: Record, curve: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table beside a picture."""
    rows = _curve_rows(data, curve)
    columns = _curve_columns(data, rows)
    places = {row["at"]: row["title"] for row in rows}
    lines = [[title, *(_point_text(found.get(at)) for _, found in columns)] for at, title in places.items()]
    return [f"{curve}, {rows[0]['unit']}", *(title for title, _ in columns)], lines


def _curve_columns(data: Record, rows: Sequence[Record]) -> list[tuple[str, dict[float, float]]]:
    """Return (title, figure by place) of each line of a curve, as far as it has any point, in the contenders' order."""
    found: dict[tuple[str, str], dict[float, float]] = {
        (name, line): {} for name in data["contenders"] for line in dict.fromkeys(row.get("line", "") for row in rows)
    }
    for row in rows:
        for name, cell in row["results"].items():
            if "median" in cell:
                found[name, row.get("line", "")][row["at"]] = cell["median"]
    return [
        (f"{data['contenders'][name]}, {line}" if line else data["contenders"][name], points)
        for (name, line), points in found.items()
        if points
    ]


def _point_text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def curve_lines(suite: Suite, data: Record, curve: Curve) -> list[picture.Line]:
    """Return what a picture shows: the contenders in their order, then what the machine can do."""
    lines = []
    for title, points in _curve_columns(data, _curve_rows(data, curve.key)):
        ours = title.split(",")[0] == data["contenders"].get(OURS) and not any(line.kind == "ours" for line in lines)
        lines.append(picture.Line(title, tuple(points.items()), "ours" if ours else "peer"))
    bounds = [row for row in suite.limits.rows if row.curve and row.curve == curve.reference]
    reference = tuple((row.at, data["limits"][row.key]["median"]) for row in bounds if row.key in data["limits"])
    return [line for line in [*lines, picture.Line(curve.reference_title, reference, "reference")] if line.points]


def bar_lanes(suite: Suite, data: Record) -> list[bars.Lane]:
    """Return a lane for each row in which we and somebody else have a figure; none if the suite wants no such picture."""
    targets = {row.key: row.target for row in suite.rows() if row.target is not None and row.target.of_best}
    lanes = []
    for row in _table_rows(data) if suite.bars else ():
        medians = {name: cell["median"] for name, cell in row["results"].items() if cell.get("median")}
        if OURS not in medians or row["best_peer"] not in medians:
            continue
        best, up, unit = medians[row["best_peer"]], row["higher_is_better"], row["unit"]
        factors = {name: bars.better(value, best, higher_is_better=up) for name, value in medians.items()}
        target = targets.get(row["key"])
        wanted = None if target is None else bars.better(target.value, 1.0, higher_is_better=up)
        figures = (
            f"{_figure(medians[OURS], unit)} beside {_figure(best, unit)} of {data['contenders'][row['best_peer']]}"
        )
        others = tuple(factor for name, factor in factors.items() if name != OURS)
        lanes.append(bars.Lane(row["title"].replace("`", ""), factors[OURS], others, wanted, figures))
    return lanes


def _figure(value: float, unit: str) -> str:
    return f"{show(value, unit)} {unit}".rstrip()


def pictures(suite: Suite, data: Record | None) -> dict[str, str]:
    """Return the pictures of a record, by file name."""
    if data is None:
        return {}
    found = {}
    if lanes := bar_lanes(suite, data):
        found[f"{suite.name}-rows.svg"] = bars.draw(suite.bars, lanes)
    for curve in _drawn(suite, data):
        titles = {row.at: row.title for row in suite.limits.rows if row.curve and row.curve == curve.reference}
        titles |= {row["at"]: row["title"] for row in _curve_rows(data, curve.key)}
        lines = curve_lines(suite, data, curve)
        found[f"{suite.name}-{curve.key}.svg"] = picture.draw(
            curve.title, curve.place, curve.unit, lines, x_text=lambda at, titles=titles: titles.get(at, "")
        )
    return found


def _curve_section(suite: Suite, data: Record, curve: Curve) -> str:
    name = f"{suite.name}-{curve.key}.svg"
    table = markdown_table(*_curve_cells(data, curve.key))
    return f"### {curve.title}\n\n![{curve.title}: {curve.unit} by {curve.place}]({name})\n\n{table}"


def _absence_lines(data: Record) -> list[str]:
    """One line per case and reason: contenders that share a reason share the line."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in _table_rows(data):
        for name, cell in row["results"].items():
            if cell.get("reason") and "failure" not in cell:
                names = grouped.setdefault((row["case"], cell["reason"]), [])
                names += [name] if name not in names else []
    return [f"n/a in {case}, {' and '.join(names)}: {reason}." for (case, reason), names in grouped.items()]


def _section(suite: Suite, data: Record | None) -> str:
    parts = [f"## {suite.title}\n", f"{suite.question}\n"]
    if data is None:
        return "\n".join([*parts, NOTHING_YET, suite.notes])
    remarks = [*_skip_lines(data), *_absence_lines(data), *_failure_lines(data), *_left_lines(data), *data["notes"]]
    parts += [
        _machine_lines(data),
        f"![{suite.bars}]({suite.name}-rows.svg)\n" if bar_lanes(suite, data) else "",
        _main_table(data),
        _notes(remarks),
        "How the rows were measured, and what they leave out:\n",
    ]
    parts += [
        suite.notes,
        *(_curve_section(suite, data, curve) for curve in _drawn(suite, data)),
        "### Spread\n",
        _spread_table(data),
        "### Limits of the machine\n",
        _limits_table(suite, data),
    ]
    return "\n".join(part for part in parts if part)


def _notes(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def page_text(sections: Iterable[tuple[Suite, Record | None]]) -> str:
    return "\n".join([HEAD, *(_section(suite, data) for suite, data in sections)])


def write_page(suites: Sequence[Suite]) -> Path:
    """Render the page from what is stored in benchmarks/results/."""
    sections = []
    for suite in suites:
        stored = RESULTS / f"{suite.name}.json"
        sections.append((suite, json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else None))
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    for suite, data in sections:
        for name, text in pictures(suite, data).items():
            (PAGE.parent / name).write_text(text, encoding="utf-8")
    PAGE.write_text(page_text(sections), encoding="utf-8")
    return PAGE


def main() -> None:
    from benchmarks.suites import SUITES

    print(write_page(SUITES))


if __name__ == "__main__":
    main()
