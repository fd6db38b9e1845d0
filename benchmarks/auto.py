"""Is a map ever much slower than the plain loop, and does it use every processor where that pays?

    python -m benchmarks.auto [--quick] [--only shoal,joblib] [--rows cold,warm,long] [--rounds N]

`shoal.map(workers="auto")` beside joblib, which sizes its batches by itself too, and `multiprocessing.Pool`, for tasks from
a tenth of a microsecond to a second. Tasks are counted loops, not waits for a time to pass.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import workloads
from benchmarks.contenders import Contender
from benchmarks.model import Case, Curve, Row, Suite, Target
from benchmarks.physical import forked, plain_loop
from benchmarks.pool import SMOKE, check_length

Figures = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
PROCESSORS = len(os.sched_getaffinity(0))
#: Only a hang gets this far. Seconds.
HANG_LIMIT_S = 60.0
#: Rounds of `burn`, or calls that do nothing, by which the speed of this machine is learned.
LEARNED_BY = 200_000
#: What a task costs, by its name. Seconds. The first is a call that does nothing.
COSTS = {
    "0.1 µs": 1e-7,
    "1 µs": 1e-6,
    "10 µs": 1e-5,
    "100 µs": 1e-4,
    "1 ms": 1e-3,
    "10 ms": 1e-2,
    "100 ms": 1e-1,
    "1 s": 1.0,
}
#: What the plain loop over all tasks takes, by its name: seconds, and how often such a map is measured.
SIZES = {"20 ms": (0.02, 3), "200 ms": (0.2, 2), "2 s": (2.0, 1)}
LARGEST = "2 s"
#: Whose largest size would be a matter of memory, or tell nothing that the others do not.
SMALLER = ("0.1 µs", "1 µs", "100 µs", "10 ms")
#: Tasks of a second come as a map of so many, whatever the loop then takes.
LEAST_TASKS = 3
#: Who is this many times slower than the loop is not measured again.
FAR = 5.0
LONG = {"100 µs": "100us", "1 ms": "1ms", "10 ms": "10ms"}

Function = Callable[[Any], object]


class Load(NamedTuple):
    """A function and its items."""

    fn: Function
    items: Sequence[Any]


def cells(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (cost, size) for each map that is measured."""
    for cost, size in product(params["costs"], params["sizes"]):
        tasks = round(SIZES[size][0] / COSTS[cost])
        if size == LARGEST and cost in SMALLER:
            continue
        if tasks >= 2 or (size == LARGEST and COSTS[cost] >= 1.0):
            yield cost, size


def load_of(cost: str, total_s: float) -> Load:
    """Return a map over which the plain loop takes about `total_s` on this machine now."""
    start = time.perf_counter()
    if COSTS[cost] < 1e-6:
        plain_loop(workloads.noop, LEARNED_BY)
        return Load(workloads.noop, range(round(total_s * LEARNED_BY / (time.perf_counter() - start))))
    workloads.burn(LEARNED_BY)
    rounds = max(1, round(COSTS[cost] * LEARNED_BY / (time.perf_counter() - start)))
    return Load(workloads.burn, [rounds] * max(LEAST_TASKS if COSTS[cost] >= 1.0 else 2, round(total_s / COSTS[cost])))


def loop_s(load: Load) -> float:
    fn = load.fn
    start = time.perf_counter()
    check_length([fn(item) for item in load.items], len(load.items))
    return time.perf_counter() - start


def against_loop(load: Load, run: Callable[[Function, Sequence[Any]], object]) -> float:
    """Return how many times longer than the plain loop `run` takes: the loop before and after, as machines drift."""
    before_s = loop_s(load)
    start = time.perf_counter()
    run(*load)
    taken_s = time.perf_counter() - start
    return taken_s / statistics.mean((before_s, loop_s(load)))


# --- cases --------------------------------------------------------------------------------------


