"""`shoal.map(..., workers="auto")`: the same answers as the loop, wherever its tasks run and whatever happens (A1, A2).

A map has phases: here, in the calling process; a bridge, still here while workers start; with workers. Tests pick one: the
`eager` map looks for workers after a millisecond, and the default pool's initializer holds them back at a gate.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import pytest

import shoal
from shoal._pool import auto, choice, default
from tests import support
from tests.process import pool_tasks as t

COUNT = 300
PHASES = ["here", "bridge", "workers"]


@pytest.fixture(autouse=True)
def _no_default_pool_outlives_its_test(start_method, monkeypatch):
    monkeypatch.setenv("SHOAL_START_METHOD", start_method)
    yield
    if default._pool is not None:
        default._pool.shutdown(cancel_futures=True)
        default._pool = None


@pytest.fixture
def eager(monkeypatch):
    """Brings in two workers at the first look, which comes early; also in a machine of one processor."""
    monkeypatch.setattr(choice, "choose", lambda *_, **options: 2)
    monkeypatch.setattr("shoal._os.cpus.usable_cpus", lambda: 2)
    monkeypatch.setattr(auto, "_SHORT_S", 0.0)
    monkeypatch.setattr(auto, "_SHORT_COLD_S", 0.0)
    monkeypatch.setattr(auto, "_SETTLE_COLD_S", 0.001)


@pytest.fixture
def phase_of(eager, monkeypatch, make_gate, start_method):
    """`phase_of(name)` has maps run in that phase; returns the gate that ends a bridge."""

    def choose_phase(name):
        gate = make_gate("workers may start")
        if name == "here":
            monkeypatch.setattr("shoal._os.cpus.usable_cpus", lambda: 1)
        elif name == "bridge":
            default._pool, default._owner = (
                shoal.Pool(2, initializer=gate.enter, start_method=start_method),
                os.getpid(),
            )
        else:
            assert shoal.map(abs, range(-4, 0)) == [4, 3, 2, 1]
        return gate

    return choose_phase


@pytest.fixture(autouse=True)
def _who_is_the_parent(monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_PARENT", str(os.getpid()))


def slow(n):
    time.sleep(0.0005)
    return n


def note(log, n):
    """Leave a trace, after a moment; return who ran it."""
    time.sleep(0.0005)
    log.add(n)
    return n, os.environ.get("SHOAL_TEST_PARENT") == str(os.getpid())


def note_and_open(log, gate, n):
    if n == 100:
        gate.open()
    return note(log, n)


def fail_late(n, kind=ValueError):
    time.sleep(0.0005)
    if n >= 60 and n % 60 == 0:
        raise kind(f"bad {n}")
    return n


def map_ok():
    """The pool takes work as ever, and nothing of an earlier map is left in it."""
    pool = default._pool
    if pool is not None and not pool._closed:
        support.eventually(
            lambda: (pool.statistics().queued, pool.statistics().running) == (0, 0),
            what="the pool to have nothing left",
        )
    assert shoal.map(t.square, range(50), workers="auto") == [n * n for n in range(50)]


# --- each item once, in order -----------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_each_item_is_run_once_and_in_order(phase_of, log, phase):
    gate = phase_of(phase)
    outcome = shoal.map(note, itertools.repeat(log, COUNT), range(COUNT), workers="auto")
    gate.open()
    assert [n for n, _ in outcome] == list(range(COUNT))
    assert sorted(map(int, log.lines())) == list(range(COUNT))
    told = shoal.explain().auto
    here = sum(mine for _, mine in outcome)
    assert (told.tasks_here, told.tasks_sent) == (here, COUNT - here)
    assert (here == COUNT) == (phase != "workers")


def test_each_item_is_run_once_when_workers_come_in_the_middle(phase_of, log):
    gate = phase_of("bridge")
    outcome = shoal.map(note_and_open, *[[one] * 3000 for one in (log, gate)], range(3000), workers="auto")
    assert [n for n, _ in outcome] == list(range(3000))
    assert sorted(map(int, log.lines())) == list(range(3000))
    here = [n for n, mine in outcome if mine]
    assert here == list(range(len(here)))
    assert 100 < len(here) < 3000


@pytest.mark.parametrize("source", ["list", "generator", "tuple"])
def test_any_source_will_do(phase_of, source):
    phase_of("workers")
    items = {"list": list, "generator": iter, "tuple": tuple}[source](list(range(COUNT)))
    assert shoal.map(slow, items, workers="auto") == list(range(COUNT))


@pytest.mark.start_methods("forkserver")
@pytest.mark.parametrize("kind", ["lambda", "method", "partial", "callable", "builtin"])
def test_any_callable_will_do(phase_of, kind):
    import functools

    phase_of("workers")
    fn = {
        "lambda": lambda n: (time.sleep(0.0005), n)[1],
        "method": [*range(COUNT)].__getitem__,
        "partial": functools.partial(fail_late, kind=ValueError),
        "callable": Calls(),
        "builtin": abs,
    }[kind]
    items = range(60) if kind == "partial" else range(COUNT)
    assert shoal.map(fn, items, workers="auto") == list(items)


class Calls:
    def __call__(self, n):
        time.sleep(0.0005)
        return n


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_errors_are_returned_skipped_or_raised_as_asked(phase_of, phase):
    gate = phase_of(phase)
    bad = range(60, COUNT, 60)
    returned = shoal.map(fail_late, range(COUNT), workers="auto", errors="return")
    assert [str(one) for one in returned] == [f"bad {n}" if n in bad else str(n) for n in range(COUNT)]
    assert all(returned[n].__notes__ == [f"in task {n} of the map: fail_late({n})"] for n in bad)
    skipped = shoal.map(fail_late, range(COUNT), workers="auto", errors="skip")
    assert skipped == [n for n in range(COUNT) if n not in bad]
    with pytest.raises(ValueError, match=r"bad \d+") as caught:
        shoal.map(fail_late, range(COUNT), workers="auto")
    assert f"in task {str(caught.value).split()[1]} of the map" in caught.value.__notes__[0]
    assert "ended with ValueError" in shoal.explain().auto.reason
    gate.open()
    map_ok()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", [StopIteration, SystemExit])
def test_errors_that_mean_something_elsewhere_are_errors_of_tasks(phase_of, phase, kind):
    gate = phase_of(phase)
    outcome = shoal.map(fail_late, range(COUNT), [kind] * COUNT, workers="auto", errors="return")
    gate.open()
    errors = [one for one in outcome if not isinstance(one, int)]
    assert [n for n, one in enumerate(outcome) if one in errors] == [60, 120, 180, 240]
    # From a worker a SystemExit comes as a RemoteError, so that it does not end this program.
    assert {type(one) for one in errors} <= {kind, shoal.RemoteError}


# --- Ctrl-C ----------------------------------------------------------------------------------------


def interrupt_here(n):
    time.sleep(0.0005)
    if n == 60:
        signal.raise_signal(signal.SIGINT)
    return n


def enter(gate, n):
    time.sleep(0.0005)
    return gate.enter(n) if n == 60 else n


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_ends_the_map_and_the_pool_goes_on(phase_of, make_gate, phase):
    gate = phase_of(phase)
    with pytest.raises(KeyboardInterrupt):
        if phase == "workers":
            stuck = make_gate("stuck")
            threading.Thread(target=_interrupt_when_entered, args=(stuck,)).start()
            shoal.map(enter, [stuck] * COUNT, range(COUNT), workers="auto")
        else:
            shoal.map(interrupt_here, range(COUNT), workers="auto")
    assert "KeyboardInterrupt" in shoal.explain().auto.reason
    gate.open()
    map_ok()


def _interrupt_when_entered(gate):
    gate.wait_until_entered()
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.start_methods("spawn")  # its workers are the slowest to start: the bridge is long
def test_ctrl_c_at_any_moment_leaves_nothing_behind(run_script):
    done = run_script(
        """
        import os, random, signal, time
        import shoal
        from shoal._pool import default

        def spin(n):
            for _ in range(300):
                pass
            return n

        def nothing_left(pool):
            end = time.monotonic() + 20
            while time.monotonic() < end:
                now = pool.statistics()
                if not (now.queued or now.running or pool._engine.core.dispatcher.has_work):
                    return True
                time.sleep(0.002)

        if __name__ == "__main__":
            random.seed(4)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            hits = 0
            for _ in range(40):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.025, 0.14))
                try:
                    shoal.map(spin, range(120_000), workers="auto")
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    hits += 1
                pool = default._pool
                if pool is not None and pool._engine is not None:
                    assert nothing_left(pool), pool.statistics()
                    pool.shutdown()
            print("interrupted", hits > 20)
        """
    )
    assert (done.returncode, done.stdout) == (0, "interrupted True\n"), done.stderr


# --- death ------------------------------------------------------------------------------------------


def die_on(n, bad=150):
    time.sleep(0.0005)
    if n == bad and os.environ.get("SHOAL_TEST_PARENT") != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def test_a_killed_worker_costs_the_task_it_ran(phase_of):
    phase_of("workers")
    outcome = shoal.map(die_on, range(COUNT), workers="auto", errors="return")
    assert [n for n, one in enumerate(outcome) if one != n] == [150]
    assert isinstance(outcome[150], shoal.WorkerDied)
    with pytest.raises(shoal.WorkerDied) as caught:
        shoal.map(die_on, range(COUNT), workers="auto")
    assert caught.value.__notes__ == ["in task 150 of the map: die_on(150)"]
    map_ok()


def test_a_killed_worker_may_be_made_up_for_by_a_retry(phase_of, log):
    phase_of("workers")
    outcome = shoal.map(die_once, [log] * COUNT, range(COUNT), workers="auto", retries=1)
    assert outcome == list(range(COUNT))


def die_once(log, n):
    time.sleep(0.0005)
    if n == 150:
        return n if t.die_times(log, 1) else None
    return n


# --- what cannot be sent ------------------------------------------------------------------------------


@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_an_item_that_cannot_be_pickled_is_run_here_even_among_the_last(phase_of, errors):
    phase_of("workers")
    items = [*range(COUNT)]
    items[250] = threading.Lock()
    outcome = shoal.map(who, items, workers="auto", errors=errors)
    assert outcome[250] == ("lock", True)
    assert [n for n, _ in outcome[:250]] == list(range(250))
    assert shoal.explain().auto.tasks_here == sum(mine for _, mine in outcome)


def who(item):
    time.sleep(0.0005)
    return item if isinstance(item, int) else "lock", os.environ.get("SHOAL_TEST_PARENT") == str(os.getpid())


def lock_late(n):
    time.sleep(0.0005)
    return threading.Lock() if n == 250 else n


def test_a_result_that_cannot_be_sent_back_is_an_error_of_its_task(phase_of, log):
    """It has run: running it here again would be twice."""
    phase_of("workers")
    outcome = shoal.map(lock_late, range(COUNT), workers="auto", errors="return")
    assert [n for n, one in enumerate(outcome) if not isinstance(one, int)] == [250]
    assert isinstance(outcome[250], shoal.NotPicklable)


# --- no worker to be had -------------------------------------------------------------------------------


@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
@pytest.mark.start_methods("forkserver", "spawn")
def test_if_workers_fail_while_the_map_goes_on_here_it_is_the_loop(run_script, start_method, errors):
    """Each item is run once, although thousands fail in the pool while the last of them are finished here."""
    done = run_script(
        """
        import sys, time
        if __name__ != "__main__":
            time.sleep(0.05)
            raise LookupError("not in a worker")
        import shoal

        sys.setswitchinterval(1e-5)
        runs = []

        def work(n):
            runs.append(n)
            if n < 200:
                time.sleep(0.003)
            return n

        for _ in range(3):
            runs.clear()
            assert shoal.map(work, range(50_000), workers="auto", errors=sys.argv[1]) == list(range(50_000))
            assert sorted(runs) == list(range(50_000))
            print(shoal.explain().auto.reason)
        """,
        errors,
        env={"SHOAL_START_METHOD": start_method},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "no worker could be had" in done.stdout


def test_if_no_thread_can_start_it_is_the_loop(eager, monkeypatch):
    real = threading.Thread.start

    def start(thread):
        if thread.name == "shoal-pool":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert shoal.map(fail_late, range(60), workers="auto") == list(range(60))
    assert "no worker could be had" in shoal.explain().auto.reason
    assert shoal.explain().auto.tasks_here == 60


PROGRAM = """
import os, sys, time
import shoal

