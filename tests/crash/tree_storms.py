"""Random kills of supervised children, of actors and of those who call them; what must hold after each, and in the end.

Role: storms that `tests/crash` runs short and `tests/stress` runs long. Owner: those tests.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter as Tally
from contextlib import suppress
from pathlib import Path

import shoal
from tests.process.supervised import Counter, Waits, sleeps
from tests.support import HANG_LIMIT_S, eventually, is_alive

CHILDREN = 3


def concerned(strategy: str, victim: int) -> set[int]:
    """Who gets a new process when the child at this place dies."""
    return {"one_for_one": {victim}, "one_for_all": set(range(CHILDREN))}.get(strategy, set(range(victim, CHILDREN)))


def kill_children(strategy: str, kills: int) -> None:
    """Kill one child after the other; exactly those that it concerns are new each time."""
    chance = random.Random(f"{strategy} {kills}")
    with shoal.Supervisor(strategy, intensity=kills, period=1e6) as tree:
        children = [tree.start([Waits, sleeps, Counter][place], shutdown="kill") for place in range(CHILDREN)]
        for number in range(kills):
            before = [child.pid for child in children]
            victim = chance.randrange(CHILDREN)
            os.kill(before[victim], signal.SIGKILL)
            new = concerned(strategy, victim)
            wait_until_new(tree, before, new)
            for place, pid in enumerate(before):
                assert (children[place].pid != pid) == (place in new), f"kill {number} of {victim}: child {place}"
                assert is_alive(pid) == (place not in new)
            assert tree.statistics().restarts == number + 1
        statistics = tree.statistics()
        assert (statistics.exits, statistics.failed_starts) == (kills, 0)
        concerned_by_all = sum(child.runs for child in statistics.children)
        assert concerned_by_all == statistics.starts
    assert tree.statistics().state == "stopped"


def wait_until_new(tree: shoal.Supervisor, before: list[int | None], new: set[int]) -> None:
    def is_done() -> bool:
        infos = tree.children()
        return all(infos[place].state == "up" and infos[place].pid != before[place] for place in new)

    eventually(is_done, what=f"children {new} to be restarted")


# --- actors -------------------------------------------------------------------------------------


@shoal.actor(intensity=1_000_000, mailbox=8)
class Journal:
    """Writes down each call before it answers; what is written survives the actor."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, caller: int, number: int) -> int:
        # 16 bytes each: a kill cuts a write at the end of a page, if at all.
        os.write(self.file, f"{caller:6d} {number:8d}\n".encode())
        return number


class Caller(shoal.Process):
    """Calls and casts, one number after the other, until it is told to stop; returns what became of the calls."""

    def __init__(self, journal: shoal.Actor, name: int) -> None:
        super().__init__()
        self.journal = journal
        self.caller = name

    def run(self) -> tuple[int, list[int], list[int]]:
        number, answered, died = 0, [], []
        chance = random.Random(self.caller)
        self.ready()
        while not self.stopping.is_set():
            burst = [
                (number + place, self.journal.note(self.caller, number + place))
                for place in range(chance.randint(1, 12))
            ]
            number += len(burst)
            for one, future in burst:
                try:
                    assert future.result(HANG_LIMIT_S) == one
                    answered.append(one)
                except shoal.ActorDied:
                    died.append(one)
        return number, answered, died


def kill_actor(folder: Path, kills: int, callers: int = 2) -> None:
    """Kill an actor again and again while processes call it, and one of them now and then."""
    chance = random.Random(kills)
    path = folder / "journal"
    with Journal(str(path)) as journal:
        names = iter(range(1_000_000))
        running = [start_caller(journal, next(names)) for _ in range(callers)]
        outcomes: list[tuple[int, tuple[int, list[int], list[int]]]] = []
        for number in range(kills):
            pid = journal.pid
            with suppress(ProcessLookupError, TypeError):  # it is dead, and the next one is not there yet
                os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: journal.pid not in (None, pid), what="the next run")  # type: ignore[misc]
            if number % 20 == 19:
                victim = running.pop(0)
                victim.kill()
                running.append(start_caller(journal, next(names)))
            if chance.random() < 0.5:
                journal.note.call(-1, number)
        for caller in running:
            caller.stop(HANG_LIMIT_S)
            outcomes.append((caller.caller, caller.result(HANG_LIMIT_S)))
        assert journal.statistics().restarts == kills
    check_journal(path, outcomes)


def start_caller(journal: shoal.Actor, name: int) -> Caller:
    caller = Caller(journal, name)
    caller.start()
    caller.wait_ready(HANG_LIMIT_S)
    return caller


def check_journal(path: Path, outcomes: list[tuple[int, tuple[int, list[int], list[int]]]]) -> None:
    """No call ran twice, those of one caller in their order; each answered one ran; each is accounted for."""
    ran: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        caller, number = map(int, line.split())
        ran.setdefault(caller, []).append(number)
    for caller, numbers in ran.items():
        assert max(Tally(numbers).values()) == 1, f"caller {caller}: a call ran twice"
        assert numbers == sorted(numbers), f"caller {caller}: out of order"
    for caller, (asked, answered, died) in outcomes:
        mine = set(ran.get(caller, ()))
        assert len(answered) + len(died) == asked
        assert set(answered) <= mine, f"caller {caller}: answered and never ran"
        assert mine <= set(answered) | set(died)
        assert answered, "it was never answered"