def cold_cell(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """One map in a program that has imported the library and not used it."""
    contender.load()
    load = load_of(params["cost"], SIZES[params["size"]][0])
    return {"ratio": against_loop(load, lambda fn, items: contender.map_once(fn, items, PROCESSORS))}


def cold(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Every map in a fresh program."""
    found = {}
    for cost, size in cells(params):
        found[cost, size] = _median(size, lambda cell={"cost": cost, "size": size}: _in_fresh_program(contender, cell))  # type: ignore[misc]
    return _figures("cold", found)


def _in_fresh_program(contender: Contender, params: Mapping[str, Any]) -> float:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        answer = Path(folder, "answer.json")
        command = [sys.executable, "-m", "benchmarks.child", "benchmarks.auto:cold_cell", contender.name]
        done = subprocess.run(
            [*command, json.dumps(params), str(answer)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_LIMIT_S,
            check=False,
        )
        if done.returncode != 0 or not answer.exists():
            raise RuntimeError(f"the program failed: {done.stderr[-500:]}")
        return float(json.loads(answer.read_text(encoding="utf-8"))["ratio"])


def warm(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Every map on the same pool, which runs already."""
    found = {}
    with contender.choosing(PROCESSORS) as session:
        for cost, size in cells(params):
            load = load_of(cost, SIZES[size][0])
            found[cost, size] = _median(size, lambda load=load: against_loop(load, session.map))  # type: ignore[misc]
    return _figures("warm", found)


def _median(size: str, measure: Callable[[], float]) -> float:
    ratios = [measure()]
    while len(ratios) < SIZES[size][1] and ratios[-1] < FAR:
        ratios.append(measure())
    return statistics.median(ratios)


def _figures(state: str, found: Mapping[tuple[str, str], float]) -> Figures:
    worst = max(found, key=lambda cell: found[cell])
    figures: Figures = {f"{state}_{cost}_{size}": ratio for (cost, size), ratio in found.items()}
    for cost in COSTS:
        if ratios := [ratio for (its, _), ratio in found.items() if its == cost]:
            figures[f"{state}_{cost}"] = max(ratios)
    return figures | {f"{state}_worst": found[worst], "note": f"worst with tasks of {worst[0]} in a loop of {worst[1]}"}


def long(contender: Contender, params: Mapping[str, Any]) -> Figures:
    """Long maps against the same items in forked loops, one on each processor."""
    figures: Figures = {}
    with contender.choosing(PROCESSORS) as session:
        for cost, name in LONG.items():
            load = load_of(cost, params["total_s"])
            before_s = _forked_loops_s(load)
            start = time.perf_counter()
            check_length(session.map(*load), len(load.items))
            taken_s = time.perf_counter() - start
            figures[f"long_{name}"] = statistics.mean((before_s, _forked_loops_s(load))) / taken_s
    return figures


def _forked_loops_s(load: Load) -> float:
    """Return the seconds of one forked process per processor, each with its part of the items."""
    start = time.perf_counter()
    with ExitStack() as stack:
        for number in range(PROCESSORS):
            part = Load(load.fn, load.items[number::PROCESSORS])
            stack.enter_context(forked(lambda part=part: loop_s(part)))  # type: ignore[misc]
    return time.perf_counter() - start


def limits(contender: object, params: Mapping[str, Any]) -> Figures:
    """What a loop costs, and how much sooner forked loops are through."""
    load = load_of("1 ms", params["total_s"])
    alone_s = loop_s(load)
    start = time.perf_counter()
    plain_loop(workloads.noop, 100_000)
    call_us = (time.perf_counter() - start) * 10
    ideal = {f"ideal_{cost}": 1 / PROCESSORS for cost in COSTS}
    return {"forked": alone_s / PROCESSORS / _forked_loops_s(load), "call": call_us} | ideal


# --- the question -------------------------------------------------------------------------------

AS_THE_LOOP = Target(1.1)
NEARLY_ALL = Target(0.97)


def _points(state: str, curve: str) -> tuple[Row, ...]:
    return tuple(Row(f"{state}_{cost}", cost, "x loop", curve=curve, at=seconds) for cost, seconds in COSTS.items())


def _cells(state: str) -> tuple[Row, ...]:
    """One for each map: in the record and on the screen, not in a picture."""
    return tuple(
        Row(f"{state}_{cost}_{size}", cost, "x loop", curve=f"each-{state}", at=COSTS[cost], line=size)
        for cost, size in product(COSTS, SIZES)
    )


def _long_row(cost: str, name: str) -> Row:
    title = f"loop of 10 s, tasks of {cost}: share of forked loops, one per processor"
    return Row(f"long_{name}", title, "", higher_is_better=True, target=NEARLY_ALL)


NOTES = """\
- Each map is compared with the plain loop over the same items in the same process, right before and right after. The loop takes
  20 ms, 200 ms or 2 s; 2 s is left out for some costs, and tasks of 1 s come as a map of three. The figure of a cost in
  the pictures is the worst of its sizes; the record has them all.
- A new program has imported the library and done nothing else; what it pays for opening its pool is in the figure. After that, the
  pool runs already. Median of three maps of 20 ms and of two of 200 ms; who takes five times as long as the loop has one.
- Only shoal's `workers="auto"` may run tasks in the calling process. joblib and `multiprocessing.Pool` have no such mode: they get
  as many workers as there are processors, and choose their batches by themselves.
- A task is an empty loop of so many rounds, counted out when the case begins, so that it needs a processor; the shortest is a call
  that does nothing. Below 0.5 (two processors) nobody gets.
- The long maps are compared with the same items in forked loops, which is what the processors can do at best.
"""

FULL = {"costs": list(COSTS), "sizes": list(SIZES)}
QUICK = {"costs": ["0.1 µs", "10 µs", "1 ms", "10 ms"], "sizes": ["200 ms"]}

SUITE = Suite(
    name="auto",
    title="The loop",
    question="Is a map ever much slower than the plain loop, and does it use every processor where that pays?",
    cases=(
        Case(
            "cold",
            "benchmarks.auto:cold",
            rows=(
                Row(
                    "cold_worst",
                    "a new program's first map, worst of all costs and sizes",
                    "x loop",
                    target=AS_THE_LOOP,
                ),
                *_points("cold", "cold"),
                *_cells("cold"),
            ),
            full=FULL,
            quick=QUICK,
            limit_s=180.0,
        ),
        Case(
            "warm",
            "benchmarks.auto:warm",
            rows=(
                Row("warm_worst", "the same with a pool that runs already", "x loop", target=AS_THE_LOOP),
                *_points("warm", "warm"),
                *_cells("warm"),
            ),
            full=FULL,
            quick=QUICK,
            limit_s=180.0,
        ),
        Case(
            "long",
            "benchmarks.auto:long",
            rows=tuple(_long_row(cost, name) for cost, name in LONG.items()),
            full={"total_s": 10.0},
            quick={"total_s": 0.5},
            limit_s=180.0,
            quick_too=False,
        ),
    ),
    limits=Case(
        "loops",
        "benchmarks.auto:limits",
        rows=(
            Row(
                "forked",
                "tasks of 1 ms in forked loops, one per processor, share of the ideal",
                "",
                higher_is_better=True,
            ),
            Row("call", "a call that does nothing, in the plain loop", "µs"),
            *(Row(f"ideal_{cost}", cost, "x loop", curve="ideal", at=seconds) for cost, seconds in COSTS.items()),
        ),
        full={"total_s": 2.0},
        quick={"total_s": 0.4},
    ),
    leaves_out=("ppe-fork", "ppe-forkserver", "pool-forkserver", "loky", "pebble", "mpire", "ray", "dask"),
    most_rounds={"joblib": 1, "pool-fork": 1},
    quick_leaves_out=("joblib",),  # it takes a second to start, in each of the programs
    curves=(
        Curve("cold", "A new program's first map against the plain loop", "a task takes", "x loop", "ideal", "ideal"),
        Curve("warm", "With a pool that runs already", "a task takes", "x loop", "ideal", "ideal"),
    ),
    notes=NOTES,
    full_rounds=3,
    quick_rounds=1,
    full_budget_s=360.0,
    quick_budget_s=20.0,
)


def main() -> None:
    from benchmarks.harness import run_from_command_line

    run_from_command_line(SUITE, smoke=SMOKE)


if __name__ == "__main__":
    main()
