"""A module imports from rows below its own only, and a worker never imports the pool."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.surface import source

#: Rows from the bottom. A package may import from lower rows and from itself.
ROWS = (
    ("errors", "_settings"),
    ("_os",),
    ("_wire", "_memory"),
    ("_sync", "_journal"),
    ("_worker",),
    ("_pool", "_process", "_supervise", "_actors", "_serve", "_monitor"),
    ("backends", "integrations", "testing"),
    ("cli", "__init__"),
)
ROW_OF = {package: number for number, row in enumerate(ROWS, start=1) for package in row}

#: Neighbours in one row are apart, save where one is said here to stand on the other.
NEIGHBOURS = {
    ("_settings", "errors"),
    ("_wire", "_memory"),  # frames carry shared segments
    ("_process", "_pool"),
    ("_supervise", "_process"),  # what it restarts are processes, pools and actors
    ("_supervise", "_pool"),
    ("_actors", "_process"),
    ("_actors", "_supervise"),
    ("_actors", "_pool"),  # holds signals back as the pool does
    ("_serve", "_process"),
    ("_monitor", "_pool"),
    ("cli", "__init__"),
}


def package_of(module: str) -> str:
    """The row entry a dotted name belongs to: "shoal._pool.pump" is in "_pool", "shoal" in "__init__"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Every shoal module a file imports, functions included, with the line; not what only a type checker reads."""
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and _is_type_checking(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, is_package=is_package)
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}" if base == "shoal" and _is_entry(name.name) else base
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def _is_entry(name: str) -> bool:
    return name in ROW_OF or (source.PACKAGE / name).is_dir() or (source.PACKAGE / f"{name}.py").is_file()


def _base(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    up = node.level - 1 if is_package else node.level
    return ".".join(parts[: len(parts) - up] + ([node.module] if node.module else []))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def wrong_imports(tree: ast.Module, module: str, *, is_package: bool) -> list[str]:
    """A line for each import that breaks the layering."""
    mine = package_of(module)
    wrong = []
    for line, target in imports(tree, module, is_package=is_package):
        if target.split(".")[0] != "shoal":
            continue
        theirs = package_of(target)
        if theirs not in ROW_OF:
            wrong.append(f"line {line}: {target} is in no row of the table")
        elif theirs != mine and (mine, theirs) not in NEIGHBOURS and ROW_OF[theirs] >= ROW_OF[mine]:
            wrong.append(f"line {line}: {mine} (row {ROW_OF[mine]}) imports {target} (row {ROW_OF[theirs]})")
    return wrong


@pytest.mark.parametrize("path", source.modules(), ids=source.label)
def test_module_imports_only_from_rows_below(path: Path):
    module = source.dotted(path)
    assert package_of(module) in ROW_OF, f"{module} is in no row; rows are in {__name__}.ROWS"
    wrong = wrong_imports(source.tree_of(path), module, is_package=path.name == "__init__.py")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "code", "breaks"),
    [
        ("shoal._worker.loop", "from shoal._pool import pump", True),
        ("shoal._worker.loop", "def f():\n    import shoal._pool.pump", True),
        ("shoal._worker.loop", "from .._pool.pump import Pump", True),
        ("shoal._worker.loop", "from importlib import import_module\nimport_module('shoal._pool')", True),
        ("shoal._worker.loop", "from shoal import Pool", True),
        ("shoal._worker.loop", "if TYPE_CHECKING:\n    from shoal._pool import pump", False),
        ("shoal._worker.loop", "from shoal import errors", False),
        ("shoal._worker.loop", "from . import boot\nfrom shoal._wire.frames import Frames", False),
        ("shoal._os.clock", "import os, ctypes", False),
        ("shoal._wire.codec", "import shoal.nowhere", True),
    ],
)
def test_the_layer_test_sees_every_way_to_import(module, code, breaks):
    assert bool(wrong_imports(ast.parse(code), module, is_package=False)) is breaks


def test_the_layer_test_reads_a_relative_import_in_a_package_file():
    assert wrong_imports(ast.parse("from ..cli import main"), "shoal._pool", is_package=True)
    assert not wrong_imports(ast.parse("from .pump import Pump"), "shoal._pool", is_package=True)


@pytest.mark.parametrize("path", source.modules(), ids=source.label)
def test_only_the_os_package_reaches_for_the_system(path: Path):
    """`ctypes`, `fork` and their kin are mechanism: a port to another system is one package."""
    if package_of(source.dotted(path)) == "_os":
        return
    found = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(source.tree_of(path))
        if (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "ctypes" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ctypes")
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.fork", "os.memfd_create", "os.forkpty"))
    ]
    assert not found, "\n".join(found)
