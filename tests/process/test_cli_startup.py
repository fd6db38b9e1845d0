"""`shoal --help` answers at once: it imports what it shows and no more."""

from __future__ import annotations

import subprocess
import sys

from tests import support
from tests.process import cli_runner

LOADED = """\
import sys
from shoal.cli import main
sys.argv = ["shoal", *sys.argv[1:]]
try:
    main.main()
except SystemExit:
    pass
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules} & {"rich", "numpy", "pyarrow", "asyncio", "psutil"}))
print("shoal:", *sorted(name for name in sys.modules if name.startswith("shoal")))
"""


def loaded(*words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        capture_output=True,
        text=True,
        env=support.program_environment(),
        timeout=support.HANG_LIMIT_S,
    )
    return done.stdout.splitlines()


def test_help_imports_neither_rich_nor_the_pool():
    lines = loaded("--help")
    assert lines[-2] == "loaded:"
    assert not [name for name in lines[-1].split() if name.startswith("shoal._pool")]


def test_help_of_map_imports_no_pool_either():
    lines = loaded("map", "--help")
    assert lines[-2] == "loaded:"
    assert not [name for name in lines[-1].split() if name.startswith("shoal._pool.")]


def test_help_and_version_end_well(tmp_path):
    assert "map  Run a function over many inputs" in cli_runner.shoal(tmp_path, "--help").stdout
    assert cli_runner.shoal(tmp_path, "map", "-h").returncode == 0
    version = cli_runner.shoal(tmp_path, "--version")
    assert (version.returncode, version.stdout[:6]) == (0, "shoal ")
    bare = cli_runner.shoal(tmp_path)
    assert (bare.returncode, bare.stderr[:6]) == (2, "Usage:")
