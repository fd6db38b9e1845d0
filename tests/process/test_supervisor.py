"""Supervisors with real processes, pools and supervisors in them."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial

import pytest

import shoal
from shoal._supervise.children import Begin, PoolRun
from tests.process import supervised
from tests.process.supervised import NeverReady, RaisesBeforeReady, Stubborn, Waits
from tests.support import HANG_LIMIT_S, eventually, is_alive


def kinds(tree):
    return [(type(event).__name__, event.child, event.run) for event in tree.events]


def up_again(child, old_pid):
    eventually(lambda: child.state == "up" and child.pid != old_pid, what=f"{child} to be up again")


def kill(child):
    """Kill the process of a child and wait until another one is up."""
    pid = child.pid
    os.kill(pid, signal.SIGKILL)
    up_again(child, pid)


def test_children_are_started_in_order_and_stopped_in_reverse():
    with shoal.Supervisor() as tree:
        children = [tree.start(Waits, ready=True, id=id_) for id_ in "abc"]
        pids = [child.pid for child in children]
        assert all(map(is_alive, pids))
    assert not any(map(is_alive, pids))
    steps = [("ChildStarted", "ChildReady")] * 3
    assert kinds(tree) == [
        *((kind, id_, 1) for id_, pair in zip("abc", steps, strict=True) for kind in pair),
        *(("ChildStopped", id_, 1) for id_ in "cba"),
    ]
    assert tree.statistics().state == "stopped"


def test_killed_child_is_restarted_and_its_obituary_is_kept():
    with shoal.Supervisor() as tree:
        child = tree.start(Waits, ready=True)
        first = child.pid
        kill(child)
        info = tree.children()[0]
        assert (info.runs, info.restarts, info.obituary.pid, info.obituary.signal) == (2, 1, first, "SIGKILL")
        assert child.value.pid == child.pid


def test_one_for_all_restarts_everybody():
    with shoal.Supervisor("one_for_all") as tree:
        children = [tree.start(Waits, ready=True) for _ in range(3)]
        before = [child.pid for child in children]
        kill(children[1])
        for child, pid in zip(children, before, strict=True):
            up_again(child, pid)
        assert [child.id for child in children] == ["Waits", "Waits-2", "Waits-3"]


def test_rest_for_one_leaves_those_before_alone():
    with shoal.Supervisor("rest_for_one") as tree:
        children = [tree.start(Waits, ready=True) for _ in range(3)]
        before = [child.pid for child in children]
        kill(children[1])
        up_again(children[2], before[2])
        assert children[0].pid == before[0]


@pytest.mark.parametrize(("restart", "code"), [("transient", 0), ("temporary", 3)])
def test_child_that_need_not_run_is_not_restarted(restart, code):
    with shoal.Supervisor(intensity=0) as tree:
        child = tree.start(supervised.ends, code, restart=restart)
        eventually(lambda: child.state in ("down", "forgotten"), what="the end of the child")
        assert (child.state == "forgotten") == (restart == "temporary")
        assert tree.statistics().state == "running"
        assert child.value.exitcode == code


def test_transient_child_that_fails_is_restarted_until_the_supervisor_gives_up():
    with pytest.raises(
        shoal.SupervisorFailed,
        match="more than 2 restarts within 5 s, the last one needed by ends, which exited with code 3",
    ) as failed:
        with shoal.Supervisor(intensity=2) as tree:
            witness = tree.start(Waits, ready=True)
            tree.start(supervised.ends, 3, restart="transient")
            tree.wait(HANG_LIMIT_S)
    assert failed.value.obituary.exit_code == 3
    assert not is_alive(failed.value.obituary.pid)
    assert witness.state == "down"
    assert tree.statistics().state == "gave up"
    assert (tree.statistics().starts, tree.statistics().restarts, tree.statistics().exits) == (4, 2, 3)


def test_block_that_failed_keeps_its_own_error():
    with pytest.raises(ZeroDivisionError):
        with shoal.Supervisor(intensity=0) as tree:
            tree.start(supervised.die)
            with pytest.raises(shoal.SupervisorFailed):
                tree.wait(HANG_LIMIT_S)
            raise ZeroDivisionError


def test_nothing_can_be_started_in_a_supervisor_that_gave_up():
    tree = shoal.Supervisor(intensity=0)
    tree.start(supervised.die)
    with pytest.raises(shoal.SupervisorFailed):
        tree.wait(HANG_LIMIT_S)
    with pytest.raises(shoal.SupervisorFailed):
        tree.start(supervised.sleeps)


# --- readiness ----------------------------------------------------------------------------------


def test_start_returns_what_is_ready():
    with shoal.Supervisor() as tree:
        assert tree.start(Waits, "lens", ready=True).value.wait_ready(0.001) == "lens"


def test_child_that_dies_before_it_is_ready_is_no_child():
    with shoal.Supervisor() as tree:
        with pytest.raises(shoal.ProcessDied) as died:
            tree.start(supervised.DiesBeforeReady, ready=True)
        assert died.value.obituary.exit_code == 7
        assert tree.children() == ()


def test_what_a_child_raises_before_it_is_ready_is_raised_by_start(capfd):
    with shoal.Supervisor() as tree:
        with pytest.raises(RuntimeError, match="no camera"):
            tree.start(RaisesBeforeReady, ready=True)


def test_child_that_is_not_ready_in_time_is_killed():
    with shoal.Supervisor() as tree:
        with pytest.raises(TimeoutError):
            tree.start(NeverReady, ready=0.3)
        assert tree.children() == ()


def test_stop_does_not_wait_for_a_child_to_become_ready():
    tree = shoal.Supervisor()
    errors = []

    def start():
        try:
            tree.start(NeverReady, ready=HANG_LIMIT_S)
        except RuntimeError as error:
            errors.append(str(error))

    starter = threading.Thread(target=start)
    starter.start()
    eventually(lambda: any(child.pid for child in tree.children()), what="the child to exist")
    tree.stop()
    starter.join(HANG_LIMIT_S)
    assert errors == [f"{tree.name} has been stopped"]


# --- stopping -----------------------------------------------------------------------------------


def test_child_that_does_not_stop_is_killed_when_its_time_is_over():
    with shoal.Supervisor() as tree:
        tree.start(Stubborn, ready=True, shutdown=0.2)
    assert [event.killed for event in tree.events if isinstance(event, shoal.ChildStopped)] == [True]
    assert tree.statistics().kills == 1


def test_function_that_never_looks_is_asked_by_a_signal():
    with shoal.Supervisor() as tree:
        tree.start(supervised.sleeps)
    assert [event.killed for event in tree.events if isinstance(event, shoal.ChildStopped)] == [False]


def test_kill_ends_everybody_at_once():
    tree = shoal.Supervisor()
    pids = [tree.start(Stubborn, ready=True, shutdown=None).pid for _ in range(2)]
    tree.kill()
    assert not any(map(is_alive, pids))


# --- wishes -------------------------------------------------------------------------------------


def test_terminated_child_can_be_restarted_and_deleted():
    with shoal.Supervisor() as tree:
        child = tree.start(Waits, ready=True)
        pid = child.pid
        child.terminate()
        assert (child.state, is_alive(pid)) == ("down", False)
        child.restart()
        assert child.state == "up"
        with pytest.raises(RuntimeError, match="is running: use terminate_child"):
            tree.delete_child(child.id)
        child.terminate()
        tree.delete_child(child.id)
        assert child.state == "forgotten"
        with pytest.raises(LookupError, match="has no child 'Waits'"):
            tree.restart_child("Waits")


def test_counts_are_those_of_the_children():
    with shoal.Supervisor() as tree:
        tree.start(Waits, ready=True)
        tree.start(supervised.ends, restart="transient")
        tree.start(shoal.Supervisor())
        eventually(lambda: tree["ends"].state == "down", what="one child to end")
        assert tree.count_children() == shoal.ChildCounts(specs=3, active=2, supervisors=1, workers=2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"restart": "always"}, ValueError, "restart must be one of"),
        ({"shutdown": -1}, ValueError, "shutdown must be seconds"),
        ({"shutdown": "now"}, ValueError, "shutdown must be"),
        ({"ready": float("nan")}, ValueError, "ready must be seconds"),
        ({"significant": True}, ValueError, "significant=True has no meaning for a permanent child"),
        ({"significant": True, "restart": "transient"}, ValueError, "auto_shutdown"),
        ({"id": ""}, ValueError, "id must be text"),
    ],
)
def test_bad_option_is_refused_by_its_name(options, error, words):
    with shoal.Supervisor() as tree:
        with pytest.raises(error, match=words):
            tree.start(supervised.sleeps, **options)
        assert tree.children() == ()


@pytest.mark.parametrize(
    "wrong", [{"strategy": "all"}, {"intensity": -1}, {"period": 0}, {"auto_shutdown": True}, {"backoff_s": -1}]
)
def test_bad_option_of_a_supervisor_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        shoal.Supervisor(**wrong)


def test_two_children_cannot_have_one_name():
    with shoal.Supervisor() as tree:
        tree.start(Waits, id="a")
        with pytest.raises(ValueError, match="has a child 'a' already"):
            tree.start(Waits, id="a")


@pytest.mark.parametrize("nothing", [3, int, "text"])
def test_what_cannot_be_supervised_is_refused(nothing):
    with shoal.Supervisor() as tree:
        with pytest.raises(TypeError, match="cannot be supervised"):
            tree.start(nothing)


# --- kinds of children --------------------------------------------------------------------------


def test_process_with_options_of_its_own_is_made_anew_each_time():
    with shoal.Supervisor() as tree:
        child = tree.start(partial(shoal.Process, target=supervised.sleeps, name="sleeper"), id="s")
        first = child.value
        kill(child)
        assert child.value is not first
        assert child.value.name == "sleeper"


def test_pool_is_a_child_that_heals_itself():
    with shoal.Supervisor() as tree:
        pool = tree.start(shoal.Pool, 1).value
        with pytest.raises(shoal.WorkerDied):
            pool.submit(supervised.die).result(HANG_LIMIT_S)
        assert pool.submit(supervised.answer).result(HANG_LIMIT_S) == 42
        assert tree.children()[0].runs == 1
    with pytest.raises(shoal.PoolClosed):
        pool.submit(supervised.answer)


def test_pool_that_is_shut_down_comes_back_if_it_is_permanent():
    with shoal.Supervisor() as tree:
        child = tree.start(shoal.Pool, 1)
        child.value.shutdown()
        eventually(lambda: child.state == "up" and tree.children()[0].runs == 2, what="another pool")
        assert child.value.submit(supervised.answer).result(HANG_LIMIT_S) == 42


def test_supervisor_within_a_supervisor_is_restarted_with_what_was_added_to_it():
    with shoal.Supervisor(intensity=2) as tree:
        inner = shoal.Supervisor(intensity=0)
        added = inner.add(Waits, ready=True)
        tree.start(inner)
        inner.start(Waits, id="later")
        first = added.pid
        os.kill(first, signal.SIGKILL)
        up_again(added, first)
        assert [child.id for child in inner.children()] == ["Waits"]
        assert [type(event).__name__ for event in tree.events].count("ChildRestarting") == 1
        last = added.pid
    assert not is_alive(last)


def test_failure_within_climbs_up_when_nobody_can_heal_it():
    with pytest.raises(shoal.SupervisorFailed) as failed:
        with shoal.Supervisor(intensity=1, name="outer") as tree:
            inner = shoal.Supervisor(intensity=1, name="inner")
            inner.add(supervised.die)
            tree.start(inner)
            tree.wait(HANG_LIMIT_S)
    assert (failed.value.supervisor, failed.value.child) == ("outer", "inner")
    assert failed.value.obituary.signal == "SIGKILL"


def test_child_that_cannot_be_started_keeps_the_whole_subtree_down():
    inner = shoal.Supervisor()
    witness = inner.add(Waits, ready=True)
    inner.add(supervised.DiesBeforeReady, ready=True)
    with shoal.Supervisor() as tree:
        with pytest.raises(shoal.ProcessDied):
            tree.start(inner)
        assert tree.children() == ()
        assert witness.state == "down"


def test_significant_child_ends_the_supervisor():
    with shoal.Supervisor(auto_shutdown="any_significant") as tree:
        witness = tree.start(Waits, ready=True)
        tree.start(supervised.answer, restart="transient", significant=True)
        assert tree.wait(HANG_LIMIT_S)
        assert tree.statistics().state == "auto shutdown"
        assert witness.state == "down"


# --- events -------------------------------------------------------------------------------------


def test_events_are_told_as_they_happen():
    told = []
    with shoal.Supervisor(on_event=told.append) as tree:
        kill(tree.start(Waits, ready=True))
    assert tuple(told) == tree.events
    names = [
        "ChildStarted",
        "ChildReady",
        "ChildExited",
        "ChildRestarting",
        "ChildStarted",
        "ChildReady",
        "ChildStopped",
    ]
    assert [type(event).__name__ for event in told] == names
    assert (told[2].normal, told[2].reason, told[2].obituary.signal) == (False, "was killed by SIGKILL", "SIGKILL")


def test_callback_that_raises_harms_nobody(caplog):
    def on_event(event):
        raise SystemExit(3)

    with shoal.Supervisor(on_event=on_event) as tree:
        kill(tree.start(Waits, ready=True))
    assert "on_event of" in caplog.text
    caplog.clear()  # what it keeps keeps the supervisor


def test_callback_cannot_wait_for_its_supervisor_but_can_stop_it():
    said = []

    def on_event(event):
        if isinstance(event, shoal.ChildReady):
            try:
                tree.start(Waits)
            except RuntimeError as error:
                said.append(str(error))
            tree.stop()

    tree = shoal.Supervisor(on_event=on_event)
    with tree:
        tree.start(Waits, ready=True)
        assert tree.wait(HANG_LIMIT_S)
    assert said == ["on_event cannot wait for its own supervisor: do that in another thread"]


def test_restart_waits_for_its_pause():
    with shoal.Supervisor(backoff_s=0.3) as tree:
        child = tree.start(Waits, ready=True)
        kill(child)
        exited, started = (
            next(e for e in tree.events if type(e) is kind and e.run == run)
            for kind, run in ((shoal.ChildExited, 1), (shoal.ChildStarted, 2))
        )
        assert started.time - exited.time > 0.25


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_children_are_restarted_over_every_start_method(method, monkeypatch):
    monkeypatch.setenv("SHOAL_START_METHOD", method)
    with shoal.Supervisor() as tree:
        kill(tree.start(Waits, ready=True))


def test_child_that_is_never_made_does_not_hold_up_the_end():
    """The constructor is the user's code, and runs in the program: nobody can end it, so it is not waited for."""
    entered, leave = threading.Event(), threading.Event()

    class NeverMade(shoal.Process):
        def __init__(self):
            entered.set()
            leave.wait(HANG_LIMIT_S)
            super().__init__(target=supervised.sleeps)

    tree = shoal.Supervisor()
    starter = threading.Thread(target=start_quietly, args=(tree, NeverMade))
    starter.start()
    assert entered.wait(HANG_LIMIT_S)
    tree.stop()
    assert tree.statistics().state == "stopped"
    leave.set()
    starter.join(HANG_LIMIT_S)
    eventually(lambda: not any("shoal-start" in one.name for one in threading.enumerate()), what="the start to be over")


