"""The crash table: at every stage of a task's life, in every manner of death, the right outcome and a pool that goes on.

Role: one test for each cell, over every start method. Owner: pytest. Each cell has a pool of its own with innocent
tasks queued behind the culprit, so the leak audit of `tests/conftest.py` judges each cell by itself.

Cells that cannot be are in `IMPOSSIBLE` with the reason.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import signal

import pytest

from shoal.errors import (
    InitializerFailed,
    NotPicklable,
    RemoteError,
    TaskTimeout,
    WorkerDied,
)
from tests.crash import tasks
from tests.crash.tasks import Boom
from tests.support import eventually, is_alive, process_table

#: What each row expects, in the order of `tasks.MANNERS`. A class is the error; VALUE is the result itself.
VALUE = "the value"
NEVER = "cannot be"

TABLE = {
    #                        exception       sys.exit      os._exit    SIGKILL     SIGSEGV     SIGABRT     SIGSTOP    memory
    "task pickled":         (NotPicklable,   NotPicklable, NEVER,      NEVER,      NEVER,      NEVER,      NEVER,     NotPicklable),
    "map item pickled":     (NotPicklable,   NotPicklable,  NEVER,      NEVER,      NEVER,      NEVER,      NEVER,     NotPicklable),
    "function unpickled":   (Boom,           RemoteError,  WorkerDied, WorkerDied, WorkerDied, WorkerDied, TaskTimeout, MemoryError),
    "argument unpickled":   (Boom,           RemoteError,  WorkerDied, WorkerDied, WorkerDied, WorkerDied, TaskTimeout, MemoryError),
    "initializer":          (InitializerFailed,) * 6 + (VALUE, InitializerFailed),
    "function running":     (Boom,           RemoteError,  WorkerDied, WorkerDied, WorkerDied, WorkerDied, TaskTimeout, MemoryError),
    "map item running":     (Boom,           RemoteError,  WorkerDied, WorkerDied, WorkerDied, WorkerDied, TaskTimeout, MemoryError),
    "result pickled":       (NotPicklable,   NotPicklable, WorkerDied, WorkerDied, WorkerDied, WorkerDied, TaskTimeout, NotPicklable),
    "map result pickled":   (NotPicklable,   NotPicklable, WorkerDied, WorkerDied, WorkerDied, WorkerDied, TaskTimeout, NotPicklable),
    "result half sent":     (WorkerDied,     WorkerDied,   WorkerDied, WorkerDied, WorkerDied, WorkerDied, TaskTimeout, WorkerDied),
    "result unpickled":     (RemoteError,    RemoteError,  NEVER,      NEVER,      NEVER,      NEVER,      NEVER,     RemoteError),
    "after the reply":      (VALUE,) * 8,
    "idle":                 (VALUE,) * 8,
    "being replaced":       (VALUE,) * 8,
}  # fmt: skip

_OUR_END = "it happens in the program itself, which ends or stops with it; see test_main_dies.py"
IMPOSSIBLE = {
    (stage, manner): _OUR_END
    for stage in ("task pickled", "map item pickled", "result unpickled")
    for manner in (*tasks.ENDING, *tasks.STOPPING)
}

CELLS = [
    (stage, manner, expected)
    for stage, outcomes in TABLE.items()
    for manner, expected in zip(tasks.MANNERS, outcomes, strict=True)
]

#: The limit of a task that stops. Seconds; short, because whoever reaches it waits for it.
LIMIT_S = 0.25
INNOCENTS = 3

pytestmark = pytest.mark.hang_limit(20)


def test_every_cell_has_an_outcome_or_a_reason():
    assert {len(outcomes) for outcomes in TABLE.values()} == {len(tasks.MANNERS)}
    assert {cell[:2] for cell in CELLS if cell[2] is NEVER} == set(IMPOSSIBLE)


@pytest.mark.parametrize(
    ("stage", "manner", "expected"),
    [pytest.param(*cell, id=f"{cell[0]}-{cell[1]}") for cell in CELLS if cell[2] is not NEVER],
)
def test_only_the_culprit_fails_and_the_pool_goes_on(stage, manner, expected, pool_factory, tmp_path):
    PLAYS[stage](Play(pool_factory, tmp_path, manner, expected))


# --- what every play needs ----------------------------------------------------------------------


class Play:
    """One cell: its pool, its culprit, what is to come of it."""

    def __init__(self, pool_factory, folder, manner, expected):
        self._make = pool_factory
        self.folder = folder
        self.manner = manner
        self.expected = expected
        self.timed = {"timeout": LIMIT_S} if manner in tasks.STOPPING else {}

    def open(self, workers=1, **options):
        self.pool = self._make(workers, **options)
        return self.pool

    def path(self, name):
        return str(self.folder / name)

    def touch(self, name):
        (self.folder / name).touch()

    def submit(self, fn, *args):
        return self.pool.using(**self.timed).submit(fn, *args)

    def innocents(self):
        """Queue tasks behind the culprit; they must not notice."""
        return [self.pool.submit(tasks.echo, number) for number in range(INNOCENTS)]

    def settle(self, culprit, value=None):
        """The culprit ends as expected, the innocents have their results, and the pool answers."""
        innocents = self.innocents()
        self.judge(culprit, value)
        assert [future.result() for future in innocents] == list(range(INNOCENTS))
        self.answers()

    def judge(self, culprit, value=None):
        if self.expected is VALUE:
            assert culprit.result() == value
            return
        error = culprit.exception()
        assert type(error) is self.expected, repr(error)
        check_words(error, self.manner)

    def answers(self):
        assert self.pool.submit(tasks.twice, 21).result() == 42
        assert list(self.pool.map(tasks.twice, range(5))) == [0, 2, 4, 6, 8]

    def settle_map(self, fn, items, at):
        """Of a map, item `at` ends as expected and every other one has its value."""
        got = list(self.pool.using(**self.timed).imap(fn, items, errors="return"))
        assert len(got) == len(items)
        assert type(got[at]) is self.expected, repr(got[at])
        check_words(got[at], self.manner)
        assert [one for index, one in enumerate(got) if index != at] == [
            item for index, item in enumerate(items) if index != at
        ]
        self.answers()


def check_words(error, manner):
    """The error tells how it ended."""
    if isinstance(error, WorkerDied):
        obituary = error.obituary
        if manner == "os._exit":
            assert (obituary.exit_code, obituary.signal) == (tasks.EXIT_CODE, None)
            assert f"exited with code {tasks.EXIT_CODE}" in str(error)
        elif manner in tasks.ENDING:
            assert (obituary.exit_code, obituary.signal) == (None, manner)
            assert f"was killed by {manner}" in str(error)
        else:
            assert obituary.exit_code not in {None, 0}
        if manner in {"SIGSEGV", "SIGABRT"}:
            assert "tasks.py" in (obituary.python_stack or "")
        assert obituary.task, "the obituary names the task"
    elif isinstance(error, TaskTimeout):
        assert error.timeout == LIMIT_S
        assert error.obituary is not None
    elif isinstance(error, RemoteError | NotPicklable) and manner == "sys.exit":
        assert "SystemExit" in str(error)


def is_stopped(pid):
    one = process_table().get(pid)
    return one is not None and one.state in "Tt"


# --- one play for each stage --------------------------------------------------------------------


def task_pickled(play):
    pool = play.open()
    innocents = play.innocents()
    with pytest.raises(play.expected):
        pool.submit(tasks.echo, tasks.DiesWhenPickled(play.manner))
    assert [future.result() for future in innocents] == list(range(INNOCENTS))
    play.answers()


def map_item_pickled(play):
    play.open()
    items = [1, 2, tasks.DiesWhenPickled(play.manner), 4, 5, 6]
    play.settle_map(tasks.echo, items, at=2)


def function_unpickled(play):
    play.open()
    play.settle(play.submit(functools.partial(tasks.echo, tasks.DiesWhenUnpickled(play.manner))))


def argument_unpickled(play):
    play.open()
    play.settle(play.submit(tasks.echo, tasks.DiesWhenUnpickled(play.manner)))


def initializer(play):
    play.touch("dies")
    pool = play.open(initializer=tasks.die_if_there, initargs=(play.manner, play.path("dies")))
    waiting = [play.submit(tasks.echo, number) for number in range(INNOCENTS)]
    if play.manner in tasks.STOPPING:
        # There is no limit on an initializer: it may load for minutes. Whoever wakes it gets his results.
        eventually(lambda: _starting_and_stopped(pool), what="the initializer to be stopped")
        with pytest.raises(TimeoutError):
            waiting[0].result(timeout=0.05)
        (play.folder / "dies").unlink()
        for pid in _starting_and_stopped(pool):
            os.kill(pid, signal.SIGCONT)
        assert [future.result() for future in waiting] == list(range(INNOCENTS))
    else:
        for future in waiting:
            error = future.exception()
            assert type(error) is InitializerFailed, repr(error)
        (play.folder / "dies").unlink()
    play.answers()


def _starting_and_stopped(pool):
    return [one.pid for one in pool.workers if one.state == "starting" and is_stopped(one.pid)]


def function_running(play):
    play.open()
    play.settle(play.submit(tasks.run_then_die, play.manner))


def map_item_running(play):
    play.open()
    play.settle_map(functools.partial(tasks.die_on_two, play.manner), list(range(6)), at=2)


def result_pickled(play):
    play.open()
    play.settle(play.submit(tasks.return_what_dies_when_pickled, play.manner))


def map_result_pickled(play):
    play.open()
    play.settle_map(functools.partial(tasks.return_what_dies_on_two, play.manner), list(range(6)), at=2)


def result_half_sent(play):
    play.open()
    play.settle(play.submit(tasks.return_large_and_die_while_sending, play.manner))


def result_unpickled(play):
    play.open()
    play.settle(play.submit(tasks.return_what_dies_when_unpickled, play.manner))


def after_the_reply(play):
    """The reply is here, so it counts, and the next task finds a worker."""
    pool = play.open()
    future = pool.submit(tasks.plant_death, play.manner, play.path("now"))
    pid = future.result()
    play.touch("now")
    wait_for_death(play.manner, pid)
    assert future.result() == pid
    if play.manner in tasks.STOPPING:
        # Whoever is sent to a stopped worker pays with a run, not with the result.
        assert pool.using(timeout=LIMIT_S, retries=1).submit(tasks.echo, "next").result() == "next"
    play.settle(future, pid)


def idle(play):
    """One of two workers goes while it has nothing to do; the other one's task does not notice."""
    pool = play.open(workers=2)
    long = pool.submit(tasks.wait_for_file, play.path("end"))
    planted = pool.submit(tasks.plant_death, play.manner, play.path("now"))
    pid = planted.result()
    eventually(lambda: [one.state for one in pool.workers if one.pid == pid] == ["idle"], what="the worker to be idle")
    play.touch("now")
    wait_for_death(play.manner, pid)
    if play.manner in tasks.STOPPING:
        assert pool.using(timeout=LIMIT_S, retries=1).submit(tasks.echo, "next").result() == "next"
    play.settle(planted, pid)
    assert not long.done()
    play.touch("end")
    assert long.result() == "waited"


