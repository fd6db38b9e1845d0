"""What do locks, queues and channels cost, alone and with up to eight processes at them?

    python -m benchmarks.sync [--quick] [--only shoal,multiprocessing] [--rows lock,queue,large,pipe] [--rounds N]

Processes begin at the same instant (`parties.py`) and do nothing else, so that what is measured is the passing alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import physical
from benchmarks.contenders import Contender
from benchmarks.kits import KITS, End, Kit
from benchmarks.model import Case, Row, Suite, Target, percentile
from benchmarks.parties import Cast, meet

Figures = dict[str, Any]

#: Processes at one lock.
CROWDS = (2, 4, 8)
#: Producers, and as many consumers, at one queue; pairs that exchange messages side by side.
SIDES = (1, 2, 4)
LARGE_BYTES = 1_000_000
#: What a pair exchanges: as much as fits a small message of anybody.
MESSAGE = b"0123456789abcdef" * 4


def kit_of(contender: Contender) -> Kit:
    return KITS[contender.name]()


# --- locks --------------------------------------------------------------------------------------


def lock(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Take and release a lock that nobody else wants."""
    pairs = params["pairs"]
    with kit_of(contender) as kit:
        one = kit.lock()
        acquire, release = one.acquire, one.release
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(pairs):
                acquire()
                release()
            taken.append(time.perf_counter() - start)
    return {"lock": statistics.median(taken) / pairs * 1e9}


