"""Does the cost of a task stay flat as workers grow, and where does the parent become the limit?

    python -m benchmarks.scale [--quick] [--only shoal,pool-fork] [--rows paper,sleep] [--rounds N]

Two answers: the dispatcher alone with up to a thousand simulated workers (`simulation.py`), and real pools of up to 64
workers whose tasks sleep, so that two processors are enough for them.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks import workloads
from benchmarks.contenders import Contender, Session
from benchmarks.model import Case, Curve, Row, Suite, Target
from benchmarks.physical import forked
from benchmarks.pool import SMOKE, await_all, check_length, timed

Figures = dict[str, Any]

#: Workers of the dispatcher on paper.
PAPER_WORKERS = (2, 8, 64, 256, 1000)
#: Workers of a real pool and what each task sleeps, in seconds: all of them ask for 2,000 tasks/s.
SLEEPS = {2: 0.001, 8: 0.004, 64: 0.032}
ASKED_PER_S = 2000
#: The largest real pool, and what its tasks sleep where the demand grows. Milliseconds.
MANY = 64
SHORTER_MS = (32, 16, 8, 4, 2, 1)
#: A contender that delivers less than this part of what is asked for has reached its limit.
KEEPS_UP = 0.4
#: Only a hang gets this far. Seconds.
HANG_LIMIT_S = 20.0


# --- on paper -----------------------------------------------------------------------------------


def paper(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Drive the dispatcher alone: nanoseconds of its own time per task, and how near to the ideal the work ends."""
    from benchmarks.simulation import Costs, SimulatedPool, clock_ns, ideal_s

    clock = clock_ns()
    spread, skewed = Costs.spread(1e-4), Costs.skewed(1e-5)
    loads: list[tuple[str, Callable[[SimulatedPool], float], int]] = [
        ("map", lambda pool: pool.run_map(spread, params["tasks"]), params["tasks"]),
        ("single", lambda pool: pool.run_single(Costs.spread(1e-3), params["singles"]), params["singles"]),
    ]
    figures: Figures = {}
    for workers in PAPER_WORKERS:
        for name, run, tasks in loads:
            pool = SimulatedPool(workers)
            taken_s = run(pool)
            figures[f"{name}_{workers}"] = (pool.spent_ns - clock * pool.uses) / tasks
            if name == "map":
                figures["paper_share"] = ideal_s(spread, tasks, workers) / taken_s  # the last one stays: most workers
    few, many = PAPER_WORKERS[0], PAPER_WORKERS[-1]
    for name, _, _ in loads:
        figures[f"paper_{name}"] = figures[f"{name}_{many}"]
        figures[f"paper_{name}_growth"] = figures[f"{name}_{many}"] / figures[f"{name}_{few}"]
    tasks = params["skewed"]
    figures["paper_skew"] = ideal_s(skewed, tasks, many) / SimulatedPool(many).run_map(skewed, tasks)
    return figures


# --- real pools ---------------------------------------------------------------------------------


@contextmanager
def at_work(contender: Contender, workers: int) -> Iterator[Session]:
    """Open a pool and wait until every worker has run something."""
    with contender.open(workers) as session:
        await_all(session, workers)
        yield session


