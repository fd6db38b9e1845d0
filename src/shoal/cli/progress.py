"""Show how far a run is, on standard error: a live display on a terminal, plain lines elsewhere, or nothing.

Role: drawing. It reads a `Tally` and `pool.workers`, both of which may be read from any thread, and owns neither.
Owner: whoever entered the display; each display has one thread that redraws, gone when the display is left.

Invariants
    P1  `rich` is imported by the live display only.
    P2  While a display is entered, every line for the same screen goes through its `say` or `show`.
    P3  A worker that does odd things to `pool.workers` costs a line of the display, never the run.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from shoal.cli.report import Tally, duration, rate_text, shortened

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from shoal import Pool, WorkerInfo

#: Seconds between two plain lines, and between two live frames.
PLAIN_EVERY_S = 3.0
LIVE_EVERY_S = 0.15
#: How many workers get a line of their own; of more, those are shown that have run longest.
WORKER_LINES = 12
#: The rate and the time left are judged by the latest so many seconds.
RATE_WINDOW_S = 20.0

Workers = Callable[[], Sequence["WorkerInfo"]]


class Display(Protocol):
    """What a run sees of its display. `show` prints results on the screen the display draws on, if it does."""

    show: Callable[[str], None] | None

    def say(self, text: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Pace:
    """The rate of late, from samples of the tally."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._samples: deque[tuple[float, int]] = deque([(tally.started, 0)])

    def rate(self) -> float:
        """Take a sample and return inputs per second over the window."""
        now, settled = time.monotonic(), self._tally.settled
        self._samples.append((now, settled))
        while len(self._samples) > 2 and now - self._samples[1][0] > RATE_WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        return (settled - before) / (now - then) if now > then else 0.0

    def left(self, rate: float) -> str | None:
        """Return the time left in words, or None when there is no telling."""
        if self._tally.total is None or rate <= 0:
            return None
        return duration((self._tally.total - self._tally.settled) / rate)


def progress_line(tally: Tally, pace: Pace) -> str:
    """Return one plain line: ``1,200 of 3,400 (35 %), 410/s, 5.4 s left, 3 failed``."""
    rate = pace.rate()
    if tally.total is None:
        parts = [f"{tally.settled:,} done"]
    else:
        share = 100 * tally.settled // tally.total if tally.total else 100
        parts = [f"{tally.settled:,} of {tally.total:,} ({share} %)"]
    if rate:
        parts.append(rate_text(rate))
    if left := pace.left(rate):
        parts.append(f"{left} left")
    if tally.failed:
        parts.append(f"{tally.failed:,} failed")
    return ", ".join(parts)


class Quiet:
    """No display; what must be said is said."""

    show: Callable[[str], None] | None = None

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Lines(Quiet):
    """A plain line every few seconds, for logs and pipes."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._pace = Pace(tally)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shoal-cli-progress", daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(PLAIN_EVERY_S):
            self.say(progress_line(self._tally, self._pace))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


class Live:
    """A bar and a line per worker, redrawn in place and gone at the end."""

    def __init__(self, tally: Tally, workers: Workers, *, results_here: bool) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._console = Console(stderr=True, highlight=False)
        self._live = RichLive(
            _Frame(tally, workers),
            console=self._console,
            refresh_per_second=1 / LIVE_EVERY_S,
            transient=True,
        )
        self.show: Callable[[str], None] | None = self._show if results_here else None

    def _show(self, text: str) -> None:
        self._console.out(text, end="", highlight=False)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, emoji=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class _Frame:
    """What the live display draws, made anew for each frame."""

    def __init__(self, tally: Tally, workers: Workers) -> None:
        self._tally = tally
        self._workers = workers
        self._pace = Pace(tally)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._bar(options.max_width)
        try:
            workers = self._workers()
        except Exception:
            return  # P3
        yield from _worker_lines(workers, options.max_width, options.max_height - 3)

    def _bar(self, width: int) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        tally, rate = self._tally, self._pace.rate()
        total = tally.total
        left = self._pace.left(rate)
        cells: list[RenderableType] = []
        if total is None:
            cells.append(Text(f"{tally.settled:,} done", style="bold"))
        else:
            cells.append(Text(f"{tally.settled:,}/{total:,}", style="bold"))
            cells.append(ProgressBar(total or 1, tally.settled if total else 1, width=max(8, min(40, width - 50))))
            cells.append(Text(f"{100 * tally.settled // total if total else 100:3d} %"))
        if rate:
            cells.append(Text(rate_text(rate), style="cyan"))
        cells.append(Text(f"{left} left" if left else duration(tally.elapsed_s)))
        if tally.failed:
            cells.append(Text(f"{tally.failed:,} failed", style="bold red"))
        table = Table.grid(padding=(0, 1))
        for _ in cells:
            table.add_column(no_wrap=True)
        table.add_row(*cells)
        return table


def _worker_lines(workers: Sequence[WorkerInfo], width: int, room: int) -> Iterator[RenderableType]:
    from rich.text import Text

    shown = [worker for worker in workers if worker.state != "spare"]
    room = max(1, min(room, WORKER_LINES))
    hidden = len(shown) - room
    if hidden > 0:
        shown = sorted(shown, key=lambda worker: -(worker.running_s or 0.0))[:room]
        shown.sort(key=lambda worker: worker.number)
    for worker in shown:
        yield Text(worker_line(worker, width), style="" if worker.state == "busy" else "dim", no_wrap=True)
    if hidden > 0:
        yield Text(f"  … and {hidden} more workers", style="dim")


def worker_line(worker: WorkerInfo, width: int) -> str:
    """Return ``  pid 4711   12.3 s  parse('a.py')``, cut to `width`."""
    seconds = f"{worker.running_s:6.1f} s" if worker.running_s is not None else " " * 8
    name = f"pid {worker.pid}" if worker.pid else "new"  # it has no pid until it has started
    start = f"  {name:<11} {seconds}  "
    text = worker.task or worker.state
    return start + shortened(text, width - len(start) - 1, keep_end=True)


def choose(wanted: bool | None, tally: Tally, workers: Workers, *, results_here: bool, typing: bool = False) -> Display:
    """Return the display for this standard error.

    Args:
        wanted: True or False as asked for; None shows a live display on a terminal and nothing elsewhere.
        tally: What the run counts in.
        workers: Gives the workers as they are now.
        results_here: Whether results are printed on the same terminal.
        typing: Whether somebody types the inputs there; a display would draw over them.
    """
    terminal = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "")
    if wanted is False or (wanted is None and (typing or not terminal)):
        return Quiet()
    return Live(tally, workers, results_here=results_here) if terminal else Lines(tally)


@contextmanager
def follow(pool: Pool, total: int | None, *, wanted: bool | None = None) -> Iterator[Tally]:
    """Show the progress of something `pool` does; the caller counts in the tally it gets."""
    tally = Tally(total)
    with choose(wanted, tally, lambda: pool.workers, results_here=False):
        yield tally
