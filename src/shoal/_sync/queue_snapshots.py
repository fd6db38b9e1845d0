"""Frozen pictures of a queue, for people, monitors and tests.

Role: `LostItem` and `QueueStatistics`. Owner: the reader; nothing here is live.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LostItem:
    """An item that was taken from a queue by a process that died before it had done with it.

    Attributes:
        pid: The process.
        number: The how manieth item put into the queue it was, from 1.
    """

    pid: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """What a queue has done so far and what is in it.

    Attributes:
        put: Items put so far.
        taken: Items taken so far; one that was taken again counts once.
        waiting: Items in the queue now, those that wait to be taken again included.
        lost: Items whose consumer died with them in hand; see `Queue.lost`.
        redelivered: How often an item was taken again because its consumer had died.
        unacknowledged: Items taken and not acknowledged yet, in a queue with `ack=True`.
        consumers_asleep: Threads that sleep until there is an item.
        producers_asleep: Threads that sleep until there is room.
        memory_bytes: Memory it takes now.
        memory_limit_bytes: Memory it may take for items.
        closed: Whether it was closed.
    """

    put: int
    taken: int
    waiting: int
    lost: int
    redelivered: int
    unacknowledged: int
    consumers_asleep: int
    producers_asleep: int
    memory_bytes: int
    memory_limit_bytes: int
    closed: bool
