"""Chapter 1: the classic listing runs unchanged but for its import."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from examples.article.claims import HANG_LIMIT_S, Chapter, Doing, Sizes, Verdict, seconds

LISTING = Path(__file__).with_name("listing.py").read_text(encoding="utf-8")
OURS, STANDARD = "from shoal import Process\n", "from multiprocessing import Process\n"
METHODS = ("forkserver", "spawn", "fork")


class Ran(NamedTuple):
    """What a program did, as its caller sees it."""

    said: str
    code: int
    took_s: float


def run_program(text: str, method: str | None = None) -> Ran:
    """Save a program and run it, as a reader would."""
    chosen = {"SHOAL_START_METHOD": method} if method else {}
    with tempfile.TemporaryDirectory(prefix="article-") as folder:
        script = Path(folder, "listing.py")
        script.write_text(text, encoding="utf-8")
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, str(script)],
            env=os.environ | chosen,
            capture_output=True,
            text=True,
            timeout=HANG_LIMIT_S,
            check=False,
        )
        return Ran(ended.stdout + ended.stderr, ended.returncode, time.perf_counter() - start)


def changed_lines(one: str, other: str) -> int:
    """Return in how many lines two texts of the same length differ."""
    return sum(here != there for here, there in zip(one.splitlines(), other.splitlines(), strict=True))


def same_program(listing: str, doing: Doing) -> Verdict:
    """Run the listing over `multiprocessing` and over shoal, under each start method, and compare what they did."""
    theirs_text = listing.replace(OURS, STANDARD)
    doing("the listing over multiprocessing")
    theirs = run_program(theirs_text)
    ran = {}
    for method in METHODS:
        doing(f"the listing over shoal, {method}")
        ran[method] = run_program(listing, method)
    holds = all((one.said, one.code) == (theirs.said, 0) for one in ran.values()) and theirs.code == 0
    times = ", ".join(f"{method} {seconds(one.took_s)}" for method, one in ran.items())
    lines, changed = len(listing.splitlines()), changed_lines(listing, theirs_text)
    said = next((one.said for one in ran.values() if one.said != theirs.said), theirs.said).strip()
    figure = (
        f"{changed} of {lines} lines changed, and all say {said!r}: {times} (multiprocessing {seconds(theirs.took_s)})"
    )
    if not holds:
        figure = f"multiprocessing says {theirs.said.strip()!r}, shoal {said!r}"
    return Verdict("the listing runs unchanged but for its import", holds and changed == 1, figure)


def run(_sizes: Sizes, doing: Doing) -> Iterator[Verdict]:
    yield same_program(LISTING, doing)


CHAPTER = Chapter(1, "The listing", "A process is a class with a run() method.", run)
