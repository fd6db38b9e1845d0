"""Chapter 5: a fault in one process costs what it was doing, and nothing else."""

from __future__ import annotations

import concurrent.futures
import ctypes
import faulthandler
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import shoal
from examples.article.claims import HANG_LIMIT_S, Chapter, Doing, Sizes, Verdict

WORKERS = 2


def square(number: int) -> int:
    """Square a number; for one of them, run into a fault in native code."""
    if number < 0:
        ctypes.string_at(0)
    return number * number


class Outcome(NamedTuple):
    """What became of the tasks: how many have the right result, and what is said of each of the others."""

    right: int
    errors: list[BaseException]


def tasks(count: int) -> list[int]:
    """Return the numbers to square, the one that faults in the middle."""
    numbers = list(range(count))
    numbers[count // 2] = -1
    return numbers


Runner = Callable[[list[int]], list[Any]]


def with_shoal(numbers: list[int]) -> list[Any]:
    with shoal.Pool(WORKERS) as pool:
        return list(pool.imap(square, numbers, errors="return"))


def with_executor(numbers: list[int]) -> list[Any]:
    """Do the same with the standard library."""
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a program with threads forks
        with concurrent.futures.ProcessPoolExecutor(WORKERS, context, faulthandler.disable) as pool:
            futures = []
            for number in numbers:
                try:
                    futures.append(pool.submit(square, number))
                except concurrent.futures.BrokenExecutor as error:
                    futures.append(concurrent.futures.Future())
                    futures[-1].set_exception(error)
            concurrent.futures.wait(futures, HANG_LIMIT_S)
    return [future.exception(0) or future.result(0) for future in futures]


def outcome(numbers: list[int], runner: Runner) -> Outcome:
    results = runner(numbers)
    right = sum(result == number * number for number, result in zip(numbers, results, strict=True) if number >= 0)
    return Outcome(right, [result for result in results if isinstance(result, BaseException)])


def judge(count: int, ours: Outcome, theirs: Outcome, took_s: float) -> Verdict:
    """One task of all is lost, and its error says why."""
    faults = [error for error in ours.errors if isinstance(error, shoal.WorkerDied)]
    named = [error for error in faults if error.obituary.signal == "SIGSEGV"]
    holds = ours.right == count - 1 and len(ours.errors) == len(named) == 1
    said = str(ours.errors[0]).splitlines()[0] if ours.errors else "no error"
    return Verdict(
        "a task that faults in native code costs one task of many",
        holds,
        f"{ours.right:,} of {count:,} results in {took_s:.2f} s, and one error: {said} "
        f"(ProcessPoolExecutor: {theirs.right:,} of {count:,})",
    )


def run(sizes: Sizes, doing: Doing) -> Iterator[Verdict]:
    numbers = tasks(sizes.tasks)
    doing("a fault in one of many tasks, with ProcessPoolExecutor")
    theirs = outcome(numbers, with_executor)
    doing("the same with shoal")
    start = time.perf_counter()
    ours = outcome(numbers, with_shoal)
    yield judge(len(numbers), ours, theirs, time.perf_counter() - start)


CHAPTER = Chapter(5, "Reliability", "When one process fails, the others go on.", run)