def sleepers(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """More workers with longer sleeps: the same demand, so the same rate."""
    tasks = params["tasks"]
    figures: Figures = {}
    for workers, seconds in SLEEPS.items():
        with at_work(contender, workers) as session:
            figures[f"sleep_{workers}"] = tasks / _napping_s(session, seconds, tasks)
            figures[f"asleep_{workers}"] = figures[f"sleep_{workers}"]
    figures["sleep_kept"] = figures[f"sleep_{MANY}"] / figures[f"sleep_{min(SLEEPS)}"]
    return figures


def _napping_s(session: Session, seconds: float, tasks: int) -> float:
    start = time.perf_counter()
    check_length(session.submit_all(workloads.nap, [seconds] * tasks), tasks)
    return time.perf_counter() - start


def demand(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Many workers with ever shorter sleeps, until the parent, or the machine, no longer keeps up."""
    figures: Figures = {}
    with at_work(contender, MANY) as session:
        for sleep_ms in SHORTER_MS:
            asked = MANY * 1000 / sleep_ms
            tasks = max(4 * MANY, min(int(asked * params["seconds"]), params["most"]))
            rate = tasks / _napping_s(session, sleep_ms / 1000, tasks)
            figures[f"demand_{sleep_ms}"] = rate
            if rate < KEEPS_UP * asked:
                break
    figures["peak"] = max(figures.values())
    return figures


def noops(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Submit no-ops one by one to ever more workers: all of the cost is overhead."""
    tasks = params["tasks"]
    figures: Figures = {}
    for workers in SLEEPS:
        with at_work(contender, workers) as session:
            seconds = timed(lambda: session.submit_all(workloads.noop, range(tasks)))
            figures[f"noop_{workers}"] = tasks / seconds
    figures["noop_many"] = figures[f"noop_{MANY}"]
    figures["noop_kept"] = figures[f"noop_{MANY}"] / figures[f"noop_{min(SLEEPS)}"]
    return figures


# --- what the machine can do --------------------------------------------------------------------


def limits(contender: object, params: Mapping[str, Any]) -> Figures:
    """Bare processes on socket pairs: one byte there, one byte back, as fast as one parent can."""
    figures = {f"echo_{workers}": _echo_rate(workers, params["messages"]) for workers in (min(SLEEPS), MANY)}
    figures["nap_1ms"] = timed(lambda: workloads.nap(0.001), most=20) * 1e3
    return figures | {f"asked_{sleep_ms}": MANY * 1000 / sleep_ms for sleep_ms in SHORTER_MS}


def _echo(sock: socket.socket) -> None:
    while sock.recv(1):
        sock.send(b"x")


def _echo_rate(workers: int, messages: int) -> float:
    """Return the messages/s that come back from `workers` processes, each of which has one under way."""
    with ExitStack() as stack:
        poller = stack.enter_context(select.epoll())
        ours: dict[int, socket.socket] = {}
        for _ in range(workers):
            one, other = socket.socketpair()
            one.settimeout(HANG_LIMIT_S)

            def child(
                other: socket.socket = other, inherited: tuple[socket.socket, ...] = (one, *ours.values())
            ) -> None:
                for sock in inherited:
                    sock.close()  # else nobody sees the end of it
                _echo(other)

            stack.enter_context(forked(child))
            other.close()
            stack.callback(one.close)  # before the wait for the child, which ends by it
            ours[one.fileno()] = one
            poller.register(one, select.EPOLLIN)
        start = time.perf_counter()
        for one in ours.values():
            one.send(b"x")
        back = 0
        while back < messages:
            events = poller.poll(HANG_LIMIT_S)
            if not events:
                raise TimeoutError("no answer from the processes that echo")
            for fd, _ in events:
                ours[fd].recv(1)
                ours[fd].send(b"x")
            back += len(events)
        return back / (time.perf_counter() - start)


# --- the question -------------------------------------------------------------------------------

PER_S = "tasks/s"


def _paper_points(key: str, line: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"{key}_{workers}", f"{workers:,}", "ns per task", curve="dispatcher", at=float(workers), line=line)
        for workers in PAPER_WORKERS
    )


def _points(prefix: str, curve: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"{prefix}_{workers}", f"{workers}", PER_S, higher_is_better=True, curve=curve, at=float(workers))
        for workers in SLEEPS
    )


def _demand_points(prefix: str, curve: str) -> tuple[Row, ...]:
    return tuple(
        Row(
            f"{prefix}_{sleep_ms}",
            f"{MANY / sleep_ms:g} k",
            PER_S,
            higher_is_better=True,
            curve=curve,
            at=MANY * 1000 / sleep_ms,
        )
        for sleep_ms in SHORTER_MS
    )


def _sleep_row(workers: int, seconds: float) -> Row:
    return Row(
        f"sleep_{workers}", f"{workers} workers, tasks that sleep {seconds * 1e3:g} ms", PER_S, higher_is_better=True
    )


NOTES = """\
- On paper: the dispatcher of shoal and nothing else, with simulated workers in simulated time that run, report and are asked
  for work as real ones are (`benchmarks/simulation.py`); 50 µs each way. What is measured is the time spent inside the
  dispatcher, the clock's own cost taken off. Tasks of the map take 10 to 190 µs, single ones 0.1 to 1.9 ms. Pickling,
  sockets and processes are not in it. Its counts are checked by `tests/unit/test_scale.py` on every run of the tests.
- Flat is the cost of taking in one report and of handing out one piece. Pieces get smaller towards the end of a map, and with a
  thousand workers ten million tasks are a second of work, much of it the end: so a task of the map costs somewhat more there.
- The ideal is all work divided by the workers. Skewed: 10 µs, and every hundredth task 10 ms.
- Sleeping tasks are submitted one by one and their results gathered. Each pool asks for the same 2,000 tasks/s; a sleep of
  1 ms lasts longer than that (last table), which is why two workers get a little less.
- Growing demand: a line ends where less than 0.4 of what is asked for comes back. On a small machine the workers need the same
  processors as the parent, for waking up as for everything else: the peak is the machine's, not the parent's alone.
- The limit is a bare parent that exchanges one byte with each of as many processes, by epoll, without any pickling.
- The pools have 64 workers on far fewer processors; all of them have run a task before the clock starts.
"""

