"""Every error shoal raises on purpose, sorted by whose doing it was.

Role: the exception tree and the obituary a dead worker leaves. Owner: nobody; plain data.

    ShoalError
    ├── your code failed
    │   ├── RemoteError          (RuntimeError)       an outcome that cannot travel as itself
    │   └── InitializerFailed    (BrokenProcessPool)  `initializer` raised, or killed its worker
    ├── the worker died
    │   ├── WorkerDied           (BrokenProcessPool)  it ended while it owed a result
    │   │   └── PoisonTask                            ... and this task has done that before
    │   ├── StartFailed          (BrokenProcessPool)  no worker could be started
    │   ├── ProcessDied          (RuntimeError)       a `shoal.Process` ended without a result
    │   ├── ActorDied            (RuntimeError)       an actor ended while it owed an answer
    │   ├── SupervisorFailed     (RuntimeError)       its children died more often than they may
    │   └── BrokenBarrierError   (BrokenBarrierError) one of those a barrier waited for died, or gave up
    ├── a limit acted
    │   ├── TaskTimeout          (TimeoutError)       `timeout` passed while the task ran
    │   ├── MemoryLimitExceeded  (MemoryError)        `memory_limit` passed while the task ran
    │   └── Cancelled            (CancelledError)     somebody cancelled it
    ├── it cannot cross
    │   └── NotPicklable         (PicklingError)      names the object and the path inside it
    ├── it would race
    │   └── OverlappingWrites    (RuntimeError)       two tasks may write the same part of a shared array
    ├── you closed it, or never opened it
    │   ├── PoolClosed           (RuntimeError)
    │   ├── QueueClosed          (ValueError)         `multiprocessing.Queue` raises that, too
    │   ├── ChannelClosed        (EOFError)           its writer closed it or died, or nobody reads it
    │   ├── MailboxFull          (TimeoutError)       an actor did not take another message in time
    │   └── MainGuardMissing     (RuntimeError)
    └── the world
        ├── NoSharedMemory       (OSError)
        └── UnsupportedPlatform  (ImportError)

Invariants
    E1  Every class rebuilds from its public fields, so every error survives pickle with its notes.
    E2  A message is: fact, then a guess marked "likely:", then "hint:".
    E3  Whoever can name `BrokenProcessPool` finds every instance of the three classes above to be one.

The file is long because a reader looks for an error in one place.
"""

from __future__ import annotations

import concurrent.futures
import pickle
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = [
    "ActorDied",
    "BrokenBarrierError",
    "Cancelled",
    "ChannelClosed",
    "InitializerFailed",
    "MailboxFull",
    "MainGuardMissing",
    "MemoryLimitExceeded",
    "NoSharedMemory",
    "NotPicklable",
    "Obituary",
    "OverlappingWrites",
    "PoisonTask",
    "PoolClosed",
    "ProcessDied",
    "QueueClosed",
    "RemoteError",
    "RemoteTraceback",
    "ShoalError",
    "StartFailed",
    "SupervisorFailed",
    "TaskTimeout",
    "UnsupportedPlatform",
    "WorkerDied",
]

ErrorT = TypeVar("ErrorT", bound="ShoalError")


def _rebuild_error(cls: type[ErrorT], args: tuple[Any, ...], fields: Mapping[str, Any], notes: Sequence[str]) -> ErrorT:
    error = cls(*args, **fields)
    for note in notes:
        error.add_note(note)
    return error


class ShoalError(Exception):
    """Base class of every error shoal raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross processes. The default rebuilds from the message text, which would lose
        # the fields. An error without fields (a user's own subclass may be one) is its arguments.
        fields = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        args = () if fields else self.args
        return _rebuild_error, (type(self), args, fields, list(getattr(self, "__notes__", ())))


def _lines(fact: str, *, likely: str | None = None, hint: str | None = None) -> str:
    text = [fact]
    if likely:
        text.append(f"  likely: {likely}")
    if hint:
        text.append(f"  hint: {hint}")
    return "\n".join(text)


# --- your code failed ---------------------------------------------------------------------------


class RemoteTraceback(Exception):
    """The traceback as it was in the worker; set as the `__cause__` of the error you catch."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteTraceback, (self.text,)


