"""Where things lie in a queue's memory, and which units are handed out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal._sync import queue_layout as at
from shoal._sync.queue_layout import CHUNK, NEVER, Gap, find_gap


def table(*runs: tuple[int, int, int]) -> list[int]:
    """A unit table of (units, number, owner)."""
    words: list[int] = []
    for units, number, owner in runs:
        words += [number, units << 32 | owner] + [0, 0] * (units - 1)
    return words


FREE = (1, 0, 0)


@given(st.integers(4, 1 << 20), st.booleans())
def test_parts_of_the_file_do_not_overlap_and_units_begin_at_their_multiples(units, ack):
    plan = at.plan(units, ack=ack)
    assert (plan.table + 2 * units) * 8 <= plan.data
    assert plan.data % at.UNIT_BYTES == 0
    assert plan.size == plan.data + units * at.UNIT_BYTES
    assert plan.table >= (at.ACK_HEAD_WORDS if ack else at.HEAD_WORDS)


def test_the_words_of_the_head_are_apart():
    assert at.PARTIES > at.DONE_BELL
    assert at.LOSSES == at.PARTIES + at.PARTY_COUNT * at.PARTY_WORDS
    assert at.HELD_AT + at.HELD_COUNT == at.ACK_HEAD_WORDS


@given(st.integers(0, at.INLINE_BYTES))
def test_a_record_is_aligned_and_fits_into_an_empty_chunk(size):
    assert at.record_bytes(size) % 8 == 0
    assert at.RECORD_HEAD + size <= at.record_bytes(size) <= at.UNIT_BYTES - 8


def test_the_first_gap_that_is_large_enough_is_found():
    entries = table(FREE, (2, 5, 1), FREE, FREE, (1, NEVER, CHUNK), FREE)
    assert find_gap(entries, 1, taken=9) == Gap(0, 1)
    assert find_gap(entries, 2, taken=9) == Gap(3, 2)
    assert find_gap(entries, 3, taken=9) == Gap(6, 1), "what is free at the end may be continued"


def test_a_chunk_is_free_once_its_last_item_was_taken_and_nothing_in_it_is_held():
    entries = table((1, 7, CHUNK), (1, NEVER, CHUNK))
    assert find_gap(entries, 1, taken=6) == Gap(2, 0)
    assert find_gap(entries, 1, taken=7) == Gap(0, 1)
    assert find_gap(entries, 1, 7, frozenset({-1})) == Gap(2, 0)


def test_a_block_that_was_given_back_is_free_unless_its_item_is_held():
    entries = table((3, 7, 0))
    assert find_gap(entries, 3, taken=9) == Gap(0, 3)
    assert find_gap(entries, 1, 9, frozenset({7})) == Gap(3, 0)
    assert find_gap(table((1, 7, at.SPOILT)), 1, taken=9) == Gap(1, 0)


RUN = st.tuples(st.integers(1, 4), st.sampled_from([3, 7, NEVER]), st.sampled_from([0, 1, CHUNK, at.SPOILT]))


@given(st.lists(RUN, max_size=12), st.integers(1, 5), st.integers(0, 9))
def test_what_is_found_is_free(runs, wanted, taken):
    """Against a unit-by-unit account of what is used."""
    runs = [(1 if owner == CHUNK else units, number, owner) for units, number, owner in runs]
    used: list[bool] = []
    for units, number, owner in runs:
        used += [owner != 0 and not (owner == CHUNK and number <= taken)] * units
    unit, size = find_gap(table(*runs), wanted, taken)
    assert not any(used[unit : unit + size])
    if size < wanted:
        assert unit + size == len(used)
        assert all(any(used[start : start + wanted]) for start in range(len(used) - wanted + 1))
    else:
        assert size == wanted
