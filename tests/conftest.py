"""Fixtures every test gets: the watchdog, the leak audit, pools over every start method, programs.

Role: glue between pytest and `tests/support.py`. Owner: pytest.

Order for one test: watchdog, then footprint, then the test's own fixtures; taken down in reverse, so that the audit
looks after every pool and program of the test has been closed, with the watchdog still on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import support

# Before anything is started; see support.DESCENT.
os.environ.__setitem__(*support.DESCENT.split("=", 1))

#: What runs on every Python found, not only on the first: the unit tests, and of the rest what depends most on the
#: interpreter. What reads the sources gives the same answer on each.
FAST_FOLDERS = {"unit"}
FAST_FILES = {
    "test_error_pickling.py",
    "test_exports.py",
    "test_functions_sent.py",
    "test_import.py",
    "test_main_guard.py",
    "test_pool_limits.py",
    "test_pool_submit.py",
}
#: Examples of a property on those other Pythons, unless a test asks for a number of its own.
QUICK_EXAMPLES = 25
watching = contextmanager(support.watch)


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("quick", max_examples=QUICK_EXAMPLES)
    if "fast" in config.option.markexpr.split():
        hypothesis.settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folders = set(item.path.relative_to(support.ROOT / "tests").parts[:-1])
        beside_others = item.get_closest_marker("alone") is None
        if beside_others and (folders & FAST_FOLDERS or item.path.name in FAST_FILES):
            item.add_marker(pytest.mark.fast)
        if "stress" in folders:
            item.add_marker(pytest.mark.stress)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run whoever asks for a start method once for each.

    `@pytest.mark.start_methods("fork")` narrows it for one test, SHOAL_TEST_START_METHODS="fork,spawn" for a run.
    """
    if "start_method" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("start_methods")
    methods = mark.args if mark else support.START_METHODS
    asked = os.environ.get("SHOAL_TEST_START_METHODS")
    if asked:
        methods = [method for method in methods if method in asked.split(",")]
    metafunc.parametrize("start_method", methods, ids=str, indirect=True)


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> str:
    """One of "forkserver", "spawn", "fork"; the test runs once for each."""
    return request.param


# --- guards around every test -------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_run() -> Iterator[None]:
    """At the end even the template must go, and then nothing of ours may be left."""
    before = support.Footprint.take()
    yield
    support.close_templates()
    leaked = [line for line in support.wait_for_no_leak(before) if line.startswith(("process", "shared"))]
    if leaked:
        pytest.fail("left behind by the whole run:\n  " + "\n  ".join(leaked), pytrace=False)


@pytest.fixture(autouse=True)
def _watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that hangs fails with every stack instead of stopping the run."""
    mark = request.node.get_closest_marker("hang_limit")
    with watching(mark.args[0] if mark else support.HANG_LIMIT_S):
        yield


@pytest.fixture(autouse=True)
def _leak_audit(request: pytest.FixtureRequest, _watchdog: None) -> Iterator[None]:
    """After the test no process, descriptor, thread or segment is left that was not there before."""
    if request.node.get_closest_marker("no_leak_audit"):
        yield
        return
    before = support.Footprint.take()
    yield
    leaked = support.wait_for_no_leak(before)
    if leaked:
        pytest.fail(f"the test left behind, {support.SETTLE_S:g} s later:\n  " + "\n  ".join(leaked), pytrace=False)


# --- pools --------------------------------------------------------------------------------------


@pytest.fixture
def pool_factory(start_method: str) -> Iterator[Callable[..., Any]]:
    """Makes pools of this start method, two workers unless told, and closes them after the test."""
    import shoal

    made: list[Any] = []

    def make(workers: int | None = 2, **options: Any) -> Any:
        options.setdefault("start_method", start_method)
        made.append(shoal.Pool(workers, **options))
        return made[-1]

    yield make
    for pool in reversed(made):
        pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def pool(pool_factory: Callable[..., Any]) -> Any:
    """An open pool of two workers, once for each start method."""
    return pool_factory()


# --- programs -----------------------------------------------------------------------------------


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run source text as a program of its own and return its `CompletedProcess`.

    `run_script(source, *args, timeout=, env=, options=, name=)`; on a hang the program and all below it are shown
    and stopped.
    """

    def run(
        source: str,
        *args: object,
        timeout: float = support.HANG_LIMIT_S,
        env: dict[str, str] | None = None,
        options: tuple[str, ...] = (),
        name: str = "program.py",
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        script = support.write_script(tmp_path, source, name)
        command = [sys.executable, *options, str(script), *map(str, args)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=support.program_environment(**(env or {})),
        ) as process:
            try:
                output, errors = process.communicate(stdin, timeout=timeout)
            except BaseException as problem:
                shown = support.dump_everything()
                below = support.tree_of(process.pid)
                process.kill()
                for one in below:
                    _kill(one)
                if not isinstance(problem, subprocess.TimeoutExpired):
                    raise
                output, errors = process.communicate()
                story = f"hung: the program ran longer than {timeout:g} s"
                pytest.fail(f"{story}\nstdout:\n{output}\nstderr:\n{errors}\n{shown}")
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    return run


def _kill(process: support.ProcessFacts) -> None:
    if support.is_alive(process.pid):
        try:
            os.kill(process.pid, 9)
        except ProcessLookupError:
            pass  # it ended by itself in between


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., support.Program]]:
    """Start source text as a program in the background: `start_script(source, *args, env=, new_session=)`.

    Wait for what it prints with `program.wait_for("ready")`. Whoever still runs at the end of the test is killed.
    """
    started: list[support.Program] = []

    def start(
        source: str,
        *args: object,
        env: dict[str, str] | None = None,
        options: tuple[str, ...] = (),
        name: str | None = None,
        new_session: bool = False,
    ) -> support.Program:
        script = support.write_script(tmp_path, source, name or f"program{len(started)}.py")
        process = subprocess.Popen(
            [sys.executable, *options, str(script), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=support.program_environment(**(env or {})),
            start_new_session=new_session,
        )
        started.append(support.Program(process))
        return started[-1]

    yield start
    for program in started:
        program.close()