def being_replaced(play):
    pool = play.open(max_tasks_per_worker=1)
    gone = pool.submit(tasks.die_when_leaving, play.manner)
    pid = gone.result()
    # Each of these takes a worker of its own: two are enough.
    assert pool.submit(tasks.pid_of_worker).result() != pid
    assert pool.submit(tasks.twice, 21).result() == 42
    if play.manner in tasks.STOPPING:
        pool.kill()  # shutdown() would give it the grace that exit handlers get
    assert gone.result() == pid


def wait_for_death(manner, pid):
    if manner in tasks.ENDING:
        eventually(lambda: not is_alive(pid), what=f"worker {pid} to die")
    elif manner in tasks.STOPPING:
        eventually(lambda: is_stopped(pid), what=f"worker {pid} to stop")


PLAYS = {
    "task pickled": task_pickled,
    "map item pickled": map_item_pickled,
    "function unpickled": function_unpickled,
    "argument unpickled": argument_unpickled,
    "initializer": initializer,
    "function running": function_running,
    "map item running": map_item_running,
    "result pickled": result_pickled,
    "map result pickled": map_result_pickled,
    "result half sent": result_half_sent,
    "result unpickled": result_unpickled,
    "after the reply": after_the_reply,
    "idle": idle,
    "being replaced": being_replaced,
}