class RemoteError(ShoalError, RuntimeError):
    """Your function failed in a way that cannot reach you as itself.

    It asked its process to exit, or raised an exception that cannot be pickled or rebuilt here.
    An ordinary exception arrives as itself, not as this.
    """

    def __init__(self, *, type_name: str, message: str, traceback_text: str, why: str, hint: str | None = None) -> None:
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text
        self.why = why
        self.hint = hint
        said = f"{type_name}: {message}" if message else type_name
        super().__init__(_lines(f"{why}: {said}", hint=hint))


class InitializerFailed(ShoalError, concurrent.futures.BrokenExecutor):
    """The pool's `initializer` raised, or its worker died in it.

    Every task that was waiting gets this error. The pool stays open: the next task
    starts a new worker and tries the initializer again.
    """

    def __init__(self, *, reason: str, traceback_text: str | None = None) -> None:
        be_broken_process_pools()
        self.reason = reason
        self.traceback_text = traceback_text
        super().__init__(
            _lines(
                f"the pool's initializer failed: {reason}",
                hint="call the initializer in this process to see it fail; the next task tries again",
            )
        )


# --- the worker died ----------------------------------------------------------------------------

OutOfMemory = Literal["proven", "likely", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Obituary:
    """What is known of a worker, or of a `shoal.Process`, that died. Every field that could not be learned is `None`.

    Attributes:
        worker: The worker's number in its pool, from 0; a replacement has a new one.
        process: The name, if it was a `shoal.Process` and not a worker of a pool.
        pid: Its process id.
        exit_code: What it exited with, if it exited.
        signal: Name of the signal that killed it, such as ``"SIGKILL"``, if one did.
        out_of_memory: ``"proven"`` by the kernel's accounts or our own limit, ``"likely"``, or ``"no"``.
        peak_memory_bytes: The most resident memory it had.
        memory_limit_bytes: The limit it ran under, if known.
        python_stack: The last Python stack, newest call first, as `faulthandler` wrote it.
        native_stack: The last native stack, where the interpreter can write one (3.14 and later).
        output_tail: The last lines it printed.
        task: Label of the task it was running, or `None` if it was idle.
        attempt: Which run of that task this was, from 1.
        attempts: How many runs that task may have.
        ran_s: Seconds the task had been running.
    """

    worker: int
    pid: int
    process: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    out_of_memory: OutOfMemory = "no"
    peak_memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    python_stack: str | None = None
    native_stack: str | None = None
    output_tail: tuple[str, ...] = ()
    task: str | None = None
    attempt: int | None = None
    attempts: int | None = None
    ran_s: float | None = None

    @property
    def cause(self) -> str:
        """How it ended, in words: ``"was killed by SIGSEGV"``, ``"exited with code 3"``."""
        if self.signal is not None:
            return f"was killed by {self.signal}"
        if self.exit_code is not None:
            return f"exited with code {self.exit_code}"
        return "ended in a way that could not be learned"

    def __str__(self) -> str:
        text = [_death_fact(self)]
        if self.python_stack:
            text += ["  last Python stack:", *_indented(self.python_stack)]
        if self.native_stack:
            text += ["  last native stack:", *_indented(self.native_stack)]
        if self.output_tail:
            text += ["  last output:", *_indented("\n".join(self.output_tail))]
        return "\n".join(text)


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.rstrip().splitlines()]


def _size(size_bytes: int) -> str:
    for unit, size in ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} bytes"


def _death_fact(obituary: Obituary, who: str | None = None) -> str:
    if who is None and obituary.process is not None:
        who = f"process {obituary.process}"
    doing = f" while running {obituary.task}" if obituary.task else "" if who else " while it had no task"
    fact = f"{who or f'worker {obituary.worker}'} (pid {obituary.pid}) {obituary.cause}{doing}"
    if obituary.attempt is not None and obituary.attempts is not None:
        fact += f", attempt {obituary.attempt} of {obituary.attempts}"
    return fact


def _peak(obituary: Obituary) -> str | None:
    if not obituary.peak_memory_bytes:
        return None
    limit = f" of {_size(obituary.memory_limit_bytes)}" if obituary.memory_limit_bytes else ""
    return f"{_size(obituary.peak_memory_bytes)}{limit}"


