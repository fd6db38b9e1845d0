"""Segments: one memory under one identity, mapped once in a process, and nothing of it left when the last view goes."""

from __future__ import annotations

import gc
import os
import resource
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._memory import segments
from shoal._os import cgroup
from shoal.errors import NoSharedMemory
from tests import support

MIB = 1 << 20


def files():
    """The memory files of segments that this process has open or mapped."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if "shoal-shared" in target:
            found.add(("fd", name))
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return found | {("map", line.split()[4]) for line in maps if "shoal-shared" in line}


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After each test this process has the segments it had before, in every register."""
    gc.collect()
    before = files(), set(segments._by_id), set(segments._by_array)
    yield
    gc.collect()
    assert (files(), set(segments._by_id), set(segments._by_array)) == before


@contextmanager
def limited(kind, soft):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextmanager
def no_descriptors_left():
    spare = os.open("/dev/null", os.O_RDONLY)
    with limited(resource.RLIMIT_NOFILE, spare + 1):
        os.close(spare)
        used = []
        try:
            while True:
                used.append(os.dup(0))
        except OSError:
            pass
        try:
            yield
        finally:
            for fd in used:
                os.close(fd)


# --- making -------------------------------------------------------------------------------------


def test_a_new_segment_is_zero_writable_and_all_there():
    view = segments.create(3 * MIB + 5)
    segment = segments.find(view)
    assert (view.nbytes, segment.size, view.readonly) == (3 * MIB + 5, 3 * MIB + 5, False)
    assert not any(view[::4096])
    view[-1] = 1
    assert segment.view()[-1] == 1


def test_its_memory_is_set_aside_before_anybody_writes():
    view = segments.create(5 * MIB)
    assert os.fstat(segments.find(view).fd).st_blocks * 512 >= 5 * MIB


@pytest.mark.parametrize("size", [0, -1, 1])
def test_a_segment_has_at_least_a_byte(size):
    assert segments.create(size).nbytes == 1


def test_no_two_segments_have_one_identity():
    views = [segments.create(1) for _ in range(50)]
    assert len({segments.find(view).id for view in views}) == 50


def test_its_descriptor_does_not_reach_programs_that_are_started():
    view = segments.create(1)
    assert not os.get_inheritable(segments.find(view).fd)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3 * MIB), max_size=4))
def test_a_filled_segment_holds_its_parts_where_they_were_asked_for(sizes):
    parts, at = [], 0
    for number, size in enumerate(sizes, 1):
        parts.append((at, memoryview(bytes([number]) * size)))
        at += size
    view = segments.create_filled(max(1, at), parts)
    for start, part in parts:
        assert view[start : start + part.nbytes] == part


# --- finding ------------------------------------------------------------------------------------

BUFFERS = {
    "itself": lambda view: view,
    "a slice": lambda view: view[5:9],
    "a slice of a slice": lambda view: view[5:][3:].cast("B"),
    "read-only": lambda view: view.toreadonly(),
    "an array": lambda view: np.frombuffer(view, np.uint8),
    "an array with gaps, backwards": lambda view: np.frombuffer(view, np.uint8)[::-2],
    "a transposed field": lambda view: np.frombuffer(view, [("a", "i4"), ("b", "f8")], 10)["b"].reshape(2, 5).T,
    "a view of a view": lambda view: memoryview(np.frombuffer(view[3:], np.uint8)[4:]),
    "the array of the mapping": lambda view: view.obj,
}


@pytest.mark.parametrize("kind", BUFFERS.values(), ids=BUFFERS)
def test_the_segment_is_found_from_whatever_sees_it(kind):
    view = segments.create(4096)
    assert segments.find(kind(view)) is segments.known(segments.find(view).id)


@pytest.mark.parametrize("other", [b"x", memoryview(bytearray(3)), np.zeros(3), np.zeros(9)[::2], None, 5, object()])
def test_ordinary_memory_is_in_no_segment(other):
    assert segments.find(other) is None


def test_a_copy_is_in_no_segment():
    array = np.frombuffer(segments.create(4096), np.uint8)
    for copied in (array.copy(), array[[1, 2]], array + 1, bytes(array)):
        assert segments.find(copied) is None


# --- taking over --------------------------------------------------------------------------------