SUITE = Suite(
    name="scale",
    title="The scale",
    question="Does the cost of a task stay flat as workers grow, and where does the parent become the limit?",
    cases=(
        Case(
            "paper",
            "benchmarks.scale:paper",
            rows=(
                Row("paper_map", "on paper: 1,000 workers, `map` of 10,000,000, dispatcher per task", "ns"),
                Row("paper_map_growth", "the same against two workers", "x", target=Target(2.0)),
                Row("paper_single", "on paper: 1,000 workers, 1,000,000 single tasks, dispatcher per task", "ns"),
                Row("paper_single_growth", "the same against two workers", "x", target=Target(1.5)),
                Row(
                    "paper_share",
                    "on paper: 1,000 workers, `map` of 10,000,000, share of the ideal",
                    "",
                    True,
                    Target(0.97),
                ),
                Row(
                    "paper_skew",
                    "the same for 5,000,000, of which one in a hundred takes 1,000 times longer",
                    "",
                    True,
                    Target(0.97),
                ),
                *_paper_points("map", "one map"),
                *_paper_points("single", "single tasks"),
            ),
            full={"tasks": 10_000_000, "singles": 1_000_000, "skewed": 5_000_000},
            quick={"tasks": 1_000_000, "singles": 10_000, "skewed": 300_000},
            limit_s=400.0,
            rounds=1,
            contenders=("shoal",),
        ),
        Case(
            "sleep",
            "benchmarks.scale:sleepers",
            rows=(
                *(_sleep_row(workers, seconds) for workers, seconds in SLEEPS.items()),
                Row("sleep_kept", "the last against the first", "x", True, Target(0.97)),
                *_points("asleep", "sleeping"),
            ),
            full={"tasks": 2 * ASKED_PER_S},
            quick={"tasks": ASKED_PER_S // 2},
            needs=("submit",),
        ),
        Case(
            "demand",
            "benchmarks.scale:demand",
            rows=(
                Row(
                    "peak",
                    "64 workers, ever shorter sleeps: the most",
                    PER_S,
                    True,
                    Target(2.0, of_best=True),
                    "echo_64",
                ),
                *_demand_points("demand", "demand"),
            ),
            full={"seconds": 0.6, "most": 20_000},
            quick={"seconds": 0.2, "most": 4_000},
            needs=("submit",),
        ),
        Case(
            "noops",
            "benchmarks.scale:noops",
            rows=(
                Row("noop_many", "submit of no-ops, 64 workers", PER_S, True, Target(3.0, of_best=True), "echo_64"),
                Row("noop_kept", "the same against two workers", "x", higher_is_better=True),
                *_points("noop", "submit"),
            ),
            full={"tasks": 10_000},
            quick={"tasks": 2_000},
            needs=("submit",),
        ),
    ),
    limits=Case(
        "bare",
        "benchmarks.scale:limits",
        rows=(
            Row("echo_2", "bare parent, a byte to each of 2 processes and back", "messages/s", higher_is_better=True),
            Row("echo_64", "the same with 64 processes", "messages/s", higher_is_better=True),
            Row("nap_1ms", "what a sleep of 1 ms lasts", "ms"),
            *_demand_points("asked", "asked"),
        ),
        full={"messages": 50_000},
        quick={"messages": 10_000},
    ),
    # One pool of each kind: 64 workers of every one would take the time of all other suites.
    leaves_out=("ppe-forkserver", "pool-forkserver", "loky", "joblib", "pebble", "mpire", "ray", "dask"),
    curves=(
        Curve("dispatcher", "The dispatcher alone, simulated workers", "workers", "ns per task"),
        Curve("sleeping", "Tasks that sleep, 2,000 a second asked for", "workers", PER_S),
        Curve("demand", "64 workers, ever shorter sleeps", "tasks/s asked for", PER_S, "asked", "what is asked for"),
        Curve("submit", "Submit of no-ops one by one", "workers", PER_S),
    ),
    notes=NOTES,
    full_rounds=3,
    quick_rounds=1,
    full_budget_s=240.0,
    quick_budget_s=30.0,
)


def main() -> None:
    from benchmarks.harness import run_from_command_line

    run_from_command_line(SUITE, smoke=SMOKE)


if __name__ == "__main__":
    main()
