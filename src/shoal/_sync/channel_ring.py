"""The shared memory of a channel: its words, and who sits where.

Role: layout, and the steps by which seats change hands; all of these inside the guard. Owner: every process that has the channel.
Protocol: CHANNEL.md beside this file; the steps of sending and receiving are in `channel.py`.
"""

from __future__ import annotations

import time
from typing import Final

from shoal._os import futex
from shoal._sync import channel_kinds, identities
from shoal._sync.cells import Cell
from shoal._sync.guard import Guard
from shoal.errors import ChannelClosed

# --- words; the guard lies in words 0 to 7 ------------------------------------------------------
SENT: Final = 8
WRITER: Final = 9  # identity
WRITER_SLEEPS: Final = 10
ROOM_BELL: Final = 11
CLOSED: Final = 12
CAPACITY: Final = 16
SLOT: Final = 17  # bytes
READERS: Final = 18
RESERVED: Final = 19  # slots
SEATS: Final = 24  # first word
SEAT_WORDS: Final = 8
# of a seat:
WHO: Final = 0
AT: Final = 1
SLEEPS: Final = 2
STATE: Final = 3

#: States of a seat: the writer waits for it; its reader died or closed it, and the writer does not.
OPEN: Final = 0
GONE: Final = 1
SHUT: Final = 2


class Ring:
    """The shared memory of a channel, and who sits where."""

    def __init__(self, cell: Cell, kind: channel_kinds.Kind) -> None:
        self.cell = cell
        self.me = identities.me
        self.gone = identities.gone
        self.kind = kind
        self.view = cell.view
        self.words = words = cell.words(0, cell.view.nbytes // 8)  # sizes are multiples of 8
        self.halves = cell.words(0, SEATS * 2, "I")
        self.address = cell.address
        self.guard = Guard(cell.address)
        self.capacity: int = words[CAPACITY]
        self.slot: int = words[SLOT]
        self.seats = range(SEATS, SEATS + words[READERS] * SEAT_WORDS, SEAT_WORDS)
        self.start = (SEATS + words[READERS] * SEAT_WORDS) * 8

    # --- seats ----------------------------------------------------------------------------------

    def claim_writer(self) -> None:
        """Make this process the writer."""

        def step() -> int:
            who: int = self.words[WRITER]
            if not who or who == self.me() or self.gone(who):
                self.words[WRITER] = self.me()
                return 0
            return identities.pid_of(who)

        other = self.guard.run(step)
        if other:
            raise RuntimeError(f"this channel has a writer already: process {other}")

    def claim_seat(self) -> int:
        """Take a seat: one that nobody had, else one whose reader died."""

        def step() -> int:
            words = self.words
            for seat in self.seats:
                if not words[seat + WHO]:
                    words[seat + WHO] = self.me()
                    return seat
            for seat in self.seats:
                if words[seat + STATE] != SHUT and self.gone(words[seat + WHO]):
                    if words[seat + STATE] == GONE:
                        words[seat + AT] = words[SENT]  # what came meanwhile is not there any more
                        words[seat + STATE] = OPEN
                    words[seat + WHO] = self.me()
                    return seat
            return 0

        seat: int = self.guard.run(step)
        if not seat:
            raise RuntimeError(
                f"all seats for readers of this channel are taken; make it with readers={len(self.seats) + 1}"
            )
        return seat

    def bury(self) -> None:
        """Have the writer not wait for readers that died."""

        def step() -> None:
            words = self.words
            for seat in self.seats:
                if words[seat + WHO] and words[seat + STATE] == OPEN and self.gone(words[seat + WHO]):
                    words[seat + STATE] = GONE

        self.guard.run(step)

    def slowest(self) -> int:
        """Return how far the slowest open seat is.

        Raises:
            ChannelClosed: There is none.
        """
        words = self.words
        places = [words[seat + AT] for seat in self.seats if words[seat + STATE] == OPEN]
        if not places:
            raise ChannelClosed(reason="nobody reads this channel any more: its readers have died or closed it")
        slowest: int = min(places)
        return slowest

    def close(self) -> None:
        """Nothing more will be sent."""

        def step() -> None:
            self.words[CLOSED] = 1

        self.guard.run(step)
        futex.wake(self.address + 8 * SENT, futex.EVERYBODY)
        self.ring()

    def ring(self) -> None:
        """Wake the writer."""
        self.halves[2 * ROOM_BELL] = time.monotonic_ns() & 0xFFFFFFFF
        futex.wake(self.address + 8 * ROOM_BELL, futex.EVERYBODY)
