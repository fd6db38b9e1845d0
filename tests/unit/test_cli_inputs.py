"""Words become inputs; what cannot become any is refused before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.cli import inputs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.csv", "a.csv", "deep/er/c.csv", "deep/d.txt", ".hidden.csv", "odd[1].csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    """Give bytes to standard input; the real one is put back."""
    kept = os.dup(0)

    def give(data: bytes) -> None:
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        os.dup2(read, 0)
        os.close(read)

    yield give
    os.dup2(kept, 0)
    os.close(kept)


def given(*words: str, output: str | None = None) -> tuple[list[str], int | None]:
    collected = inputs.collect(words, output=output)
    return list(collected.items), collected.total


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["*.csv"], ["a.csv", "b.csv", "odd[1].csv"]),
        (["**/*.csv"], ["a.csv", "b.csv", "deep/er/c.csv", "odd[1].csv"]),
        (["deep/**"], ["deep/d.txt", "deep/er/c.csv"]),
        (["deep/*/"], ["deep/er/"]),
        (["?.csv"], ["a.csv", "b.csv"]),
        (["[b]*"], ["b.csv"]),
        (["odd[1].csv"], ["odd[1].csv"]),
        (["b.csv", "a.csv"], ["b.csv", "a.csv"]),
        (["17", "https://host/page"], ["17", "https://host/page"]),
        (["b*", "deep/**/*.csv"], ["b.csv", "deep/er/c.csv"]),
    ],
)
def test_words_become_inputs_counted_ahead(here, words, expected):
    assert given(*words) == (expected, len(expected))


def test_list_file_gives_its_lines_and_their_number(here):
    Path("list.txt").write_bytes(b"one\n\ntwo words\r\nthree")
    assert given("@list.txt", "last") == (["one", "two words", "three", "last"], 4)


def test_standard_input_gives_its_lines_uncounted(here, stdin):
    stdin(b"first\n\n  kept blanks \nlast")
    assert given("-") == (["first", "  kept blanks ", "last"], None)


def test_bytes_that_are_not_utf8_survive(here, stdin):
    stdin(b"caf\xe9.csv\n")
    items, _ = given("-")
    assert os.fsencode(items[0]) == b"caf\xe9.csv"


def test_line_longer_than_one_read_arrives_whole(here):
    Path("list.txt").write_text("x" * 300_000 + "\ny\n", encoding="utf-8")
    items, _ = given("@list.txt")
    assert [len(item) for item in items] == [300_000, 1]


def test_list_that_is_a_pipe_is_read_once_and_not_counted(here):
    read, write = os.pipe()
    os.write(write, b"a\nb\n")
    os.close(write)
    assert given(f"@/dev/fd/{read}") == (["a", "b"], None)
    os.close(read)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["*.zip"], "no file matches '*.zip'"),
        (["a.csv", "x/**/*.csv"], "no file matches 'x/**/*.csv'"),
        (["dee*"], "'dee*' matches folders only"),
        (["@gone.txt"], "cannot read the list of inputs gone.txt: No such file or directory"),
        (["@deep"], "cannot read the list of inputs deep: it is a folder"),
        (["-", "a.csv", "-"], "'-' is given twice"),
    ],
)
def test_words_that_give_nothing_are_refused(here, words, said):
    with pytest.raises(inputs.InputError) as caught:
        inputs.collect(words)
    assert said in str(caught.value)


def test_output_that_is_an_input_is_refused(here):
    with pytest.raises(inputs.InputError, match="would destroy it"):
        inputs.collect(["*.csv"], output="./a.csv")
    assert given("*.csv", output="new.csv")[1] == 3
