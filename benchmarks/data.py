"""What does it cost to hand large arrays to workers, and to get them back?

    python -m benchmarks.data [--quick] [--only shoal,joblib] [--rows argument,shared] [--rounds N]

Two workers everywhere. The functions below run in a fresh interpreter each, see `harness.py`; what the tasks do is in
`arrays.py`. Every figure of time is to be read against one warm memcpy of the same bytes, measured in the same run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks import arrays, physical, picture, procs, weigher
from benchmarks.contenders import Contender, Session
from benchmarks.model import Case, Curve, Row, Suite, Target

WORKERS = 2
#: Only a hang gets this far. Seconds.
HANG_LIMIT_S = 30.0
#: How many tasks of one call get the same array.
TASKS = 16
#: A curve is given up before a call that would take longer than this. Seconds.
PATIENCE_S = 2.0
#: A whole `map` call that takes longer is not repeated without a watch on its memory, which costs it next to nothing.
SLOW_MS = 2000.0
#: A first call that takes longer differs so little from the next that none follows. Seconds.
LONG_S = 0.5
#: At most this part of the free memory is one array of a curve; some contenders hold eight copies at a time.
SHARE_OF_MEMORY = 12

Figures = dict[str, Any]


# --- clock and scales ---------------------------------------------------------------------------


def clocked(
    action: Callable[[Any], object], make: Callable[[], Any] = lambda: None, *, enough_s: float = 0.5, most: int = 5
) -> float:
    """Return the median milliseconds of a few runs: `most`, or fewer once they took `enough_s` together.

    `make` prepares what each run is given; it and the end of what it made are not on the clock.
    """
    taken: list[float] = []
    while len(taken) < most and sum(taken) < enough_s:
        given = make()
        start = time.perf_counter()
        action(given)
        taken.append(time.perf_counter() - start)
        del given
    return statistics.median(taken) * 1e3


def once(action: Callable[[Any], object]) -> float:
    return clocked(action, most=1)


def warm_up(action: Callable[[Any], object]) -> None:
    """Run it a few times, so that whoever keeps pages to use them again has them."""
    clocked(action, enough_s=0.3, most=6)


def check(answer: float, times: int = 1) -> None:
    """Make sure that the array arrived: its ends are 1 and 2."""
    if answer != 3.0 * times:
        raise RuntimeError(f"the array did not arrive: {answer} instead of {3.0 * times}")


def held() -> int:
    return procs.held_bytes(os.environ[procs.MARK])


@contextmanager
def added(figures: Figures, key: str, before: int, unit: int) -> Iterator[None]:
    """Put the most memory that everything held while the block ran, above `before`, in units of one array."""
    with weigher.watched(os.environ[procs.MARK]) as peak:
        yield
    figures[key] = max(0.0, (peak.held_bytes - before) / unit)


def everyone(session: Session, fn: Callable[[Any], int], item: Any) -> None:
    """Run `fn`, which answers with its pid, until every worker has."""
    end = time.monotonic() + HANG_LIMIT_S
    seen: set[int] = set()
    while len(seen) < WORKERS:
        if time.monotonic() > end:
            raise RuntimeError(f"only {len(seen)} of {WORKERS} workers ever ran a task")
        seen.update(session.singly(fn, [item] * (2 * WORKERS)))


@contextmanager
def opened(contender: Contender) -> Iterator[Session]:
    """Open a pool and wait until every worker has imported what the tasks need."""
    with contender.open(WORKERS) as session:
        everyone(session, arrays.hello, None)
        yield session


# --- one array there, one array back ------------------------------------------------------------


def argument(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """One array as argument of one task: the first call of a pool, later calls, another array in each call."""
    nbytes, prefix = params["bytes"], params["prefix"]
    task = arrays.read_all if params["read"] else arrays.ends
    array = arrays.marked_array(nbytes)
    with opened(contender) as session:
        before = procs.settled(held)

        def call(given: Any) -> None:
            check(session.call(task, array if given is None else given))

        figures = {f"{prefix}_cold": once(call)}
        warm_up(call)
        figures[f"{prefix}_warm"] = clocked(call)
        if params["weigh"]:
            with added(figures, f"{prefix}_memory", before, nbytes):
                call(None)
                call(None)
            figures[f"{prefix}_new"] = clocked(call, array.copy)
    return figures


def result(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """One array, made before, as result of one task; the clock includes the parent's look at it."""
    kind, nbytes, prefix = params["kind"], params["bytes"], params["prefix"]
    look = arrays.read_all if params["read"] else arrays.ends
    with opened(contender) as session:
        everyone(session, arrays.prepare, (kind, nbytes))
        before = procs.settled(held)

        def call(_: object) -> None:
            check(look(session.call(arrays.give, kind, nbytes)))

        figures = {f"{prefix}_cold": once(call)}
        warm_up(call)
        figures[f"{prefix}_warm"] = clocked(call)
        if params["weigh"]:
            with added(figures, f"{prefix}_memory", before, nbytes):
                call(None)
                call(None)
    return figures


