"""shoal: worker processes that do not hang, leak, lose work or keep you guessing.

Role: the public names, loaded when first used. No logic.

Layers, from the bottom; a module imports from rows above it in this list only (checked by
tests/surface/test_layers.py):

    errors, _settings           what can go wrong; what can be asked
    _os                         the only place that touches processes, descriptors, memory files and control groups
    _memory                     shared pages, the arena of large data, shared objects and arrays
    _wire                       frames, pickling, remote errors
    _sync                       locks, conditions, queues and channels that survive the death of any process
    _worker                     what runs in the child
    _pool                       dispatcher, engine, surface
    _process                    shoal.Process
    _supervise, _actors         restarting what ends; objects in processes of their own
    cli                         the command
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it; importing `typing` would cost more than this whole file
if TYPE_CHECKING:
    from typing import Any

    from shoal._actors.connection import ActorFuture
    from shoal._actors.define import actor
    from shoal._actors.handle import Actor, ActorMethod, ActorStatistics
    from shoal._memory.arrays import SharedArray as SharedArray
    from shoal._memory.arrays import array as array
    from shoal._memory.arrays import empty as empty
    from shoal._memory.arrays import full as full
    from shoal._memory.arrays import zeros as zeros
    from shoal._memory.shared import Shared, share
    from shoal._pool.default import cpu_count, explain, imap, map, submit
    from shoal._pool.executor import Pool, PoolView
    from shoal._pool.explaining import AutoReport, Explanation, FunctionReport
    from shoal._pool.future import Future
    from shoal._pool.snapshots import PoolStatistics, WorkerInfo
    from shoal._process.facade import Process, active_children, current_process
    from shoal._supervise.child import SupervisedChild
    from shoal._supervise.events import (
        ChildCounts,
        ChildEvent,
        ChildExited,
        ChildInfo,
        ChildReady,
        ChildRestarting,
        ChildStarted,
        ChildStopped,
        GaveUp,
        SupervisorStatistics,
    )
    from shoal._supervise.tree import Supervisor
    from shoal._sync.barrier import Barrier
    from shoal._sync.channel import Channel, ChannelStatistics
    from shoal._sync.condition import Condition
    from shoal._sync.event import Event
    from shoal._sync.lock import Hold, Lock, RLock
    from shoal._sync.queue import Queue
    from shoal._sync.queue_snapshots import LostItem, QueueStatistics
    from shoal._sync.semaphore import BoundedSemaphore, Semaphore
    from shoal.errors import (
        ActorDied,
        BrokenBarrierError,
        Cancelled,
        ChannelClosed,
        InitializerFailed,
        MailboxFull,
        MainGuardMissing,
        MemoryLimitExceeded,
        NoSharedMemory,
        NotPicklable,
        Obituary,
        OverlappingWrites,
        PoisonTask,
        PoolClosed,
        ProcessDied,
        QueueClosed,
        RemoteError,
        RemoteTraceback,
        ShoalError,
        StartFailed,
        SupervisorFailed,
        TaskTimeout,
        UnsupportedPlatform,
        WorkerDied,
    )

__version__ = "0.1.0"

# Without what needs numpy (`array`, `empty`, `full`, `zeros`, `SharedArray`): a star import has to work without it.
__all__ = [
    "Actor",
    "ActorDied",
    "ActorFuture",
    "ActorMethod",
    "ActorStatistics",
    "AutoReport",
    "Barrier",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "Cancelled",
    "Channel",
    "ChannelClosed",
    "ChannelStatistics",
    "ChildCounts",
    "ChildEvent",
    "ChildExited",
    "ChildInfo",
    "ChildReady",
    "ChildRestarting",
    "ChildStarted",
    "ChildStopped",
    "Condition",
    "Event",
    "Explanation",
    "FunctionReport",
    "Future",
    "GaveUp",
    "Hold",
    "InitializerFailed",
    "Lock",
    "LostItem",
    "MailboxFull",
    "MainGuardMissing",
    "MemoryLimitExceeded",
    "NoSharedMemory",
    "NotPicklable",
    "Obituary",
    "OverlappingWrites",
    "PoisonTask",
    "Pool",
    "PoolClosed",
    "PoolStatistics",
    "PoolView",
    "Process",
    "ProcessDied",
    "Queue",
    "QueueClosed",
    "QueueStatistics",
    "RLock",
    "RemoteError",
    "RemoteTraceback",
    "Semaphore",
    "Shared",
    "ShoalError",
    "StartFailed",
    "SupervisedChild",
    "Supervisor",
    "SupervisorFailed",
    "SupervisorStatistics",
    "TaskTimeout",
    "UnsupportedPlatform",
    "WorkerDied",
    "WorkerInfo",
    "active_children",
    "actor",
    "cpu_count",
    "current_process",
    "explain",
    "imap",
    "map",
    "share",
    "submit",
]

_HOMES = {
    "Actor": "shoal._actors.handle",
    "ActorFuture": "shoal._actors.connection",
    "ActorMethod": "shoal._actors.handle",
    "ActorStatistics": "shoal._actors.handle",
    "AutoReport": "shoal._pool.explaining",
    "Barrier": "shoal._sync.barrier",
    "BoundedSemaphore": "shoal._sync.semaphore",
    "ChildCounts": "shoal._supervise.events",
    "ChildEvent": "shoal._supervise.events",
    "ChildExited": "shoal._supervise.events",
    "ChildInfo": "shoal._supervise.events",
    "ChildReady": "shoal._supervise.events",
    "ChildRestarting": "shoal._supervise.events",
    "ChildStarted": "shoal._supervise.events",
    "ChildStopped": "shoal._supervise.events",
    "Channel": "shoal._sync.channel",
    "ChannelStatistics": "shoal._sync.channel",
    "Condition": "shoal._sync.condition",
    "Event": "shoal._sync.event",
    "Explanation": "shoal._pool.explaining",
    "FunctionReport": "shoal._pool.explaining",
    "Future": "shoal._pool.future",
    "GaveUp": "shoal._supervise.events",
    "Hold": "shoal._sync.lock",
    "Lock": "shoal._sync.lock",
    "Pool": "shoal._pool.executor",
    "PoolStatistics": "shoal._pool.snapshots",
    "PoolView": "shoal._pool.executor",
    "Process": "shoal._process.facade",
    "RLock": "shoal._sync.lock",
    "LostItem": "shoal._sync.queue_snapshots",
    "Queue": "shoal._sync.queue",
    "QueueStatistics": "shoal._sync.queue_snapshots",
    "Semaphore": "shoal._sync.semaphore",
    "Shared": "shoal._memory.shared",
    "SharedArray": "shoal._memory.arrays",
    "SupervisedChild": "shoal._supervise.child",
    "Supervisor": "shoal._supervise.tree",
    "SupervisorStatistics": "shoal._supervise.events",
    "WorkerInfo": "shoal._pool.snapshots",
    "active_children": "shoal._process.facade",
    "actor": "shoal._actors.define",
    "array": "shoal._memory.arrays",
    "cpu_count": "shoal._pool.default",
    "current_process": "shoal._process.facade",
    "empty": "shoal._memory.arrays",
    "explain": "shoal._pool.default",
    "full": "shoal._memory.arrays",
    "imap": "shoal._pool.default",
    "map": "shoal._pool.default",
    "share": "shoal._memory.shared",
    "submit": "shoal._pool.default",
    "zeros": "shoal._memory.arrays",
}


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES.get(name, "shoal.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOMES, "__version__"})
