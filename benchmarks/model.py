"""Rows, targets, medians and verdicts. Pure: no clocks, files or processes.

Owner: `harness.py` fills a `Board`; `report.py` reads it.

Invariants
    B1  A figure shown is the median of the rounds that succeeded; a failed round is counted, never hidden.
    B2  A target counts as reached only if shoal failed in no round.
    B3  Ratios are shoal's median divided by the best peer's, whichever direction is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: The contender that the targets are for; every other one is a peer.
OURS = "shoal"

#: Rounds of one case that may fail before a contender is left out of the rest of that case.
STRIKES = 2


@dataclass(frozen=True, slots=True)
class Target:
    """What shoal should reach: `value` itself, or that many times the best peer's figure, one peer's, or the row's limit."""

    value: float
    of_best: bool = False
    of_limit: bool = False
    #: Name of the one contender whose figure counts, instead of the best peer's.
    of: str = ""

    def reached(
        self, ours: float, peer: float | None, limit: float | None = None, *, higher_is_better: bool
    ) -> bool | None:
        """Tell whether `ours` is good enough; None if what it is to be compared with is not there.

        `peer` is the best peer's figure, or that of the one named.
        """
        bound = self.value
        if self.of_best or self.of or self.of_limit:
            unit = limit if self.of_limit else peer
            if unit is None:
                return None
            bound *= unit
        return ours >= bound if higher_is_better else ours <= bound


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the figure that a case returns under the name `key`."""

    key: str
    title: str
    unit: str
    higher_is_better: bool = False
    target: Target | None = None
    #: Name of the figure of `physical.py` that bounds this row.
    limit: str | None = None
    #: Show each figure's multiple of the limit beside it.
    relative: bool = False
    #: Not a line of the table but a point of this curve in the suite's picture, at this place.
    curve: str = ""
    at: float = 0.0
    #: Of several lines that one contender has in that picture: the name of this point's.
    line: str = ""

    def target_text(self) -> str:
        if self.target is None:
            return ""
        sign = "≥" if self.higher_is_better else "≤"
        if self.target.of_best:
            return f"{sign} {self.target.value:g} x best"
        if self.target.of_limit:
            return f"{sign} {self.target.value:g} x limit"
        if self.target.of:
            return f"{sign} {self.target.value:g} x {self.target.of}"
        return f"{sign} {self.target.value:g} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Curve:
    """One picture: the rows that carry its key are its points, and those of the limits with `reference` a dashed line.

    Attributes:
        place: What the horizontal axis shows; the vertical one shows the rows' unit.
    """

    key: str
    title: str
    place: str
    unit: str
    reference: str = ""
    reference_title: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement in a fresh interpreter. It may fill several rows.

    Attributes:
        function: ``"module:name"`` of ``name(contender, params) -> {row key: figure}``.
        full: Parameters of a full run.
        quick: What differs in a quick run.
        needs: Features a contender must have, such as ``"submit"``; see `Contender.lacks`.
        limit_s: Only a hang takes this long.
        rounds: It takes part in so many rounds at most; None means all.
        quick_too: Whether a quick run has it.
        contenders: Names of those who take part, if not all.
    """

    key: str
    function: str
    rows: tuple[Row, ...]
    full: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    limit_s: float = 60.0
    rounds: int | None = None
    quick_too: bool = True
    contenders: tuple[str, ...] = ()

    def params(self, *, quick: bool) -> dict[str, Any]:
        return {**self.full, **(self.quick if quick else {})}

    def due(self, round_number: int) -> bool:
        return self.rounds is None or round_number < self.rounds


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases that answer one question, run and shown together."""

    name: str
    title: str
    question: str
    cases: tuple[Case, ...]
    #: What the machine itself can do, as far as it bounds these cases; fills no cell of a contender.
    limits: Case
    #: Names of those who take part, where the question is not one about pools.
    contenders: tuple[str, ...] = ()
    #: Contenders that have no part in this question.
    leaves_out: tuple[str, ...] = ()
    #: Contenders that a quick run has only when they are asked for by name.
    quick_leaves_out: tuple[str, ...] = ()
    #: Rounds that a contender takes part in at most, where that is fewer than the others.
    most_rounds: Mapping[str, int] = field(default_factory=dict)
    #: Distributions, beside the contenders', whose version matters.
    libraries: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = ()
    #: Title of a picture of the whole table, if there is to be one.
    bars: str = ""
    #: A list in Markdown for the page: how the rows were measured and what they leave out.
    notes: str = ""
    full_rounds: int = 5
    quick_rounds: int = 2
    #: No further round is begun that would probably end after this many seconds.
    full_budget_s: float = 450.0
    quick_budget_s: float = 95.0

    def rows(self) -> list[Row]:
        return [row for case in self.cases for row in case.rows]

    def taking_part(self, contenders: Iterable[str], round_number: int) -> list[str]:
        """Return who of them is due in a round; the first is number 0."""
        return [name for name in contenders if round_number < self.most_rounds.get(name, math.inf)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one case gave for one contender in one round."""

    status: Literal["ok", "n/a", "failed", "hung"]
    figures: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    note: str = ""
    #: Processes that were still there a second after the program had ended.
    left_behind: int = 0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """The rounds of one row for one contender."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        return cls(statistics.median(values), min(values), max(values), tuple(values))

    @property
    def spread(self) -> float:
        """Distance from lowest to highest as a share of the median."""
        return (self.high - self.low) / abs(self.median) if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row judged: who the best peer is, how shoal compares, whether the target is reached."""

    best_peer: str | None
    ratio: float | None
    reached: bool | None


