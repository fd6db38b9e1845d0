"""The owner's side of an actor: what it is made from, its runs, and how they ended.

Role: makes each run, gives it the socket its callers connect to, tells this program's callers why it died. Owner: the program, or
process, that started the actor; a supervisor decides when there is to be a run. Protocol: README.md.

Invariants
    P1  The listening socket is this process's; a run has a copy. It is open while a run exists or is to come, and closed while
        none is: so whoever connects is served, waits for the next run, or is refused, and never waits for nothing.
    P2  A call of this program that a run did not answer fails when it is known how that run ended, with its obituary.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal._actors import client, wire
from shoal._actors.connection import Call, Connection, Target, fail
from shoal._actors.host import ActorProcess
from shoal._process.checks import check_capture
from shoal._settings import CaptureMode, StartMethod, check_choice, check_count, start_method_or_default
from shoal._supervise.children import Begin, Exit, Running
from shoal._supervise.policy import Restart
from shoal._supervise.tree import Supervisor

if TYPE_CHECKING:
    from shoal._actors.handle import Actor
    from shoal.errors import Obituary


#: Seconds the end of the program waits for an actor to be done with what was sent to it.
GRACE_S = 5.0
#: Longest wait to hear how a run ended whose connection is gone. Seconds; a template tells within a few milliseconds.
HEARSAY_S = 5.0
#: Ends of runs that are kept for calls whose connection is found to be gone later.
_KEPT_EXITS = 8


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """How an actor is run; see `shoal.actor`."""

    mailbox: int = 1000
    restart: Restart = "transient"
    intensity: int = 3
    period: float = 60.0
    backoff_s: float = 0.0
    start_method: StartMethod | None = None
    capture: bool | CaptureMode = False
    name: str | None = None

    def __post_init__(self) -> None:
        check_count("mailbox", self.mailbox, least=1)
        check_choice("restart", self.restart, Restart)
        check_capture(self.capture)
        if self.start_method is not None:
            start_method_or_default(self.start_method)
        Supervisor("one_for_one", self.intensity, self.period, backoff_s=self.backoff_s)  # it checks these


class Keeper:
    """One actor, from its making to its end. Also the recipe by which a supervisor makes its runs."""

    is_supervisor = False
    readiness: Literal["always"] = "always"

    def __init__(self, cls: type, options: ActorOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.cls = cls
        self.options = options
        self.name = options.name or cls.__name__
        self.target = Target(wire.new_address(), wire.new_key(), self.name, options.mailbox)
        self._arguments = args, kwargs
        self._guard = threading.Lock()
        self._listener: socket.socket | None = None
        self._exits: dict[int, Exit] = {}  # how the last runs ended, by number
        self._told = 0  # the last run of which that is known, and since when
        self._told_at = 0.0
        self._bereaved: list[tuple[int | None, list[Call], client.Reminder]] = []  # calls that wait to hear why
        self._current: ActorRun | None = None
        self.last: Exit | None = None  # how the last run that died by itself did
        self.runs = 0
        self.owner = os.getpid()
        #: What restarts it, if that is there for it alone.
        self.supervisor: Supervisor | None = None

    def __shoal_recipe__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Keeper:
        """Be its own recipe, for a supervisor."""
        assert not args
        assert not kwargs
        return self

    @property
    def handle(self) -> Actor:
        """What callers use."""
        from shoal._actors.define import methods_of
        from shoal._actors.handle import Actor

        return Actor(self.target, methods_of(self.cls), self)

    # --- runs -----------------------------------------------------------------------------------

    def make(self, begin: Begin) -> Running:
        """Begin a run. Raises whatever is in the way of a process."""
        with self._guard:
            if self._listener is None:
                self._listener = wire.listen(self.target.address)
                _keepers[self.target.address] = self
                client.mourn(self.target.address, self.lost)
            self.runs += 1  # not `begin.run`: a supervisor that is restarted itself begins to count anew
            number = self.runs
            args, kwargs = self._arguments
        process = ActorProcess(
            self.cls, args, kwargs, name=self.name, method=self.options.start_method, capture=self.options.capture
        )
        process._actor_run = number
        process._actor_key = self.target.key
        process._actor_address = self.target.address
        process._actor_door = wire.new_address()
        process._actor_last = begin.last.obituary if begin.last is not None else None
        return ActorRun(self, process, begin, number)

    def began(self, run: ActorRun) -> None:
        """A process exists."""
        self._current = run

    def admit(self, door: bytes) -> None:
        """Give a run that is ready the listening socket. Raises OSError: it is gone."""
        with wire.connect(door, 5.0) as sock, self._guard:
            if self._listener is None:
                raise ConnectionRefusedError("it is not to run any more")
            wire.greet(sock, wire.LISTENER, self.target.key, self._listener.fileno())

    def rest(self) -> None:
        """There is no run, and none is to come: refuse who calls (P1)."""
        with self._guard:
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close()
                _keepers.pop(self.target.address, None)
        client.retire(self.target, None)

    @property
    def pid(self) -> int | None:
        """Process id of the run there is."""
        return self._current.pid if self._current is not None else None

    @property
    def may_serve(self) -> bool:
        """Whether a run exists or is to come."""
        return self._listener is not None

    def ask(self, process: ActorProcess, run: int) -> None:
        """Ask a run to end: behind what this process has sent it, if it has; else at once. Does not block."""
        connection = client.existing(self.target)
        if connection is None or connection.run != run or not connection.send_last():
            process._ask_to_stop()

    # --- deaths ---------------------------------------------------------------------------------

    def lost(self, connection: Connection, calls: list[Call]) -> None:
        """A connection of this process is gone. Its calls fail when it is known why (P2)."""
        run = connection.run
        with self._guard:
            # One that no run has greeted was taken by a run that ended as soon: by the first to end since it was made.
            known = run <= self._told if run is not None else self._told_at > connection.made_at
            if known or self._listener is None:
                how = self._exits.get(run or self._told)
            else:
                self._bereaved.append((run, calls, client.remind(HEARSAY_S, self._hear_nothing)))
                return
        fail(self.target, calls, _why(how))

    def exited(self, run: int, how: Exit) -> None:
        """A run has ended."""
        with self._guard:
            self._current = None
            self._exits[run] = how
            self._exits.pop(run - _KEPT_EXITS, None)
            self._told, self._told_at = run, time.monotonic()
            self.last = None if how.normal else how
            told = self._no_more(run)
        client.retire(self.target, run)
        if told:  # not here: futures have callbacks of the user, and this thread hears all processes
            client.do_later(lambda: self._fail(told, _why(how)))

    def _fail(self, told: list[list[Call]], why: Obituary | None) -> None:
        for calls in told:
            fail(self.target, calls, why)

    def _hear_nothing(self) -> None:
        """A connection has ended and no run did: it was given up by a run that goes on, for lack of descriptors, say."""
        with self._guard:
            told = self._no_more(None)
        self._fail(told, None)

    def _no_more(self, run: int | None) -> list[list[Call]]:
        """Take out the calls that waited to hear of this run, or of any. With `_guard` held."""
        told = [one for one in self._bereaved if run is None or one[0] is None or one[0] <= run]
        self._bereaved = [one for one in self._bereaved if one not in told]
        for _, _, reminder in told:
            reminder.cancel()
        return [calls for _, calls, _ in told]

    @property
    def obituary(self) -> Obituary | None:
        """How it died last, if it died."""
        return _why(self.last)

    @property
    def ended(self) -> str:
        """Why no run exists, nor is to come, in words; empty if its supervisor is not its own, or has not ended yet."""
        driver = self.supervisor._driver if self.supervisor is not None else None
        ended = driver.policy.ended if driver is not None else None
        if ended is None:
            return ""
        how = f"; the last time it {self.last.obituary.cause}" if self.last is not None and self.last.obituary else ""
        match ended.why:
            case "gave up":
                options = self.options
                return (
                    f"it died more than {options.intensity} times within {options.period:g} s and is not restarted{how}"
                )
            case "auto shutdown":
                return f"it is not restarted{how}"
            case _:
                return "it was stopped"

    def abandon(self) -> None:
        """In a forked child: it is not ours to keep. The copy of the socket would hold back callers when the owner closes it."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()


