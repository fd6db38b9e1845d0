"""Chapter 2: a process has memory of its own; what it writes does not change its parent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import shoal
from examples.article.claims import HANG_LIMIT_S, Chapter, Doing, Sizes, Verdict

METHODS = ("forkserver", "spawn", "fork")
NUMBERS = 1_000_000

#: A global as every module has some.
setting = {"whose": "the parent's"}


class Belongings(NamedTuple):
    """What the parent hands to its child."""

    names: list[str]
    numbers: Any
    shared: Any


def scribble(things: Belongings) -> tuple[str, int, float]:
    """Write to everything within reach, and return what is there then."""
    setting["whose"] = "the child's"
    things.names.append("child")
    things.numbers[:] = 2.0
    things.shared[:] = 2.0
    return setting["whose"], len(things.names), float(things.numbers.sum())


#: What `scribble` returns where it was carried out.
WRITTEN = ("the child's", 2, 2.0 * NUMBERS)

Runner = Callable[[Callable[[Belongings], Any], Belongings], Any]


def in_process(method: Any) -> Runner:
    """Return what runs a function in a shoal.Process."""

    def runner(function: Callable[[Belongings], Any], things: Belongings) -> Any:
        process = shoal.Process(target=function, args=(things,), start_method=method)
        process.start()
        return process.result(timeout=HANG_LIMIT_S)

    return runner


class Seen(NamedTuple):
    """What the parent finds after its child has scribbled."""

    written: bool
    untouched: bool
    shared: bool


def look_after(runner: Runner) -> Seen:
    """Let a child scribble, and look."""
    setting["whose"] = "the parent's"
    things = Belongings(["parent"], np.ones(NUMBERS), shoal.zeros(NUMBERS))
    written = tuple(runner(scribble, things)) == WRITTEN
    mine = (setting["whose"], len(things.names), float(things.numbers.sum()))
    setting["whose"] = "the parent's"
    return Seen(written, mine == ("the parent's", 1, 1.0 * NUMBERS), bool((things.shared == 2.0).all()))


def judge(seen: dict[str, Seen]) -> Iterator[Verdict]:
    """Say what the looks amount to; the keys are the ways the child was started."""
    kept = [method for method, one in seen.items() if one.written and one.untouched]
    yield Verdict(
        "what a child writes does not change its parent",
        len(kept) == len(seen),
        f"a global, a list and an array of {NUMBERS * 8 / 1e6:.0f} MB: written in the child, untouched here "
        f"with {len(kept)} of {len(seen)} start methods ({', '.join(seen)})",
    )
    shared = [method for method, one in seen.items() if one.shared]
    yield Verdict(
        "what is shared on purpose is the same memory in both",
        len(shared) == len(seen),
        f"shoal.zeros({NUMBERS:,}): all {NUMBERS:,} numbers written by the child are here, "
        f"with {len(shared)} of {len(seen)} start methods",
    )


def run(_sizes: Sizes, doing: Doing) -> Iterator[Verdict]:
    seen = {}
    for method in METHODS:
        doing(f"a child that writes to all it can reach, {method}")
        seen[method] = look_after(in_process(method))
    yield from judge(seen)


CHAPTER = Chapter(2, "Isolation", "Processes share nothing, unless they are told to.", run)
