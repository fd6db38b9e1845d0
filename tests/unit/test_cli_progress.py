"""The progress display says how far, how fast and what each worker does, in whatever room there is."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from shoal.cli import progress
from shoal.cli.report import Tally


def worker(number: int, task: str | None = None, running_s: float | None = None) -> SimpleNamespace:
    state = "busy" if task else "idle"
    return SimpleNamespace(number=number, pid=4000 + number, state=state, task=task, running_s=running_s, done=0)


def tally(total: int | None, done: int, failed: int = 0, *, for_s: float = 10.0) -> Tally:
    made = Tally(total, done, failed)
    made.started -= for_s
    return made


def drawn(count: Tally, workers: list[SimpleNamespace], width: int = 80, height: int = 24) -> list[str]:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, force_terminal=True)
    frame = progress._Frame(count, lambda: workers)
    return [line.rstrip() for line in "".join(part.text for part in console.render(frame)).splitlines()]


def test_plain_line_says_how_far_how_fast_and_how_long():
    count = tally(400, 90, 10, for_s=5)
    assert progress.progress_line(count, progress.Pace(count)) == "100 of 400 (25 %), 20/s, 15 s left, 10 failed"


def test_plain_line_of_uncounted_inputs_promises_no_end():
    count = tally(None, 1500)
    assert progress.progress_line(count, progress.Pace(count)) == "1,500 done, 150/s"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_frame_fits_its_screen(width):
    lines = drawn(tally(3400, 1200, 3), [worker(0, "parse_file('/a/long/path" + "/x" * 90 + "/end.py')", 12.34)], width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 2


def test_frame_shows_the_bar_and_what_each_worker_does():
    lines = drawn(tally(3400, 1700, 3), [worker(0, "parse_file('a.py')", 12.34), worker(1)], 80)
    assert "1,703/3,400" in lines[0]
    assert "50 %" in lines[0]
    assert "3 failed" in lines[0]
    assert lines[1] == "  pid 4000      12.3 s  parse_file('a.py')"
    assert lines[2] == "  pid 4001              idle"


def test_frame_of_many_workers_shows_those_that_have_run_longest():
    workers = [worker(number, f"f({number})", float(number)) for number in range(64)]
    lines = drawn(tally(100, 10), workers)
    assert len(lines) == 1 + progress.WORKER_LINES + 1
    assert "f(63)" in "".join(lines)
    assert "f(0)" not in "".join(lines)
    assert lines[-1] == f"  … and {64 - progress.WORKER_LINES} more workers"


def test_frame_survives_a_pool_that_cannot_be_asked():
    """P3"""

    def broken() -> list[SimpleNamespace]:
        raise RuntimeError("closing")

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80, color_system=None)
    assert list(console.render(progress._Frame(tally(10, 5), broken)))


@pytest.mark.parametrize(
    ("wanted", "terminal", "term", "kind"),
    [
        (None, True, "xterm", progress.Live),
        (True, True, "xterm", progress.Live),
        (False, True, "xterm", progress.Quiet),
        (None, True, "dumb", progress.Quiet),
        (True, True, "dumb", progress.Lines),
        (None, False, "xterm", progress.Quiet),
        (True, False, "xterm", progress.Lines),
    ],
)
def test_display_suits_what_standard_error_is(monkeypatch, wanted, terminal, term, kind):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(progress.sys, "stderr", Screen())
    monkeypatch.setenv("TERM", term)
    chosen = progress.choose(wanted, Tally(1), list, results_here=False)
    assert type(chosen) is kind
