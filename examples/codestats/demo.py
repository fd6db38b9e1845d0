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
from shoal.cli import progress


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
    killed: int = 0
    wall_s: float = 0.0

    def add(self, path: str, outcome: FileStats | Exception) -> dict[str, object]:
        """Count what became of one file and return what to write about it."""
        self.rows += 1
        if isinstance(outcome, Exception):
            self.failures.append((path, outcome))
            return {"error": f"{type(outcome).__name__}: {outcome}"}
        self.lines += outcome["lines"]
        self.functions += outcome["functions"]
        self.imports.update(outcome["imports"])
        if longest := outcome["longest"]:
            self.longest.append((longest["lines"], longest["name"], path))
        return {**outcome}


def standard_library() -> tuple[Path, list[str]]:
    """Return where this Python's standard library is and its .py files, tests included, installed packages not."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in root.rglob("*.py") if not {"site-packages", "dist-packages"} & set(path.parts)]
    return root, sorted(map(str, files))


def kill_all_workers(pool: shoal.Pool) -> int:
    """End every worker at once, as the system does when memory runs out; return how many there were."""
    workers = pool.workers
    busy = [worker for worker in workers if worker.task]
    for worker in workers:
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it had just been replaced
    print(
        f"killed all {len(workers)} worker processes in the middle on purpose, by SIGKILL to pids "
        f"{', '.join(str(worker.pid) for worker in workers)}; tasks that were running: {len(busy)}"
    )
    return len(workers)


def run(pool: shoal.Pool, output: str) -> Run:
    """Parse every file, write a line for each, and kill all workers half-way."""
    root, files = standard_library()
    print(f"{len(files):,} files below {root}, {pool._max_workers} workers, results to {output}")
    result = Run(root, files, output)
    started = time.monotonic()
    outcomes = pool.using(retries=1).imap(parse_file, files, errors="return")
    with open(output, "w", encoding="utf-8") as out, progress.follow(pool, len(files)) as tally:
        for path, outcome in zip(files, outcomes, strict=True):
            out.write(json.dumps({"file": path, **result.add(path, outcome)}) + "\n")
            tally.done = result.rows
            if result.rows == len(files) // 2:
                result.killed = kill_all_workers(pool)
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
