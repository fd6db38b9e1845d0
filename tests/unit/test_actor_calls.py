"""What a caller keeps of the calls it has made: order, room, who is owed an answer."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._actors import wire
from shoal._actors.calls import Book
from shoal._actors.connection import Call


@dataclass(frozen=True)
class Asked:
    name: str
    wants_answer: bool = True


def test_call_is_sent_at_once_while_there_is_room():
    book: Book[Asked] = Book(2)
    first, second, third = map(Asked, "abc")
    assert book.offer(first) == [(1, first)]
    assert book.offer(second) == [(2, second)]
    assert book.offer(third) == []
    assert not book.has_room
    assert book.took(1) == [(3, third)]


def test_answer_makes_room_and_takes_the_call_out():
    book: Book[Asked] = Book(1)
    call = Asked("a")
    book.offer(call)
    book.took(1)
    assert book.answered(1) is call
    assert book.answered(1) is None
    assert book.has_room


def test_cast_is_owed_nothing():
    book: Book[Asked] = Book(5)
    book.offer(Asked("a", wants_answer=False))
    assert book.lost() == []


def test_who_finds_no_room_asks_once_until_it_is_told():
    book: Book[Asked] = Book(1)
    assert not book.must_ask()
    book.offer(Asked("a"))
    assert book.must_ask()
    assert not book.must_ask()
    book.heard()
    assert book.must_ask()


def test_call_that_was_not_sent_can_be_withdrawn():
    book: Book[Asked] = Book(1)
    first, second = Asked("a"), Asked("b")
    book.offer(first)
    book.offer(second)
    assert book.withdraw(second)
    assert not book.withdraw(first)
    assert book.took(1) == []


def test_lost_connection_gives_up_everything_in_order():
    book: Book[Asked] = Book(1)
    calls = list(map(Asked, "abc"))
    for call in calls:
        book.offer(call)
    assert book.lost() == calls
    assert book.closed
    assert book.lost() == []


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.lists(st.sampled_from(["offer", "cast", "take", "answer"]), max_size=40))
def test_calls_leave_in_order_and_never_more_than_there_is_room(mailbox, events):
    book: Book[Asked] = Book(mailbox)
    sent: list[tuple[int, Asked]] = []
    taken = offered = 0
    for event in events:
        if event in ("offer", "cast"):
            sent += book.offer(Asked(str(offered), event == "offer"))
            offered += 1
        elif taken < len(sent):
            taken += 1
            sent += book.took(taken)
            if event == "answer":
                book.answered(taken)
        assert len(sent) - taken <= mailbox
    assert [number for number, _ in sent] == list(range(1, len(sent) + 1))
    assert [int(call.name) for _, call in sent] == list(range(len(sent)))
    assert len(sent) + len(book.waiting) == offered


def test_error_names_the_call_without_holding_large_arguments():
    call = Call("scale", (3, "x", bytearray(10)), {"by": 2.5}, None)
    assert str(call) == "scale(3, 'x', <bytearray>, by=2.5)"


def test_outlet_keeps_what_the_socket_does_not_take():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        blocked = []
        outlet = wire.Outlet(ours, lambda: blocked.append(1))
        mine = bytearray(b"m" * (1 << 20))
        outlet.write([mine])
        assert blocked == [1]
        mine[-1:] = b"!"  # what was written is what was there then
        outlet.write([b"end"])
        got = bytearray()
        while len(got) < len(mine) + 3:
            got += theirs.recv(1 << 20)
            outlet.flush()
        assert bytes(got[-4:]) == b"mend"
        theirs.close()
        outlet.write([b"x"])  # nobody there: no error
        outlet.close()
        outlet.write([b"x"])