def crowd(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Take and release a lock that others want all the time: how often, who gets how much, who waits how long."""
    figures: Figures = {}
    with kit_of(contender) as kit:
        for processes in CROWDS:
            one = kit.lock()
            told = meet(kit, [Cast(contending, (one, params["seconds"]))] * processes)
            counts = [said["count"] for said in told.said]
            figures[f"crowd_{processes}"] = sum(counts) / params["seconds"]
            figures[f"fair_{processes}"] = min(counts) / statistics.mean(counts)
            figures[f"waited_{processes}"] = max(said["longest"] for said in told.said) * 1e3
    return figures


def contending(lock: Any, seconds: float) -> Callable[[], Figures]:
    def run() -> Figures:
        count, longest, clock = 0, 0.0, time.perf_counter
        now = clock()
        end = now + seconds
        while now < end:
            wanted = now
            lock.acquire()
            now = clock()
            lock.release()
            count += 1
            longest = max(longest, now - wanted)
        return {"count": count, "longest": longest}

    return run


# --- queues -------------------------------------------------------------------------------------


def queue(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Small items from some processes to as many others."""
    return _through_queues(contender, params, "queue", large=False)


def large(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """The same with arrays of a megabyte."""
    return _through_queues(contender, params, "large", large=True)


def _through_queues(contender: Contender, params: Mapping[str, Any], name: str, *, large: bool) -> Figures:
    figures: Figures = {}
    items = params["items"] // (params["slow"] if contender.name == "ray" else 1)
    with kit_of(contender) as kit:
        for side in SIDES:
            each = items // side
            one = kit.queue(large=large)
            told = meet(kit, [Cast(producing, (one, each, large))] * side + [Cast(consuming, (one, each))] * side)
            figures[f"{name}_{side}"] = each * side / told.took_s
    return figures


def producing(queue: Any, count: int, large: bool) -> Callable[[], None]:
    item: Any = ("item", 1)
    if large:
        import numpy as np

        item = np.ones(LARGE_BYTES // 8)

    def run() -> None:
        put = queue.put
        for _ in range(count):
            put(item)

    return run


def consuming(queue: Any, count: int) -> Callable[[], None]:
    def run() -> None:
        get = queue.get
        for _ in range(count):
            item = get()
            if item[-1] != 1:  # of an array, the last element
                raise RuntimeError("another item came out than went in")

    return run


# --- there and back -----------------------------------------------------------------------------


def pipe(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """A message there and one back, between pairs of processes, through what the library has for two."""
    return _trips(contender, params, "pipe", lambda kit: kit.pipe())


def trip(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """The same through queues."""
    return _trips(contender, params, "trip", lambda kit: kit.queues())


def _trips(contender: Contender, params: Mapping[str, Any], name: str, make: Callable[[Kit], Any]) -> Figures:
    figures: Figures = {}
    trips = params["trips"] // (params["slow"] if contender.name == "ray" else 1)
    with kit_of(contender) as kit:
        for pairs in SIDES:
            cast = []
            for _ in range(pairs):
                here, there = make(kit)
                cast += [Cast(calling, (here, trips)), Cast(answering, (there, trips))]
            told = meet(kit, cast)
            figures[f"{name}_{pairs}"] = statistics.median(said["median"] for said in told.said if "median" in said)
            if pairs == 1:
                figures[f"{name}_p99"] = told.said[0]["p99"]
    return figures


def calling(end: End, trips: int) -> Callable[[], Figures]:
    def run() -> Figures:
        taken, clock = [], time.perf_counter
        for _ in range(trips + trips // 10):
            start = clock()
            end.send(MESSAGE)
            end.receive()
            taken.append(clock() - start)
        taken = taken[trips // 10 :]  # the first ones warm up
        return {"median": statistics.median(taken) * 1e6, "p99": percentile(taken, 0.99) * 1e6}

    return run


def answering(end: End, trips: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(trips + trips // 10):
            end.send(end.receive())

    return run


# --- what the machine can do --------------------------------------------------------------------


def limits(contender: object, params: Mapping[str, Any]) -> Figures:
    """Bare sockets, bare copies, a lock that no other process could take."""
    import threading

    trips = params["trips"]
    one = threading.Lock()
    start = time.perf_counter()
    for _ in range(params["pairs"]):
        one.acquire()
        one.release()
    thread_ns = (time.perf_counter() - start) / params["pairs"] * 1e9
    warm, _ = physical.memcpy(LARGE_BYTES, params["copies"])
    return {
        "ping_plain": physical.ping_pong(physical._plain_echo, physical._plain_trip, trips),
        "ping_spin": physical.ping_pong(physical._spin_echo, physical._spin_trip, trips),
        "wake_futex": physical.futex_wake(trips // 4),
        "thread_lock": thread_ns,
        "copy": warm * 1e9 / LARGE_BYTES,
    }


# --- the question -------------------------------------------------------------------------------

THREE_TIMES = Target(3.0, of="multiprocessing")
FIVE_TIMES = Target(5.0, of="multiprocessing")
HALF = Target(0.5, of="multiprocessing")


def _crowd_rows(processes: int) -> tuple[Row, ...]:
    return (
        Row(f"crowd_{processes}", f"a lock that {processes} processes want all the time", "acquisitions/s", True),
        Row(f"fair_{processes}", "the same, what the one with the fewest got of an equal share", "", True),
        Row(f"waited_{processes}", "the same, the longest anybody waited", "ms"),
    )


def _queue_rows(name: str, what: str, target: Target, limit: str | None = None) -> tuple[Row, ...]:
    return tuple(
        Row(f"{name}_{side}", f"queue, {what}, {side} + {side} processes", "items/s", True, target, limit)
        for side in SIDES
    )


def _trip_rows(name: str, what: str, target: Target | None) -> tuple[Row, ...]:
    return (
        Row(f"{name}_1", f"{what}, there and back, 1 + 1 processes, median", "µs", target=target, limit="ping_spin"),
        Row(f"{name}_p99", "the same, 99th percentile", "µs", limit="ping_plain"),
        *(Row(f"{name}_{pairs}", f"the same, {pairs} + {pairs} processes, median", "µs") for pairs in SIDES[1:]),
    )


NOTES = """\
- Every process has nothing else to do: a lock is wanted again as soon as it is released, a queue gets and gives as fast as it
  can. That is the worst for a lock that serves in turn, as each hand-over is then a process to be woken; one that lets the last
  holder take it again is quicker, and the row below says what the others got meanwhile, and the next how long they waited.
- Items of a queue are a pair of a word and a number, or a numpy array of 1,000,000 bytes whose last element is read. Each consumer
  takes as many as each producer gives. A row's rate counts from the common start to the last end.
- Messages that go there and back have 64 bytes. For two processes shoal has `Channel(bytes)`, one for each direction,
  `multiprocessing` has `Pipe`, of which `send_bytes` and `recv_bytes` are used; the others have their queue alone.
- With more processes than processors they take turns, and so does what they pass on.
- faster-fifo's queue has a size in bytes: its default for small items, 64 MB for arrays. The other queues are as they are made
  without arguments.
- Ray's queue is an actor, a process that every put and get asks; it is slow to start, takes part in the first round only, and passes
  a small part of the items.
- Targets are multiples of `multiprocessing`'s figure, whoever is best.
"""

FULL_TRIPS = {"trips": 10_000, "slow": 50}
QUICK_TRIPS = {"trips": 1_000, "slow": 20}

SUITE = Suite(
    name="sync",
    title="Locks, queues and channels",
    question="What do locks, queues and channels cost, alone and with up to eight processes at them?",
    cases=(
        Case(
            "lock",
            "benchmarks.sync:lock",
            rows=(Row("lock", "acquire and release a lock nobody else wants", "ns", limit="thread_lock"),),
            full={"pairs": 200_000},
            quick={"pairs": 20_000},
        ),
        Case(
            "crowd",
            "benchmarks.sync:crowd",
            rows=tuple(row for processes in CROWDS for row in _crowd_rows(processes)),
            full={"seconds": 1.0},
            quick={"seconds": 0.2},
        ),
        Case(
            "queue",
            "benchmarks.sync:queue",
            rows=_queue_rows("queue", "small items", THREE_TIMES),
            full={"items": 100_000, "slow": 100},
            limit_s=120.0,
            quick={"items": 10_000, "slow": 20},
        ),
        Case(
            "large",
            "benchmarks.sync:large",
            rows=_queue_rows("large", "arrays of 1 MB", FIVE_TIMES, "copy"),
            full={"items": 1_000, "slow": 5},
            limit_s=120.0,
            quick={"items": 100, "slow": 5},
        ),
        Case(
            "pipe",
            "benchmarks.sync:pipe",
            rows=_trip_rows("pipe", "channel or pipe", HALF),
            full=FULL_TRIPS,
            quick=QUICK_TRIPS,
        ),
        Case(
            "trip",
            "benchmarks.sync:trip",
            rows=_trip_rows("trip", "two queues", None),
            full=FULL_TRIPS,
            quick=QUICK_TRIPS,
        ),
    ),
    limits=Case(
        "bare",
        "benchmarks.sync:limits",
        rows=(
            Row("ping_plain", "socket pair, round trip, both sides asleep in the kernel", "µs"),
            Row("ping_spin", "socket pair, round trip, both sides spinning", "µs"),
            Row("wake_futex", "futex, from waking a sleeping process to its running", "µs"),
            Row("thread_lock", "acquire and release a lock of `threading`", "ns"),
            Row("copy", "memcpy of 1 MB into warm pages", "items/s", higher_is_better=True),
        ),
        full={"trips": 2_000, "pairs": 200_000, "copies": 100},
        quick={"trips": 500, "pairs": 20_000, "copies": 20},
    ),
    contenders=("shoal", "multiprocessing", "faster-fifo", "ray"),
    most_rounds={"ray": 1},
    quick_leaves_out=("ray",),
    libraries=("numpy",),
    bars="Locks, queues and channels against the best of the others",
    notes=NOTES,
    full_rounds=5,
    quick_rounds=1,
    full_budget_s=360.0,
    quick_budget_s=30.0,
)


def main() -> None:
    from benchmarks.harness import run_from_command_line

    run_from_command_line(SUITE)


if __name__ == "__main__":
    main()