def work(n):
    time.sleep(0.001)
    return n

def main():
    assert shoal.map(work, range(700), workers="auto") == list(range(700))
    told = shoal.explain().auto
    print(told.tasks_here + told.tasks_sent, told.workers, told.reason)
"""


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_program_without_a_main_guard_is_the_loop_and_its_top_is_run_by_importing_only(run_script, start_method):
    done = run_script(PROGRAM + "main()\nprint('over')\n", env={"SHOAL_START_METHOD": start_method})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("over") == 1
    assert done.stdout.startswith("700 0 no worker could be had")
    assert done.stderr == ""


GUARDED = PROGRAM + "if __name__ == '__main__':\n    {before}\n    main()\n"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", "700 0 this process may use one processor only"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))",
            "700 0 no worker could be had",
        ),
        ("sys.executable = '/there/is/no/python'", "700 0 no worker could be had"),
    ],
    ids=["one processor", "no descriptors", "no interpreter"],
)
@pytest.mark.start_methods("forkserver")
def test_a_program_that_is_short_of_something_is_the_loop(run_script, start_method, before, said):
    done = run_script(GUARDED.format(before=before))
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


@pytest.mark.parametrize("how", ["-c", "stdin"])
@pytest.mark.start_methods("forkserver", "spawn")
def test_a_program_without_a_file_may_use_its_own_functions(run_script, start_method, how):
    program = "import os\nos.sched_getaffinity = lambda _: {0, 1}\n" + PROGRAM + "main()\n"
    runner = f"import sys, subprocess\nif __name__ == '__main__':\n    program = {program!r}\n"
    if how == "-c":
        runner += "    sys.exit(subprocess.run([sys.executable, '-c', program]).returncode)\n"
    else:
        runner += "    sys.exit(subprocess.run([sys.executable, '-'], input=program, text=True).returncode)\n"
    done = run_script(runner, env={"SHOAL_START_METHOD": start_method})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("700 ")


@pytest.mark.start_methods("forkserver")
def test_a_map_in_an_exit_handler_is_the_loop(run_script):
    done = run_script(
        "import atexit\natexit.register(lambda: main() if __name__ == '__main__' else None)\n"
        + GUARDED.format(before="pass")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("700 ") == 2


# --- from anywhere ----------------------------------------------------------------------------------------


def inner(n):
    return sum(shoal.map(slow, range(n), workers="auto"))


@pytest.mark.parametrize("phase", ["here", "workers"])
def test_a_map_inside_a_task_stays_in_its_worker(phase_of, phase):
    gate = phase_of(phase)
    assert shoal.map(inner, [10] * 30, workers="auto") == [45] * 30
    gate.open()


def test_several_threads_at_once(phase_of):
    phase_of("workers")
    outcomes = {}

    def one(name):
        outcomes[name] = shoal.map(slow, range(COUNT), workers="auto")

    threads = [threading.Thread(target=one, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {name: list(range(COUNT)) for name in range(4)}
    map_ok()


def test_after_the_default_pool_was_closed_there_is_another(phase_of):
    phase_of("workers")
    default._pool.shutdown()
    assert shoal.map(slow, range(COUNT), workers="auto") == list(range(COUNT))


@pytest.mark.start_methods("forkserver")
def test_a_forked_child_of_a_program_with_a_pool_may_map(run_script):
    done = run_script(
        GUARDED.format(
            before="""main()
    pid = os.fork()
    if pid == 0:
        str(shoal.explain())
        main()
        from shoal._pool import default
        if default._pool is not None:
            default._pool.shutdown()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0"""
        )
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("700 ") == 3


# --- the rest -----------------------------------------------------------------------------------------------


def test_with_a_timeout_every_task_runs_in_a_worker():
    outcome = shoal.map(t.hang_on_seven, range(5, 9), workers="auto", timeout=0.4, errors="return")
    assert [type(value).__name__ for value in outcome] == ["int", "int", "TaskTimeout", "int"]
    assert os.getpid() not in shoal.map(t.pid, range(5), workers="auto", timeout=60)


@pytest.mark.start_methods("forkserver")
def test_results_too_large_to_copy_and_items_too(phase_of):
    numpy = pytest.importorskip("numpy")
    phase_of("workers")
    items = [numpy.full(1_000_000, n) for n in range(6)]
    for n, one in enumerate(shoal.map(numpy.negative, items, workers="auto")):
        assert one.shape == (1_000_000,)
        assert one[0] == one[-1] == -n


def test_the_first_error_loads_nothing_that_a_short_map_would_pay_for(run_script):
    done = run_script(
        """
        import sys
        import shoal

        def fail(n):
            raise ValueError(n)

        print(len(shoal.map(fail, range(10), workers="auto", errors="return")))
        print(sorted(name for name in sys.modules if name.startswith("shoal._pool")))
        """
    )
    assert done.stdout.startswith("10\n")
    assert "shoal._pool.jobs" not in done.stdout
    assert "shoal._pool.engine" not in done.stdout