def _death_message(obituary: Obituary, *, who: str | None = None, also: str = "") -> str:
    """Fact, guess and hint of a death; `who` died if it was no worker, `also` is one more fact."""
    fact, likely, hint = _death_fact(obituary, who), None, None
    peak = _peak(obituary)
    look = "see error.obituary.python_stack for the line that was running" if obituary.python_stack else None
    match obituary.out_of_memory, obituary.signal, obituary.exit_code:
        case ("proven" | "likely") as certainty, _, _:
            text = f"out of memory (peak {peak})" if peak else "out of memory"
            # What the kernel or our own limit counted is no guess.
            fact, likely = (f"{fact}: {text}", None) if certainty == "proven" else (fact, text)
            hint = "use fewer workers, or smaller tasks"
        case _, "SIGSEGV" | "SIGBUS" | "SIGILL" | "SIGFPE" | "SIGABRT", _:
            likely, hint = "a fault in native code, or recursion deeper than the C stack", look
        case _, "SIGKILL", _:
            likely = "somebody, or the system, killed it"
            hint = f"its memory peaked at {peak}" if peak else None
        case _, None, 0 if obituary.process is not None:
            likely = "it called os._exit(), closed its descriptors, or became another program: it sent no result"
        case _, None, int():
            what = "the task" if obituary.process is None else "it"
            likely, hint = f"{what}, or a library it uses, called os._exit()", look
    return _lines(fact + also, likely=likely, hint=hint)


class WorkerDied(ShoalError, concurrent.futures.BrokenExecutor):
    """A worker ended while it owed this result. The pool goes on; only this task is lost.

    It is a `BrokenProcessPool` so that existing ``except`` clauses work, but the pool is not broken.
    You do not get this when *you* stopped the worker: see `TaskTimeout` and `Cancelled`.

    Attributes:
        obituary: Everything known of the death.
    """

    def __init__(self, *, obituary: Obituary) -> None:
        be_broken_process_pools()
        self.obituary = obituary
        super().__init__(_death_message(obituary))


class PoisonTask(WorkerDied):
    """This task has killed as many workers as one task may, so it is not tried again."""

    def __init__(self, *, obituary: Obituary, kills: int) -> None:
        super().__init__(obituary=obituary)
        self.kills = kills
        workers = "a worker" if kills == 1 else f"{kills} workers"
        self.args = (_death_message(obituary, also=f"; it has killed {workers} and is not tried again"),)


class StartFailed(ShoalError, concurrent.futures.BrokenExecutor):
    """No worker could be started: every task that was waiting gets this error. Or no `shoal.Process`, if `what` says so."""

    def __init__(self, *, reason: str, hint: str | None = None, what: str = "worker") -> None:
        be_broken_process_pools()
        self.reason = reason
        self.hint = hint
        self.what = what
        super().__init__(_lines(f"no {what} could be started: {reason}", hint=hint))


class ProcessDied(ShoalError, RuntimeError):
    """A `shoal.Process` ended without a result: it was killed, or called ``os._exit``.

    Attributes:
        name: The process's name.
        obituary: Everything known of the death.
    """

    def __init__(self, *, name: str, obituary: Obituary) -> None:
        self.name = name
        self.obituary = obituary
        super().__init__(_death_message(obituary, who=f"process {name}"))


class ActorDied(ShoalError, RuntimeError):
    """An actor ended while it owed the answer to this call, or for good before it.

    Attributes:
        actor: Its name.
        call: The call that failed.
        obituary: Everything known of the death; `None` in a program that did not start the actor, or if it was stopped.
        ended: Why there was no actor any more to send this call to; empty if that is not known, `None` if the call was sent.
    """

    def __init__(self, *, actor: str, call: str, obituary: Obituary | None = None, ended: str | None = None) -> None:
        self.actor = actor
        self.call = call
        self.obituary = obituary
        self.ended = ended
        also = f"; it owed the answer to {call}" if ended is None else f"; {call} was not sent"
        if ended:
            also = f": {ended}{also}"
        if obituary is None or ended:
            super().__init__(f"actor {actor} has ended{also}")
        else:
            super().__init__(_death_message(obituary, who=f"actor {actor}", also=also))


