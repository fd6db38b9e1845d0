"""A queue, and processes that can be killed before any of their accesses to it: the real steps, scheduled.

Role: the world of `test_queue`. Owner: that test.

`Core` is the real one, on real bytes; only its guards are models, which a dead owner gives up. Each load, each store and each
call of a guard first passes `Process.step`, where another process may go on, or this one dies: nothing after it has any effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal._sync import queue_layout as at
from shoal._sync.gates import OWN
from shoal._sync.queue_core import REFERENCE, Core
from tests.model.interleave import Run

UNITS = 4


class Dead(BaseException):
    """This process was killed."""


class Process:
    """One that may die before its step number `dies_at`."""

    def __init__(self, who: int, dies_at: int = 0) -> None:
        self.who = who
        self.dies_at = dies_at
        self.steps = 0
        self.dead = False

    def step(self) -> None:
        if Run.current is not None:
            Run.current.pause()
        if not self.dead:
            self.steps += 1
            self.dead = self.steps == self.dies_at
        if self.dead:
            raise Dead


class Memory:
    """Words or bytes, with a step before each access."""

    def __init__(self, real: memoryview, process: Process) -> None:
        self._real, self._process = real, process

    def __getitem__(self, place: Any) -> Any:
        self._process.step()
        return self._real[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self._process.step()
        self._real[place] = value


class Mutex:
    """Robust: a dead owner has left."""

    def __init__(self) -> None:
        self.owner: Process | None = None

    def free(self) -> bool:
        return self.owner is None or self.owner.dead


class Gate:
    """A mutex as one process has it."""

    def __init__(self, mutex: Mutex, process: Process) -> None:
        self._mutex, self._process = mutex, process

    def enter_now(self) -> int:
        self._process.step()
        if self._mutex.owner is self._process:
            return OWN
        while not self._mutex.free():
            assert Run.current is not None
            Run.current.block_until(self._mutex.free)
        self._mutex.owner = self._process
        return 0

    def enter_after(self, answer: int) -> int:
        return answer

    def leave(self) -> None:
        self._process.step()
        assert self._mutex.owner is self._process
        self._mutex.owner = None

    def give_up(self) -> None:
        assert self._process.dead


class Party:
    """What `queue.Party` is to the core."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.stash: Any = None


class World:
    """A queue and what happened to it."""

    def __init__(self, *, ack: bool = False, most: int = 0, core: type[Core] = Core) -> None:
        table, data, size = at.plan(UNITS, ack=ack)
        self.bytes = memoryview(bytearray(size))
        self.words = words = self.bytes.cast("Q")
        words[at.UNITS], words[at.RESERVED], words[at.MOST], words[at.ACK] = UNITS, UNITS, most, ack
        words[at.PUT_AT] = words[at.TAKE_AT] = data
        words[table], words[table + 1] = at.NEVER, 1 << 32 | at.CHUNK
        self.table, self.ack = table, ack
        self.kind = core
        self.mutexes = Mutex(), Mutex()
        self.processes: dict[int, Process] = {}
        self.put: list[int] = []  # items whose put returned
        self.begun: list[int] = []  # or began
        self.got: dict[int, list[int]] = {}  # by process, in order
        self.done: list[int] = []  # acknowledged
        self.asleep: list[list[bool]] = []
        self.survivor = self.add(99)

    def add(self, who: int, dies_at: int = 0) -> Actor:
        process = self.processes[who] = Process(who, dies_at)
        return Actor(self, process)

    def gone(self, who: int) -> bool:
        return self.processes[who].dead

    def somebody_died(self) -> bool:
        return any(one.dead for one in self.processes.values())

    def sleep(self, bell: int, seen: int) -> None:
        """As `futex.wait`: looking and falling asleep is one step."""
        if self.words[bell] == seen:
            woken: list[bool] = []
            self.asleep.append(woken)
            assert Run.current is not None
            Run.current.block_until(lambda: bool(woken) or self.somebody_died())
            if woken in self.asleep:
                self.asleep.remove(woken)

    def wake(self) -> None:
        if self.asleep:
            self.asleep.pop(0).append(True)

    def settle(self) -> list[int]:
        """Sweep and take what is left, as somebody who comes later. Returns the numbers of the lost ones."""
        one = self.survivor
        one.join()
        one.core.sweep(self.gone)
        while one.take():
            pass
        one.core.sweep(self.gone)
        return [number for _, number in one.core.losses()]


