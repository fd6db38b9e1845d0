"""What is loaded when: nothing for `import shoal`, little for the first result, least in a worker that answers it.

A module that must not be there is named with the moment. A new import is not wrong for that reason, but it costs
every program that starts; whoever adds one moves a figure of this file, and knows it.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import program_environment, write_script

#: The parts of `shoal` alone: the same on every Python.
PARTS_OF_A_PROGRAM = 53
PARTS_OF_A_LATE_WORKER = 26
#: All modules beyond a bare interpreter's, by Python: after the first result, in the worker that gave it, in a worker
#: that was forked once the template had loaded the rest.
MEASURED = {(3, 11): (127, 82, 109), (3, 12): (128, 82, 110), (3, 13): (128, 81, 110)}

#: At no moment, in no process. Loaded by who uses it.
NEVER = (
    "asyncio", "click", "ctypes.util", "dask", "email", "http", "joblib", "json", "multiprocessing.managers",
    "multiprocessing.pool", "multiprocessing.resource_tracker", "multiprocessing.shared_memory",
    "multiprocessing.synchronize", "numpy", "pathlib", "pdb", "psutil", "pydoc", "ray", "rich", "shoal.cli", "ssl",
    "unittest", "urllib", "xml",
)  # fmt: skip
#: Not in the worker that gives the first result: it is on the clock of whoever waits. The template loads them later.
NOT_FIRST_IN_A_WORKER = (
    "cloudpickle", "concurrent", "dataclasses", "inspect", "logging", "multiprocessing", "platform", "random",
    "shoal._memory.arena", "shoal._memory.arrays", "shoal._memory.segments", "shoal._memory.shared", "shoal.errors",
    "shutil",
    "subprocess", "tempfile", "traceback",
)  # fmt: skip
#: Not in the program before it has large data, sends something by value, or its first error.
NOT_FIRST_IN_A_PROGRAM = (
    "cloudpickle", "concurrent.futures.process", "ctypes", "multiprocessing", "random", "shutil", "tempfile",
    "platform", "runpy", "shoal._memory.arena", "shoal._memory.arrays", "shoal._memory.segments",
    "shoal._memory.shared", "shoal._worker.template",
)  # fmt: skip
#: In no worker at any time: what only the program's side needs.
NEVER_IN_A_WORKER = ("shoal._pool", "shoal._settings")

PROGRAM = """
import sys

bare = set(sys.modules)  # an interpreter's own, and what its site brings
import shoal

imported = set(sys.modules) - bare


def loaded():
    return sorted(sys.modules)


def outlive_the_first(pool):
    \"\"\"Answer from a worker that was forked when the template had nothing left to load.\"\"\"
    import os
    import time

    while "shoal.errors" not in (names := pool.submit(loaded).result()):
        try:
            pool.submit(os._exit, 0).result()
        except shoal.WorkerDied:
            time.sleep(0.06)
    return names


if __name__ == "__main__":
    began = set(sys.modules)
    with shoal.Pool(1, spare=False) as pool:
        worker = set(pool.submit(loaded).result())
        program = set(sys.modules) - began | imported
        late_worker = set(outlive_the_first(pool))
    import json

    found = {"import": imported, "program": program, "worker": worker - bare, "late_worker": late_worker - bare}
    print(json.dumps({name: sorted(modules) for name, modules in found.items()}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Names of modules by moment, beyond those of a bare interpreter."""
    script = write_script(tmp_path_factory.mktemp("imports"), PROGRAM)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=program_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {moment: [name for name in names if name != "__mp_main__"] for moment, names in found.items()}  # an alias


def among(loaded, names):
    return [one for one in loaded if any(one == name or one.startswith(f"{name}.") for name in names)]


def parts(loaded):
    return among(loaded, ["shoal"])


def test_import_loads_one_file(loaded):
    """Names are looked up when they are asked for."""
    assert loaded["import"] == ["__future__", "shoal"]


@pytest.mark.parametrize("moment", ["import", "program", "worker", "late_worker"])
def test_no_process_loads_what_it_does_not_use(loaded, moment):
    assert not among(loaded[moment], NEVER)


def test_first_result_waits_for_no_module_that_others_need(loaded):
    first = among(loaded["worker"], NOT_FIRST_IN_A_WORKER)
    # A template that was left alone for a moment has begun to load what most workers need sooner or later.
    assert not first or "shoal.errors" in first, first
    assert not among(first, [name for name in NOT_FIRST_IN_A_WORKER if name.startswith("shoal._")])
    assert not among(loaded["program"], NOT_FIRST_IN_A_PROGRAM)


@pytest.mark.parametrize("moment", ["worker", "late_worker"])
def test_worker_loads_nothing_of_the_pool(loaded, moment):
    assert not among(loaded[moment], NEVER_IN_A_WORKER)


@pytest.mark.parametrize(
    ("moment", "most"),
    [("program", PARTS_OF_A_PROGRAM), ("worker", PARTS_OF_A_LATE_WORKER), ("late_worker", PARTS_OF_A_LATE_WORKER)],
)
def test_shoal_is_loaded_in_few_parts(loaded, moment, most):
    assert len(parts(loaded[moment])) <= most, " ".join(parts(loaded[moment]))


def test_no_more_modules_than_measured(loaded):
    measured = MEASURED.get(sys.version_info[:2])
    if measured is None:
        pytest.skip("nobody has counted on this Python yet")
    program, worker, late_worker = measured
    if "shoal.errors" in loaded["worker"]:  # forked late, because the machine was busy
        worker = late_worker
    counts = {name: len(loaded[name]) for name in ("program", "worker", "late_worker")}
    assert counts["program"] <= program, " ".join(loaded["program"])
    assert counts["worker"] <= worker, " ".join(loaded["worker"])
    assert counts["late_worker"] <= late_worker, " ".join(loaded["late_worker"])
