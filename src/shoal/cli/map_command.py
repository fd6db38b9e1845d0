"""`shoal map`: a function over many inputs, from words on a command line to rows in a file.

Role: put the parts together: target, inputs, pool, flow, writer, display, summary.
Owner: the main thread.

Invariants
    M1  Whatever ends the run (the end, a failure under --errors raise, Ctrl-C, a full disk), outcomes that were
        settled by then are written, the writer is closed and the summary printed, in this order.
    M2  A second Ctrl-C does not wait for any of that.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import click

from shoal._settings import ErrorMode, StartMethod
from shoal.cli import inputs, output, progress, target
from shoal.cli.flow import Flow, Outcome
from shoal.cli.report import Failure, Failures, Tally, shortened, stderr_width, summary
from shoal.errors import InitializerFailed, ShoalError, StartFailed

if TYPE_CHECKING:
    from shoal import Pool

#: Inputs under way per worker, waiting ones included: enough that a worker never waits for us.
WINDOW_PER_WORKER = 128
#: The most that a task's label shows of its input.
LABEL_COLUMNS = 200

FORMATS = "Ends in .jsonl, .csv or .parquet (which needs pyarrow). Without it, JSON lines go to standard output."
ERRORS = "What a failed input does: 'return' writes an error row, 'skip' leaves it out, 'raise' stops the run."


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOptions:
    """One `shoal map`, as typed."""

    target: str
    inputs: tuple[str, ...]
    output: str | None
    workers: int | None
    timeout: float | None
    retries: int
    errors: ErrorMode
    unordered: bool
    progress: bool | None
    start_method: StartMethod | None


@click.command("map", short_help="Run a function over many inputs, on every core.")
@click.argument("target")
@click.argument("inputs", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", help=FORMATS)
@click.option(
    "-w", "--workers", type=click.IntRange(min=1), metavar="N", help="Worker processes.  [default: one per core]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Seconds one input may run.  [default: no limit]",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Further runs of an input whose worker died or timed out.",
)
@click.option("--errors", type=click.Choice(get_args(ErrorMode)), default="return", show_default=True, help=ERRORS)
@click.option("--unordered", is_flag=True, help="Write rows as they are ready, not in the order of the inputs.")
@click.option(
    "--progress/--no-progress", default=None, help="Show progress on standard error.  [default: on a terminal]"
)
@click.option("--start-method", type=click.Choice(get_args(StartMethod)), help="How workers are started.")
def map_command(**options: Any) -> int:
    """Call a function once for each input, on every core, and write what it returns.

    \b
    TARGET   module:function or path/file.py:function
    INPUTS   any of:  'data/**/*.csv'   files that match, sorted
                      @list.txt         the lines of a file
                      -                 the lines of standard input
                      other words       passed as they are

    The function gets one input, as text. Rows look like {"input": …, "result": …} or
    {"input": …, "error": {"type": …, "message": …}}. What the function prints goes to standard error.

    \b
    Exit code: 0 all done · 1 some failed · 2 the command was wrong · 130 Ctrl-C (what is done is kept)
    """  # noqa: D301 - \b is click's mark for "leave these lines alone"
    return run(MapOptions(**options))


def run(options: MapOptions) -> int:
    """Do the whole job and return the exit code."""
    try:
        output.check_path(options.output)
        results = output.claim_stdout()
        found = target.find(options.target)
        collected = inputs.collect(options.inputs, output=options.output)
        if inputs.reads_terminal(options.inputs):
            click.echo("reading inputs from the terminal, one a line; Ctrl-D ends them", err=True)
        return _Run(options, found, collected, results).go()
    except (target.TargetError, inputs.InputError, output.OutputError) as error:
        raise Refused(str(error)) from error


class Refused(click.ClickException):
    """The command cannot be carried out as typed. Nothing has run."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class _Ending:
    """Why a run stopped before its inputs ended. `words` is None for a reader that went away: nobody is listening.

    `error` is what went wrong apart from any input, told in full below the summary.
    """

    code: int
    words: str | None
    error: BaseException | None = None


