"""The steps of a queue on its shared memory: put, take, give back, and what is done after a death.

Role: everything that must hold whoever is killed at whatever store. No pickling, no waiting. Owner: each process that has the
queue has one of these over the same memory. Any thread. Protocol, with the numbers of the steps: QUEUE.md beside this file.

Invariants
    Q1  One store commits: of `PUT` when something is put, of `TAKEN` when it is taken (of `HELD_BY` when it is taken again).
        What was written for it before counts for nothing until then, what is written after it can be found out again.
    Q2  Whoever puts is inside the put guard, whoever takes inside the take guard. Who needs both enters the take guard first.
    Q3  Memory is handed out inside the put guard only, and comes back by single stores, or by `TAKEN` going on.
    Q4  The place of a party is used again only when no block names it any more.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from shoal._sync import queue_layout as at
from shoal._sync.gates import OWN, UNKNOWN, Gate, Reentered
from shoal._sync.queue_layout import (
    ACK,
    ATTEMPT,
    BLOCKS,
    CLAIM,
    CLOSED,
    HELD_AT,
    HELD_BY,
    HELD_NUMBER,
    JUMP,
    KIND_BITS,
    KIND_MASK,
    MOST,
    NEVER,
    PLAIN,
    PUT,
    PUT_AT,
    RETURNED,
    TAKE_AT,
    TAKEN,
    UNIT_BITS,
    UNIT_BYTES,
    UNIT_MASK,
    WHO,
)

#: What `put` answers.
DONE: Final = 0
FULL: Final = 1
SHUT: Final = 2

#: One reference of a `BLOCKS` record: unit, bytes. Before them: how many, and whether the first one is the pickle itself.
REFERENCE: Final = struct.Struct("=QQ")

#: Builtins are rebuilt inside the guard: no code of the user runs, and it saves a copy.
_plain: Final = marshal.loads

_PLACES: Final = range(at.PARTIES, at.LOSSES, at.PARTY_WORDS)

#: Most units reserved at once when fewer are needed.
_GROW_UNITS: Final = 64


class Mine(Protocol):
    """A party as its own thread has it: its place among the words, and what it has taken and not handed out yet."""

    place: int
    stash: Any


class Core:
    """The steps, on `words`, which are those of the whole file, and `view`, its bytes."""

    def __init__(self, words: Any, view: Any, put_gate: Gate, take_gate: Gate, reserve: Any) -> None:
        self.words = words
        self._view = view
        self._put_gate = put_gate
        self._take_gate = take_gate
        self._reserve: Callable[[int, int], object] = reserve
        self.units: int = words[at.UNITS]
        self._ack: int = words[ACK]
        self._most: int = words[MOST]
        self._table, self.data, _ = at.plan(self.units, ack=bool(self._ack))
        self._owner_of = {place: index + 1 for index, place in enumerate(_PLACES)}
        self._free_entry = 0  # where to look first for a free entry of the held table

    # --- putting --------------------------------------------------------------------------------

    def put(self, data: Any, kind: int, blocks: list[int] | None = None) -> int:
        """Put a record of `data`, with the `blocks` (units) it refers to. Returns DONE, FULL or SHUT.

        `blocks` is empty once they belong to the item: after an exception too, such as one of a signal handler, it tells
        whether that came before the commit or behind it. Raises OSError when there is no memory to reserve.
        """
        words = self.words
        size = len(data)
        gate, inside = self._put_gate, UNKNOWN
        try:
            inside = gate.enter_now()
            if inside:
                inside = gate.enter_after(inside)
                if inside == OWN:
                    raise Reentered("queue")
            number = words[PUT]
            if words[CLOSED]:
                return SHUT
            if self._most and number - words[TAKEN] >= self._most:
                return FULL
            place = words[PUT_AT + (number & 1)]
            end = place + 8 + (size + 7 & -8)
            if end > (place | UNIT_MASK) - 7:  # P2: room for a jump stays at the end of a chunk
                target = self._new_chunk(place)
                if not target:
                    return FULL
                words[place >> 3] = target << KIND_BITS | JUMP
                place = target
                end = place + 8 + (size + 7 & -8)
            words[place >> 3] = size << KIND_BITS | kind  # P3
            self._view[place + 8 : place + 8 + size] = data
            for unit in blocks or ():  # P4
                words[self._table + 2 * unit] = number + 1
            words[PUT_AT + (~number & 1)] = end  # P5
            words[PUT] = number + 1  # P6
            if blocks:
                del blocks[:]  # no call since the commit, so no signal handler either
        finally:
            if not inside:
                gate.leave()
            elif inside != OWN:
                gate.give_up()
        return DONE

    def _new_chunk(self, place: int) -> int:
        """Take a unit for small items; returns where it begins, 0 if there is none. Inside the put guard."""
        words, table = self.words, self._table
        current = place - self.data >> UNIT_BITS
        entries = self._entries()
        done = words[PUT]
        for unit in range(len(entries) // 2):  # whoever left these did not come to saying so, or nobody used them
            left = entries[2 * unit] == NEVER and entries[2 * unit + 1] & at.OWNER_MASK == at.CHUNK
            if left and unit != current:
                words[table + 2 * unit] = done
        unit = self._find(1)
        if unit < 0:
            return 0
        self._note(unit, 1, at.CHUNK)
        return self.data + (unit << UNIT_BITS)

    def _entries(self) -> list[int]:
        count = 2 * self.words[at.RESERVED]
        entries: list[int] = self.words[self._table : self._table + count].tolist()
        return entries

    def _find(self, count: int) -> int:
        """Return the first of `count` free units in a row, reserved; -1 if there is no room. Inside the put guard."""
        words = self.words
        taken = words[TAKEN]  # before what is held is looked at: an item goes from the one to the other
        gap = at.find_gap(self._entries(), count, taken, self._pinned())
        missing = gap.unit + count - words[at.RESERVED]
        if missing > 0:
            if gap.unit + count > self.units:
                return -1
            self._grow(missing)
        return gap.unit

    def _pinned(self) -> frozenset[int]:
        if not self._ack:
            return frozenset()
        words = self.words
        pinned = set[int]()
        for entry, owner in enumerate(words[HELD_BY : HELD_BY + at.HELD_COUNT].tolist()):
            if owner:
                pinned.add(words[HELD_NUMBER + entry])
                pinned.add(-1 - (words[HELD_AT + entry] - self.data >> UNIT_BITS))
        return frozenset(pinned)

    def _grow(self, missing: int) -> None:
        reserved = self.words[at.RESERVED]
        more = min(max(missing, min(reserved >> 2, _GROW_UNITS)), self.units - reserved)
        self._reserve((self._table + 2 * reserved) * 8, 16 * more)
        self._reserve(self.data + (reserved << UNIT_BITS), more << UNIT_BITS)
        self.words[at.RESERVED] = reserved + more  # U2

    def _note(self, unit: int, count: int, owner: int) -> None:
        """Write a run into the table; the last store makes it used. Inside the put guard."""
        words, first = self.words, self._table + 2 * unit
        for word in range(first + 2, first + 2 * count):
            if words[word]:
                words[word] = 0  # the head of a run that was freed (U1)
        words[first] = NEVER
        words[first + 1] = count << 32 | owner

    def allocate(self, nbytes: int, mine: Mine, units: list[int] | None = None) -> int:
        """Take a block for `mine` to fill; returns its first unit, also appended to `units`; -1 if there is no room now.

        Raises:
            OSError: There is no memory to reserve.
        """

        def step() -> int:
            count = max(1, -(-nbytes // UNIT_BYTES))
            unit = self._find(count)
            if unit >= 0:
                self._note(unit, count, self._owner_of[mine.place])
                if units is not None:
                    units.append(unit)  # here, where no signal handler comes between
            return unit

        unit: int = self._inside(self._put_gate, step)
        return unit

    def block_at(self, unit: int) -> int:
        """Return where in the file a block begins."""
        return self.data + (unit << UNIT_BITS)

    def release(self, unit: int, *, spoilt: bool = False) -> None:
        """Give a block back: one store, by who has it. Any thread, also in finalizers."""
        word = self._table + 2 * unit + 1
        count = self.words[word] >> 32
        self.words[word] = count << 32 | (at.SPOILT if spoilt else 0)

    # --- taking ---------------------------------------------------------------------------------

    def take(self, mine: Mine) -> bool:
        """Take the first item: (kind, bytes) into `mine.stash`, in the same instant. False if there is none."""
        words, ack = self.words, self._ack
        gate, inside = self._take_gate, UNKNOWN
        try:
            inside = gate.enter_now()
            if inside:
                inside = gate.enter_after(inside)
                if inside == OWN:
                    raise Reentered("queue")
            if ack and words[RETURNED] and self._take_again(mine):
                return True
            number = words[TAKEN]
            if number == words[PUT]:
                return False
            place = words[TAKE_AT + (number & 1)]
            head = words[place >> 3]
            if head & KIND_MASK == JUMP:
                place = head >> KIND_BITS
                head = words[place >> 3]
            size = head >> KIND_BITS
            kind = head & KIND_MASK
            data = self._view[place + 8 : place + 8 + size]  # T2
            data = _plain(data) if kind == PLAIN else data.tobytes()
            if kind == BLOCKS:
                self._claim_blocks(data, mine)  # T3
            words[TAKE_AT + (~number & 1)] = place + 8 + (size + 7 & -8)  # T4
            if ack:
                entry = self._prepare_entry(number + 1, place)
                words[HELD_BY + entry] = self._owner_of[mine.place]  # T5
                words[TAKEN] = number + 1  # T6
                mine.stash = kind, data, entry
                return True
            claim = mine.place + CLAIM
            if words[ATTEMPT] != claim:
                self._forget_attempt(number)
                words[ATTEMPT] = claim
            words[claim] = number + 1  # T5
            words[TAKEN] = number + 1  # T6
            mine.stash = kind, data, -1  # no call since the commit, so no signal handler either
        finally:
            if not inside:
                gate.leave()
            elif inside != OWN:
                gate.give_up()
        return True

    def _claim_blocks(self, data: bytes, mine: Mine) -> None:
        owner = self._owner_of[mine.place]
        for unit, _ in self.references(data)[0]:
            word = self._table + 2 * unit + 1
            self.words[word] = self.words[word] & ~at.OWNER_MASK | owner

    @staticmethod
    def references(data: bytes) -> tuple[list[tuple[int, int]], bool, int]:
        """Return the (unit, bytes) a `BLOCKS` record refers to, whether the first is the pickle, where its own one begins."""
        count, main = REFERENCE.unpack_from(data)
        end = 16 * (1 + count)
        return list(REFERENCE.iter_unpack(data[16:end])), bool(main), end

    def _forget_attempt(self, number: int) -> None:
        """Take back the claim of whoever was killed between T5 and T6: the item is about to be somebody else's."""
        words, claim = self.words, self.words[ATTEMPT]
        if claim and words[claim] > number:
            words[claim] = 0

    def _prepare_entry(self, number: int, place: int) -> int:
        """Return a free entry of the held table with an item that is to be acknowledged; it has no owner yet."""
        words = self.words
        last = words[ATTEMPT]
        if words[HELD_BY + last] and words[HELD_NUMBER + last] >= number:
            words[HELD_BY + last] = 0  # as `_forget_attempt`
        entry = self._free_entry
        if words[HELD_BY + entry]:
            owners = words[HELD_BY : HELD_BY + at.HELD_COUNT].tolist()
            if 0 not in owners:
                raise RuntimeError(
                    f"{at.HELD_COUNT} items of this queue have been taken and not acknowledged; call task_done() for each"
                )
            entry = self._free_entry = owners.index(0)
        words[ATTEMPT] = entry
        words[HELD_NUMBER + entry] = number
        words[HELD_AT + entry] = place
        return entry

    def _take_again(self, mine: Mine) -> bool:
        """Take the oldest item that a dead consumer had not acknowledged. Inside the take guard."""
        words = self.words
        owners = words[HELD_BY : HELD_BY + at.HELD_COUNT].tolist()
        orphans = [(words[HELD_NUMBER + entry], entry) for entry, owner in enumerate(owners) if owner == at.ORPHAN]
        if not orphans:
            words[RETURNED] = 0
            return False
        _, entry = min(orphans)
        place = words[HELD_AT + entry]
        head = words[place >> 3]
        size, kind = head >> KIND_BITS, head & KIND_MASK
        data = self._view[place + 8 : place + 8 + size]
        data = _plain(data) if kind == PLAIN else data.tobytes()
        if kind == BLOCKS:
            self._claim_blocks(data, mine)
        words[at.REDELIVERED] += 1
        words[HELD_BY + entry] = self._owner_of[mine.place]  # A2
        mine.stash = kind, data, entry
        return True

    def finish(self, mine: Mine) -> None:
        """Say that the item in hand is done with: one store."""
        self.words[mine.place + CLAIM] = 0

    def acknowledge(self, entry: int) -> None:
        """Say that a held item is done with: one store."""
        self.words[HELD_BY + entry] = 0

    def close(self) -> None:
        """Have nothing more put: whoever is putting is through when this returns."""

        def step() -> None:
            self.words[CLOSED] = 1

        self._inside(self._put_gate, step)

    # --- parties --------------------------------------------------------------------------------

    def join(self, who: int) -> int:
        """Return a new place of the party table for `who`, 0 if there is none."""

        def step() -> int:
            words = self.words
            for place in _PLACES:
                if not words[place + WHO]:
                    words[place + CLAIM] = words[place + at.ASLEEP] = words[place + at.FORKED] = 0
                    words[at.HIGH] = max(words[at.HIGH], (place - at.PARTIES) // at.PARTY_WORDS + 1)
                    words[place + WHO] = who
                    return place
            return 0

        place: int = self._both_inside(step)
        return place

    def leave(self, mine: Mine, held: Sequence[int]) -> None:
        """Give a place back, and what was not acknowledged; single stores, no lock: for finalizers."""
        words = self.words
        for entry in held:
            words[HELD_BY + entry] = at.ORPHAN
        if held:
            words[RETURNED] = 1
        words[mine.place + CLAIM] = 0
        words[mine.place + WHO] = 0

    def fall_asleep(self, mine: Mine, how: int) -> None:
        """Note that `mine` sleeps: 1 as a consumer, 2 as a producer, 0 not any more."""

        def step() -> None:
            self.words[mine.place + at.ASLEEP] = how
            self._count_sleepers()

        self._both_inside(step)

    def _count_sleepers(self) -> None:
        words = self.words
        asleep = [words[place + at.ASLEEP] for place, _ in self.parties()]
        words[at.TAKERS] = asleep.count(1)
        words[at.PUTTERS] = asleep.count(2)

    def _both_inside(self, step: Callable[[], Any]) -> Any:
        """Return `step()`, done inside both guards (Q2)."""
        return self._inside(self._take_gate, lambda: self._inside(self._put_gate, step))

    def _inside(self, gate: Gate, step: Callable[[], Any]) -> Any:
        inside = UNKNOWN
        try:
            inside = gate.enter_now()
            if inside:
                inside = gate.enter_after(inside)
                if inside == OWN:
                    raise Reentered("queue")
            return step()
        finally:
            if not inside:
                gate.leave()
            elif inside != OWN:
                gate.give_up()

    # --- after a death --------------------------------------------------------------------------

    def parties(self) -> list[tuple[int, int]]:
        """Return (place, identity) of everybody in the table."""
        words = self.words
        both = ((place, words[place + WHO]) for place in _PLACES[: words[at.HIGH]])
        return [(place, who) for place, who in both if who]

    def sweep(self, gone: Callable[[int], bool]) -> bool:
        """Put what the dead had in order; True if there was anybody to bury."""
        suspects = [(place, who) for place, who in self.parties() if gone(who)]  # asked outside: it takes a while
        if suspects:
            self._both_inside(lambda: self._bury(suspects))
        return bool(suspects)

    def _bury(self, suspects: list[tuple[int, int]]) -> None:
        words = self.words
        for place, who in suspects:
            if words[place + WHO] != who:
                continue  # somebody was quicker
            self._settle_claim(place, who)  # S1
            if self._ack:
                self._orphan(self._owner_of[place])  # S2
            words[place + at.ASLEEP] = 0
            if self._free_blocks(self._owner_of[place], forked=bool(words[place + at.FORKED])):  # S3
                words[place + WHO] = 0  # S4
        self._count_sleepers()

    def _settle_claim(self, place: int, who: int) -> None:
        words = self.words
        claim = words[place + CLAIM]
        if claim and claim <= words[TAKEN]:
            lost = words[at.LOST]
            last = at.LOSSES + (lost - 1) % at.LOSS_COUNT * at.LOSS_WORDS
            if not (lost and words[last + 1] == claim):  # else whoever wrote it down died before the next store
                entry = at.LOSSES + lost % at.LOSS_COUNT * at.LOSS_WORDS
                words[entry] = who
                words[entry + 1] = claim
                words[at.LOST] = lost + 1
        words[place + CLAIM] = 0

    def _orphan(self, owner: int) -> None:
        words = self.words
        for entry, held_by in enumerate(words[HELD_BY : HELD_BY + at.HELD_COUNT].tolist()):
            if held_by == owner:
                taken = words[HELD_NUMBER + entry] <= words[TAKEN]
                words[RETURNED] = 1
                words[HELD_BY + entry] = at.ORPHAN if taken else 0

    def _free_blocks(self, owner: int, *, forked: bool) -> bool:
        """Free the blocks of a dead party; False if one of them is in an item that waits, and so names it still (Q4)."""
        words, entries = self.words, self._entries()
        put, taken = words[PUT], words[TAKEN]
        clear = True
        for unit in range(len(entries) // 2):
            number, held = entries[2 * unit], entries[2 * unit + 1]
            if held & at.OWNER_MASK == owner:
                if taken < number <= put:
                    clear = False
                else:
                    self.release(unit, spoilt=forked and number <= taken)
        return clear

    # --- pictures -------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Return how many items wait to be taken."""
        words = self.words
        count = int(words[PUT]) - int(words[TAKEN])
        if words[RETURNED]:
            count += words[HELD_BY : HELD_BY + at.HELD_COUNT].tolist().count(at.ORPHAN)
        return max(0, count)

    def losses(self) -> list[tuple[int, int]]:
        """Return (identity, number) of the items lost last, oldest first."""
        words = self.words
        lost = words[at.LOST]
        picked = range(max(0, lost - at.LOSS_COUNT), lost)
        places = [at.LOSSES + one % at.LOSS_COUNT * at.LOSS_WORDS for one in picked]
        return [(words[place], words[place + 1]) for place in places]
