"""Every order of what callers, an actor, its owner and the kernel do, with one death of each kind: calls run at most once.

The book of each caller is the real one (`_actors/calls.py`), the rest is a model of the page beside it: connections that wait
in the owner's socket or belong to a run, a mailbox, one call after the other, the word about room. A death of the actor may come
at every step; so may that of a caller. Checked on the way: no call runs twice, those of one caller run in their order, no more
than `mailbox` of them wait in the actor. At the end: every call of a caller that lives is settled, once, and one that was
answered has run; while nobody died, everything has run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from shoal._actors.calls import Book
from tests.model.explore import Step, explore


@dataclass(frozen=True)
class Call:
    caller: int
    number: int
    wants_answer: bool


@dataclass(eq=False)
class Wire:
    """One connection, as the kernel has it."""

    caller: int
    to_actor: list[Any] = field(default_factory=list)
    to_caller: list[Any] = field(default_factory=list)
    run: int = 0  # which run took it; 0: it waits in the owner's socket
    closed: bool = False  # the actor's end, or the place in the socket
    left: bool = False  # the caller's end


@dataclass(eq=False)
class Caller:
    calls: list[bool]  # which of them want an answer
    book: Book[Call]
    is_owner: bool = False
    alive: bool = True
    asked: int = 0
    wire: Wire | None = None
    settled: dict[int, str] = field(default_factory=dict)
    bereaved: list[tuple[int, Call]] = field(default_factory=list)  # by run


@dataclass(eq=False)
class World:
    mailbox: int
    callers: list[Caller]
    deaths: int
    restarts: int
    caller_deaths: int = 0
    stops: int = 0
    run: int = 1
    alive: bool = True
    open: bool = True
    ended: list[int] = field(default_factory=list)  # runs of which the owner knows how they ended
    wires: list[Wire] = field(default_factory=list)
    box: list[tuple[Wire, int, Call]] = field(default_factory=list)
    running: tuple[Wire, int, Call] | None = None
    ran: list[Call] = field(default_factory=list)
    taken: dict[int, int] = field(default_factory=dict)  # by place of the wire: what the main thread has taken
    tell_at: dict[int, int] = field(default_factory=dict)
    last: bool = False  # the order to end stands in the mailbox
    died: bool = False

    @classmethod
    def of(cls, mailbox: int, calls: list[list[bool]], **limits: int) -> World:
        callers = [Caller(wants, Book(mailbox), is_owner=place == 0) for place, wants in enumerate(calls)]
        return cls(mailbox, callers, **limits)  # type: ignore[arg-type]

    # --- what can happen ------------------------------------------------------------------------

    def steps(self) -> tuple[list[Step], list[Step]]:
        must: list[Step] = []
        may: list[Step] = []
        for place, caller in enumerate(self.callers):
            if caller.alive:
                must += [("call", place)] * (caller.asked < len(caller.calls))
                must += [("hear", place)] * (
                    caller.wire is not None and bool(caller.wire.to_caller or caller.wire.closed)
                )
                may += [("dies", place)] * (self.caller_deaths > 0 and not caller.is_owner)
        if self.alive:
            must += self._of_actor()
            may += [("die",)] * (self.deaths > 0)
            may += [("stop",)] * (self.stops > 0)
        elif self.run not in self.ended:
            must.append(("known",))
        elif self.open:
            must.append(("restart",) if self.restarts > 0 else ("end",))
        return must, may

    def _of_actor(self) -> list[Step]:
        steps: list[Step] = []
        for place, wire in enumerate(self.wires):
            if not wire.closed and not wire.run:
                steps.append(("accept", place))
            elif wire.run == self.run and not wire.closed and wire.to_actor:
                steps.append(("read", place))
        if self.running is not None:
            steps.append(("answer",))
        elif self.box:
            steps.append(("take",))
        elif self.last:
            steps.append(("leave",))
        return steps

    def take(self, step: Step) -> None:
        name, *who = step
        getattr(self, f"_{name}")(*who)

    # --- callers --------------------------------------------------------------------------------

    def _call(self, place: int) -> None:
        caller = self.callers[place]
        call = Call(place, caller.asked, caller.calls[caller.asked])
        caller.asked += 1
        if caller.wire is None:
            if not self.open:
                self._settle(caller, call, "refused")
                return
            caller.wire = Wire(place)
            caller.book = Book(self.mailbox)
            self.wires.append(caller.wire)
        self._send(caller, caller.book.offer(call))

    def _send(self, caller: Caller, calls: list[tuple[int, Call]]) -> None:
        wire = caller.wire
        assert wire is not None
        if not wire.closed:
            wire.to_actor += calls
        if caller.book.waiting and caller.book.must_ask() and not wire.closed:
            wire.to_actor.append("room")

    def _hear(self, place: int) -> None:
        caller = self.callers[place]
        wire = caller.wire
        assert wire is not None
        if not wire.to_caller:
            self._lost(caller, wire)
            return
        kind, number, *more = wire.to_caller.pop(0)
        if kind == "taken" and not more[0]:
            caller.book.heard()
        self._send(caller, caller.book.took(number))
        if kind == "answer":
            call = caller.book.answered(number)
            assert call is not None, f"answer {number} is for nobody"
            self._settle(caller, call, "answered")

    def _lost(self, caller: Caller, wire: Wire) -> None:
        for call in caller.book.lost():
            if caller.is_owner and wire.run and wire.run not in self.ended:
                caller.bereaved.append((wire.run, call))
            else:
                self._settle(caller, call, "died")
        caller.wire = None

    def _settle(self, caller: Caller, call: Call, how: str) -> None:
        if not call.wants_answer and how != "refused":
            how = "dropped"
        assert call.number not in caller.settled, f"{call} is settled twice"
        assert how != "answered" or call in self.ran, f"{call} is answered and has not run"
        caller.settled[call.number] = how

    def _dies(self, place: int) -> None:
        self.caller_deaths -= 1
        caller = self.callers[place]
        caller.alive = False
        if caller.wire is not None:
            caller.wire.left = True
            caller.wire.to_caller.clear()

    # --- the actor ------------------------------------------------------------------------------

    def _accept(self, place: int) -> None:
        self.wires[place].run = self.run

    def _read(self, place: int) -> None:
        wire = self.wires[place]
        message = wire.to_actor.pop(0)
        if message != "room":
            self.box.append((wire, *message))
            return
        step = max(1, self.mailbox // 16)
        known = self.taken.get(place, 0)
        self.tell_at[place] = known + step
        self._say(wire, ("taken", known, True))

    def _say(self, wire: Wire, message: tuple[Any, ...]) -> None:
        if not wire.left:
            wire.to_caller.append(message)

    def _take(self) -> None:
        wire, number, call = self.running = self.box.pop(0)
        assert call not in self.ran, f"{call} runs twice"
        before = [one.number for one in self.ran if one.caller == call.caller]
        assert not before or before[-1] < call.number, f"{call} runs after {before}"
        self.ran.append(call)
        place = self.wires.index(wire)
        self.taken[place] = number
        if number >= self.tell_at.get(place, number + 1):
            del self.tell_at[place]
            self._say(wire, ("taken", number, False))

    def _answer(self) -> None:
        assert self.running is not None
        wire, number, call = self.running
        self.running = None
        if call.wants_answer:
            self._say(wire, ("answer", number))

    def _stop(self) -> None:
        """The owner asks it to end: what was sent until now is taken in first."""
        self.stops -= 1
        self.restarts = 0
        for place, wire in enumerate(self.wires):
            if not wire.closed:
                wire.run = wire.run or self.run
                while wire.to_actor and wire.run == self.run:
                    self._read(place)
        self.last = True

    def _leave(self) -> None:
        self._gone()

    def _die(self) -> None:
        self.deaths -= 1
        self.died = True
        self._gone()

    def _gone(self) -> None:
        self.alive = self.last = False
        self.box.clear()
        self.running = None
        for wire in self.wires:
            if wire.run == self.run:
                wire.closed = True
                wire.to_actor.clear()

    # --- the owner ------------------------------------------------------------------------------

    def _known(self) -> None:
        self.ended.append(self.run)
        for caller in self.callers:
            left, caller.bereaved = caller.bereaved, []
            for _, call in left:
                self._settle(caller, call, "died")

    def _restart(self) -> None:
        self.restarts -= 1
        self.run += 1
        self.alive = True

    def _end(self) -> None:
        self.open = False
        for wire in self.wires:
            if not wire.run:
                wire.closed = True

    # --- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        for place, caller in enumerate(self.callers):
            wire = caller.wire
            if wire is not None:
                waiting = [one for one in wire.to_actor if one != "room"] + [one for one in self.box if one[0] is wire]
                assert len(waiting) <= self.mailbox, f"caller {place} has {len(waiting)} waiting"

    def check_end(self) -> None:
        for caller in self.callers:
            if not caller.alive:
                continue
            for number, wants_answer in enumerate(caller.calls):
                how = caller.settled.get(number)
                assert how or not wants_answer, f"call {number} of {self.callers.index(caller)} waits for ever"
            assert not caller.book.waiting
            if not self.died and self.alive:
                mine = [call.number for call in self.ran if call.caller == self.callers.index(caller)]
                assert mine == list(range(len(caller.calls)))

    def key(self) -> Any:
        callers = tuple(
            (one.alive, one.asked, one.wire and self.wires.index(one.wire), tuple(one.settled.items()), tuple(one.bereaved),
             one.book.sent, one.book.taken, tuple(one.book.waiting), tuple(one.book.pending), one.book._has_asked)
            for one in self.callers
        )  # fmt: skip
        wires = tuple(
            (one.caller, tuple(map(str, one.to_actor)), tuple(map(str, one.to_caller)), one.run, one.closed, one.left)
            for one in self.wires
        )
        box = tuple((self.wires.index(wire), number) for wire, number, _ in self.box)
        running = self.running and (self.wires.index(self.running[0]), self.running[1])
        clocks = (self.run, self.alive, self.open, tuple(self.ended), self.last, self.died)
        left = (self.deaths, self.restarts, self.caller_deaths, self.stops)
        told = (tuple(self.taken.items()), tuple(self.tell_at.items()))
        return callers, wires, box, running, clocks, left, told, tuple(self.ran)


ASKS, CASTS = True, False

WORLDS: dict[str, World] = {
    "two callers, death, restart": World.of(2, [[ASKS, ASKS], [ASKS]], deaths=1, restarts=1),
    "full mailbox, death, restart": World.of(1, [[ASKS, CASTS, ASKS]], deaths=1, restarts=1),
    "full mailbox, two callers": World.of(1, [[CASTS, ASKS], [CASTS, ASKS]], deaths=0, restarts=0),
    "two deaths, one restart": World.of(2, [[ASKS, ASKS, ASKS]], deaths=2, restarts=1),
    "death for good": World.of(2, [[ASKS, ASKS], [ASKS]], deaths=1, restarts=0),
    "death of a caller": World.of(1, [[ASKS], [CASTS, ASKS]], deaths=0, restarts=0, caller_deaths=1),
    "death of a caller and of the actor": World.of(1, [[ASKS], [ASKS]], deaths=1, restarts=1, caller_deaths=1),
    "stop": World.of(2, [[CASTS, ASKS, ASKS]], deaths=0, restarts=0, stops=1),
    "stop, death": World.of(2, [[ASKS], [ASKS]], deaths=1, restarts=1, stops=1),
}


@pytest.mark.parametrize("name", WORLDS)
def test_in_every_order_calls_run_at_most_once_and_are_settled(name):
    began = time.monotonic()
    states = explore(WORLDS[name])
    print(f"{name}: {states} states in {time.monotonic() - began:.1f} s")
    assert states > 30
