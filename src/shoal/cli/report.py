"""What a run came to: the count while it runs, failures by kind, and the summary at its end.

Role: words. Nothing here knows of processes; the statistics come as the frozen snapshot of `Pool.statistics()`.
Owner: the main thread writes, the progress display only reads.

Invariants
    R1  Memory is bounded by the kinds of failures, not by their number.
    R2  A failure's place is a line of the user's own code where the traceback has one.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from shoal.errors import RemoteError, TaskTimeout, WorkerDied

if TYPE_CHECKING:
    from shoal import PoolStatistics

#: How many kinds of failures a summary shows.
KINDS_SHOWN = 10
#: Columns an example input needs to stand at the end of a line; with fewer it gets its own.
INPUT_ROOM = 30
#: How many tracebacks of one kind are written out.
TRACEBACKS_KEPT = 10

# `traceback` writes `File "x.py", line 3, in f`, and `faulthandler` writes `File "x.py", line 3 in f`.
_FRAME = re.compile(r'File "([^"\n]+)", line (\d+),? in ([^\n]+)')


@dataclass(slots=True)
class Tally:
    """How far a run is. `total` is None while the inputs are not counted."""

    total: int | None
    done: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def settled(self) -> int:
        return self.done + self.failed

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started


@dataclass(slots=True)
class Kind:
    """Failures that have their type and place in common."""

    title: str
    place: str
    message: str
    example: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure in words: `type` and `message` as in the output, `place` in the user's code if known."""

    type: str
    message: str
    place: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Read an error that came back from a worker."""
        text = traceback_of(error)
        if isinstance(error, RemoteError):
            return cls(error.type_name.rpartition(".")[2], str(error), place_in(text), text)
        title = type(error).__qualname__
        if isinstance(error, WorkerDied):
            return cls(title, str(error), place_in(text, newest_first=True), text)
        if isinstance(error, TaskTimeout):
            return cls(title, str(error), "", text)  # each is somewhere else; together they are one kind
        return cls(title, str(error), place_in(text), text)


def traceback_of(error: BaseException) -> str:
    """Return the traceback text an error brought from its worker, or what stands for it."""
    obituary = getattr(error, "obituary", None)
    if obituary is not None:
        return str(obituary)
    cause = error.__cause__
    for holder, name in ((error, "traceback_text"), (cause, "text"), (cause, "tb")):
        text = getattr(holder, name, None)
        if isinstance(text, str):
            return text.strip().strip('"').strip()
    return ""


def place_in(text: str, *, newest_first: bool = False) -> str:
    """Return "in function (file.py:3)" for the last frame that is the user's, or "" if there is no frame."""
    if not newest_first:
        text = text[max(text.rfind("Traceback (most recent call last)"), 0) :]
    frames = [match.groups() for match in _FRAME.finditer(text)]
    if newest_first:
        frames.reverse()
    own = [frame for frame in frames if not _is_library(frame[0])] or frames
    if not own:
        return ""
    file, line, function = own[-1]
    return f"in {function.strip()} ({os.path.basename(file)}:{line})"


def _is_library(file: str) -> bool:
    folder = os.path.dirname(os.__file__) + os.sep
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    return file.startswith((folder, package, "<frozen")) or "site-packages" in file


