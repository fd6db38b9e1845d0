"""How fast is the pool, how soon is it there, what does it weigh, and how quickly does it heal?

    python -m benchmarks.pool [--quick] [--only shoal,pebble] [--rows submit,latency] [--rounds N]

Two workers everywhere. The functions below run in a fresh interpreter each, see `harness.py`.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import physical, procs, workloads
from benchmarks.contenders import Contender, Session
from benchmarks.model import Case, Row, Suite, Target, percentile

WORKERS = 2
#: Only a hang gets this far. Seconds.
HANG_LIMIT_S = 20.0
#: So many kills everybody gets, however long they take.
LEAST_KILLS = 3
#: Pause that lets a pool finish what it does on its own, such as starting a spare. Seconds.
SETTLE_S = 0.1

#: Below this rate `map` is measured over a fifth of the items.
SLOW_ITEMS_PER_S = 200_000
#: Below this rate everything is measured over as many tasks as take about this long.
SLOW_TASKS_PER_S = 4_000
SLOW_S = 1.5
#: Tasks by which the rate is guessed, and least that are measured.
GUESSED_BY = 500
#: Who takes longer over something that is repeated repeats it no further, once it has been done a few times. Seconds.
PATIENCE_S = 4.0

Figures = dict[str, Any]


def timed(action: Callable[[], object], *, enough_s: float = 0.6, most: int = 3) -> float:
    """Return the median seconds of a few runs: `most`, or fewer once they took `enough_s` together."""
    taken: list[float] = []
    while len(taken) < most and sum(taken) < enough_s:
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def check_length(results: list[Any], count: int) -> None:
    if len(results) != count:
        raise RuntimeError(f"{len(results)} results for {count} tasks")


def await_all(session: Session, workers: int) -> None:
    """Return when every worker has run a task."""
    end = time.monotonic() + HANG_LIMIT_S
    seen: set[int] = set()
    while len(seen) < workers:
        if time.monotonic() > end:
            raise RuntimeError(f"only {len(seen)} of {workers} workers ever ran a task")
        seen.update(session.singly(workloads.who_after_a_nap, range(4 * workers)))


# --- throughput and latency ---------------------------------------------------------------------


def smoke(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Open, run, close: fills caches of compiled files, and finds out who cannot take part."""
    with contender.open(WORKERS) as session:
        check_length(session.map(workloads.noop, range(8)), 8)
    return {"ok": 1.0}


