"""What one process has asked of one actor, over one connection: sent, waiting for room, waiting for answers. Pure.

Role: order, room in the mailbox, and who is told what. Owner: the caller's side of a connection, which calls it with its lock held.

Invariants
    K1  A call is in exactly one place: waiting, pending, or settled; whoever takes it out settles it, once.
    K2  Calls are sent in the order in which they were offered; their numbers count from 1.
    K3  Of those that were sent no more than `mailbox` are not taken out of the actor's mailbox yet.
    K4  What was taken is told by answers, and to who asks. Whoever finds no room asks, once until the next word of it: the actor
        says at once what it has taken so far, and again when it has taken more.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Asked(Protocol):
    """A call, as far as it matters here."""

    wants_answer: bool


CallT = TypeVar("CallT", bound=Asked)
#: To be sent now: the number of the call, the call.
Outgoing = tuple[int, CallT]


class Book(Generic[CallT]):
    """The calls of one connection."""

    def __init__(self, mailbox: int) -> None:
        self.mailbox = mailbox
        self.sent = 0
        self.taken = 0
        self.waiting: deque[CallT] = deque()
        self.pending: dict[int, CallT] = {}
        self.closed = False
        self._has_asked = False

    @property
    def has_room(self) -> bool:
        """Whether a call would be sent at once."""
        return not self.waiting and self.sent - self.taken < self.mailbox

    def offer(self, call: CallT) -> list[Outgoing[CallT]]:
        """Take a call; returns what is to be sent now: it, or nothing until there is room."""
        self.waiting.append(call)
        return self._let_out()

    def took(self, number: int) -> list[Outgoing[CallT]]:
        """The actor has taken this call, and all before it, out of its mailbox; returns what is to be sent now."""
        self.taken = max(self.taken, number)
        return self._let_out()

    def heard(self) -> None:
        """The actor has said what it has taken; it says it again only to who asks again."""
        self._has_asked = False

    def must_ask(self) -> bool:
        """Somebody waits for room: whether the actor is to be asked for it now (K4)."""
        if self._has_asked or self.sent - self.taken < self.mailbox:
            return False
        self._has_asked = True
        return True

    def answered(self, number: int) -> CallT | None:
        """The answer to this call has come; returns the call, to be settled."""
        return self.pending.pop(number, None)

    def withdraw(self, call: CallT) -> bool:
        """Take back a call that was not sent; False if it was."""
        if call in self.waiting:
            self.waiting.remove(call)
            return True
        return False

    def lost(self) -> list[CallT]:
        """The connection is gone; returns every call that was not settled, oldest first."""
        self.closed = True
        left = [*self.pending.values(), *self.waiting]
        self.pending.clear()
        self.waiting.clear()
        return left

    def _let_out(self) -> list[Outgoing[CallT]]:
        out: list[Outgoing[CallT]] = []
        while self.waiting and self.sent - self.taken < self.mailbox:
            call = self.waiting.popleft()
            self.sent += 1
            if call.wants_answer:
                self.pending[self.sent] = call
            out.append((self.sent, call))
        return out