class Board:
    """Every outcome of a run, by case and contender."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], list[Outcome]] = {}

    def add(self, case: str, contender: str, outcome: Outcome) -> None:
        self._outcomes.setdefault((case, contender), []).append(outcome)

    def outcomes(self, case: str, contender: str) -> list[Outcome]:
        return self._outcomes.get((case, contender), [])

    def struck_out(self, case: str, contender: str) -> bool:
        """Tell whether to leave this contender out of the rest of this case."""
        bad = [outcome.status for outcome in self.outcomes(case, contender) if outcome.status != "ok"]
        return "n/a" in bad or len(bad) >= STRIKES

    def failures(self, case: str, contender: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes(case, contender) if outcome.status in {"failed", "hung"}]

    def seconds(self) -> dict[str, float]:
        """Return how long the cases took, by case, all contenders and rounds together."""
        total: dict[str, float] = {}
        for (case, _), outcomes in self._outcomes.items():
            total[case] = total.get(case, 0.0) + sum(outcome.took_s for outcome in outcomes)
        return total

    def next_round_s(self, cases: Iterable[Case], contenders: Iterable[str]) -> float:
        """Return how long a round of these will probably take: as long as their longest so far."""
        keys, names = {case.key for case in cases}, set(contenders)
        return sum(
            max((outcome.took_s for outcome in outcomes), default=0.0)
            for (key, name), outcomes in self._outcomes.items()
            if key in keys and name in names
        )

    def summary(self, case: str, contender: str, row: str) -> Summary | None:
        found = [o.figures[row] for o in self.outcomes(case, contender) if o.status == "ok" and row in o.figures]
        return Summary.of(found) if found else None

    def absence(self, case: str, contender: str) -> str:
        """Why there is no figure."""
        outcomes = self.outcomes(case, contender)
        return outcomes[-1].reason if outcomes else "not run"


def judge(row: Row, medians: Mapping[str, float], *, failed: bool, limit: float | None = None) -> Verdict:
    """Compare shoal's median with the best peer's and with the row's target; `limit` is what the machine can do."""
    peers = {name: value for name, value in medians.items() if name != OURS and math.isfinite(value)}
    pick = max if row.higher_is_better else min
    best = pick(peers, key=lambda name: peers[name]) if peers else None
    ours = medians.get(OURS)
    if ours is None:
        return Verdict(best, None, None)
    ratio = ours / peers[best] if best is not None and peers[best] else None
    reached = None
    if row.target is not None:
        against = peers.get(row.target.of or best or "")
        reached = row.target.reached(ours, against, limit, higher_is_better=row.higher_is_better)
        reached = reached and not failed  # B2
    return Verdict(best, ratio, reached)


def interleave(cases: Sequence[Case], contenders: Sequence[str], round_number: int) -> Iterator[tuple[Case, str]]:
    """Order one round: row by row, contenders side by side, a different one first in each round.

    Side by side so that a slow minute of the machine hits every contender of a row alike; rotated
    so that none always runs right after the same neighbour.
    """
    for offset, case in enumerate(cases):
        if not case.due(round_number):
            continue
        taking_part = [name for name in contenders if not case.contenders or name in case.contenders]
        start = (round_number + offset) % len(taking_part) if taking_part else 0
        for contender in [*taking_part[start:], *taking_part[:start]]:
            yield case, contender


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def show(value: float | None, unit: str) -> str:
    """Write a figure with three digits that matter, thousands as k and M."""
    if value is None:
        return ""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if unit.endswith("/s") and abs(value) >= size:
            return f"{_digits(value / size)}{letter}"
    return _digits(value)


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 3)}f}"
