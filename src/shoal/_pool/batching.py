"""How much work to hand over at once. Pure: numbers in, numbers out.

Role: the cost estimate of a function and the size of the next batch. Owner: the dispatcher.

The aim: a worker always has a little more work than the time it takes to send it the next piece,
and never so much that others idle while it is busy. Work is therefore counted in expected seconds,
not in tasks; a function that was never run counts as long, so its first task goes alone.

Invariants
    B1  At least one task is handed over when a worker is empty, whatever the estimates say.
    B2  A task whose cost is unknown is never queued behind another.
"""

from __future__ import annotations

#: Seconds of work a worker may hold: several stretches, so that it never waits for the parent, which on a busy machine gets
#: its turn late. A straggler does not hold what is behind it: unstarted work is taken back when others idle.
HOLD_S = 0.016
#: A worker with less than this is given more.
LOW_S = HOLD_S / 2
#: Tasks of this length and more go one at a time: what sending one costs is lost in it.
LONG_S = 0.002
#: What a task of unknown cost counts for: enough that nothing is queued behind it.
UNKNOWN_S = LOW_S
#: Tasks of up to this length may be prefetched one deep while plenty of others wait.
PREFETCH_S = 0.05
#: Most items in one hand-over, so that one frame stays a bounded piece of work for the parent.
MOST_ITEMS = 50_000


class Pace:
    """What one call of a function costs, learned while running."""

    __slots__ = ("cost_s",)

    def __init__(self) -> None:
        self.cost_s: float | None = None

    def learn(self, count: int, elapsed_s: float) -> None:
        """Take in that `count` calls took `elapsed_s` seconds.

        A cheaper sample than expected counts more: the first call of a function pays for imports
        and cold caches, and an over-estimate costs throughput where an under-estimate corrects
        itself with the next report.
        """
        sample = elapsed_s / count
        if self.cost_s is None:
            self.cost_s = sample
            return
        weight = 0.6 if sample < self.cost_s else 0.3
        self.cost_s += weight * (sample - self.cost_s)


def share(pace: Pace, held_s: float, waiting: int, workers: int) -> int:
    """Return how many tasks of one function to hand to a worker now; 0 is none.

    Args:
        pace: The function's.
        held_s: Expected seconds of work the worker already has.
        waiting: Tasks in the backlog, of any function.
        workers: Workers that can take work.
    """
    cost_s = pace.cost_s
    if cost_s is None:
        return 0 if held_s > 0 else 1  # B2, B1
    if cost_s >= LONG_S:  # long: one at a time, and one ahead while plenty of others wait
        ahead = held_s < 1.5 * cost_s and cost_s < PREFETCH_S and waiting > 4 * workers
        return 1 if held_s <= 0 or ahead else 0
    if held_s >= LOW_S:  # half full is full enough: larger pieces, fewer frames
        return 0
    # Towards the end pieces get smaller, so that all workers finish together.
    fair = max(1, waiting // (2 * workers))
    room = int((HOLD_S - held_s) / cost_s) if cost_s > 0 else MOST_ITEMS
    return max(1, min(room, fair, MOST_ITEMS))
