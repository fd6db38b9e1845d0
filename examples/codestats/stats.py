"""What one Python file consists of: the function a user would write. It knows nothing of shoal.

Try it on one file:   python -c "from examples.codestats.stats import parse_file; print(parse_file('setup.py'))"
On all of them:       shoal map examples/codestats/stats.py:parse_file 'src/**/*.py' -o codestats.jsonl
"""

from __future__ import annotations

import ast
import tokenize
import warnings
from typing import TypedDict


class LongestFunction(TypedDict):
    name: str
    lines: int


class FileStats(TypedDict):
    lines: int
    functions: int
    longest: LongestFunction | None
    imports: list[str]


def parse_file(path: str) -> FileStats:
    """Return lines, functions, the longest function and the imported top-level modules of `path`.

    Raises:
        SyntaxError: The file is not Python of this version.
        ValueError: The file holds something no Python file may, such as a null byte.
        OSError: The file cannot be read.
    """
    with tokenize.open(path) as file:  # honours the file's own "coding:" line
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "invalid escape sequence" and the like
        tree = ast.parse(source, filename=path)
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    longest = max(functions, key=length, default=None)
    return {
        "lines": source.count("\n") + (not source.endswith("\n") and bool(source)),
        "functions": len(functions),
        "longest": {"name": longest.name, "lines": length(longest)} if longest else None,
        "imports": sorted({name for node in nodes for name in imported(node)}),
    }


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines `function` has, its decorators included."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    return (function.end_lineno or first) - first + 1


def imported(node: ast.AST) -> list[str]:
    """Return the top-level modules `node` imports; a relative import names none."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.partition(".")[0]]
    return []
