"""A file is one idea, says its role at its top, and its functions fit on a screen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.surface import source

FILE_LINES = 500
FUNCTION_LINES = 60
#: A docstring that contains this says why its file is longer.
EXCUSE = re.compile(r"\blong because\b|\blonger than\b.*\bbecause\b", re.IGNORECASE | re.DOTALL)

every_module = pytest.mark.parametrize("path", source.modules(), ids=source.label)


@every_module
def test_module_says_its_role_at_its_top(path: Path):
    header = ast.get_docstring(source.tree_of(path))
    assert header, f"{source.label(path)} has no docstring; say its role, its owner and its invariants"
    first = header.splitlines()[0]
    assert len(first.split()) >= 3, f"{source.label(path)}: {first!r} says too little"
    if path.name != "__init__.py":
        assert re.search(r"\brole\b|\bowner\b|\bpure\b|\binvariants\b|\n\n", header, re.IGNORECASE), (
            f"{source.label(path)}: its header names no role and no owner"
        )


@every_module
def test_file_is_short_or_says_why_not(path: Path):
    length = len(source.text_of(path).splitlines())
    header = ast.get_docstring(source.tree_of(path)) or ""
    assert length <= FILE_LINES or EXCUSE.search(header), (
        f"{source.label(path)} has {length} lines; past {FILE_LINES} its header says 'long because ...'"
    )


@every_module
def test_functions_fit_on_a_screen(path: Path):
    """Counted without the docstring, which may say as much as it needs."""
    long = []
    for node in ast.walk(source.tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node):
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if length > FUNCTION_LINES:
                long.append(f"line {node.lineno}: {node.name} has {length} lines")
    assert not long, "\n".join(long)


@every_module
def test_module_is_ready_for_late_annotations(path: Path):
    """Annotations are not evaluated at import: that is start-up time, and names for typing may be absent."""
    tree = source.tree_of(path)
    if any(isinstance(node, ast.AnnAssign | ast.FunctionDef) for node in ast.walk(tree)):
        assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