class _Run:
    """The parts of one run and the order in which they are used and closed (M1)."""

    def __init__(self, options: MapOptions, found: target.Target, collected: inputs.Inputs, results: int) -> None:
        self.options = options
        self.target = found
        self.tally = Tally(collected.total)
        self.failures = Failures(_tracebacks_path(options.output))
        screen = options.output in {None, "-"} and os.isatty(results)
        self.display = progress.choose(
            options.progress,
            self.tally,
            lambda: self.pool.workers,
            results_here=screen,
            typing=inputs.reads_terminal(options.inputs),
        )
        self.writer = output.open_writer(options.output, results, self.notice, self.display.show)
        self.pool = _make_pool(options, collected.total)
        window = WINDOW_PER_WORKER * self.pool._max_workers
        self.flow = Flow(self._submit, collected.items, window=window, ordered=not options.unordered)

    def _submit(self, item: str) -> Future[Any]:
        # The pool's own description of a call cuts a long path at its end, which is the part that tells files apart.
        label = f"{self.target.__name__}({shortened(repr(item), LABEL_COLUMNS, keep_end=True)})"
        return self.pool.using(label=label).submit(self.target, item)

    def go(self) -> int:
        with _stop_signals(self.flow) as caught:
            with self.display:
                ending = self._work(caught)
            statistics = self.pool.statistics()
            wall_s = self.tally.elapsed_s
            self.pool.shutdown(wait=True, cancel_futures=True)
            ending = self._close() or ending
        if ending is not None and ending.words is None:
            return ending.code
        words = ending.words if ending is not None else None
        self._say_summary(list(summary(self.tally, statistics, wall_s=wall_s, ended=words)))
        if ending is not None:
            if ending.error is not None:
                click.echo(f"error: {ending.error}", err=True)
            return ending.code
        return 1 if self.tally.failed else 0

    def notice(self, text: str) -> None:
        self.display.say(f"note: {text}")

    def _work(self, caught: list[int]) -> _Ending | None:
        """Write outcomes until there are no more, or something ends the run."""
        ending: _Ending | None = None
        try:
            for outcome in self.flow:
                self._record(outcome)
                if outcome.error is not None and (ending := self._ends_all(outcome.error)):
                    break
                if self.flow.quiet:
                    self.writer.flush()
        except BrokenPipeError:
            self.flow.stop()
            return _Ending(141, None)
        except (output.OutputError, inputs.InputError, ShoalError) as error:
            self.flow.stop()
            return _Ending(1, "stopped by an error", error)
        if caught:
            ending = _Ending(128 + caught[0], _signal_words(caught[0]))
        return self._keep_settled(ending) if ending is not None else None

    def _keep_settled(self, ending: _Ending) -> _Ending:
        try:
            for outcome in self.flow.stop():
                self._record(outcome)
            self.writer.flush()
        except BrokenPipeError:
            return _Ending(ending.code, None)
        except output.OutputError as error:
            return _Ending(1, "stopped by an error", error)
        return ending

    def _record(self, outcome: Outcome) -> None:
        if outcome.error is None:
            self.writer.write(outcome, None)
            self.tally.done += 1
            return
        failure = Failure.of(outcome.error)
        self.failures.add(outcome.input, failure)
        if self.options.errors != "skip":
            self.writer.write(outcome, failure)
        self.tally.failed += 1

    def _ends_all(self, error: BaseException) -> _Ending | None:
        if isinstance(error, StartFailed | InitializerFailed):  # every other input would fail alike
            return _Ending(1, "no worker could be started", error)
        return _Ending(1, "stopped at the first failure") if self.options.errors == "raise" else None

    def _close(self) -> _Ending | None:
        self.failures.close()
        try:
            self.writer.close()
        except BrokenPipeError:
            return _Ending(141, None)
        except output.OutputError as error:
            return _Ending(1, "stopped by an error", error)
        return None

    def _say_summary(self, lines: list[str]) -> None:
        colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        first = click.style(lines[0], bold=True, fg="red" if self.tally.failed else None) if colour else lines[0]
        shown = [first, *lines[1:]]
        if self.tally.failed:
            shown += [
                "failed inputs:",
                *self.failures.lines(stderr_width()),
                *_where_to_look(self.options, self.failures),
            ]
        click.echo("\n".join(shown), err=True, color=True)


def _make_pool(options: MapOptions, total: int | None) -> Pool:
    import shoal

    workers = options.workers or shoal.cpu_count()
    if total is not None:
        workers = max(1, min(workers, total))
    extra: dict[str, Any] = {"start_method": options.start_method} if options.start_method else {}
    return shoal.Pool(workers, timeout=options.timeout, retries=options.retries, **extra)


def _tracebacks_path(path: str | None) -> str | None:
    """Return where tracebacks go: beside the output. One that an earlier run left there is removed."""
    if path is None or path == "-":
        return None
    beside = f"{path}.tracebacks.txt"
    with suppress(OSError):
        os.unlink(beside)
    return beside


def _where_to_look(options: MapOptions, failures: Failures) -> Iterator[str]:
    if failures.tracebacks is None:
        yield "hint: -o FILE also keeps the tracebacks, in FILE.tracebacks.txt"
        return
    if options.errors != "skip":
        yield f"every failed input has a row with its error in {options.output}"
    yield f"tracebacks are in {failures.tracebacks}"


def _signal_words(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"


@contextmanager
def _stop_signals(flow: Flow) -> Iterator[list[int]]:
    """Let the signals that end a program end the flow; yield the list of those that came."""
    caught: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        if caught:
            show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
            os.write(2, show_cursor)
            os._exit(128 + number)  # M2
        caught.append(number)
        flow.interrupt()

    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            before[number] = signal.signal(number, stop)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
