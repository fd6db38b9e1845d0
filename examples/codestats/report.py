"""The screen at the end of the demo. Nothing about processes here."""

from __future__ import annotations

import json
import os
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import shoal
    from examples.codestats.demo import Run

TOP = 10
FAILURES_SHOWN = 20


def print_report(run: Run, statistics: shoal.PoolStatistics) -> bool:
    """Print what was found and what became of the killed workers; return whether nothing was lost."""
    console = Console(highlight=False)
    console.print(Columns([_longest(run), _imports(run)], padding=(0, 4)))
    console.print(_totals(run, statistics))
    _print_failures(console, run)
    return _print_check(console, run, statistics)


def _print_failures(console: Console, run: Run) -> None:
    console.print(f"[bold]{len(run.failures)} files do not parse[/bold] (test data that must not)")
    for path, error in run.failures[:FAILURES_SHOWN]:
        line = f"  {os.path.relpath(path, run.root)}: {type(error).__name__}: {_one_line(error)}"
        console.print(line, markup=False, overflow="ellipsis", no_wrap=True)
    if len(run.failures) > FAILURES_SHOWN:
        console.print(f"  … and {len(run.failures) - FAILURES_SHOWN} more")


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "msg", error)).split())


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        numeric = column in {"lines", "files"}
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
    return table


def _longest(run: Run) -> Table:
    table = _table("longest functions", "lines", "function", "file")
    for lines, name, path in sorted(run.longest, reverse=True)[:TOP]:
        table.add_row(f"{lines:,}", name, os.path.relpath(path, run.root))
    return table


def _imports(run: Run) -> Table:
    table = _table("most imported", "files", "module")
    for module, count in run.imports.most_common(TOP):
        table.add_row(f"{count:,}", module)
    return table


def _totals(run: Run, statistics: shoal.PoolStatistics) -> Table:
    table = Table.grid(padding=(0, 2))
    cpu_s = statistics.cpu_s
    table.add_row("read", f"{run.rows:,} files, {run.lines:,} lines, {run.functions:,} functions")
    table.add_row("time", f"{run.wall_s:.1f} s for {cpu_s:.1f} s of work: {cpu_s / run.wall_s:.2f} times one core")
    table.add_row("per core", f"{run.rows / cpu_s:,.0f} files/s, {run.lines / cpu_s:,.0f} lines/s")
    table.add_row("results", run.output)
    return table


def _print_check(console: Console, run: Run, statistics: shoal.PoolStatistics) -> bool:
    """Compare what was written with what was asked for: every file once, and no task lost with its worker."""
    with open(run.output, encoding="utf-8") as file:
        written = [json.loads(line)["file"] for line in file]
    lost = [path for path, error in run.failures if isinstance(error, BrokenProcessPool)]
    whole = written == run.files and not lost
    console.print(
        f"\nall {run.killed} worker processes were killed half-way on purpose. Tasks that were running, run again (retries=1): "
        f"{statistics.retried}. Tasks that waited behind them, given to other workers: {statistics.requeued}."
    )
    sign, style = (
        ("nothing was lost", "bold green") if whole else (f"{len(lost)} LOST, RESULTS ARE MISSING", "bold red")
    )
    console.print(f"check: {len(run.files):,} files, {len(written):,} results, each once: [{style}]{sign}[/{style}]")
    return whole