def test_what_is_here_already_is_not_mapped_again():
    view = segments.create(4096)
    segment = segments.find(view)
    fd = os.dup(segment.fd)
    again = segments.adopt(segment.id, fd, segment.size)
    assert segments.find(again) is segment
    assert again.obj is view.obj
    with pytest.raises(OSError):
        os.fstat(fd)  # was taken over, and is not needed


def test_a_segment_may_come_back_after_it_was_let_go():
    view = segments.create(4096)
    segment = segments.find(view)
    identity, fd = segment.id, os.dup(segment.fd)
    view[7] = 5
    del view, segment
    assert segments.known(identity) is None
    again = segments.adopt(identity, fd, 4096)
    assert (again[7], segments.find(again).id) == (5, identity)


def test_what_cannot_be_mapped_is_not_kept_open():
    fd = os.dup(0)
    with pytest.raises(OSError):
        segments.adopt(b"x" * 16, fd, 1 << 62)
    with pytest.raises(OSError):
        os.fstat(fd)
    assert segments.known(b"x" * 16) is None


# --- letting go ---------------------------------------------------------------------------------


def test_those_who_watch_are_told_once_when_the_descriptor_is_closed():
    told = []
    view = segments.create(4096)
    segment = segments.find(view)
    identity, fd = segment.id, segment.fd

    def watch(gone):
        with pytest.raises(OSError):
            os.fstat(fd)
        told.append(gone)

    segment.watchers += [watch, watch]
    rest = np.frombuffer(view, np.uint8)[9:]
    del view
    assert told == []
    del rest
    assert told == [identity] * 2
    with pytest.raises(LookupError):
        segment.view()


@pytest.mark.alone
def test_the_systems_memory_comes_back_at_once():
    def shmem():
        with open("/proc/meminfo", encoding="ascii") as info:
            return next(int(line.split()[1]) * 1024 for line in info if line.startswith("Shmem:"))

    before = shmem()
    view = segments.create(512 * MIB)
    assert shmem() > before + 256 * MIB
    del view
    support.eventually(lambda: shmem() < before + 256 * MIB, what="the memory to come back", limit_s=support.SETTLE_S)


# --- too much -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 << 50, 1 << 70])
def test_more_than_there_is_is_refused_before_it_is_taken(size):
    with pytest.raises(NoSharedMemory, match="available") as caught:
        segments.create(size)
    assert caught.value.wanted_bytes == size


def test_what_would_leave_nothing_for_others_is_refused():
    available = cgroup.available_memory_bytes()
    with pytest.raises(NoSharedMemory):
        segments.create(available + segments.MARGIN_BYTES)


def test_a_refusal_by_the_system_is_told_in_its_words():
    with limited(resource.RLIMIT_FSIZE, MIB):
        with pytest.raises(NoSharedMemory, match="File too large"):
            segments.create(2 * MIB)
        assert segments.create(MIB // 2)


def test_without_descriptors_there_is_no_segment_and_the_limit_is_named():
    segments.create(1)  # whatever is imported on the way has been
    with no_descriptors_left():
        with pytest.raises(NoSharedMemory) as caught:
            segments.create(4096)
    assert "no descriptors left" in str(caught.value)
    assert "ulimit -n" in str(caught.value)


def test_ctrl_c_while_it_is_filled_leaves_nothing_behind():
    def parts():
        yield 0, memoryview(bytes(MIB))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segments.create_filled(2 * MIB, parts())


# --- at once ------------------------------------------------------------------------------------


def test_threads_may_make_take_over_and_drop_at_the_same_time():
    problems = []
    shared = segments.create(4096)
    segment = segments.find(shared)
    identity = segment.id

    def work(seed):
        try:
            for round_number in range(100):
                view = segments.create(4096 + seed)
                view[0] = seed
                mine = segments.find(view)
                again = segments.adopt(mine.id, os.dup(mine.fd), mine.size)
                del view
                assert again[0] == seed, round_number
                assert segments.find(segments.adopt(identity, os.dup(segment.fd), 4096)) is segment
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_forked_child_sees_the_same_memory_and_may_make_its_own():
    view = segments.create(4096)
    with segments._lock:  # somebody is at it while we fork
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                view[0] = 3
                own = segments.create(4096)
                code = 0 if own[0] == 0 and segments.find(view) is not None else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert view[0] == 3
