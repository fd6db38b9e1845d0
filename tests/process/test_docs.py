"""What the documents show is what happens: their programs run, their output is the real one, their links resolve.

Role: read README.md and docs/**, run what is fenced as `python`, compare with what is fenced as `text` behind it.
Owner: pytest.

Rules for who writes documents
    P1  A `python` block with `import shoal` is a whole program; `# name.py` as its first line names its file.
    P2  Any other `python` block is a piece: it runs with `pool`, an open pool of two workers, under the main guard.
    P3  The block after it, if fenced as `text`, is what both its streams say. `...` stands for anything; numbers that
        differ from run to run (process ids, worker numbers, sizes, addresses, paths) are compared by kind only.
    P4  A program ends with 0, unless the output shown ends in a traceback.
    P5  Programs of one page share a folder, so a later one may import an earlier one.
"""

from __future__ import annotations

import concurrent.futures
import doctest
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
#: Where documents say that a program stands; the folder it really ran in is replaced by it.
PLACE = "/project"
#: A program that takes this long hangs. Seconds.
PROGRAM_LIMIT_S = 30.0

#: What differs from run to run, and what it is compared as.
CHANGING = [
    (re.compile(r"\bpid \d+"), "pid N"),
    (re.compile(r"\bworker \d+"), "worker N"),
    (re.compile(r"\b[\d.]+ [KMG]iB\b"), "N MiB"),
    (re.compile(r"0x[0-9a-f]+"), "0xN"),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
]

PIECE = """\
import shoal

if __name__ == "__main__":
    with shoal.Pool(2) as pool:
{}
"""


@dataclass(frozen=True)
class Sample:
    """One program of a page, and what the page says it prints."""

    line: int
    name: str
    code: str
    shown: str | None


def samples(page: Path) -> list[Sample]:
    text = page.read_text(encoding="utf-8")
    blocks = list(FENCE.finditer(text))
    found = []
    for index, block in enumerate(blocks):
        if block[1] != "python":
            continue
        after = blocks[index + 1] if index + 1 < len(blocks) else None
        shown = after[2] if after is not None and after[1] == "text" else None
        line = text.count("\n", 0, block.start()) + 1
        named = re.match(r"# (\w+\.py)\n", block[2])
        whole = named or re.search(r"^import shoal$", block[2], re.MULTILINE)
        code = block[2] if whole else PIECE.format(textwrap.indent(block[2], " " * 8))
        found.append(Sample(line, named[1] if named else f"line_{line}.py", code, shown))
    return found


def run(sample: Sample, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, sample.name],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PROGRAM_LIMIT_S,
    )


def plain(text: str, folder: Path | None = None) -> str:
    if folder is not None:
        text = text.replace(str(folder), PLACE).replace(str(ROOT), "/shoal")
    for pattern, kind in CHANGING:
        text = pattern.sub(kind, text)
    return text


def complaint(page: Path, sample: Sample, ended: subprocess.CompletedProcess[str], folder: Path) -> str | None:
    where = f"{page.relative_to(ROOT)}, line {sample.line}"
    shown, got = plain(sample.shown or ""), plain(ended.stdout, folder)
    may_fail = "Traceback (most recent call last):" in shown
    if ended.returncode and not may_fail:
        return f"{where}: ended with {ended.returncode} and said\n{got}"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if sample.shown is not None and not doctest.OutputChecker().check_output(shown, got, flags):
        return f"{where}: shown is\n{textwrap.indent(shown, '  | ')}but it said\n{textwrap.indent(got, '  | ')}"
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if samples(page)], ids=lambda page: page.stem)
def test_programs_of_the_page_run_and_print_what_it_shows(page, tmp_path):
    programs = samples(page)
    for sample in programs:
        (tmp_path / sample.name).write_text(sample.code, encoding="utf-8")
    with concurrent.futures.ThreadPoolExecutor(2) as two:
        ended = two.map(lambda sample: run(sample, tmp_path), programs)
        wrong = [complaint(page, *both, tmp_path) for both in zip(programs, ended, strict=True)]
    assert not any(wrong), "\n".join(filter(None, wrong))


def headings(document: Path) -> set[str]:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    found = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def dead_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists():
            yield f"{link} leads nowhere"
        elif anchor and anchor not in headings(target):
            yield f"{link}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_the_page_lead_somewhere(page):
    assert not list(dead_links(page))


def test_every_page_can_be_reached_from_the_first():
    reached, left = set(), [ROOT / "docs" / "index.md"]
    while left:
        page = left.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        names = [link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]
        left += [page.parent / name for name in names if name and ":" not in name]
    missing = {page.resolve() for page in PAGES} - reached
    assert not missing, f"no page links to {sorted(map(str, missing))}"


def test_the_reference_is_what_the_docstrings_say():
    """`python docs/build_reference.py` writes it again."""
    checked = subprocess.run(
        [sys.executable, "docs/build_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_a_sample_is_taken_for_what_it_is(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\n# a.py\nprint(1)\n```\n\n```text\n1\n```\n\n```python\npool\n```\n\n```\nx\n```\n")
    named, piece = samples(page)
    assert (named.name, named.shown) == ("a.py", "1\n")
    assert (piece.line, piece.shown) == (10, None)
    assert piece.code.endswith("        pool\n\n")


def test_output_that_differs_is_a_complaint(tmp_path):
    sample = Sample(1, "a.py", "", "worker 1 (pid 2)\n...\nend\n")
    page = ROOT / "README.md"
    same = subprocess.CompletedProcess([], 0, "worker 7 (pid 88)\nanything\nend\n")
    assert complaint(page, sample, same, tmp_path) is None
    assert complaint(page, sample, subprocess.CompletedProcess([], 0, "worker 7 (pid 88)\nend of it\n"), tmp_path)
    assert complaint(page, sample, subprocess.CompletedProcess([], 1, same.stdout), tmp_path)
