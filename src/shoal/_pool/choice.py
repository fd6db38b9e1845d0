"""Whether workers are worth it, and how many. Pure: numbers in, numbers out.

Role: the estimate behind `workers="auto"`. Owner: `auto.py`.

The figures below were measured on a machine of two processors. They need not be exact: too high, and a map that would
gain a little stays where it is; too low, and one that loses a tenth is handed over.
"""

from __future__ import annotations

#: Seconds of the calling thread that starting the first pool takes: imports, the engine, the first hand-over.
FIRST_POOL_S = 0.05
#: Seconds that handing over to a pool that runs takes, waking its workers included.
HAND_OVER_S = 0.0005
#: Seconds until one more worker is ready; they start one after the other.
WORKER_S = 0.004
#: What a worker and its messages add to each task of a large batch, in seconds.
TASK_S = 0.2e-6
#: Workers have to save this part of the time at least, because the future is not known.
LEAST_GAIN = 0.1
#: Starting them may cost this part of the whole at most: then even an estimate that is wrong altogether costs no more.
MOST_RISK = 0.1
#: A larger pool has to be faster by this part.
_WORTH_MORE = 0.03


def start_s(workers: int, ready: int, *, running: bool) -> float:
    """Return the seconds until `workers` workers are at work, when `ready` are already, in a pool that runs or not."""
    return (HAND_OVER_S if running else FIRST_POOL_S) + WORKER_S * max(0, workers - ready)


def finish_s(tasks: int, cost_s: float, carry_s: float, workers: int) -> float:
    """Return the seconds that `workers` workers need for `tasks` tasks.

    Args:
        tasks: How many.
        cost_s: Seconds one takes here.
        carry_s: Seconds to pickle and unpickle the argument and the result of one.
        workers: How many share them.
    """
    rounds = -(-tasks // workers)  # the last round may keep only some of them busy
    return max(rounds * (cost_s + carry_s + TASK_S), tasks * carry_s)


def choose(tasks: int, cost_s: float, carry_s: float, *, spent_s: float, most: int, ready: int, running: bool) -> int:
    """Return how many workers to bring in for what remains; 0 is none.

    Args:
        tasks: Tasks that remain.
        cost_s: As for `finish_s`.
        carry_s: As for `finish_s`.
        spent_s: Seconds the map took until now.
        most: Workers there may be.
        ready: Of these, how many could begin now.
        running: Whether the pool exists.
    """
    loop_s = tasks * cost_s
    if start_s(0, 0, running=running) > MOST_RISK * (spent_s + loop_s):
        return 0
    best, best_s = 0, (1 - LEAST_GAIN) * loop_s
    for workers in range(2, min(most, tasks) + 1):
        took_s = start_s(workers, ready, running=running) + finish_s(tasks, cost_s, carry_s, workers)
        if took_s < best_s * (1 - _WORTH_MORE if best else 1):
            best, best_s = workers, took_s
    return best
