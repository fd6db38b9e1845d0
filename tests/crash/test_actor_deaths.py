"""Actors killed at each step of a call and of their own life; callers killed while they call."""

from __future__ import annotations

import time

import pytest

import shoal
from tests.crash import tree_storms
from tests.crash.actor_stages import Caller, Log, Staged, argument
from tests.support import HANG_LIMIT_S, eventually, is_alive

#: step of README.md at which the actor dies -> (what becomes of the call, how often its method ran)
STAGES = {
    "read": ("died", 0),  # C4
    "taken": ("died", 0),  # C5
    "argument-unpickled": ("died", 0),  # C6, before the method
    "run": ("died", 1),  # C6
    "answer-pickled": ("died", 1),  # C7, before
    "answer-torn": ("died", 1),  # C7
    "answer-written": ("answered", 1),  # behind C7: it counts
}


@pytest.mark.parametrize("stage", STAGES)
def test_call_runs_at_most_once_wherever_the_actor_dies(stage, tmp_path):
    expected, ran = STAGES[stage]
    with Staged(str(tmp_path), stage) as actor:
        future = actor.go(argument(str(tmp_path), stage))
        if expected == "answered":
            assert future.result(HANG_LIMIT_S) == "answer"
        else:
            with pytest.raises(shoal.ActorDied) as died:
                future.result(HANG_LIMIT_S)
            assert died.value.obituary.signal == "SIGKILL"
        runs = len((tmp_path / "ran").read_text()) if (tmp_path / "ran").exists() else 0
        assert runs == ran
        eventually(lambda: actor.statistics().restarts == 1, what="the restart")
        assert actor.told.call() == ["SIGKILL"]


def test_run_that_dies_before_it_has_the_socket_is_a_failed_start_or_a_death(tmp_path):
    """It depends on whether the owner had given the socket by then: that waits in the kernel."""
    try:
        actor = Staged(str(tmp_path), "given-the-socket")
    except OSError:
        actor = Staged(str(tmp_path), "given-the-socket")  # it dies once
    with actor:
        assert actor.told.call() in ([], ["SIGKILL"])


def test_actor_killed_while_it_stops_has_stopped(tmp_path):
    actor = Staged(str(tmp_path), "stop")
    future = actor.go(1)
    actor.stop()
    assert future.result(HANG_LIMIT_S) == "answer"
    assert not actor.is_alive


def test_what_a_killed_caller_had_sent_is_run_in_order_and_nothing_else():
    with Log() as log:
        for round_ in range(8):
            caller = Caller(log, round_)
            caller.start()
            caller.wait_ready(HANG_LIMIT_S)
            time.sleep(0.003 * round_)
            caller.kill()
            caller.join(HANG_LIMIT_S)
        eventually(lambda: log.statistics().is_alive and is_settled(log), what="the actor to be done")
        seen = log.everything.call()
    for round_ in range(8):
        numbers = [number for caller, number in seen if caller == round_]
        assert numbers == list(range(len(numbers)))


def is_settled(log):
    before = len(log.everything.call())
    return len(log.everything.call()) == before


def test_actor_killed_again_and_again_runs_no_call_twice(tmp_path):
    """Other processes call it, some of them killed, too; every call is accounted for."""
    tree_storms.kill_actor(tmp_path, kills=40)


def test_program_that_is_killed_takes_its_tree_and_its_actors_along(start_script):
    program = start_script(
        """
        import os, time
        import shoal

        @shoal.actor
        class Idle:
            def where(self):
                return os.getpid()

        def sleeps():
            while True:
                time.sleep(60)

        if __name__ == "__main__":
            tree = shoal.Supervisor("one_for_all")
            inner = shoal.Supervisor()
            inner.add(sleeps)
            inner.add(Idle)
            tree.start(sleeps)
            tree.start(inner)
            pids = [tree["sleeps"].pid, *(child.pid for child in inner.children()), Idle().where.call()]
            print("pids", *pids)
            sleeps()
        """
    )
    pids = list(map(int, program.wait_for("pids").split()))
    assert len(pids) == 4
    assert all(map(is_alive, pids))
    program.kill()
    eventually(lambda: not any(map(is_alive, pids)), what="everybody to end")


def test_program_that_ends_stops_its_tree_and_its_actors(start_script):
    """Without a `with` block; what was cast is done, and nobody is left."""
    program = start_script(
        """
        import time
        import shoal

        @shoal.actor
        class Speaker:
            def say(self, text):
                time.sleep(0.01)
                print(text, flush=True)

            def on_stop(self):
                print("stopped", flush=True)

        class Polite(shoal.Process):
            def run(self):
                self.ready()
                self.stopping.wait()
                print("polite", flush=True)

        if __name__ == "__main__":
            tree = shoal.Supervisor()
            tree.start(Polite, ready=True)
            speaker = Speaker()
            for number in range(3):
                speaker.say.cast(number)
        """
    )
    assert program.finish() == 0
    said = program.drain()
    assert sorted(said) == ["0", "1", "2", "polite", "stopped"]
    assert [line for line in said if line != "polite"] == ["0", "1", "2", "stopped"]
