"""Read the whole standard library of this Python on every core, and kill every worker in the middle of it.

    python -m examples.codestats.demo [-o codestats.jsonl] [-w N]

What it shows: a real job over real files, some of which do not parse; one line per file in the output, in the order of
the files; and that killing all workers at once loses nothing, which is checked at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import sysconfig
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import shoal
from examples.codestats.report import print_report
from examples.codestats.stats import FileStats, parse_file


@dataclass
class Run:
    """What the report is made of."""

    root: Path
    files: list[str]
    output: str
    rows: int = 0
    lines: int = 0
    functions: int = 0
    longest: list[tuple[int, str, str]] = field(default_factory=list)
    imports: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    wall_s: float = 0.0

    def add(self, path: str, stats: FileStats) -> None:
        self.lines += stats["lines"]
        self.functions += stats["functions"]
        self.imports.update(stats["imports"])
        if longest := stats["longest"]:
            self.longest.append((longest["lines"], longest["name"], path))


def standard_library() -> tuple[Path, list[str]]:
    """Return where this Python's standard library is and its .py files, tests included, installed packages not."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in root.rglob("*.py") if not {"site-packages", "dist-packages"} & set(path.parts)]
    return root, sorted(map(str, files))


def kill_all_workers(pool: shoal.Pool) -> None:
    """End every worker at once, as the system does when memory runs out."""
    workers = pool.workers
    busy = [worker for worker in workers if worker.task]
    for worker in workers:
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it had just been replaced
    print(
        f"killed {len(workers)} workers in the middle on purpose (SIGKILL to pids "
        f"{', '.join(str(worker.pid) for worker in workers)}); {len(busy)} tasks were running"
    )


def run(pool: shoal.Pool, output: str) -> Run:
    """Parse every file, write a line for each, and kill all workers half-way."""
    root, files = standard_library()
    print(f"{len(files):,} files below {root}, {pool._max_workers} workers, results to {output}")
    result = Run(root, files, output)
    started = time.monotonic()
    outcomes = pool.using(retries=1).imap(parse_file, files, errors="return", progress=True)
    with open(output, "w", encoding="utf-8") as out:
        for path, outcome in zip(files, outcomes, strict=True):
            if isinstance(outcome, Exception):
                result.failures.append((path, outcome))
                row = {"file": path, "error": f"{type(outcome).__name__}: {outcome}"}
            else:
                result.add(path, outcome)
                row = {"file": path, **outcome}
            out.write(json.dumps(row) + "\n")
            result.rows += 1
            if result.rows == len(files) // 2:
                kill_all_workers(pool)
    result.wall_s = time.monotonic() - started
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Code statistics of the standard library, with a disaster half-way.")
    parser.add_argument("-o", "--output", default="codestats.jsonl", help="where the results go (default: %(default)s)")
    parser.add_argument("-w", "--workers", type=int, default=None, help="worker processes (default: one per core)")
    options = parser.parse_args()
    with shoal.Pool(options.workers) as pool:
        result = run(pool, options.output)
        statistics = pool.statistics()
    return 0 if print_report(result, statistics) else 1


if __name__ == "__main__":
    sys.exit(main())
