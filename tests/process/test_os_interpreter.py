"""What `__main__` is, and importing it in a child, for every way to start a program."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest

from tests.support import program_environment

SHOW = "from shoal._os.interpreter import main_module; print(main_module())\n"

#: Imports the main module described in argv, twice, in an interpreter of its own.
CHILD = """
import sys
from shoal._os.interpreter import *
from shoal._os.interpreter import MainModule, import_main, main_module
kind, name, path = (text or None for text in sys.argv[1:4])
main = MainModule(kind, name, path)
import_main(main)
import_main(main)
import __main__
print(__main__ is sys.modules.get("__mp_main__"), getattr(__main__, "f", lambda: None)(), main_module() == main)
"""

SCRIPT = """
print("running as", __name__)
def f(): return "answer"
if __name__ == "__main__":
    from shoal._os.interpreter import main_module
    print(main_module())
"""


@pytest.fixture
def python(tmp_path):
    def run(*args, stdin=""):
        return subprocess.run(
            [sys.executable, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=program_environment(),
        )

    return run


def test_a_script_is_its_absolute_path(python, tmp_path):
    (tmp_path / "tool.py").write_text(SHOW)
    assert f"kind='file', name=None, path='{tmp_path}/tool.py'" in python("tool.py").stdout


def test_a_module_is_its_name(python, tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").touch()
    (tmp_path / "pkg/mod.py").write_text(SHOW)
    assert "kind='module', name='pkg.mod', path=None" in python("-m", "pkg.mod").stdout


@pytest.mark.parametrize("how", ["package", "directory", "zip", "command", "stdin", "prompt"])
def test_what_cannot_be_imported_is_none(python, tmp_path, how):
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").touch()
    (tmp_path / "app/__main__.py").write_text(SHOW)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", SHOW)
    done = {
        "package": lambda: python("-m", "app"),
        "directory": lambda: python("app"),
        "zip": lambda: python("app.zip"),
        "command": lambda: python("-c", SHOW),
        "stdin": lambda: python("-", stdin=SHOW),
        "prompt": lambda: python("-i", stdin=SHOW),
    }[how]()
    assert "kind='none'" in done.stdout, done.stderr


def test_a_removed_script_is_none(python, tmp_path):
    (tmp_path / "gone.py").write_text("import os; os.remove(__file__)\n" + SHOW)
    assert "kind='none'" in python("gone.py").stdout


def test_a_script_that_moved_elsewhere_keeps_its_path(python, tmp_path):
    (tmp_path / "tool.py").write_text("import os; from shoal._os import interpreter; os.chdir('/')\n" + SHOW)
    assert f"path='{tmp_path}/tool.py'" in python("tool.py").stdout


@pytest.mark.parametrize("kind", ["file", "module"])
def test_a_child_runs_the_main_module_once_under_another_name(python, tmp_path, kind):
    """It does not enter the main guard, `__main__` names it, and a nested pool describes it the same way."""
    (tmp_path / "tool.py").write_text(SCRIPT)
    where = ("", tmp_path / "tool.py") if kind == "file" else ("tool", "")
    done = python("-c", CHILD, kind, *where)
    assert done.stdout.splitlines() == ["running as __mp_main__", "True answer True"], done.stderr


def test_none_leaves_the_child_as_it_is(python):
    done = python("-c", CHILD, "none", "", "")
    assert done.stdout.splitlines() == ["False None True"], done.stderr


def test_a_console_script_without_suffix_is_imported(python, tmp_path):
    (tmp_path / "tool").write_text(f"#!/usr/bin/env python3\n{SCRIPT}")
    done = python("-c", CHILD, "file", "", tmp_path / "tool")
    assert done.stdout.splitlines() == ["running as __mp_main__", "True answer True"], done.stderr


def test_what_the_main_module_raises_comes_through(python, tmp_path):
    (tmp_path / "tool.py").write_text("raise KeyError('here')")
    done = python("-c", CHILD, "file", "", tmp_path / "tool.py")
    assert "tool.py" in done.stderr
    assert done.stderr.splitlines()[-1] == "KeyError: 'here'"


def test_the_command_starts_an_equal_interpreter(python):
    code = "from shoal._os.interpreter import interpreter_command; print(interpreter_command()[1:])"
    done = python("-O", "-W", "ignore", "-X", "faulthandler", "-B", "-c", code)
    flags = eval(done.stdout)
    assert {"-O", "-B", "-Wignore", "faulthandler"} <= set(flags), done.stderr


def test_importing_os_modules_is_cheap(python):
    """A worker imports these before its first task; none may bring in what it does not need (O1)."""
    modules = "lifeline processes descriptors memory cpus cgroup interpreter signals platform"
    code = f"import sys, importlib\nfor name in {modules.split()}: importlib.import_module('shoal._os.' + name)\n"
    heavy = "ctypes dataclasses inspect subprocess multiprocessing concurrent psutil typing logging pathlib"
    # -S: site customisation of the environment may import anything.
    done = python("-S", "-c", f"{code}print(set({heavy.split()}) & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr
