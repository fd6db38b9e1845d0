"""Carry out what the policy decides, with real children.

Role: one running supervisor: its thread, its queue of events, the runs of its children. Owner: the `Supervisor` that opened it.
Protocol: README.md.

Invariants
    R1  Only the thread calls the policy, with `guard` held; pictures are taken with `guard` held. Nothing under it blocks.
    R2  Code of the user, and whatever may take its time, runs elsewhere: each start in a thread of its own. What is called in
        the supervisor's thread is `on_event`, which has to be quick.
    R3  Of each run the policy hears one beginning (ready, or failed) and, if it was ready, then one end.
    R4  The thread ends with the policy, when nothing of any child is left.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from shoal._os.latch import Latch
from shoal._supervise import events as ev
from shoal._supervise.children import Begin, Exit, Recipe, Running
from shoal._supervise.policy import (
    Action,
    Answer,
    Ask,
    Ended,
    Flags,
    Forget,
    Kill,
    Policy,
    Restarting,
    Spec,
    Start,
    State,
)

#: Events that are kept to be looked at.
KEPT_EVENTS = 1000

_log = logging.getLogger("shoal")

Order = Literal["ask", "kill"]
#: An event for the policy: given the time, it returns what is to be done.
Event = Callable[[float], list[Action]]


@dataclass(frozen=True, slots=True)
class Member:
    """How a child is made; what a `Spec` is about. `ready`: seconds it may take to be ready; None: no limit, 0: not waited for."""

    recipe: Recipe
    ready: float | None = 0.0


class Wish:
    """Something asked of the supervisor, and its answer."""

    def __init__(self, id_: str = "") -> None:
        self.id = id_  # the child it is about
        self.done = Latch()
        self.refusal = ""
        self.error: BaseException | None = None  # why a start failed

    def answer(self, refusal: str) -> None:
        self.refusal = refusal
        self.done.set()


@dataclass(slots=True)
class Counts:
    """What happened so far. The thread's."""

    starts: int = 0
    restarts: int = 0
    exits: int = 0
    failed_starts: int = 0
    kills: int = 0


@dataclass(slots=True)
class Record:
    """What is kept of a child from run to run. The thread's."""

    attempt: Attempt
    recipe: Recipe
    rests: bool = False  # it was told that there is no run
    last: Exit | None = None  # how it ended last, by itself
    error: BaseException | None = None  # why it did not start


