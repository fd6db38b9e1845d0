"""Frozen pictures of a pool, for people, monitors and tests.

Role: `PoolStatistics` and `WorkerInfo`. Owner: the reader; nothing here is live.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from shoal._os import processes
from shoal.errors import Obituary

if TYPE_CHECKING:
    from shoal._pool.engine import Engine
    from shoal._pool.jobs import Job
    from shoal._pool.worker import WorkerHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """What a pool has done so far and what it is doing.

    Attributes:
        workers: Workers that are starting or can take tasks; the spare one does not count.
        idle: Of those, how many have nothing to do.
        busy: Of those, how many have.
        spare: Processes kept warm to replace a worker at once.
        queued: Tasks that wait for a worker.
        running: Tasks handed to workers, running or next.
        submitted: Tasks asked for.
        done: Tasks that returned.
        failed: Tasks that failed for good.
        cancelled: Tasks that were cancelled.
        retried: Runs that were repeated because of `retries`.
        timeouts: Runs stopped by `timeout`.
        requeued: Tasks handed out again because their worker died before it began them.
        workers_started: Processes made.
        workers_lost: Workers that ended when nobody had asked them to, or were killed for a task's sake.
        uptime_s: Seconds since the pool started.
        cpu_s: Seconds of processor time of all its workers, finished and live.
        deaths: The latest obituaries, oldest first, at most 100.
    """

    workers: int = 0
    idle: int = 0
    busy: int = 0
    spare: int = 0
    queued: int = 0
    running: int = 0
    submitted: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    timeouts: int = 0
    requeued: int = 0
    workers_started: int = 0
    workers_lost: int = 0
    uptime_s: float = 0.0
    cpu_s: float = 0.0
    deaths: tuple[Obituary, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker now.

    Attributes:
        number: Its number in the pool; a replacement has a new one.
        pid: Its process id; 0 while the process is being made.
        state: ``"starting"``, ``"idle"``, ``"busy"``, ``"spare"`` or ``"stopping"``.
        task: Label of the task it is running.
        running_s: Seconds since that task began.
        done: Tasks it has finished.
    """

    number: int
    pid: int
    state: Literal["starting", "idle", "busy", "spare", "stopping"]
    task: str | None = None
    running_s: float | None = None
    done: int = 0


def statistics(engine: Engine) -> PoolStatistics:
    """Take a picture of the whole pool."""
    core = engine.core
    with core.lock:
        workers = list(core.workers.values())
        counters = core.counters
        serving = [one for one in workers if one.state in ("starting", "ready")]
        running = sum(core.dispatcher.in_flight(one.number) for one in serving)
        busy = sum(core.dispatcher.in_flight(one.number) > 0 for one in serving)
        live_s = sum(processes.cpu_s(one.pid) or 0.0 for one in workers if one.pid and one.state != "dead")
        return PoolStatistics(
            workers=len(serving),
            idle=core.dispatcher.idle,
            busy=busy,
            spare=sum(one.state == "spare" for one in workers),
            queued=core.dispatcher.waiting,
            running=running,
            submitted=counters.submitted,
            done=counters.done,
            failed=counters.failed,
            cancelled=counters.cancelled,
            retried=counters.retried,
            timeouts=counters.timeouts,
            requeued=counters.requeued,
            workers_started=counters.workers_started,
            workers_lost=counters.workers_lost,
            uptime_s=time.monotonic() - engine.started,
            cpu_s=counters.cpu_s + live_s,
            deaths=tuple(counters.deaths),
        )


def workers(engine: Engine) -> tuple[WorkerInfo, ...]:
    """Take a picture of each worker."""
    core = engine.core
    with core.lock:
        taken = [_worker(engine, one) for one in core.workers.values() if one.state != "dead"]
    # Labels show arguments by `repr`, which is code of the user: not with the lock held.
    return tuple(info if doing is None else replace(info, task=doing[0].safe_label(doing[1])) for info, doing in taken)


def _worker(engine: Engine, worker: WorkerHandle) -> tuple[WorkerInfo, tuple[Job, int] | None]:
    doing, running_s = None, None
    state: Literal["starting", "idle", "busy", "spare", "stopping"]
    if worker.state == "ready":
        state = "busy" if engine.core.dispatcher.in_flight(worker.number) else "idle"
        running = worker.page.running()
        span = engine.core.dispatcher.owes(worker.number, running[0]) if running else None
        if running and span is not None and span.start <= running[1] < span.stop:
            doing = span.job, running[1]
            running_s = max(0.0, (time.monotonic_ns() - running[2]) / 1e9)
    elif worker.state in ("starting", "spare", "stopping"):
        state = worker.state
    else:
        state = "stopping"
    done = worker.tasks_done
    info = WorkerInfo(number=worker.number, pid=worker.pid or 0, state=state, running_s=running_s, done=done)
    return info, doing
