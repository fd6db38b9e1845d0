"""A main script without its guard, or one that cannot be imported: one clear error, no fork bomb, no hang."""

from __future__ import annotations

import pytest

from tests.support import HANG_LIMIT_S

GUARD_HINT = 'if __name__ == "__main__":'


@pytest.fixture
def run_and_count(run_script, tmp_path):
    """Run a script that counts its runs; returns (finished program, how often its top ran)."""

    def run(source, **options):
        counting = f"with open({str(tmp_path / 'runs')!r}, 'a') as file: file.write('x')\n"
        lines = source.strip("\n").splitlines()
        width = len(lines[0]) - len(lines[0].lstrip())
        done = run_script(counting + "\n".join(line[width:] for line in lines), timeout=HANG_LIMIT_S, **options)
        return done, len((tmp_path / "runs").read_text())

    return run


@pytest.mark.start_methods("forkserver", "spawn")
@pytest.mark.parametrize(
    "call",
    [
        "shoal.Pool(4, start_method={method!r}).submit(abs, -1).result()",
        "list(shoal.Pool(4, start_method={method!r}).map(abs, range(100)))",
        "list(shoal.Pool(4, start_method={method!r}).imap(abs, range(100)))",
        "shoal.Pool(4, start_method={method!r}).starmap(abs, [(1,)] * 100)",
    ],
    ids=["submit", "map", "imap", "starmap"],
)
def test_a_forgotten_guard_is_one_clear_error(run_and_count, start_method, call):
    done, runs = run_and_count(f"""
        import shoal
        {call.format(method=start_method)}
        print("never reached")
    """)
    assert done.returncode == 1
    assert "never reached" not in done.stdout
    assert done.stderr.count("MainGuardMissing: ") == 1
    assert GUARD_HINT in done.stderr
    assert "program.py" in done.stderr
    assert runs <= 1 + 5  # this program, and each process that was asked for at once; none of those asks for more


