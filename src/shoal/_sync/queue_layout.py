"""Where everything lies in the memory of a queue. Pure: numbers and searches in lists of them.

Role: the words of the head, the tables, the units of the data. Owner: nobody; the protocol is in QUEUE.md beside this file.

The file is one head and then *units* of `UNIT_BYTES`. A unit is part of a *chunk*, which small items are written into one
behind the other, or of a *block*, a run of units with one large buffer. The unit table has two words for each:

    word 0  a number: of the item a block belongs to, or of the last item in a chunk; `NEVER` while that is not known
    word 1  how many units the run has << 32 | who has it: 0 nobody, `CHUNK`, `SPOILT`, else the place of a party + 1

Only the first unit of a run says so; the words of the others are 0.

Invariants
    U1  A run that is in use ends before the next one begins.
    U2  What lies in the file below `reserved` is reserved memory: touching it cannot fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

UNIT_BITS: Final = 16
UNIT_BYTES: Final = 1 << UNIT_BITS
UNIT_MASK: Final = UNIT_BYTES - 1
#: The largest record that is written into a chunk; what is larger gets a block.
INLINE_BYTES: Final = UNIT_BYTES // 4
NEVER: Final = (1 << 64) - 1
CHUNK: Final = (1 << 32) - 1
SPOILT: Final = (1 << 32) - 2
OWNER_MASK: Final = (1 << 32) - 1

# --- words of the head; the mutexes lie in words 0 to 15 --------------------------------------

#: Byte offsets of the guards: of those who put, of those who take.
PUT_GUARD: Final = 0
TAKE_GUARD: Final = 64

PUT: Final = 16  # items put so far; its last bit says which of the two words behind it counts
PUT_AT: Final = 17  # and 18: where the next item goes
PUTTERS: Final = 19  # sleeping producers
ROOM_BELL: Final = 20  # they sleep on it
TAKEN: Final = 24  # items taken so far, and likewise
TAKE_AT: Final = 25
TAKERS: Final = 27
ITEM_BELL: Final = 28
ATTEMPT: Final = 29  # who tried to take last: place of the party, or in queues with ack=True the entry
CLOSED: Final = 32
MOST: Final = 33  # items that may wait; 0: no limit
UNITS: Final = 34
RESERVED: Final = 35  # units
LOST: Final = 36  # items lost so far
HIGH: Final = 37  # places of the party table that were ever used
ACK: Final = 38
RETURNED: Final = 39  # not 0: there may be items of the dead to be taken again
REDELIVERED: Final = 40
JOINERS: Final = 41
DONE_BELL: Final = 42

# --- parties: whoever takes, or sleeps, or has a block ------------------------------------------

PARTIES: Final = 64  # first word of the table
PARTY_COUNT: Final = 256
PARTY_WORDS: Final = 8
WHO: Final = 0  # identity; 0: the place is free
CLAIM: Final = 1  # number of the item in hand; 0: none. One above `TAKEN` was never taken
ASLEEP: Final = 2  # 1: as consumer, 2: as producer
FORKED: Final = 3  # it forked while it had blocks

# --- what was lost, newest over oldest ------------------------------------------------------------

LOSSES: Final = PARTIES + PARTY_COUNT * PARTY_WORDS
LOSS_COUNT: Final = 512
LOSS_WORDS: Final = 2  # identity, number of the item

# --- items taken and not acknowledged, in queues with ack=True: three columns -------------------

HELD: Final = LOSSES + LOSS_COUNT * LOSS_WORDS
HELD_COUNT: Final = 1024
HELD_BY: Final = HELD  # place of a party + 1; 0: the entry is free
HELD_NUMBER: Final = HELD + HELD_COUNT  # one above `TAKEN` was never taken
HELD_AT: Final = HELD + 2 * HELD_COUNT
#: Held by nobody: its consumer died.
ORPHAN: Final = OWNER_MASK

HEAD_WORDS: Final = HELD
ACK_HEAD_WORDS: Final = HELD + 3 * HELD_COUNT

# --- records ------------------------------------------------------------------------------------------

KIND_BITS: Final = 4
KIND_MASK: Final = 15
#: What the bytes of a record are: a pickle; a marshalled builtin; references to blocks and a pickle; go on elsewhere.
PICKLED: Final = 0
PLAIN: Final = 1
BLOCKS: Final = 2
JUMP: Final = 15
RECORD_HEAD: Final = 8


class Plan(NamedTuple):
    """Where the parts of a file of so many units lie: the unit table by words, the rest by bytes."""

    table: int
    data: int
    size: int


def plan(units: int, *, ack: bool) -> Plan:
    """Return the layout of a queue with that much room for items."""
    table = ACK_HEAD_WORDS if ack else HEAD_WORDS
    data = -(-(table + 2 * units) * 8 // UNIT_BYTES) * UNIT_BYTES
    return Plan(table, data, data + units * UNIT_BYTES)


def record_bytes(size: int) -> int:
    """Return how many bytes a record with `size` bytes takes."""
    return RECORD_HEAD + (size + 7 & -8)


class Gap(NamedTuple):
    """Free units in a row: the first, and how many."""

    unit: int
    size: int


def find_gap(entries: Sequence[int], wanted: int, taken: int, pinned: frozenset[int] = frozenset()) -> Gap:
    """Return the first `wanted` free units in a row, or the free ones at the end if there is no such place.

    Args:
        entries: The unit table, two words for each unit.
        wanted: At least 1.
        taken: Items taken so far: a chunk whose last item is among them is free.
        pinned: Units and numbers of items that count as used all the same: -1 - unit of a chunk, number of a block's item.
    """
    units = len(entries) // 2
    unit = run = 0
    while unit < units:
        number, held = entries[2 * unit], entries[2 * unit + 1]
        owner = held & OWNER_MASK
        if owner == CHUNK:
            free = number <= taken and -1 - unit not in pinned
        else:
            free = not owner and (number not in pinned or not held)
        if free:
            run += 1
            unit += 1
            if run == wanted:
                return Gap(unit - run, run)
        else:
            run = 0
            unit += max(1, held >> 32)
    return Gap(units - run, run)