class Failures:
    """Failures by kind, and a file of tracebacks that is made with the first of them."""

    def __init__(self, tracebacks: str | None) -> None:
        self.tracebacks = tracebacks
        self.kinds: dict[tuple[str, str], Kind] = {}
        self._file: TextIO | None = None

    def add(self, item: str, failure: Failure) -> None:
        kind = self.kinds.setdefault(
            (failure.type, failure.place), Kind(failure.type, failure.place, _first_line(failure.message), item)
        )
        kind.count += 1
        if self.tracebacks is not None and kind.count <= TRACEBACKS_KEPT:
            try:
                self._write(self.tracebacks, item, failure)
            except OSError:
                self.tracebacks = None  # a help for later must not end the run

    def _write(self, path: str, item: str, failure: Failure) -> None:
        if self._file is None:
            self._file = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - until close()
            self._file.write(f"# tracebacks of failed inputs, up to {TRACEBACKS_KEPT} of a kind\n")
        text = failure.traceback or failure.message
        self._file.write(f"\n=== {item}\n{text.rstrip()}\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def lines(self, width: int) -> Iterator[str]:
        """Yield the failures, the most frequent kind first, for a screen of `width` columns."""
        kinds = sorted(self.kinds.values(), key=lambda kind: -kind.count)
        for kind in kinds[:KINDS_SHOWN]:
            yield from _kind_lines(kind, width)
        if len(kinds) > KINDS_SHOWN:
            left = kinds[KINDS_SHOWN:]
            yield f"  … and {len(left)} more kinds, {sum(kind.count for kind in left)} inputs"


def _kind_lines(kind: Kind, width: int) -> Iterator[str]:
    where = f" {kind.place}" if kind.place else ""
    head = f"  {kind.title}{where}: {counted(kind.count, 'input')}"
    lead = ", e.g. " if kind.count > 1 else ", "
    room = width - len(head) - len(lead)
    if room >= min(INPUT_ROOM, len(kind.example)):
        yield head + lead + shortened(kind.example, room, keep_end=True)
    else:
        yield head
        yield f"    {lead[2:]}{shortened(kind.example, width - 10, keep_end=True)}"
    if kind.message:
        yield "    " + shortened(kind.message, width - 4)


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def shortened(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return `text` on one line of at most `width` columns; of a path the end says more than the start."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    width = max(width, 10)
    if len(text) <= width:
        return text
    return "…" + text[1 - width :] if keep_end else text[: width - 1] + "…"


def duration(seconds: float) -> str:
    """Return a time as people write it: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def summary(tally: Tally, statistics: PoolStatistics, *, wall_s: float, ended: str | None) -> Iterator[str]:
    """Yield the lines that close a run: counts, workers lost and why, time and what the cores gave."""
    counts = [f"{tally.done:,} done", f"{tally.failed:,} failed"]
    if statistics.retried:
        counts.append(f"{statistics.retried:,} retried")
    if statistics.timeouts:
        counts.append(f"{statistics.timeouts:,} timed out")
    if ended is not None:
        left = f"{tally.total - tally.settled:,} not done" if tally.total is not None else "stopped early"
        counts.append(f"{left} ({ended})")
    pace = f" ({rate_text(tally.settled / wall_s)})" if tally.settled and wall_s else ""
    yield f"{', '.join(counts)} in {duration(wall_s)}{pace}"
    cpu_s = statistics.cpu_s
    if cpu_s is not None and wall_s > 0:
        gain = f", {cpu_s / wall_s:.1f} times one core" if cpu_s >= 0.1 else ""
        yield f"{counted(statistics.workers, 'worker')}, CPU {duration(cpu_s)}{gain}"
    yield from _losses(statistics)


def _losses(statistics: PoolStatistics) -> Iterator[str]:
    if not statistics.workers_lost:
        return
    causes = Counter(death.cause for death in statistics.deaths)
    yield f"{counted(statistics.workers_lost, 'worker')} lost and replaced:"
    for cause, count in causes.most_common():
        example = next(death for death in reversed(statistics.deaths) if death.cause == cause)
        doing = f"while running {example.task}" if example.task else "while it had no task"
        memory = {"proven": ", out of memory", "likely": ", likely out of memory"}.get(example.out_of_memory, "")
        yield f"  {count} {cause.removeprefix('was ')}{memory}, {'e.g. ' if count > 1 else ''}pid {example.pid} {doing}"


def rate_text(rate: float) -> str:
    if rate >= 10:
        return f"{rate:,.0f}/s"
    if rate >= 0.1:
        return f"{rate:.1f}/s"
    return f"{rate * 60:.1f}/min"


def stderr_width() -> int:
    try:
        return os.get_terminal_size(sys.__stderr__.fileno() if sys.__stderr__ else 2).columns
    except (OSError, ValueError):
        return 120
