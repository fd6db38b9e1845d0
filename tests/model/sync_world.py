"""Processes that use a semaphore, a condition or a barrier, one step at a time, any of them killed between any two steps.

Role: the worlds `test_sync_states.py` explores. The transitions are the real ones (`_sync/states.py`); the board is modelled as
`_sync/README.md` describes it: a step is computed and done at once, the bumps and wake-ups it owes come after it one by one,
and are lost if their debtor is killed. Owner: the model tests.

Process p has the identity p + 1. Its place in its program is `pc`:

    see, look, doze     reading its slot's word, then the state, then going to sleep if the word is as it was
    asleep              until it is woken, or rechecks
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shoal._sync import states
from shoal._sync.states import FULL, NO, QUEUED, REFUSED, WAITING, YES, Outcome, State

SLOTS = 4
ROOM = 4
Step = tuple[Any, ...]


@dataclass
class Process:
    """One user of the object."""

    rounds: int
    pc: str = "start"
    alive: bool = True
    slot: int = -1
    seen: int = 0
    owes: list[tuple[str, int]] = field(default_factory=list)
    after_owing: str = ""
    told: Any = None

    def key(self) -> tuple[Any, ...]:
        return self.rounds, self.pc, self.alive, self.slot, tuple(self.owes), self.after_owing, self.told


class BoardWorld:
    """What the three have in common."""

    def __init__(self, processes: list[Process], state: State, *, deaths: int = 1, recheck: bool = True) -> None:
        self.processes = processes
        self.state = state
        self.deaths = deaths
        self.recheck = recheck
        self.bumps = [0] * SLOTS

    # --- the board ------------------------------------------------------------------------------

    def do(self, process: Process, outcome: Outcome, then: str, *, own: bool = True) -> None:
        """One step of the board; what it owes comes before `then`. Its place in the line changes if it is its `own`."""
        if outcome.state is not None:
            self.state = outcome.state
            process.slot = outcome.slot if own else process.slot
        process.owes = [(kind, slot) for kind in ("bump", "wake") for slot in outcome.wake]
        process.pc, process.after_owing = ("owing", then) if process.owes else (then, "")

    def dead(self) -> frozenset[int]:
        return frozenset(number + 1 for number, one in enumerate(self.processes) if not one.alive)

    def bury(self) -> Outcome:
        raise NotImplementedError

    def act(self, number: int, process: Process) -> None:
        """Do what the program of the process does at `pc`."""
        raise NotImplementedError

    def told(self, number: int, process: Process) -> None:
        """It looked and found that it was told something."""
        raise NotImplementedError

    def finished(self) -> None:
        """Assert what must hold when nothing has to happen any more and all who live are done."""

    # --- for `explore` --------------------------------------------------------------------------

    def steps(self) -> tuple[list[Step], list[Step]]:
        must: list[Step] = []
        may: list[Step] = []
        for number, one in enumerate(self.processes):
            if one.alive and one.pc != "done":
                if one.pc == "asleep":
                    must += [("recheck", number)] if self.recheck else []
                elif self.able(number, one):
                    must.append(("go", number))
                if self.deaths:
                    may.append(("kill", number))
        return must, may

    def able(self, number: int, process: Process) -> bool:
        """Whether it can go on."""
        return True

    def take(self, step: Step) -> None:
        name, number = step
        one = self.processes[number]
        if name == "kill":
            one.alive = False
            self.deaths -= 1
            self.killed(number)
        elif name == "recheck":
            outcome, place = self.bury(), states.find(self.state, one.slot)
            if outcome.state is not None or place is None or place.answer != WAITING:  # else it sleeps on
                self.do(one, outcome, "see", own=False)
        elif one.pc == "owing":
            kind, slot = one.owes.pop(0)
            if kind == "bump":
                self.bumps[slot] += 1
            else:
                self._wake(slot)
            if not one.owes:
                one.pc, one.after_owing = one.after_owing, ""
        elif one.pc == "see":
            one.seen, one.pc = self.bumps[one.slot], "look"
        elif one.pc == "look":
            found = states.find(self.state, one.slot)
            if found is not None and found.answer == WAITING:
                one.pc = "doze"
            else:
                one.told = found and (found.answer, found.detail)
                self.told(number, one)
        elif one.pc == "doze":
            one.pc = "asleep" if self.bumps[one.slot] == one.seen else "see"
        else:
            self.act(number, one)

    def killed(self, number: int) -> None:
        pass

    def _wake(self, slot: int) -> None:
        for one in self.processes:
            if one.alive and one.pc == "asleep" and one.slot == slot:
                one.pc = "see"

    def check(self) -> None:
        slots = [waiter.slot for waiter in self.state.line]
        assert len(slots) == len(set(slots)), "two in one slot"

    def check_end(self) -> None:
        stuck = [number for number, one in enumerate(self.processes) if one.alive and one.pc != "done"]
        assert not stuck, f"{stuck} wait for ever"
        self.finished()

    def key(self) -> Any:
        # A count only matters beside what somebody has seen of it.
        fresh = tuple(one.pc in ("look", "doze") and one.seen == self.bumps[one.slot] for one in self.processes)
        return self.state, tuple(one.key() for one in self.processes), fresh, self.deaths, self.extra_key()

    def extra_key(self) -> Any:
        return None


# --- semaphore ----------------------------------------------------------------------------------


class SemaphoreWorld(BoardWorld):
    """Each process: acquire, be inside, release; `rounds` times."""

    def __init__(self, permits: int, count: int, rounds: int, **options: Any) -> None:
        super().__init__([Process(rounds) for _ in range(count)], State(permits), **options)
        self.permits = permits

    def bury(self) -> Outcome:
        return states.bury_holders(self.state, self.dead(), self.permits)

    def act(self, number: int, process: Process) -> None:
        me = number + 1
        if process.pc == "start":
            outcome = states.acquire(self.state, me, SLOTS, ROOM)
            self.do(process, outcome, "inside" if outcome.answer == YES else "see")
        elif process.pc == "take":
            outcome = states.take(self.state, process.slot, me, ROOM)
            self.do(process, outcome, "inside" if outcome.answer == YES else "see")
        elif process.pc == "inside":
            process.rounds -= 1
            self.do(process, states.release(self.state, me, 1, self.permits), "start" if process.rounds else "done")

    def told(self, number: int, process: Process) -> None:
        process.pc, process.told = "take", None

    def check(self) -> None:
        super().check()
        inside = sum(one.alive and (one.pc == "inside" or one.after_owing == "inside") for one in self.processes)
        assert inside <= self.permits, f"{inside} are inside"
        under_way = sum(waiter.answer == states.GRANTED for waiter in self.state.line)
        noted = sum(count for _, count in self.state.holders)
        assert self.state.value + under_way + noted == self.permits, "a permit is lost or doubled"
        assert not self.state.value or not states.waiting(self.state), "a permit is free while somebody waits"

    def finished(self) -> None:
        after = self.bury().state or self.state
        assert (after.value, after.line, after.holders) == (self.permits, (), ()), f"not all have come back: {after}"


# --- condition ----------------------------------------------------------------------------------


class ConditionWorld(BoardWorld):
    """Producers put one item each under the lock and notify; consumers wait until there is one and take it."""

    def __init__(self, producers: int, consumers: int, *, to_all: bool = False, **options: Any) -> None:
        super().__init__([Process(1) for _ in range(producers + consumers)], State(), **options)
        self.producers = producers
        self.to_all = to_all
        self.items = 0
        self.taken = 0
        self.owner = -1
        self.abandoned = False

    def bury(self) -> Outcome:
        after = states.bury_waiters(self.state, self.dead())
        if not self.abandoned:
            return after
        more = states.holder_died(after.state or self.state)
        return more._replace(state=more.state or after.state, wake=(*after.wake, *more.wake))

    def able(self, number: int, process: Process) -> bool:
        return process.pc not in ("start", "relock") or self.owner < 0

    def killed(self, number: int) -> None:
        if self.owner == number:
            self.owner, self.abandoned = -1, True

    def act(self, number: int, process: Process) -> None:
        if process.pc in ("start", "relock"):
            self.owner, self.abandoned = number, False
            process.pc = {"start": "decide", "relock": "leave"}[process.pc]
        elif process.pc == "leave":
            self.do(process, states.leave(self.state, process.slot), "decide")
            process.told = None
        elif process.pc == "unlock to wait":
            self.owner, process.pc = -1, "see"
        elif process.pc == "unlock":
            self.owner, process.pc = -1, "done"
        elif number < self.producers:
            self._produce(process)
        elif self.items:
            self.items -= 1
            self.taken += 1
            process.pc = "unlock"
        else:
            outcome = states.join(self.state, number + 1, SLOTS)
            assert outcome.answer == QUEUED
            self.do(process, outcome, "unlock to wait")

    def _produce(self, process: Process) -> None:
        if process.pc == "decide":
            self.items += 1
            process.pc = "notify"
        else:
            step = states.notify_all(self.state) if self.to_all else states.notify(self.state, 1)
            self.do(process, step, "unlock")

    def told(self, number: int, process: Process) -> None:
        process.pc = "relock"

    def check_end(self) -> None:
        waiting = [one for one in self.processes if one.alive and one.pc != "done"]
        assert all(one.pc == "asleep" for one in waiting), f"stuck: {[one.pc for one in waiting]}"
        assert not waiting or not self.items, "there is something for those who wait"

    def extra_key(self) -> Any:
        return self.items, self.taken, self.owner, self.abandoned


# --- barrier ------------------------------------------------------------------------------------


class BarrierWorld(BoardWorld):
    """Each process passes the barrier `rounds` times, unless it breaks."""

    def __init__(self, parties: int, rounds: int, *, acts: bool = False, **options: Any) -> None:
        super().__init__([Process(rounds) for _ in range(parties)], State(), **options)
        self.parties = parties
        self.all_rounds = rounds
        self.acts = acts
        self.places: dict[int, list[int]] = {}  # round -> places given

    def bury(self) -> Outcome:
        return states.bury_parties(self.state, self.dead())

    def act(self, number: int, process: Process) -> None:
        me = number + 1
        if process.pc == "start":
            outcome = states.arrive(self.state, me, self.parties, SLOTS, self.acts)
            if outcome.answer == YES and not self.acts:
                self.do(process, outcome, "passed")
                process.told = (states.PASSED, outcome.detail)
            elif outcome.answer == REFUSED:
                process.told, process.pc = (states.BROKEN + self.state.mode, self.state.value), "broken"
            elif outcome.answer == FULL:
                self.do(process, self.bury(), "start", own=False)
            else:
                self.do(process, outcome, "see" if outcome.answer == QUEUED else "act")
        elif process.pc == "act":
            self.do(process, states.let_pass(self.state), "see", own=False)
        elif process.pc == "leave":
            told = process.told
            self.do(process, states.leave(self.state, process.slot), "passed" if told[0] == states.PASSED else "broken")
        elif process.pc == "passed":
            self._passed(process)
        elif process.pc == "broken":
            assert process.told == (states.BROKEN + states.DIED, min(self.dead())), "the culprit is somebody else"
            process.pc = "done"

    def _passed(self, process: Process) -> None:
        number = self.all_rounds - process.rounds
        self.places.setdefault(number, []).append(process.told[1])
        came = [self.all_rounds - one.rounds for one in self.processes]
        assert min(came) >= number, "it passed before all had come"
        process.rounds -= 1
        process.told = None
        process.pc = "start" if process.rounds else "done"

    def told(self, number: int, process: Process) -> None:
        process.pc = "leave"

    def check_end(self) -> None:
        never_came = any(not one.alive and one.rounds == self.all_rounds for one in self.processes)
        known = {who for who, _ in self.state.holders} | {waiter.who for waiter in self.state.line}
        stuck = [one for one in self.processes if one.alive and one.pc != "done"]
        if stuck and never_came and not known & self.dead():
            return  # nobody can know of one that died before it ever came
        assert not stuck, f"somebody waits for ever: {[one.pc for one in stuck]}"
        for places in self.places.values():
            assert len(set(places)) == len(places), "two got the same place"
        if not self.dead():
            assert all(sorted(places) == list(range(self.parties)) for places in self.places.values())

    def extra_key(self) -> Any:
        return tuple((number, tuple(sorted(places))) for number, places in self.places.items())


__all__ = ["NO", "BarrierWorld", "ConditionWorld", "SemaphoreWorld"]