def start_quietly(tree, child):
    with suppress(RuntimeError):
        tree.start(child, shutdown=0.1)


# --- signals, forks, refusals -------------------------------------------------------------------


def test_a_storm_of_handlers_that_raise_leaves_a_supervisor_answering():
    class Struck(BaseException):
        pass

    def handle(*_):
        raise Struck

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with shoal.Supervisor() as tree:
            end = time.monotonic() + 0.7
            number = 0
            while time.monotonic() < end:
                number += 1
                try:
                    signal.setitimer(signal.ITIMER_REAL, (number % 200 + 1) * 2e-6)
                    try:
                        tree.terminate_child("nobody")
                    except LookupError:
                        pass
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Struck:
                    pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert tree._driver.ask_for("delete", "nobody").done.wait(HANG_LIMIT_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_nobody_waits_with_an_event_that_an_exception_may_leave_locked():
    """`_os/latch.py` says why; the storm above finds it most of the time."""
    with shoal.Supervisor() as tree:
        child = tree.start(Waits, ready=True)
        waited_for = [tree._driver.ended, tree._driver.ask_for("terminate", "Waits").done, child.value.stopping]
        assert not any(hasattr(one, "_cond") for one in waited_for)


def test_fork_cannot_use_a_supervisor_and_does_not_hang():
    def use(tree):
        names = ("children", "count_children", "statistics", "stop", "kill", "wait")
        calls = [getattr(tree, name) for name in names]
        refused = 0
        for call in [*calls, lambda: tree.events, lambda: tree["Waits"], lambda: tree.start(Waits)]:
            with suppress(RuntimeError):
                call()
                return f"{call} was not refused"
            refused += 1
        return refused, repr(tree)

    with shoal.Supervisor(name="mine") as tree:
        tree.start(Waits)
        with tree._driver.guard:  # as its thread may have had it at that moment
            fork = shoal.Process(target=use, args=(tree,), start_method="fork")
            fork.start()
        assert fork.result(HANG_LIMIT_S) == (9, f"<shoal.Supervisor mine, of process {os.getpid()}>")


def test_pool_that_cannot_be_watched_is_not_left_behind(monkeypatch):
    pool = shoal.Pool(1)
    pool.submit(abs, -1).result()
    engine = pool._engine_now()
    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("shoal-pool-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        PoolRun(pool, Begin("pool", 1, None, lambda _: None))
    eventually(engine.closed.is_set, what="the end of the pool")


def test_bad_values_are_refused_with_what_would_be_right():
    with pytest.raises(TypeError, match="on_event must be callable"):
        shoal.Supervisor(on_event=3)
    tree = shoal.Supervisor()
    with pytest.raises(ValueError, match='shutdown must be seconds, "kill" or None'):
        tree.add(Waits, shutdown="now")
