"""Why a worker died.

Role: collect an obituary from what a dead worker left. Owner: the engine, with its lock held. No user code.
"""

from __future__ import annotations

import signal
import time

from shoal._memory.page import STAGE, fault_text
from shoal._os import cgroup, processes, signals
from shoal._pool.worker import WorkerHandle
from shoal.errors import Obituary, OutOfMemory

#: A SIGKILL nobody of us sent, with less memory than this left, is likely the system's.
_SHORT_OF_MEMORY = 0.05
#: How long a worker gets to write its stack before it is killed. It takes well under a millisecond, on a busy machine a few.
_STACK_LIMIT_S = 0.015


class OomWatch:
    """The kernel's count of out-of-memory kills, to tell proven from likely."""

    def __init__(self) -> None:
        self._count = cgroup.oom_kill_count() or 0

    def happened(self) -> bool:
        """Say whether the kernel killed for memory since the last time this was asked."""
        count = cgroup.oom_kill_count() or 0
        grown, self._count = count > self._count, count
        return grown


def obituary(
    worker: WorkerHandle, oom: OomWatch, *, attempt: int | None, attempts: int | None, process: str | None = None
) -> Obituary:
    """Build the obituary of a worker whose process is gone, all but the label of its task.

    `attempt` and `attempts` are None if it had no task. `process` is the name of a `shoal.Process`.
    """
    status = worker.status
    code = status.code if status else None
    number = status.signal if status else None
    text = fault_text(worker.page_fd)
    python, native = split_stacks(text)
    running = worker.page.running()
    return Obituary(
        worker=worker.number,
        process=process,
        pid=worker.pid or 0,
        exit_code=code,
        signal=processes.signal_name(number) if number is not None else None,
        out_of_memory=_out_of_memory(number, worker, oom),
        peak_memory_bytes=status.peak_rss_bytes if status else None,
        memory_limit_bytes=cgroup.memory_limit_bytes(),
        python_stack=python,
        native_stack=native,
        output_tail=worker.tail(),
        attempt=attempt,
        attempts=attempts,
        ran_s=(time.monotonic_ns() - running[2]) / 1e9 if running and attempt else None,
    )


def _out_of_memory(number: int | None, worker: WorkerHandle, oom: OomWatch) -> OutOfMemory:
    if number != signal.SIGKILL or worker.doomed:
        return "no"
    if oom.happened():
        return "proven"
    total = cgroup.memory_limit_bytes() or cgroup.total_memory_bytes()
    return "likely" if cgroup.available_memory_bytes() < _SHORT_OF_MEMORY * total else "no"


def split_stacks(text: str) -> tuple[str | None, str | None]:
    """Split what `faulthandler` wrote into (Python stack, native stack); only the last dump counts."""
    if not text:
        return None, None
    python, _, native = text.partition("Current thread's C stack trace")
    native = native.partition("\n")[2] if native else ""
    return python.strip() or None, native.strip() or None


def ask_for_stack(worker: WorkerHandle) -> None:
    """Have a live worker write its Python stack to its page. Waits a few milliseconds at most."""
    if not worker.page.words[STAGE]:
        return  # it has not begun: a fork of the program may not even ignore the signal yet, and would die of it
    before = len(fault_text(worker.page_fd))
    if not worker.signal(signals.INTERRUPT_STACK_SIGNAL):
        return
    limit = time.monotonic() + _STACK_LIMIT_S
    length = before
    while time.monotonic() < limit:
        now = len(fault_text(worker.page_fd))
        if now > before and now == length:  # it grew, and has stopped growing
            return
        length = now
        time.sleep(0.0003)