def submit_many(contender: Contender, params: Mapping[str, Any]) -> Figures:
    tasks = params["tasks"]
    with contender.open(WORKERS) as session:
        tasks = _fitting(tasks, session.submit_all)
        check_length(session.submit_all(workloads.noop, range(tasks // 10)), tasks // 10)
        seconds = timed(lambda: session.submit_all(workloads.noop, range(tasks)))
    return {"submit": tasks / seconds}


def _fitting(most: int, run: Callable[[Callable[..., Any], Any], list[Any]]) -> int:
    """Return how many tasks to measure: `most`, or fewer if it runs few per second."""
    for _ in range(2):  # the first call of a pool tells little
        start = time.perf_counter()
        check_length(run(workloads.noop, range(GUESSED_BY)), GUESSED_BY)
    rate = GUESSED_BY / (time.perf_counter() - start)
    return most if rate >= SLOW_TASKS_PER_S else min(most, max(GUESSED_BY, int(rate * SLOW_S)))


def map_many(contender: Contender, params: Mapping[str, Any]) -> Figures:
    items = params["items"]
    with contender.open(WORKERS) as session:
        items = _fitting(items, session.map)
        warm_up = range(items // 10)
        start = time.perf_counter()
        check_length(session.map(workloads.noop, warm_up), len(warm_up))
        if items == params["items"] and len(warm_up) / (time.perf_counter() - start) < SLOW_ITEMS_PER_S:
            items //= 5  # its rate no longer changes, and the others are waiting
        seconds = timed(lambda: session.map(workloads.noop, range(items)))
    return {"map": items / seconds}


def round_trips(contender: Contender, params: Mapping[str, Any]) -> Figures:
    taken = []
    with contender.open(WORKERS) as session:
        submit, result = session.submit, session.result
        end = time.perf_counter() + PATIENCE_S
        for number in range(params["warm_up"]):
            result(submit(workloads.noop, 1))
            if number > params["least"] / 4 and time.perf_counter() > end - PATIENCE_S / 2:
                break
        while len(taken) < params["calls"] and (len(taken) < params["least"] or time.perf_counter() < end):
            start = time.perf_counter()
            result(submit(workloads.noop, 1))
            taken.append(time.perf_counter() - start)
    return {"p50": percentile(taken, 0.50) * 1e6, "p99": percentile(taken, 0.99) * 1e6}


def small_tasks(contender: Contender, params: Mapping[str, Any]) -> Figures:
    tasks = params["tasks"]
    with contender.open(WORKERS) as session:
        tasks = _fitting(tasks, session.map)
        session.map(workloads.busy_100us, range(tasks // 10))
        seconds = timed(lambda: session.map(workloads.busy_100us, range(tasks)), enough_s=1.0)
    return {"share": tasks * 100e-6 / WORKERS / seconds}


def short_loop(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Measure 20 x 1 ms, with everything a short program pays after its imports, against the loop."""
    items = range(20)
    contender.load()
    loop_s = timed(lambda: list(map(workloads.busy_1ms, items)))
    start = time.perf_counter()
    note = contender.map_once(workloads.busy_1ms, items, WORKERS)
    return {"loop": (time.perf_counter() - start) / loop_s, "note": note}


# --- starting and weighing ----------------------------------------------------------------------

PROGRAM = """\
import time
{imports}


def task(value):
    return value


def first_result():
{body}


if __name__ == "__main__":
    first_at = first_result()
    start = time.perf_counter()
    second_s = first_result() - start
    print(first_at, second_s)
"""


def program_text(contender: Contender) -> str:
    """Return the whole program a user would write for one result, and again for another pool."""
    return PROGRAM.format(imports=contender.imports.strip(), body=textwrap.indent(contender.body, "    "))


def first_results(contender: Contender, params: Mapping[str, Any]) -> Figures:
    first, second = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        program = Path(folder, "program.py")
        program.write_text(program_text(contender), encoding="utf-8")
        for _ in range(params["starts"]):
            start = time.perf_counter()  # the program's clock too: it is the system's monotonic one
            done = subprocess.run(
                [sys.executable, str(program)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=HANG_LIMIT_S,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(f"the program failed: {done.stderr[-500:]}")
            first_at, second_s = map(float, done.stdout.split()[-2:])
            first.append((first_at - start) * 1e3)
            second.append(second_s * 1e3)
            if sum(first) + sum(second) > PATIENCE_S * 1e3:
                break
    return {"first": statistics.median(first), "second": statistics.median(second)}


def _memory_with(contender: Contender, workers: int) -> int:
    """Return the bytes that everything holds while `workers` idle workers exist."""
    with contender.open(workers) as session:
        await_all(session, workers)
        return procs.settled_pss_bytes(os.environ[procs.MARK])


def idle_memory(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Weigh two pools of different size: the difference is what one more worker costs."""
    before = procs.settled_pss_bytes(os.environ[procs.MARK])
    small, large = WORKERS, params["workers"]
    with_small = _memory_with(contender, small)
    with_large = _memory_with(contender, large)
    return {
        "memory": (with_large - with_small) / (large - small) / 1e6,
        "memory_all": (with_small - before) / small / 1e6,
    }


# --- failing ------------------------------------------------------------------------------------


class Desk:
    """Files by which tasks tell when they start and are let go; and what `submit` returned, which some may not forget."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.release = str(self.folder / "release")
        self.never = str(self.folder / "never")
        self.kept: list[Any] = []
        self._count = 0

    def paths(self, count: int) -> list[str]:
        self._count += count
        return [str(self.folder / f"stamp{self._count - number}") for number in range(count)]

    @staticmethod
    def wait_for(paths: list[str], what: str) -> tuple[int, float]:
        """Return (pid, start time) of the first of `paths` that a task has stamped."""
        end = time.monotonic() + HANG_LIMIT_S
        while time.monotonic() < end:
            for path in paths:
                if os.path.exists(path):
                    pid, started = Path(path).read_text(encoding="ascii").split()
                    return int(pid), float(started)
            time.sleep(0.0005)
        raise TimeoutError(f"{what} did not start within {HANG_LIMIT_S:.0f} s")


@contextmanager
def one_worker_held(contender: Contender) -> Iterator[tuple[Session, Desk, int]]:
    """Open two workers and keep one busy, so that the next task can only run in the other's slot."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        desk = Desk(folder)
        session = contender.open(WORKERS)
        try:
            (held,) = desk.paths(1)
            desk.kept.append(session.submit(workloads.hold, held, desk.release))
            holder, _ = desk.wait_for([held], "the task that holds one worker")
            yield session, desk, holder
        finally:
            Path(desk.release).touch()
            Path(desk.never).touch()
            session.terminate()


def _next_start(session: Session, desk: Desk, paths: list[str], barred: set[int]) -> float:
    pid, started = desk.wait_for(paths, "the next task")
    if pid in barred:
        raise RuntimeError("the next task ran in a worker that should not have been free")
    return started


def replacement(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """From `kill -9` of a busy worker to the start of the next task in the worker that replaces it."""
    taken: list[float] = []
    with one_worker_held(contender) as (session, desk, holder):
        end = time.monotonic() + PATIENCE_S
        while len(taken) < params["kills"] and (len(taken) < LEAST_KILLS or time.monotonic() < end):
            (victim_path,) = desk.paths(1)
            desk.kept.append(session.submit(workloads.hold, victim_path, desk.never))
            victim, _ = desk.wait_for([victim_path], "the task whose worker is to be killed")
            waiting = desk.paths(session.probes)
            desk.kept += [session.submit(workloads.stamp, path) for path in waiting]
            time.sleep(SETTLE_S)
            killed_at = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            taken.append(_next_start(session, desk, waiting, {holder, victim}) - killed_at)
    return {"kill": statistics.median(taken) * 1e3}


def slot_after_timeout(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """From the moment a task's time is up to the start of the next task in that slot."""
    taken = []
    limit_s = params["timeout_s"]
    with one_worker_held(contender) as (session, desk, holder):
        for _ in range(params["timeouts"]):
            (victim_path,) = desk.paths(1)
            desk.kept.append(session.submit_limited(limit_s, workloads.hold, victim_path, desk.never))
            _, started = desk.wait_for([victim_path], "the task that takes too long")
            waiting = desk.paths(session.probes)
            desk.kept += [session.submit(workloads.stamp, path) for path in waiting]
            after = _next_start(session, desk, waiting, {holder}) - (started + limit_s)
            if after < -0.001:
                raise RuntimeError(f"the next task started {-after:.3f} s before the deadline")
            taken.append(after)
            time.sleep(SETTLE_S)
    return {"timeout": statistics.median(taken) * 1e3}


NOTES = """\
- `map` hands out in batches of the contender's own choosing where it has such a rule (shoal, `multiprocessing.Pool`,
  joblib, mpire). `ProcessPoolExecutor` and loky have none and got a chunk size of 1/200 of the items by hand, pebble at
  most 100, as larger ones served it no better. Ray and Dask send each item by itself: their manuals leave batches to the
  caller. Who handles fewer than 200,000 items/s is measured over a fifth of them, and who handles fewer than 4,000
  tasks/s over as many as take about 1.5 s, in every row.
- Ray and Dask run with their manuals' set-up for one machine, without their web pages; their retries after a death are
  turned off, as the killed task would take the slot that is waited for. Being slow to start they take part in the first
  round only. A first result, a kill or a round trip is repeated until four seconds are over, a few times at least.
- The tasks of 100 µs watch the clock, not the processor: a task that is put aside by the system still ends on time.
  Every contender gains alike, but a share near 1 means that slots were kept filled, not that nothing else ran.
- The first result of a fresh program counts from the start of the interpreter and includes every import. Its second
  pool is opened after the first is closed, in the same program. joblib keeps its workers in between: its design.
- The loop of 20 x 1 ms is the contender's first use in its interpreter, library already imported; opening and closing
  the pool count.
- Memory is what a larger pool (six workers) holds above a pool of two, divided by the difference, all helper processes
  included: proportional set size, in which a page shared by n processes counts 1/n for each. The row after it divides
  everything a pool of two adds (its helpers, and the library itself in the main program) by two. Pages shared with
  programs outside the benchmark make both a little smaller.
- For the last two rows one of the two workers is kept busy, so that the next task, already waiting, can only run in the
  slot in question. Kills and deadlines come one at a time, at least 0.1 s apart, so a pool that keeps a spare has time
  to renew it. `multiprocessing.Pool` replaces a killed worker but never delivers the killed task's result.
"""

SMOKE = Case("smoke", "benchmarks.pool:smoke", rows=())

SUITE = Suite(
    name="pool",
    title="The pool",
    question="How fast is the pool, how soon is it there, what does it weigh, and how quickly does it heal?",
    cases=(
        Case(
            "submit",
            "benchmarks.pool:submit_many",
            rows=(
                Row(
                    "submit",
                    "submit 20,000 no-ops one by one, gather the results",
                    "tasks/s",
                    higher_is_better=True,
                    target=Target(3.0, of_best=True),
                    limit="loop_items",
                ),
            ),
            full={"tasks": 20_000},
            quick={"tasks": 4_000},
            needs=("submit",),
        ),
        Case(
            "map",
            "benchmarks.pool:map_many",
            rows=(
                Row(
                    "map",
                    "`map` over 1,000,000 no-ops",
                    "items/s",
                    higher_is_better=True,
                    target=Target(1.2, of_best=True),
                    limit="loop_two",
                ),
            ),
            full={"items": 1_000_000},
            quick={"items": 200_000},
        ),
        Case(
            "latency",
            "benchmarks.pool:round_trips",
            rows=(
                Row("p50", "`submit().result()` of a no-op, median", "µs", target=Target(0.6, True), limit="ping_spin"),
                Row("p99", "the same, 99th percentile", "µs", target=Target(0.6, True), limit="ping_plain"),
            ),
            full={"calls": 4_000, "least": 200, "warm_up": 400},
            quick={"calls": 1_500, "warm_up": 200},
            needs=("submit",),
        ),
        Case(
            "share",
            "benchmarks.pool:small_tasks",
            rows=(
                Row(
                    "share",
                    "10,000 tasks of 100 µs through `map`, share of the ideal",
                    "",
                    higher_is_better=True,
                    target=Target(0.97),
                    limit="share",
                ),
            ),
            full={"tasks": 10_000},
            quick={"tasks": 3_000},
        ),
        Case(
            "start",
            "benchmarks.pool:first_results",
            rows=(
                Row("first", "first result of a fresh program", "ms", target=Target(80.0), limit="python_start"),
                Row("second", "first result of a second pool", "ms", target=Target(15.0), limit="fork"),
            ),
            full={"starts": 3},
            quick={"starts": 2},
        ),
        Case(
            "loop",
            "benchmarks.pool:short_loop",
            rows=(Row("loop", "20 x 1 ms, pool opened and closed, against the plain loop", "x", target=Target(1.1)),),
        ),
        Case(
            "memory",
            "benchmarks.pool:idle_memory",
            rows=(
                Row("memory", "memory of one more idle worker (PSS)", "MB", target=Target(8.0)),
                Row("memory_all", "all memory a pool of two adds, per worker (PSS)", "MB"),
            ),
            full={"workers": 6},
            quick={"workers": 4},
        ),
        Case(
            "kill",
            "benchmarks.pool:replacement",
            rows=(
                Row(
                    "kill", "`kill -9` of a worker to its replacement running the next task", "ms", target=Target(20.0)
                ),
            ),
            full={"kills": 8},
            quick={"kills": 4},
            needs=("submit", "heal"),
        ),
        Case(
            "timeout",
            "benchmarks.pool:slot_after_timeout",
            rows=(Row("timeout", "a task's deadline to the next task running in its slot", "ms", target=Target(20.0)),),
            full={"timeouts": 6, "timeout_s": 0.2},
            quick={"timeouts": 3, "timeout_s": 0.2},
            needs=("submit", "timeout"),
        ),
    ),
    limits=physical.CASE,
    bars="The pool against the best of the others",
    most_rounds={"ray": 1, "dask": 1},
    # Each takes as long to start as all the others together, or does as its twin.
    quick_leaves_out=("pool-forkserver", "ray", "dask"),
    notes=NOTES,
    quick_rounds=1,
    quick_budget_s=45.0,
)


def main() -> None:
    from benchmarks.harness import run_from_command_line

    run_from_command_line(SUITE, smoke=SMOKE)


if __name__ == "__main__":
    main()
