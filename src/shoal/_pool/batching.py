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

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grain:
    """How coarsely one kind of job is cut.

    Attributes:
        hold_s: Seconds of work a worker may hold: several stretches, so that it never waits for the parent, which on
            a busy machine gets its turn late. A worker that holds less than half of it is given more.
        stretch_s: Seconds of work it reports at once. Waking the parent for a report costs it about 50 us; a longer
            stretch repeats more finished tasks if the worker dies.
    """

    hold_s: float
    stretch_s: float


# A straggler does not hold what is behind it in either: unstarted work is taken back when others idle, and results
# before a task that takes long are fetched.

#: Somebody may wait for any of the results.
SOON = Grain(hold_s=0.016, stretch_s=0.002)
#: The results are wanted together, or one after the other.
WHOLE = Grain(hold_s=0.150, stretch_s=0.025)

#: Tasks of this length and more go one at a time: what sending one costs is lost in it.
LONG_S = 0.002
#: What a task of unknown cost counts for: enough that nothing is queued behind it.
UNKNOWN_S = WHOLE.hold_s / 2
#: Tasks of up to this length may be prefetched one deep while plenty of others wait.
PREFETCH_S = 0.05
#: Tasks that take less together than waking a worker for them are given to one that is awake anyway.
WAKE_S = 50e-6
#: Most items in one hand-over, so that one frame stays a bounded piece of work for the parent.
MOST_ITEMS = 50_000
#: Most bytes of items in one hand-over, by the sizes seen so far: what is handed over is in memory twice.
MOST_BYTES = 16 << 20


class Pace:
    """What one call of a function costs and its argument weighs, learned while running; and how it was handed out."""

    __slots__ = ("cost_s", "grain", "handed_over", "item_bytes", "largest", "taken_back", "tasks")

    def __init__(self) -> None:
        self.cost_s: float | None = None
        self.item_bytes = 0.0
        self.grain = SOON  # of the job that was handed out last
        self.tasks = 0  # finished, whether well or not
        self.handed_over = 0  # pieces given to workers
        self.largest = 0  # tasks in the largest of them
        self.taken_back = 0  # tasks taken back from workers that had not started them

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

    def weigh(self, count: int, nbytes: int) -> None:
        """Take in that `count` items took `nbytes` bytes. Heavier than expected is believed at once."""
        sample = nbytes / count
        self.item_bytes = max(sample, (self.item_bytes + sample) / 2)


def share(pace: Pace, grain: Grain, held_s: float, waiting: int, workers: int, owed: int) -> int:
    """Return how many tasks of one function to hand to a worker now; 0 is none.

    Args:
        pace: The function's.
        grain: The job's.
        held_s: Expected seconds of work the worker already has.
        waiting: Tasks in the backlog, of any function.
        workers: Workers that can take work.
        owed: Tasks that workers have, of any function.
    """
    cost_s = pace.cost_s
    if cost_s is None:
        return 0 if held_s > 0 else 1  # B2, B1
    if cost_s >= LONG_S:  # long: one at a time, and one ahead while plenty of others wait
        ahead = held_s < 1.5 * cost_s and cost_s < PREFETCH_S and waiting > 4 * workers
        return 1 if held_s <= 0 or ahead else 0
    if held_s >= grain.hold_s / 2:  # half full is full enough: larger pieces, fewer frames
        return 0
    # Half of a fair part of all that is not done, what it holds counted in. So pieces get smaller towards the end and all
    # workers finish together; and what comes back when one idles is not dealt out in crumbs, which would only come back again.
    held = int(held_s / cost_s) if cost_s > 0 else 0
    most = min(MOST_ITEMS, (waiting + owed) // (2 * workers) - held)
    if most < 1:
        return 1 if held_s <= 0 else 0  # B1
    room_s = grain.hold_s - held_s
    if most * cost_s > room_s:
        most = int(room_s / cost_s)
    if most * pace.item_bytes > MOST_BYTES:
        most = int(MOST_BYTES / pace.item_bytes)
    return max(1, most)


def rule(pace: Pace, grain: Grain) -> str:
    """Say in words how `share` cuts a function's tasks now."""
    cost_s = pace.cost_s
    if cost_s is None:
        return "one at a time, until the first has said what it costs"
    if cost_s >= LONG_S:
        ahead = ", one ahead while many wait" if cost_s < PREFETCH_S else ""
        return f"one at a time{ahead}: sending one is lost in {LONG_S * 1e3:g} ms and more"
    work = grain.hold_s / cost_s if cost_s > 0 else float("inf")
    weight = MOST_BYTES / pace.item_bytes if pace.item_bytes > 0 else float("inf")
    most = round(max(1, min(work, weight, MOST_ITEMS)))
    why = f"{grain.hold_s * 1e3:g} ms of work"
    if most == MOST_ITEMS:
        why = "the most at once"
    elif weight < work:
        why = f"{MOST_BYTES >> 20} MiB of arguments"
    return f"up to {most:,} at a time ({why}), fewer towards the end"
