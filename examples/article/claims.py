"""What a chapter says: verdicts with the figure they rest on, and figures side by side.

Role: the words between the chapters and the command. Plain data, no processes.

A verdict is made from what was measured in this very run. What cannot be measured here does not hold here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: Only a hang gets this far. Seconds.
HANG_LIMIT_S = 30.0

Kind = Literal["ours", "standard", "thread"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim, whether it holds here, and the figure that says so."""

    claim: str
    holds: bool
    figure: str


class Figure(NamedTuple):
    """Who, and how much."""

    title: str
    kind: Kind
    value: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The same thing measured for several, side by side."""

    title: str
    unit: str
    figures: tuple[Figure, ...]
    higher_is_better: bool = False


#: Told what is being measured, before it is.
Doing = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. What is measured is the same for all sizes."""

    #: Additions of each process to the counter of the race, without and with a lock.
    unlocked: int = 50_000
    locked: int = 5_000
    #: Tasks of which one is a fault in native code.
    tasks: int = 1_000
    #: What the loop over the work of all cores takes, and how often it is measured. Seconds.
    work_s: float = 0.6
    rounds: int = 3
    #: Starts of a process, for each way; the quick ways three times as many.
    starts: int = 4
    trips: int = 4_000
    #: Arrays of eight megabytes.
    large: int = 16
    #: The longest message of the third chapter. Bytes.
    longest: int = 16 << 20


FULL = Sizes()
QUICK = Sizes(
    unlocked=20_000, locked=500, tasks=100, work_s=0.3, rounds=2, starts=2, trips=500, large=6, longest=1 << 20
)


@dataclass(frozen=True, slots=True)
class Chapter:
    """A claim of the front page, and what measures it."""

    number: int
    title: str
    says: str
    run: Callable[[Sizes, Doing], Iterator[Verdict | Figures]]


def seconds(value: float) -> str:
    """Write a time with three digits that matter."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.0f} ns"


def middle(values: Sequence[float]) -> float:
    """Return the median of what was measured after the first time, which warms up."""
    return statistics.median(values[1:] or values)
