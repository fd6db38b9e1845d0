"""A latch wakes all who wait, however many, whenever they come; an exception in a waiter harms nobody."""

from __future__ import annotations

import sys
import threading

import pytest

from shoal._os.latch import Latch, StopEvent
from tests.support import HANG_LIMIT_S


def test_it_is_not_set_until_it_is_set():
    latch = Latch()
    assert (latch.is_set(), latch.wait(0), latch.wait(0.0005)) == (False, False, False)
    latch.set()
    latch.set()
    assert (latch.is_set(), latch.wait(), latch.wait(0)) == (True, True, True)


def test_who_gave_up_is_not_remembered():
    latch = Latch()
    for _ in range(5):
        latch.wait(0)
    assert not latch._waiters


def test_everybody_who_waits_is_woken():
    latch, woken = Latch(), []
    threads = [threading.Thread(target=lambda: woken.append(latch.wait(HANG_LIMIT_S))) for _ in range(5)]
    for thread in threads:
        thread.start()
    latch.set()
    for thread in threads:
        thread.join()
    assert woken == [True] * 5


class Struck(Exception):
    pass


@pytest.mark.parametrize("step", range(40))
def test_an_exception_at_any_step_of_a_waiter_leaves_it_usable(step):
    """As a signal handler raises one: between any two instructions, here by a tracer that counts them."""
    latch = Latch()
    left = step

    def strike(frame, event, _argument):
        nonlocal left
        if frame.f_code is not Latch.wait.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                raise Struck
        return strike

    struck = False

    tracing = sys.gettrace()
    sys.settrace(strike)
    try:
        latch.wait(0)
    except Struck:
        struck = True
    finally:
        sys.settrace(tracing)
    setter = threading.Thread(target=latch.set)
    setter.start()
    setter.join(HANG_LIMIT_S)
    assert latch.wait(0)
    if sys.version_info[:2] != (3, 12):  # which does not trace the instructions of a function it has just entered
        assert struck or step > 20


def test_a_stop_event_is_used_as_an_event_is():
    event = StopEvent()
    assert isinstance(event, threading.Event)
    assert (event.is_set(), event.wait(0), event.wait(-1)) == (False, False, False)
    event.set()
    assert (event.is_set(), event.wait(), event.wait(1e12), repr(event)) == (True, True, True, "<StopEvent: set>")
    event.clear()
    assert (event.is_set(), event.wait(0)) == (False, False)


def test_a_stop_event_that_asks_leaves_being_set_to_who_is_asked():
    asked = []
    event = StopEvent(lambda: asked.append(True))
    event.set()
    assert (asked, event.is_set()) == ([True], False)
    event.note()
    assert event.wait()
