"""The page both ends see: words, the journal, the text of a crash (P1 to P3)."""

from __future__ import annotations

import marshal
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._memory.page import (
    COMMITTED,
    DONE,
    FAULT_OFFSET,
    INDEX,
    JOURNAL_BYTES,
    SPAN,
    STAGE,
    STARTED,
    Page,
    fault_text,
)
from shoal._os.memory import memory_file


@pytest.fixture
def ends():
    """The worker's end and the pool's end of one page, and its descriptor."""
    fd = memory_file("page", FAULT_OFFSET)
    theirs, ours = Page(fd), Page(fd)
    yield theirs, ours, fd
    theirs.close()
    ours.close()
    os.close(fd)


def test_a_fresh_page_says_that_nothing_runs(ends):
    _, ours, fd = ends
    assert ours.running() is None
    assert ours.journal() == []
    assert fault_text(fd) == ""


def test_what_one_end_writes_the_other_reads(ends):
    theirs, ours, _ = ends
    for place, value in ((STARTED, 2**63), (INDEX, 7), (SPAN, 2**64 - 1), (DONE, 3), (STAGE, 4)):
        theirs.words[place] = value
    assert ours.running() == (2**64 - 1, 7, 2**63)
    assert (ours.words[DONE], ours.words[STAGE]) == (3, 4)


@given(st.lists(st.tuples(st.integers(), st.binary(max_size=200)), max_size=20))
def test_the_journal_gives_back_what_was_committed_in_order(entries):
    fd = memory_file("page", FAULT_OFFSET)
    page = Page(fd)
    try:
        for entry in entries:
            assert page.commit(marshal.dumps(entry))
        assert page.journal() == entries
        page.clear()
        assert page.journal() == []
    finally:
        page.close()
        os.close(fd)


def test_an_entry_that_is_not_committed_does_not_count(ends):
    theirs, ours, _ = ends
    theirs.commit(marshal.dumps((1,)))
    committed = theirs.words[COMMITTED]
    theirs.commit(marshal.dumps((2,)))
    theirs.words[COMMITTED] = committed  # as if it had died before the last store
    assert ours.journal() == [(1,)]


def test_a_full_journal_refuses_and_keeps_what_it_has(ends):
    theirs, ours, _ = ends
    entry = marshal.dumps(b"x" * 1000)
    count = 0
    while theirs.commit(entry):
        count += 1
    assert count == JOURNAL_BYTES // (len(entry) + 4)
    assert len(ours.journal()) == count
    assert not theirs.commit(marshal.dumps(b"y" * JOURNAL_BYTES))
    theirs.clear()
    assert theirs.commit(entry)


def test_the_largest_entry_that_fits_is_taken(ends):
    theirs, ours, _ = ends
    entry = marshal.dumps(b"x" * (JOURNAL_BYTES - 4 - 5))
    assert len(entry) == JOURNAL_BYTES - 4
    assert theirs.commit(entry)
    assert ours.journal() == [b"x" * (JOURNAL_BYTES - 9)]


def test_a_count_that_makes_no_sense_is_not_read_beyond_the_page(ends):
    theirs, ours, _ = ends
    theirs.commit(marshal.dumps((1,)))
    theirs.words[COMMITTED] = 8
    assert ours.journal()[:1] == [(1,)]


def test_crash_text_lies_behind_the_page_and_may_be_any_bytes(ends):
    _, _, fd = ends
    os.lseek(fd, FAULT_OFFSET, os.SEEK_SET)
    os.write(fd, b"Fatal Python error: \xff\n")
    assert fault_text(fd) == "Fatal Python error: \ufffd"