class SupervisorFailed(ShoalError, RuntimeError):
    """A supervisor gave up: its children had to be restarted more often than they may. All of them are stopped.

    Attributes:
        supervisor: Its name.
        child: The child that ended last.
        intensity: Restarts allowed ...
        period: ... within so many seconds.
        obituary: How that child ended, if it died.
    """

    def __init__(
        self, *, supervisor: str, child: str, intensity: int, period: float, obituary: Obituary | None = None
    ) -> None:
        self.supervisor = supervisor
        self.child = child
        self.intensity = intensity
        self.period = period
        self.obituary = obituary
        how = f", which {obituary.cause}" if obituary is not None else ""
        super().__init__(
            _lines(
                f"{supervisor} gave up and stopped its children: more than {intensity} restarts within {period:g} s, "
                f"the last one needed by {child}{how}",
                hint="look at that child's own errors first; raise intensity= or backoff_s= if its failures pass",
            )
        )


class BrokenBarrierError(ShoalError, threading.BrokenBarrierError):
    """A barrier cannot be passed any more: somebody it waits for died, gave up, or reset it.

    Attributes:
        reason: What happened.
        pid: Process id of who broke it, or `None` if it was no single process.
    """

    def __init__(self, *, reason: str, pid: int | None = None) -> None:
        self.reason = reason
        self.pid = pid
        who = f" by process {pid}" if pid is not None else ""
        super().__init__(_lines(f"the barrier was broken{who}: {reason}", hint="call reset() before it is used again"))


def be_broken_process_pools() -> None:
    """Make the errors that `concurrent.futures` calls a broken process pool subclasses of its class for that (E3).

    Done when the first of them is made, or when somebody could ask: importing that class takes longer than starting a worker,
    and a program in which nothing fails never needs it.
    """
    if concurrent.futures.BrokenExecutor not in WorkerDied.__bases__:
        return
    try:
        from concurrent.futures.process import BrokenProcessPool
    except (
        ImportError,
        OSError,
        RuntimeError,
    ):  # no descriptor left, or the program is ending: nobody else can import it either
        return
    for error in (InitializerFailed, WorkerDied, StartFailed):
        error.__bases__ = (ShoalError, BrokenProcessPool)


if "concurrent.futures.process" in sys.modules:
    be_broken_process_pools()


# --- a limit acted ------------------------------------------------------------------------------


class TaskTimeout(ShoalError, TimeoutError):
    """A task ran longer than its `timeout`, so its worker was killed. Nothing else was disturbed.

    The task sees nothing: it is stopped by SIGKILL, without cleanup.
    """

    def __init__(self, *, task: str, timeout: float, attempt: int, attempts: int, obituary: Obituary | None) -> None:
        self.task = task
        self.timeout = timeout
        self.attempt = attempt
        self.attempts = attempts
        self.obituary = obituary
        stack = obituary.python_stack if obituary else None
        where = _innermost_frame(stack) if stack else None
        see = ", or see error.obituary.python_stack for how it got there" if where else ""
        super().__init__(
            _lines(
                f"{task} ran longer than its timeout of {timeout:.12g} s and was stopped, attempt {attempt} of {attempts}",
                likely=f"it was at {where}" if where else None,
                hint=f"raise timeout={see}",
            )
        )


def _innermost_frame(stack: str) -> str | None:
    """Where the task was, as ``"line 3 of a.py, in f"``, from a stack that `faulthandler` wrote.

    Of several threads it is the one the stack calls current, else the last: faulthandler puts the main thread there.
    """
    threads = re.split(r"^(?=(?:Current thread|Thread) )", stack, flags=re.MULTILINE)
    chosen = next((one for one in threads if one.startswith("Current thread")), threads[-1])
    frame = re.search(r'^\s*File "(.*)", line (\d+) in (.+)$', chosen, re.MULTILINE)
    if frame and "/shoal/_worker/" in frame[1]:
        return None  # the task is a function of a native library: our own line tells nothing
    return f"line {frame[2]} of {frame[1]}, in {frame[3]}" if frame else None


class MemoryLimitExceeded(ShoalError, MemoryError):
    """A task passed its `memory_limit`, so its worker was killed. Nothing else was disturbed."""

    def __init__(self, *, task: str, limit_bytes: int, peak_bytes: int, obituary: Obituary | None) -> None:
        self.task = task
        self.limit_bytes = limit_bytes
        self.peak_bytes = peak_bytes
        self.obituary = obituary
        super().__init__(
            _lines(
                f"{task} used {_size(peak_bytes)} of the {_size(limit_bytes)} it may use and was stopped",
                hint="raise memory_limit=, or give each task less to hold",
            )
        )