# --- beyond the table ---------------------------------------------------------------------------


def test_a_killed_spare_is_replaced_and_nobody_notices(pool_factory):
    pool = pool_factory(1)
    assert pool.submit(tasks.echo, 1).result() == 1
    eventually(lambda: [one for one in pool.workers if one.state == "spare" and one.pid], what="a spare")
    (spare,) = [one for one in pool.workers if one.state == "spare"]
    os.kill(spare.pid, signal.SIGKILL)
    eventually(lambda: not is_alive(spare.pid), what="the spare to die")
    assert [future.result() for future in [pool.submit(tasks.echo, n) for n in range(20)]] == list(range(20))


@pytest.mark.parametrize("manner", tasks.ENDING)
def test_a_retry_gives_the_value_a_death_took(manner, pool_factory, tmp_path):
    pool = pool_factory(1, retries=1, backoff_s=0.01)
    assert pool.submit(tasks.die_once, manner, str(tmp_path / "died")).result() == "alive"
    assert pool.statistics().retried == 1


def test_settled_futures_are_told_once_each(pool_factory):
    """Every future of a mixed lot is settled exactly once, whoever died."""
    pool = pool_factory(2)
    told = []
    futures = []
    for number in range(60):
        manner = (*tasks.MANNERS[:6], "memory error")[number % 7] if number % 5 == 0 else None
        future = pool.submit(tasks.run_then_die, manner) if manner else pool.submit(tasks.echo, number)
        future.add_done_callback(told.append)
        futures.append((number, manner, future))
    concurrent.futures.wait([future for _, _, future in futures])
    eventually(lambda: len(told) >= len(futures), what="every callback")
    assert len(told) == len(set(map(id, told))) == len(futures)
    for number, manner, future in futures:
        if manner is None:
            assert future.result() == number
        else:
            assert future.exception() is not None