class Actor:
    """A process with the queue."""

    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process = world, process
        memory = Memory(world.words, process), Memory(world.bytes, process)
        gates = [Gate(mutex, process) for mutex in world.mutexes]
        if process.who == 99:  # comes after all the others, so nobody can come between
            memory = world.words, world.bytes  # type: ignore[assignment]
        quiet = Process(process.who)
        given = world.words, world.bytes
        self.core = world.kind(*given, *[Gate(mutex, quiet) for mutex in world.mutexes], lambda *_: None)  # type: ignore[arg-type]
        self.core.words, self.core._view = memory
        self.core._put_gate, self.core._take_gate = gates  # type: ignore[assignment]
        self.party = Party(0)
        self.blocks: dict[int, list[int]] = {}  # item -> units this one holds

    def join(self) -> None:
        self.party = Party(self.core.join(self.process.who))

    def place(self) -> None:
        """Join before anything is scheduled."""
        words, gates = self.core.words, (self.core._put_gate, self.core._take_gate)
        quiet = Process(self.process.who)
        self.core.words = self.world.words
        self.core._put_gate, self.core._take_gate = (Gate(mutex, quiet) for mutex in self.world.mutexes)  # type: ignore[assignment]
        self.join()
        self.core.words = words
        self.core._put_gate, self.core._take_gate = gates

    # --- what it does ---------------------------------------------------------------------------

    def put(self, item: int, size: int = 8) -> bool:
        self.world.begun.append(item)
        done = self.core.put(bytes([item]) * size, at.PICKLED) == 0
        if done:
            self.world.put.append(item)
        return done

    def put_large(self, item: int, units: int = 1) -> bool:
        """As `Queue._put_large`."""
        unit = self.core.allocate(units << at.UNIT_BITS, self.party)
        if unit < 0:
            return False
        start = self.core.block_at(unit)
        self.process.step()
        self.world.bytes[start] = item
        self.world.begun.append(item)
        data = REFERENCE.pack(1, 0) + REFERENCE.pack(unit, units << at.UNIT_BITS) + bytes([item])
        done = self.core.put(data, at.BLOCKS, [unit]) == 0
        if done:
            self.world.put.append(item)
        else:
            self.core.release(unit)
        return done

    def take(self) -> bool:
        if not self.core.take(self.party):
            return False
        kind, data, entry = self.party.stash
        item = data[-1]
        self.world.got.setdefault(self.process.who, []).append(item)
        self.party.stash = None
        if kind == at.BLOCKS:
            for unit, _ in self.core.references(data)[0]:
                assert self.world.bytes[self.core.block_at(unit)] == item, "the block was used for something else"
                self.core.release(unit)
        if self.world.ack:
            self.core.acknowledge(entry)
            self.world.done.append(item)
        return True

    def put_and_ring(self, item: int) -> None:
        """As `Queue.put`."""
        self.put(item)
        if self.core.words[at.TAKERS]:
            self.core.words[at.ITEM_BELL] = item
            self.process.step()
            self.world.wake()

    def take_or_sleep(self) -> None:
        """As `Queue.get`, without spinning; the recheck comes only if somebody has died."""
        words = self.core.words
        while not self.take():
            self.core.fall_asleep(self.party, 1)
            seen = words[at.ITEM_BELL]
            if words[at.PUT] == words[at.TAKEN]:
                self.process.step()
                self.world.sleep(at.ITEM_BELL, seen)
            self.core.fall_asleep(self.party, 0)
            if self.world.somebody_died() and words[at.PUT] == words[at.TAKEN]:
                return  # nothing will ever come

    def takes(self, count: int) -> None:
        """Take, a bounded number of times; each look is one of many a real consumer would have."""
        for _ in range(count):
            self.take()


def mortal(actor: Actor, act: Callable[[Actor], object]) -> Callable[[], None]:
    """Return the body of a process: it acts, until it dies."""

    def body() -> None:
        try:
            act(actor)
        except Dead:
            pass

    return body
