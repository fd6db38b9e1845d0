"""Why a pool hands out work as it does, for people.

Role: `Explanation` and its parts. Owner: the reader; nothing here is live.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal._pool import auto
from shoal._pool.auto import show
from shoal._pool.batching import rule

if TYPE_CHECKING:
    from shoal._pool.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReport:
    """How the tasks of one function are handed out.

    Attributes:
        function: Its name.
        tasks: Tasks that have finished, well or not.
        cost_s: Seconds one takes, as estimated now; None before the first has finished.
        handed_over: Pieces of work given to workers.
        largest: Tasks in the largest piece.
        taken_back: Tasks that came back before they had begun: their worker was busy with another while others had nothing
            to do, or the function or an argument could not be sent as it was.
        rule: How many go at a time now, and why.
    """

    function: str
    tasks: int
    cost_s: float | None
    handed_over: int
    largest: int
    taken_back: int
    rule: str

    def __str__(self) -> str:
        cost = "not measured yet" if self.cost_s is None else f"about {show(self.cost_s)} each"
        pieces = "1 piece"
        if self.handed_over != 1:
            each = (self.tasks + self.taken_back) / self.handed_over if self.handed_over else 0.0
            pieces = f"{self.handed_over:,} pieces of {each:,.{0 if each >= 10 else 1}f} on average, {self.largest:,} at most"
        lines = [
            f"{self.function}: {self.tasks:,} {_tasks(self.tasks)}, {cost}",
            f"  handed over in {pieces}",
            f"  now {self.rule}",
        ]
        if self.taken_back:
            began = "it" if self.taken_back == 1 else "they"
            lines.append(
                f"  {self.taken_back:,} {_tasks(self.taken_back)} came back before {began} had begun, to be run by others"
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoReport:
    """What one map with ``workers="auto"`` did, and why.

    Attributes:
        function: Name of its function.
        tasks_here: Tasks run in the calling process.
        tasks_sent: Tasks handed over to workers.
        workers: Workers brought in; 0 is none.
        cost_s: Seconds one task took here.
        reason: Why.
    """

    function: str
    tasks_here: int
    tasks_sent: int
    workers: int
    cost_s: float
    reason: str

    def __str__(self) -> str:
        where = f"{self.tasks_here:,} {_tasks(self.tasks_here)} in this process"
        if self.tasks_sent:
            where += f", {self.tasks_sent:,} by up to {self.workers} workers"
        return f'map of {self.function} with workers="auto": {where}' + (f"\n  {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a pool hands out work as it does. `str` of it is text for people.

    Attributes:
        workers: Workers there may be.
        functions: One report for each function it remembers, in the order of their first use.
        auto: The map with ``workers="auto"`` that ended last in this program; None if there was none, or for a pool
            that is not the default one.
    """

    workers: int
    functions: tuple[FunctionReport, ...] = ()
    auto: AutoReport | None = None

    def __str__(self) -> str:
        parts = [] if self.auto is None else [str(self.auto)]
        parts.append(f"pool of {self.workers} {'worker' if self.workers == 1 else 'workers'}")
        parts += [str(report) for report in self.functions] or ["nothing has been run on it"]
        return "\n".join(parts)


def _tasks(count: int) -> str:
    return "task" if count == 1 else "tasks"


def of_pool(workers: int, engine: Engine | None, *, with_auto: bool = False) -> Explanation:
    """Explain a pool of `workers` workers; `engine` is None before its first task."""
    choice = auto.last if with_auto else None
    return Explanation(
        workers=workers,
        functions=() if engine is None else _functions(engine),
        auto=None
        if choice is None
        else AutoReport(
            function=choice.fn,
            tasks_here=choice.here,
            tasks_sent=choice.sent,
            workers=choice.workers,
            cost_s=choice.cost_s,
            reason=choice.reason,
        ),
    )


def _functions(engine: Engine) -> tuple[FunctionReport, ...]:
    records = engine.functions.records()
    with engine.core.lock:
        return tuple(
            FunctionReport(
                function=record.label,
                tasks=record.pace.tasks,
                cost_s=record.pace.cost_s,
                handed_over=record.pace.handed_over,
                largest=record.pace.largest,
                taken_back=record.pace.taken_back,
                rule=rule(record.pace, record.pace.grain),
            )
            for record in records
            if record.pace.handed_over
        )