class Cancelled(ShoalError, concurrent.futures.CancelledError):
    """The task was cancelled, by `Future.cancel()` or because its call was given up."""

    def __init__(self, *, task: str) -> None:
        self.task = task
        super().__init__(f"{task} was cancelled")


# --- it cannot cross ----------------------------------------------------------------------------


class NotPicklable(ShoalError, pickle.PicklingError):
    """An object cannot travel between processes.

    Attributes:
        what: What was being sent: "the function", "argument 2 of f", "the result of f".
        path: Where inside it the culprit sits, such as ``"[3].handle"``; empty if it is the object itself.
        culprit: Short text of the culprit's type and value.
        reason: The pickler's own words.
    """

    def __init__(self, *, what: str, path: str, culprit: str, reason: str) -> None:
        self.what = what
        self.path = path
        self.culprit = culprit
        self.reason = reason
        inside = f" at {path}" if path else ""
        super().__init__(
            _lines(
                f"{what} cannot be sent to another process: {culprit}{inside} ({reason})",
                hint="send what it is made from (a path, a key, plain data) and build it in the task",
            )
        )


# --- it would race ------------------------------------------------------------------------------


class OverlappingWrites(ShoalError, RuntimeError):
    """A task was given what a running task of another worker may write, and a pool with `debug=True` refused it.

    Attributes:
        task: The task that was refused.
        other: The one that runs.
        array: Shape of what the refused task was given, as text.
        ranges: First byte and the byte after the last, in the shared memory: of the refused task's, of the other's.
    """

    def __init__(self, *, task: str, other: str, array: str, ranges: tuple[tuple[int, int], tuple[int, int]]) -> None:
        self.task = task
        self.other = other
        self.array = array
        self.ranges = ranges
        (start, stop), (other_start, other_stop) = ranges
        super().__init__(
            _lines(
                f"{task} may write what {other} may write, which runs in another worker: {array}, bytes {start} to {stop} "
                f"of a shared array; the other has bytes {other_start} to {other_stop}",
                hint="give tasks that run at the same time slices that do not overlap, or read-only views",
            )
        )


# --- you closed it ------------------------------------------------------------------------------


class PoolClosed(ShoalError, RuntimeError):
    """The pool does not take this call: it was closed, or it belongs to another process."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class QueueClosed(ShoalError, ValueError):
    """The queue was closed: nothing more can be put, and nothing is left to get."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class ChannelClosed(ShoalError, EOFError):
    """The channel has ended: its writer closed it or died, or nobody reads it any more."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class MailboxFull(ShoalError, TimeoutError):
    """An actor's mailbox stayed full for as long as the caller would wait. The call was not sent."""

    def __init__(self, *, actor: str, call: str, mailbox: int, timeout: float) -> None:
        self.actor = actor
        self.call = call
        self.mailbox = mailbox
        self.timeout = timeout
        super().__init__(
            _lines(
                f"{call} was not sent: the mailbox of actor {actor} has held {mailbox} messages for {timeout:.12g} s",
                hint="wait for answers now and then, or give the actor a larger mailbox=",
            )
        )


class MainGuardMissing(ShoalError, RuntimeError):
    """The main script starts processes while a worker is importing it."""

    def __init__(self, *, script: str, traceback_text: str | None = None) -> None:
        self.script = script
        self.traceback_text = traceback_text
        super().__init__(
            _lines(
                f"{script} uses shoal while a worker imports it; without a guard this would start processes without end",
                hint='put the code that starts the work under  if __name__ == "__main__":',
            )
        )


# --- the world ----------------------------------------------------------------------------------


class NoSharedMemory(ShoalError, OSError):
    """Shared memory is short: nothing was written, nothing is lost."""

    def __init__(self, *, wanted_bytes: int, reason: str, hint: str | None = None) -> None:
        self.wanted_bytes = wanted_bytes
        self.reason = reason
        self.hint = hint
        super().__init__(_lines(f"no shared memory for {_size(wanted_bytes)}: {reason}", hint=hint))


class UnsupportedPlatform(ShoalError, ImportError):
    """This system lacks what shoal stands on."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
