"""The repository speaks of shoal alone: no paths of the machine it was written on, no hosts it was fetched from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.surface import source

# Each in pieces, so that this file passes its own test.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.$~})-])/(?:ro" + r"ot|wo" + r"rk|home/\w+|Users/\w+)(?:/|\b)(?!\w)"),
    "a folder of packages on one machine": re.compile("/opt/" + "(?:pypi|wheels)"),
    "a host packages are fetched from": re.compile(
        r"\b(?:py" + r"pi\.org|files\.python" + r"hosted\.org|test\.py" + r"pi\.org|conda\.ana" + r"conda\.org)\b"
        r"|--(?:extra-)?index-" + "url|--find-" + "links"
    ),
    "an unfinished thought": re.compile(r"\b(?:FIX" + "ME|XX" + "X|TO" + r"DO)\b"),
    "a private address": re.compile(r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}\b"),
}


@pytest.mark.parametrize("path", source.tracked_files(), ids=source.label)
def test_file_holds_nothing_of_the_machine_it_was_written_on(path: Path):
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    found = [
        f"line {number}: {what}: {line.strip()[:160]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("open('/ro" + "ot/x')", True),
        ("cd /wo" + "rk/main", True),
        ("/home/" + "me/data.csv", True),
        ("https://py" + "pi.org/simple", True),
        ("see docs/work/ and ~/root", False),
        ("$HOME/.pyenv/versions", False),
        ("a / root of 2", False),
    ],
)
def test_the_word_test_knows_a_path_when_it_sees_one(text, forbidden):
    assert any(pattern.search(text) for pattern in FORBIDDEN.values()) is forbidden
