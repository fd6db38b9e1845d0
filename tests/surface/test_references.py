"""What a comment or a document points to exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.surface import source

TEST_FILE = re.compile(r"(?<![\w/.])(tests/[\w/.-]*\w/?)(?:::(\w+))?")
HEADING = re.compile(r"(?<![\w:/.-])([\w./-]*\w\.md)#([\w-]+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")

CODE = [path for path in source.tracked_files() if path.suffix == ".py"]
DOCUMENTS = [path for path in source.tracked_files() if path.suffix == ".md"]


def slug(heading: str) -> str:
    """The anchor a Markdown reader gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", document.read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"""<a (?:id|name)=["']([\w-]+)""", document.read_text(encoding="utf-8"))
    return {slug(heading) for heading in headings} | set(named)


def defined_names(path: Path) -> set[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(source.tree_of(path)) if isinstance(node, kinds)}


def broken(text: str, home: Path) -> Iterator[str]:
    """Words for each reference in `text`, written in a file in the folder `home`, that leads nowhere."""
    for name, function in TEST_FILE.findall(text):
        target = ROOT / name.rstrip(".")
        if not target.exists():
            yield f"{name} does not exist"
        elif function and function not in defined_names(target):
            yield f"{name} has no {function}"
    for name, anchor in HEADING.findall(text):
        document = next((path for path in (home / name, ROOT / name) if path.is_file()), None)
        if document is None:
            yield f"{name} does not exist"
        elif anchor not in anchors(document):
            yield f"{name} has no heading #{anchor}"


@pytest.mark.parametrize("path", CODE, ids=source.label)
def test_comment_points_to_something_that_exists(path: Path):
    wrong = [
        f"line {line}: {words}"
        for line, text in source.comments_and_docstrings(path)
        for words in broken(text, path.parent)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", DOCUMENTS, ids=source.label)
def test_document_points_to_something_that_exists(path: Path):
    text = path.read_text(encoding="utf-8")
    wrong = list(broken(text, path.parent))
    for link in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = path.parent / name if name else path
        if not target.exists():
            wrong.append(f"{link} leads nowhere")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(f"{link}: there is no such heading")
    assert not wrong, "\n".join(wrong)


def test_the_reference_test_sees_what_leads_nowhere():
    folder = "tests/"  # in pieces, so that this file does not hold the references it invents
    assert list(broken(f"see {folder}surface/test_gone.py.", ROOT)) == [f"{folder}surface/test_gone.py does not exist"]
    assert list(broken(f"see {folder}surface/test_sizes.py::test_gone", ROOT))
    assert list(broken("see GONE.md" + "#states", ROOT)) == ["GONE.md does not exist"]
    assert list(broken("see CHANGELOG.md" + "#gone", ROOT)) == ["CHANGELOG.md has no heading #gone"]
    assert not list(broken(f"see {folder}surface/test_sizes.py and {folder}unit/.", ROOT))
    assert not list(broken("see CHANGELOG.md" + "#changes", ROOT))