class Attempt:
    """One run of a child, from its start on. Tells the driver what R3 says, in that order."""

    def __init__(self, driver: Driver, id_: str, run: int, last: Exit | None) -> None:
        self.begin = Begin(id_, run, last, self._exited)
        self.running: Running | None = None
        self.killed = False
        self.stopped = False  # the supervisor ended it
        self._driver = driver
        self._guard = threading.Lock()
        self._told: list[Order] = []  # before there was anything to tell it to
        self._exit: Exit | None = None
        self._started = False
        self._given_up = False  # it was to be killed while it was being made
        self._gone = Latch()

    def go(self, member: Member) -> None:
        """Begin, in a thread of its own (R2)."""
        thread = threading.Thread(target=self._go, args=(member,), name=f"shoal-start-{self.begin.id}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no room for another one, or the program is ending
            self._driver.failed(self, error)

    def _go(self, member: Member) -> None:
        try:
            running = member.recipe.make(self.begin)
        except BaseException as error:
            with self._guard:
                given_up = self._given_up
            if not given_up:
                self._driver.failed(self, error)
            return
        with self._guard:
            given_up = self._given_up
            told, self._told = self._told, []
            if not given_up:
                self.running = running
        for order in told:
            _pass_on(order, running)
        if not given_up:
            self._wait_ready(member, running)

    def _wait_ready(self, member: Member, running: Running) -> None:
        try:
            if member.ready != 0:
                running.wait_ready(member.ready)
        except BaseException as error:
            running.kill()
            self._gone.wait()
            self._driver.failed(self, error)
            return
        with self._guard:
            self._started = True
            gone = self._exit
        self._driver.ready(self)
        if gone is not None:
            self._driver.exited(self, gone)

    def tell(self, order: Order) -> None:
        """Pass on "ask" or "kill", as soon as there is something to pass it to. Any thread.

        Who is to be killed while he is being made is given up: that is code of the user, which may never return.
        """
        with self._guard:
            running = self.running
            if running is None:
                self._told.append(order)
            gives_up = running is None and order == "kill" and not self._given_up
            self._given_up = self._given_up or gives_up
        if running is not None:
            _pass_on(order, running)
        elif gives_up:
            self._driver.failed(self, TimeoutError(f"{self.begin.id} was not made in time"))

    def _exited(self, how: Exit) -> None:
        with self._guard:
            self._exit = how
            started = self._started
        self._gone.set()
        if started:
            self._driver.exited(self, how)

    @property
    def last_words(self) -> Exit | None:
        """How it ended, once it has."""
        return self._exit


def _pass_on(order: Order, running: Running) -> None:
    if order == "ask":
        running.ask()
    else:
        running.kill()


class Driver:
    """A supervisor that runs."""

    def __init__(self, name: str, flags: Flags, on_event: Callable[[ev.Event], object] | None) -> None:
        self.name = name
        self.policy = Policy(flags)
        self.guard = threading.Lock()
        self.records: dict[str, Record] = {}
        self.events: deque[ev.Event] = deque(maxlen=KEPT_EVENTS)
        self.counts = Counts()
        self.ended = Latch()  # waited for in the main thread, as `Wish.done` is
        self._at_end: list[Callable[[], object]] = []
        self.last_words: Exit | None = None  # of the child that made it end
        self.exit_grace_s: float | None = None  # how long the end of the program waits for it
        self._on_event = on_event
        self._news: list[ev.Event] = []
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._gate = threading.Lock()  # held to put something into the queue, and to close it
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"shoal-{name}", daemon=True)
        self._thread.start()

    # --- for any thread -------------------------------------------------------------------------

    def start_child(self, spec: Spec) -> Wish:
        """Ask for a new child; `spec` is about a `Member`."""
        wish = Wish(spec.id)
        self._post(lambda now: self.policy.start_child(spec, wish, now))
        return wish

    def ask_for(self, what: Literal["terminate", "restart", "delete"], id_: str) -> Wish:
        """Ask for something to be done to a child."""
        wish = Wish(id_)
        wanted: Callable[[str, object, float], list[Action]] = getattr(self.policy, f"{what}_child")
        self._post(lambda now: wanted(id_, wish, now))
        return wish

    def stop(self) -> Wish:
        """Ask for everything to be stopped, in reverse order."""
        wish = Wish()
        self._post(lambda now: self.policy.stop(wish, now))
        return wish

    def kill(self) -> Wish:
        """Ask for everything to be killed."""
        wish = Wish()
        self._post(lambda now: self.policy.kill(wish, now))
        return wish

    def call_at_end(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when all has ended; in the supervisor's thread, or at once if it has."""
        with self._gate:
            if not self._closed:
                self._at_end.append(callback)
                return
        callback()

    def value_of(self, id_: str) -> Any:
        """What runs under that id, or ran last."""
        with self.guard:
            record = self.records.get(id_)
        running = record.attempt.running if record is not None else None
        return running.value if running is not None else None

    @property
    def is_my_thread(self) -> bool:
        """Whether the caller is the supervisor itself, in `on_event`."""
        return threading.current_thread() is self._thread

    def _post(self, event: Event) -> None:
        with self._gate:
            if not self._closed:
                self._queue.put(event)
                return
        self._answer(event)

    def _answer(self, event: Event) -> None:
        """All is over: what is still asked for is refused by the policy, at once."""
        with self.guard:
            actions = event(time.monotonic())
        for action in actions:
            if isinstance(action, Answer):
                self._carry_out(action)

    # --- what attempts tell ---------------------------------------------------------------------

    def ready(self, attempt: Attempt) -> None:
        """The run is of use."""
        id_, run = attempt.begin.id, attempt.begin.run
        pid = attempt.running.pid if attempt.running is not None else None

        def event(now: float) -> list[Action]:
            self.records[id_].error = None
            self._tell(ev.ChildReady(**self._about(id_, run), pid=pid))
            return self.policy.started(id_, run, now)

        self._post(event)

    def failed(self, attempt: Attempt, error: BaseException) -> None:
        """The run did not come to be of use, and nothing of it is left."""
        id_, run = attempt.begin.id, attempt.begin.run
        how = attempt.last_words
        obituary = how.obituary if how is not None else getattr(error, "obituary", None)
        words = Exit(False, f"did not start: {type(error).__name__}: {error}", obituary)

        def event(now: float) -> list[Action]:
            if not self._was_told(attempt):
                self.counts.failed_starts += 1
            self.records[id_].error = error
            self._ended(attempt, words)
            return self.policy.start_failed(id_, run, now)

        self._post(event)

    def exited(self, attempt: Attempt, how: Exit) -> None:
        """The run is over."""
        id_, run = attempt.begin.id, attempt.begin.run

        def event(now: float) -> list[Action]:
            if not self._was_told(attempt):
                self.counts.exits += 1
            self._ended(attempt, how)
            return self.policy.exited(id_, run, how.normal, now)

        self._post(event)

    def _was_told(self, attempt: Attempt) -> bool:
        """Whether the run was stopped, and did not end by itself."""
        child = self.policy.children.get(attempt.begin.id)
        return child is not None and child.run == attempt.begin.run and child.state is State.STOPPING

    def _ended(self, attempt: Attempt, how: Exit) -> None:
        about = self._about(attempt.begin.id, attempt.begin.run)
        if self._was_told(attempt):
            attempt.stopped = True
            self._tell(ev.ChildStopped(**about, killed=attempt.killed))
        else:
            self.records[attempt.begin.id].last = how
            self._tell(ev.ChildExited(**about, normal=how.normal, reason=how.reason, obituary=how.obituary))

    def _about(self, id_: str, run: int) -> dict[str, Any]:
        return {"supervisor": self.name, "child": id_, "run": run, "time": time.time()}

    def _tell(self, event: ev.Event) -> None:
        self.events.append(event)
        self._news.append(event)

    # --- the thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        while self.policy.ended is None:
            event = self._next_event()
            with self.guard:  # R1
                try:
                    actions = self._decide(event)
                except Exception:  # none is known; but whoever watches over all must not end by itself
                    _log.exception("shoal: unexpected failure in %s", self.name)
                    continue
            for action in actions:
                self._carry_out(action)
            self._let_rest()
            self._report()
        with self._gate:
            self._closed = True
            at_end, self._at_end = self._at_end, []
        while not self._queue.empty():
            self._answer(self._queue.get())
        self.ended.set()
        for callback in at_end:
            callback()

    def _next_event(self) -> Event:
        due = self.policy.next_due
        try:
            return self._queue.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            return self.policy.tick

    def _decide(self, event: Event) -> list[Action]:
        actions = event(time.monotonic())
        for action in actions:
            match action:
                case Start(id=id_, run=run):
                    self._prepare(id_, run)
                case Restarting(id=id_, run=run, delay_s=delay_s):
                    self.counts.restarts += 1
                    self._tell(ev.ChildRestarting(**self._about(id_, run), delay_s=delay_s))
                case Kill(id=id_):
                    self.counts.kills += 1
                    self.records[id_].attempt.killed = True
                case Ended(why=why, child=id_) if id_ is not None:
                    record = self.records.get(id_)
                    self.last_words = record.last if record is not None else None
                    if why == "gave up":
                        run = record.attempt.begin.run if record is not None else 0
                        self._tell(ev.GaveUp(**self._about(id_, run)))
                case _:
                    pass
        return actions

    def _prepare(self, id_: str, run: int) -> None:
        self.counts.starts += 1
        record = self.records.get(id_)
        before = record.attempt if record is not None and run > 1 else None
        last = record.last if record is not None and before is not None and not before.stopped else None
        attempt = Attempt(self, id_, run, last)
        if record is None or run == 1:
            self.records[id_] = Record(attempt, self.policy.children[id_].spec.about.recipe)
        else:
            record.attempt, record.rests = attempt, False
        self._tell(ev.ChildStarted(**self._about(id_, run)))

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start(id=id_):
                member = self.policy.children[id_].spec.about
                assert isinstance(member, Member)
                self.records[id_].attempt.go(member)
            case Ask(id=id_):
                self.records[id_].attempt.tell("ask")
            case Kill(id=id_):
                self.records[id_].attempt.tell("kill")
            case Answer(token=Wish() as wish, refusal=refusal):
                if refusal == "failed":
                    wish.error = self.records[wish.id].error
                wish.answer(refusal)
            case Forget(id=id_):
                record = self.records.pop(id_, None)
                if record is not None and not record.rests:
                    record.recipe.rest()
            case _:
                pass

    def _let_rest(self) -> None:
        """Tell those of whom there is no run, and none to come."""
        for id_, record in self.records.items():
            child = self.policy.children.get(id_)
            down = child is not None and child.state is State.DOWN and not child.wanted
            if not record.rests and (down or self.policy.ended is not None):
                record.rests = True
                record.recipe.rest()

    def _report(self) -> None:
        news, self._news = self._news, []
        if self._on_event is None:
            return
        for event in news:
            try:
                self._on_event(event)
            except BaseException:  # SystemExit too: it would end the thread that watches over all
                _log.exception("on_event of %s raised, given %r", self.name, event)