def _why(how: Exit | None) -> Obituary | None:
    return how.obituary if how is not None and not how.normal else None


class ActorRun:
    """One run of an actor."""

    def __init__(self, keeper: Keeper, process: ActorProcess, begin: Begin, number: int) -> None:
        self._keeper = keeper
        self._begin = begin
        self._number = number
        self._process: ActorProcess | None = process  # until it has ended: it keeps descriptors
        self.pid: int | None = None
        self._starting: ActorProcess | None = process  # until it was waited for
        process.start()
        self.pid = process.pid
        keeper.began(self)
        process._on_exit(self._exited)

    @property
    def value(self) -> Actor:
        """The handle: the same for every run."""
        return self._keeper.handle

    def wait_ready(self, timeout: float | None) -> None:
        """Return when the instance is made and callers are being served."""
        process, self._starting = self._starting, None
        assert process is not None
        process.wait_ready(timeout)
        self._keeper.admit(process._actor_door)

    def ask(self) -> None:
        """Ask it to end when what was sent to it is done."""
        process = self._process
        if process is not None:
            self._keeper.ask(process, self._number)

    def kill(self) -> None:
        """End it at once."""
        process = self._process
        if process is not None:
            process._kill("it was killed by its supervisor")

    def _exited(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        code = process.exitcode
        obituary = process.obituary if code != 0 else None
        how = Exit(code == 0, obituary.cause if obituary is not None else f"exited with code {code}", obituary)
        try:
            self._keeper.exited(self._number, how)
        finally:
            self._begin.on_exit(how)


def begin(cls: type, given: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Actor:
    """Start an actor with a supervisor of its own, and return its handle when it is made. Raises whatever keeps it from being."""
    options = ActorOptions(**given)
    keeper = Keeper(cls, options, args, kwargs)
    supervisor = keeper.supervisor = Supervisor(
        "one_for_one",
        options.intensity,
        options.period,
        backoff_s=options.backoff_s,
        auto_shutdown="any_significant",
        name=keeper.name,
    )
    try:
        supervisor._open().exit_grace_s = GRACE_S
        lasting = options.restart == "permanent"
        supervisor.start(keeper, restart=options.restart, shutdown=None, significant=not lasting, id=keeper.name)
    except BaseException:
        supervisor.kill()
        raise
    return keeper.handle


# --- this process -------------------------------------------------------------------------------

#: The actors that this process owns and that have not ended.
_keepers: dict[bytes, Keeper] = {}


def keeper_of(address: bytes) -> Keeper | None:
    """Return the keeper of an actor, if this process owns it."""
    return _keepers.get(address)


def _after_fork_in_child() -> None:
    for keeper in _keepers.values():
        keeper.abandon()
    _keepers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