@pytest.mark.start_methods("forkserver", "spawn")
@pytest.mark.parametrize(
    "call", ["shoal.map(abs, [-1])", "shoal.submit(abs, -1).result()", "list(shoal.imap(abs, [-1]))"]
)
def test_a_forgotten_guard_around_the_default_pool_is_one_clear_error(run_and_count, start_method, call):
    done, runs = run_and_count(
        f"import shoal\n{call}\nprint('never reached')", env={"SHOAL_START_METHOD": start_method}
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("MainGuardMissing: ") == 1
    assert GUARD_HINT in done.stderr
    assert runs <= 6


ACTOR = """
    import asyncio, shoal
    @shoal.actor
    class Counter:
        def get(self):
            return 1
    async def main():
        with Counter() as counter:
            print(await counter.get())
    {call}
    print("never reached")
"""
TREE = """
    import shoal, time
    class Child(shoal.Process):
        def run(self):
            self.ready()
    with shoal.Supervisor(intensity=0) as tree:
        {call}
        tree.wait(timeout=30)
    print("never reached")
"""


@pytest.mark.start_methods("forkserver", "spawn")
@pytest.mark.parametrize(
    "source",
    [
        ACTOR.format(call="Counter()"),
        ACTOR.format(call="asyncio.run(main())"),
        TREE.format(call="tree.start(Child)"),
        TREE.format(call="tree.start(Child, ready=True)"),
    ],
    ids=["actor", "actor-async", "supervisor", "supervisor-ready"],
)
def test_a_forgotten_guard_around_actors_and_supervisors_is_told_where_they_are_started(
    run_and_count, start_method, source
):
    done, runs = run_and_count(source, env={"SHOAL_START_METHOD": start_method})
    assert (done.returncode, done.stdout) == (1, "")
    told = done.stderr[done.stderr.index("Traceback") :]  # a spawned process says it, too, before
    assert told.count("MainGuardMissing: ") == told.count("Traceback") == 1
    assert GUARD_HINT in done.stderr
    assert "StartFailed" not in done.stderr
    assert runs == 2


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_forgotten_guard_around_a_context_manager_is_one_clear_error(run_and_count, start_method):
    done, _ = run_and_count(f"""
        import shoal
        with shoal.Pool(2, start_method={start_method!r}) as pool:
            print(pool.submit(abs, -1).result())
    """)
    assert done.returncode == 1
    assert done.stdout == ""
    assert GUARD_HINT in done.stderr


@pytest.mark.start_methods("fork")
def test_fork_needs_no_guard(run_and_count, start_method):
    done, runs = run_and_count(f"""
        import shoal
        with shoal.Pool(2, start_method={start_method!r}) as pool:
            print(pool.submit(abs, -1).result())
    """)
    assert (done.stdout, done.stderr, done.returncode, runs) == ("1\n", "", 0, 1)


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_pool_that_is_made_outside_the_guard_and_used_inside_works(run_and_count, start_method):
    """Making one starts nothing, so a module may hold one."""
    done, _ = run_and_count(f"""
        import shoal
        pool = shoal.Pool(2, start_method={start_method!r})
        def double(x):
            return 2 * x
        if __name__ == "__main__":
            print(list(pool.map(double, range(3))))
            pool.shutdown()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 2, 4]\n", "", 0)


@pytest.mark.start_methods("forkserver", "spawn")
@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("raise LookupError('only as the main program')", "LookupError: only as the main program"),
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("sys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
    ids=["raises", "imports what is not there", "exits with a code", "exits", "is interrupted"],
)
def test_a_main_module_that_fails_when_imported_is_one_clear_error(run_and_count, start_method, statement, said):
    done, runs = run_and_count(f"""
        import sys, shoal
        if __name__ != "__main__":
            {statement}
        if __name__ == "__main__":
            with shoal.Pool(2, start_method={start_method!r}) as pool:
                for attempt in range(2):
                    try:
                        pool.submit(abs, -1).result()
                    except shoal.StartFailed as error:
                        print(error)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no worker could be started: a worker cannot import ") == 2
    assert done.stdout.count(said) == 2
    assert done.stdout.count("hint: ") == 2
    assert done.stderr == ""
    assert runs <= 1 + 2 * 3


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_main_module_that_kills_its_process_when_imported_is_one_clear_error(run_and_count, start_method):
    done, runs = run_and_count(f"""
        import os, shoal
        if __name__ != "__main__":
            os._exit(5)
        if __name__ == "__main__":
            with shoal.Pool(2, start_method={start_method!r}) as pool:
                try:
                    pool.submit(abs, -1).result()
                except shoal.StartFailed as error:
                    print(error)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no worker could be started: ")
    assert runs <= 20


@pytest.mark.start_methods("forkserver", "spawn")
def test_what_the_main_module_prints_when_imported_does_not_come_twice_as_an_error(run_and_count, start_method):
    """A module may print when it is imported; that is its own affair, and no reason to fail."""
    done, _ = run_and_count(f"""
        import shoal
        print("imported as", __name__)
        if __name__ == "__main__":
            with shoal.Pool(1, start_method={start_method!r}) as pool:
                print(pool.submit(abs, -1).result())
    """)
    lines = done.stdout.splitlines()
    assert "imported as __main__" in lines
    assert "1" in lines
    assert done.returncode == 0


@pytest.mark.start_methods("forkserver", "spawn")
def test_in_a_worker_the_main_module_runs_under_another_name(run_and_count, start_method):
    done, _ = run_and_count(f"""
        import shoal
        NAME = __name__
        def name():
            return NAME
        if __name__ == "__main__":
            with shoal.Pool(1, start_method={start_method!r}) as pool:
                print(pool.submit(name).result())
    """)
    assert (done.stdout, done.stderr) == ("__mp_main__\n", "")


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_script_that_is_deleted_after_its_start_can_still_use_functions_of_modules(run_and_count, start_method):
    done, _ = run_and_count(f"""
        import os, sys, shoal
        def double(x):
            return 2 * x
        if __name__ == "__main__":
            os.remove(__file__)
            with shoal.Pool(1, start_method={start_method!r}) as pool:
                print(pool.submit(abs, -1).result(), pool.submit(double, 4).result())
    """)
    assert (done.stdout, done.stderr) == ("1 8\n", "")
