"""Chapter 6: processes use every core; threads that compute in Python do not."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import shoal
from examples.article.claims import Chapter, Doing, Figure, Figures, Sizes, Verdict

#: What a task takes. Seconds.
TASK_S = 0.01
#: What a pool has to reach of what bare processes do at the same time on the same cores.
ENOUGH = 0.8

Rounds = Sequence[int]


def burn(rounds: int) -> int:
    """Keep a core busy for so many rounds."""
    for _ in range(rounds):
        pass
    return rounds


def burn_all(work: Rounds) -> None:
    for rounds in work:
        burn(rounds)


def work_of(total_s: float) -> list[int]:
    """Return tasks over which the plain loop takes about so long on this machine now."""
    start = time.perf_counter()
    burn(1_000_000)
    rounds = int(1_000_000 * TASK_S / (time.perf_counter() - start))
    return [rounds] * max(2, round(total_s / TASK_S))


def crowds(cores: int) -> list[int]:
    """Return the numbers of workers that are tried: 1, 2, 4 ... and all cores."""
    return sorted({cores, *(1 << power for power in range(cores.bit_length()) if 1 << power <= cores)})


# --- who shares out the work --------------------------------------------------------------------


def loop_s(work: Rounds) -> float:
    return _timed(lambda: burn_all(work))


def pool_s(work: Rounds, workers: int) -> float:
    """Time a map over a pool whose workers are there already."""
    with shoal.Pool(workers) as pool:
        list(pool.map(burn, [1] * 4 * workers))
        return _timed(lambda: list(pool.map(burn, work)))


def threads_s(work: Rounds, workers: int) -> float:
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return _timed(lambda: list(pool.map(burn, work)))


def bare_s(work: Rounds, workers: int) -> float:
    """Time one forked process for each part of the work: nothing is sent, nothing comes back."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=burn_all, args=(work[number::workers],)) for number in range(workers)]

    def start_and_join() -> None:
        for process in processes:
            process.start()
        for process in processes:
            process.join()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a program with threads forks
        return _timed(start_and_join)


def _timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


# --- the claim ----------------------------------------------------------------------------------


def speed_ups(work: Rounds, cores: int, rounds: int) -> dict[str, dict[int, float]]:
    """Return how many times faster than the loop each is, by the number of workers; the best of some rounds."""
    ways = {"shoal.Pool": pool_s, "bare processes": bare_s, "threads": threads_s}
    best: dict[str, dict[int, float]] = {name: {} for name in ways}
    alone_s = min(loop_s(work) for _ in range(rounds))
    for workers in crowds(cores):
        for _ in range(rounds):  # side by side, so that a busy moment of the machine hits all alike
            for name, way in ways.items():
                best[name][workers] = max(best[name].get(workers, 0.0), alone_s / way(work, workers))
    return best


def judge(found: Mapping[str, Mapping[int, float]]) -> Verdict:
    """At each number of workers the pool is about as fast as bare processes are."""
    ours, bare, threads = found["shoal.Pool"], found["bare processes"], found["threads"]
    most = max(ours)
    shares = {workers: ours[workers] / bare[workers] for workers in ours}
    steps = ", ".join(f"{workers}: {times:.2f} x" for workers, times in ours.items())
    figure = (
        f"speed-up by workers {steps}; with {most} bare processes {bare[most]:.2f} x, with {most} threads "
        f"{threads[most]:.2f} x"
    )
    return Verdict(
        f"a pool is as fast as its cores: {ENOUGH:.0%} or more of bare processes",
        min(shares.values()) >= ENOUGH,
        figure,
    )


def run(sizes: Sizes, doing: Doing) -> Iterator[Verdict | Figures]:
    cores = shoal.cpu_count()
    doing(f"the same work on 1 to {cores} cores")
    found = speed_ups(work_of(sizes.work_s), cores, sizes.rounds)
    yield judge(found)
    kinds: dict[str, Any] = {"shoal.Pool": "ours", "bare processes": "standard", "threads": "thread"}
    figures = (
        Figure(f"{name}, {workers}", kinds[name], times) for name, by in found.items() for workers, times in by.items()
    )
    yield Figures("speed-up over a plain loop", "x", tuple(figures), higher_is_better=True)


CHAPTER = Chapter(6, "Cores", "Many processes compute on many cores at once.", run)