# --- one array to many tasks --------------------------------------------------------------------


def many(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """One `map` call whose tasks all get the same array, as it is."""
    nbytes = params["bytes"]
    array = arrays.marked_array(nbytes)
    figures: Figures = {}
    with opened(contender) as session:

        def run(given: Any) -> None:
            check(sum(session.map(arrays.ends, [given] * TASKS)), TASKS)

        before = procs.settled(held)
        with added(figures, "many_memory", before, nbytes):
            first = clocked(run, lambda: array, most=1)
        # Another array each time: joblib knows one again.
        figures["many"] = first if first > SLOW_MS else clocked(run, array.copy, most=3)
    return figures


def shared(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """The same, with the array handed over once by the contender's own means."""
    nbytes = params["bytes"]
    array = arrays.marked_array(nbytes)
    figures: Figures = {}
    with opened(contender) as session:

        def run(handle: Any) -> None:
            check(sum(session.map(arrays.ends, [handle] * TASKS)), TASKS)

        before = procs.settled(held)
        with added(figures, "share_memory", before, nbytes):
            run(session.share(array))
        figures["share_again"] = _again(run, session.share(array))
        figures["share_first"] = clocked(lambda given: run(session.share(given)), array.copy, most=3)
    return figures


def _again(run: Callable[[Any], None], handle: Any) -> float:
    run(handle)
    return clocked(lambda _: run(handle))


# --- curves -------------------------------------------------------------------------------------


def sizes(params: Mapping[str, Any]) -> list[int]:
    """Return the powers of four from the smallest to the largest size that the free memory allows."""
    allowed = min(params["largest"], procs.machine_bytes("MemAvailable") // SHARE_OF_MEMORY)
    return [size for size in ALL_SIZES if size <= allowed]


def sweep(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """GB/s by size, there and back, until the memory or our patience is used up."""
    found = sizes(params)
    figures: Figures = {}
    with opened(contender) as session:
        _there(session, figures, found)
        everyone(session, arrays.prepare, ("plain", found[-1]))
        _curve(figures, "res", found, lambda size: check(arrays.ends(session.call(arrays.give, "plain", size))))
    return figures


def _there(session: Session, figures: Figures, found: list[int]) -> None:
    """Send ever longer ends of one array, a new array object each time."""
    whole = arrays.marked_array(found[-1])
    _curve(figures, "arg", found, lambda size: check(session.call(arrays.ends, whole[-(size // 8) :])))


def _curve(figures: Figures, prefix: str, found: list[int], move: Callable[[int], None]) -> None:
    for size in found:
        seconds = _point_s(move, size)
        figures[f"{prefix}_{size}"] = size / seconds / 1e9
        if seconds * 4 > PATIENCE_S:
            return


def _point_s(move: Callable[[int], None], size: int) -> float:
    first_s = once(lambda _: move(size)) / 1e3
    if first_s > LONG_S:
        return first_s
    warm_up(lambda _: move(size))
    return clocked(lambda _: move(size), enough_s=0.3, most=5 if size > 1 << 20 else 30) / 1e3


def limits(contender: object, params: Mapping[str, Any]) -> Figures:
    """What one process can do alone: copy the array, copy it into fresh pages, read it."""
    nbytes = params["bytes"]
    array = arrays.marked_array(nbytes)
    warm, cold = physical.memcpy(nbytes, params["copies"])
    figures = {"memcpy": nbytes / warm / 1e6, "memcpy_cold": nbytes / cold / 1e6}
    figures["read"] = clocked(lambda _: check(arrays.read_all(array)))
    for size in sizes(params):
        figures[f"memcpy_{size}"] = physical.memcpy(size, params["copies"] if size > 1 << 20 else 25)[0]
    return figures


# --- the question -------------------------------------------------------------------------------

FULL = {"bytes": 100_000_000}
QUICK = {"bytes": 20_000_000}
SIZES_FULL = {"largest": 1 << 30}
SIZES_QUICK = {"largest": 1 << 24}
#: 4 KiB to 1 GiB.
ALL_SIZES = tuple(4096 * 4**power for power in range(10))

COPY_ONCE = Target(1.5, of_limit=True)
#: Less than any copy takes.
NO_COPY = Target(0.5, of_limit=True)
#: One copy, and what a worker needs to look at it.
ONE_COPY = Target(1.25)
NOTHING = Target(0.25)


def _ms(key: str, title: str, target: Target | None = None) -> Row:
    return Row(key, title, "ms", target=target, limit="memcpy", relative=True)


def _memory(key: str, title: str, target: Target | None = None) -> Row:
    return Row(key, title, "x", target=target)


def _points(prefix: str, curve: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"{prefix}_{size}", picture.size_text(size), "GB/s", higher_is_better=True, curve=curve, at=float(size))
        for size in ALL_SIZES
    )


NOTES = """\
- Beside each time stands, in brackets, how many times longer it is than one warm memcpy of the same 100 MB in one
  process, measured in the same run. The last table has the cold memcpy too: into pages that the kernel must first
  provide, which is what a first call has to pay for. A limit of 1 is not a bound for results that are never copied.
- "First call" is the first with an array in a pool whose workers have all imported NumPy and run a small task before.
  "After several calls" is the median of up to five after up to six more; fewer of both where calls are long. The next
  row hands over another array in each call. joblib knows an array object again and sends the copy it made before,
  without a look at what has changed in it since.
- A worker that "touches the ends" reads the first and the last number. One that "reads all" adds up the whole array,
  whose time in one process is in the last table. With results it is the program that does so.
- Results are made before the clock starts; each call returns the same array of the worker again.
- `map` is the contender's own, with one task per chunk where the size of a chunk is set by hand. A chunk of
  `multiprocessing.Pool` holds two of the sixteen tasks, and one pickle of it holds the array once.
- Shared once means: `shoal.share`; `ray.put`; Dask's `scatter` to all workers; nothing in joblib, which writes any
  large argument to a file of its own that workers map. The clock of the first row includes it.
- Memory is the most that all processes of the case held meanwhile, above what they held before, in units of the array:
  proportional set sizes without shared memory, and all shared memory of the machine, mapped or not. The array itself,
  and those that workers keep in order to return them, are there before. A process of its own looks every 10 ms at
  first, then ever less often, in calls that are not on the clock; only a `map` call of more than 2 s is not repeated
  without it. Ray's store keeps the pages of what it has let go, so its figure grows with the calls before.
- Ray and Dask run with their manuals' set-up for one machine, without their web pages; Dask with `pure=False`, as it
  would otherwise answer a repeated call from memory. Starting them is not on the clock here.
- The curves are for new array objects whose ends are touched. A line ends where a call would take more than 2 s, or
  where one array would be more than a twelfth of the free memory. Pipes carry the bytes of the executors that are
  not drawn as those of the ones that are.
"""

SUITE = Suite(
    name="data",
    title="The data",
    question="What does it cost to hand large arrays to workers, and to get them back?",
    cases=(
        Case(
            "argument",
            "benchmarks.data:argument",
            rows=(
                _ms("arg_cold", "100 MB array as argument, worker touches its ends: first call"),
                _ms("arg_warm", "the same, after several calls", COPY_ONCE),
                _ms("arg_new", "the same, another array in each call", COPY_ONCE),
                _memory("arg_memory", "memory added meanwhile, in arrays", ONE_COPY),
            ),
            full=FULL | {"prefix": "arg", "read": False, "weigh": True},
            quick=QUICK,
        ),
        Case(
            "argument-read",
            "benchmarks.data:argument",
            rows=(
                _ms("read_cold", "100 MB array as argument, worker reads all: first call"),
                _ms("read_warm", "the same, after several calls"),
            ),
            full=FULL | {"prefix": "read", "read": True, "weigh": False},
            quick=QUICK,
            rounds=2,
            quick_too=False,
        ),
        Case(
            "result",
            "benchmarks.data:result",
            rows=(
                _ms("res_cold", "100 MB array as result, program touches its ends: first call"),
                _ms("res_warm", "the same, after several calls", COPY_ONCE),
                _memory("res_memory", "memory added meanwhile, in arrays", ONE_COPY),
            ),
            full=FULL | {"prefix": "res", "kind": "plain", "read": False, "weigh": True},
            quick=QUICK,
        ),
        Case(
            "result-read",
            "benchmarks.data:result",
            rows=(
                _ms("back_cold", "100 MB array as result, program reads all: first call"),
                _ms("back_warm", "the same, after several calls"),
            ),
            full=FULL | {"prefix": "back", "kind": "plain", "read": True, "weigh": False},
            quick=QUICK,
            rounds=2,
            quick_too=False,
        ),
        Case(
            "empty",
            "benchmarks.data:result",
            rows=(
                _ms("empty_cold", "100 MB array of `shoal.empty` as result, program touches its ends: first call"),
                _ms("empty_warm", "the same, after several calls", NO_COPY),
                _memory("empty_memory", "memory added meanwhile, in arrays", NOTHING),
            ),
            full=FULL | {"prefix": "empty", "kind": "shared", "read": False, "weigh": True},
            quick=QUICK,
            needs=("empty",),
        ),
        Case(
            "many",
            "benchmarks.data:many",
            rows=(
                _ms("many", "one 100 MB array to 16 tasks of one `map` call", COPY_ONCE),
                _memory("many_memory", "memory added meanwhile, in arrays", ONE_COPY),
            ),
            full=FULL,
            quick=QUICK,
            rounds=2,
        ),
        Case(
            "shared",
            "benchmarks.data:shared",
            rows=(
                _ms("share_first", "100 MB array shared once and given to 16 tasks"),
                _ms("share_again", "16 more tasks on the shared array"),
                _memory("share_memory", "memory added by sharing and 16 tasks, in arrays", ONE_COPY),
            ),
            full=FULL,
            quick=QUICK,
            needs=("share",),
        ),
        Case(
            "sizes",
            "benchmarks.data:sweep",
            rows=(*_points("arg", "argument"), *_points("res", "result")),
            full=SIZES_FULL,
            quick=SIZES_QUICK,
            rounds=1,
            contenders=("shoal", "ppe-forkserver", "pool-fork", "joblib", "ray", "dask"),
        ),
    ),
    limits=Case(
        "copies",
        "benchmarks.data:limits",
        rows=(
            Row("memcpy", "memcpy of 100 MB into warm pages", "ms"),
            Row("memcpy_cold", "memcpy of 100 MB into fresh pages", "ms"),
            Row("read", "adding up 100 MB in one process", "ms"),
            *_points("memcpy", "memcpy"),
        ),
        full=FULL | SIZES_FULL | {"copies": 5},
        quick=QUICK | SIZES_QUICK | {"copies": 5},
    ),
    leaves_out=("pool-forkserver",),  # once it runs, its pipes are those of the forked one
    # Ray and Dask take as long to start as all the others together; the pipes of the others carry bytes as those of the
    # executor that stays.
    quick_leaves_out=("ppe-fork", "loky", "pebble", "mpire", "ray", "dask"),
    libraries=("numpy",),
    curves=(
        Curve("argument", "One array as argument", "size of the array", "GB/s", "memcpy", "memcpy, one process"),
        Curve("result", "One array as result", "size of the array", "GB/s", "memcpy", "memcpy, one process"),
    ),
    notes=NOTES,
    full_rounds=3,
    quick_rounds=1,
    full_budget_s=475.0,
    quick_budget_s=35.0,
)


def main() -> None:
    from benchmarks.harness import run_from_command_line

    run_from_command_line(SUITE)


if __name__ == "__main__":
    main()
