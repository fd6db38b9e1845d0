"""`import shoal` is light: a program that only might use it pays next to nothing."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

from tests.support import program_environment

LIMIT_S = 0.030
RUNS = 7
#: Loaded at first use, if at all.
HEAVY = ("numpy", "rich", "click", "psutil", "cloudpickle", "multiprocessing", "asyncio", "concurrent.futures.process")

#: Time of this one thread on a core rather than of the clock on the wall: other programs on the machine must not
#: decide. Importing warm files is all computing, so on a quiet machine the two agree.
MEASURE = """
import json, sys, time
before = set(sys.modules)
start = time.thread_time()
import shoal
took_s = time.thread_time() - start
print(json.dumps({"took_s": took_s, "loaded": sorted(set(sys.modules) - before), "file": shoal.__file__}))
"""


def fresh_interpreter(code: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code], env=program_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_pulls_in_nothing_heavy():
    loaded = fresh_interpreter(MEASURE)["loaded"]
    heavy = [name for name in loaded if any(name == root or name.startswith(f"{root}.") for root in HEAVY)]
    assert not heavy, f"import shoal loaded {heavy}"


def test_import_takes_less_than_30_ms():
    fresh_interpreter(MEASURE)  # byte code is written now, as an installer would have done
    took_s = statistics.median(fresh_interpreter(MEASURE)["took_s"] for _ in range(RUNS))
    assert took_s < LIMIT_S, f"import shoal took {took_s * 1000:.1f} ms of {LIMIT_S * 1000:.0f} ms"


def test_import_starts_nothing():
    """No process, no thread, no descriptor, no signal handler: those belong to the first use."""
    facts = fresh_interpreter("""
import json, os, signal, sys, threading
def facts():
    return [len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task")),
            [repr(signal.getsignal(n)) for n in sorted(signal.valid_signals())], open("/proc/self/task/%d/children" % os.getpid()).read(),
            dict(os.environ), sys.getswitchinterval()]
before = facts()
import shoal
print(json.dumps({"before": before, "after": facts()}))
""")
    assert facts["before"] == facts["after"]


@pytest.mark.parametrize("module", ["shoal.errors", "shoal._settings"])
def test_lowest_row_imports_alone(module):
    fresh_interpreter(f"import {module}; print('{{}}')")


def test_worker_side_never_loads_the_pool():
    """What the layering test says of the source, seen from a running interpreter."""
    code = """
import importlib, json, pkgutil, sys
import shoal._worker
for module in pkgutil.iter_modules(shoal._worker.__path__, "shoal._worker."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("shoal"))))
"""
    loaded = fresh_interpreter(code)
    assert not [name for name in loaded if name.startswith(("shoal._pool", "shoal.cli"))]
