"""The public names: listed, loaded at first use, and known to a type checker."""

from __future__ import annotations

import ast
import concurrent.futures
import inspect
import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import shoal
import shoal.errors
from tests.support import program_environment
from tests.surface import source

#: What a user may count on from the first release on. `__all__` may hold more.
PROMISED = {
    "Pool",
    "cpu_count",
    "imap",
    "map",
    "submit",
    *(name for name in shoal.errors.__all__ if name != "RemoteTraceback"),
}
#: Public names that a star import leaves out, because it has to work without numpy.
NEED_NUMPY = {"SharedArray", "array", "empty", "full", "zeros"}
INIT = source.PACKAGE / "__init__.py"


def test_every_promised_name_is_exported():
    assert PROMISED - set(shoal.__all__) == set()


def test_dir_shows_what_is_exported():
    public = {name for name in dir(shoal) if not name.startswith("_")}
    assert public == {*shoal.__all__, *NEED_NUMPY}


def test_exports_are_sorted_and_named_once():
    assert list(shoal.__all__) == sorted(set(shoal.__all__))


@pytest.mark.parametrize("name", [*shoal.__all__, *sorted(NEED_NUMPY)])
def test_exported_name_resolves(name):
    assert getattr(shoal, name) is not None


def test_star_import_gives_every_exported_name():
    code = "import json; mine = {}; exec('from shoal import *', mine); print(json.dumps(sorted(mine)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=program_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(shoal.__all__) <= set(json.loads(done.stdout))


def test_star_import_works_without_numpy():
    code = "import sys; sys.modules['numpy'] = None; from shoal import *; share"
    done = subprocess.run(
        [sys.executable, "-c", code], env=program_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match=r"module 'shoal' has no attribute 'Poool'"):
        shoal.Poool


def test_lazily_loaded_names_are_known_to_a_type_checker():
    """A checker cannot see through `__getattr__`: each name is also imported under `if TYPE_CHECKING`."""
    known = set()
    for node in ast.walk(source.tree_of(INIT)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            known |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.Assign):
            known |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            known.add(node.target.id)
    assert {*shoal.__all__, *NEED_NUMPY} - known == set()


def test_package_is_marked_as_typed():
    assert (source.PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_public_callable_is_documented_and_annotated(name):
    thing = getattr(shoal, name)
    assert inspect.getdoc(thing), f"shoal.{name} has no docstring"
    target = thing.__init__ if inspect.isclass(thing) else thing
    if target is object.__init__ or name == "ShoalError":
        return
    bare = [
        parameter.name
        for parameter in inspect.signature(target).parameters.values()
        if parameter.annotation is parameter.empty and parameter.name != "self"
    ]
    assert not bare, f"shoal.{name} takes {bare} without saying of which type"


@pytest.mark.parametrize("name", ["submit", "map", "imap", "starmap", "using", "shutdown", "statistics", "workers"])
def test_pool_has_and_documents(name):
    assert inspect.getdoc(getattr(shoal.Pool, name))


def test_pool_is_an_executor():
    assert issubclass(shoal.Pool, concurrent.futures.Executor)


@pytest.mark.parametrize("name", ["submit", "map", "shutdown"])
def test_pool_can_be_called_wherever_an_executor_can(name):
    """Every parameter of `Executor`'s method is there, of the same kind and with the same default."""
    theirs = inspect.signature(getattr(concurrent.futures.Executor, name)).parameters
    mine = inspect.signature(getattr(shoal.Pool, name)).parameters
    for parameter in theirs.values():
        match = mine.get(parameter.name)
        assert match is not None, f"Pool.{name} lacks {parameter.name}"
        assert match.kind == parameter.kind, f"Pool.{name}: {parameter.name} is {match.kind.description}"
        # chunksize=None lets shoal choose; a caller who gives a number is understood as before.
        if parameter.name != "chunksize":
            assert match.default == parameter.default, f"Pool.{name}: {parameter.name} defaults to {match.default!r}"


def test_version_is_the_one_that_is_installed():
    assert shoal.__version__ == version("shoal")
