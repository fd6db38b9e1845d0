"""Rows are whole lines at every instant, and a result that JSON cannot say is written all the same."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import json
import os
from pathlib import Path

import pytest

from shoal.cli import output
from shoal.cli.flow import Outcome
from shoal.cli.report import Failure


@dataclasses.dataclass
class Point:
    x: int
    y: set[int]


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


FAILURE = Failure("ValueError", 'not a "number",\nreally', "in f (a.py:3)", "")


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture
def write(tmp_path: Path):
    """Write results to a file of the given name; returns its text and the notices."""

    def run(name: str, *results: object) -> tuple[str, list[str]]:
        notices: list[str] = []
        path = tmp_path / name
        writer = output.open_writer(str(path), -1, notices.append, None)
        for index, result in enumerate(results):
            failure = result if isinstance(result, Failure) else None
            writer.write(Outcome(index, f"in{index}", None if failure else result), failure)
        writer.close()
        return path.read_bytes().decode("utf-8", "surrogateescape") if not name.endswith(".parquet") else str(
            path
        ), notices

    return run


def test_json_rows_hold_the_input_and_the_result_or_the_error(write):
    text, notices = write("o.jsonl", 3, FAILURE, {"a": [1, None]})
    assert [json.loads(line) for line in text.splitlines()] == [
        {"input": "in0", "result": 3},
        {"input": "in1", "error": {"type": "ValueError", "message": 'not a "number",\nreally'}},
        {"input": "in2", "result": {"a": [1, None]}},
    ]
    assert notices == []


@pytest.mark.parametrize(
    ("result", "written", "told"),
    [
        ((1, "é"), [1, "é"], ""),
        ({3, 1, 2}, [1, 2, 3], ""),
        (Point(1, {2}), {"x": 1, "y": [2]}, ""),
        (Path("a/b"), "a/b", ""),
        (dt.date(2024, 5, 6), "2024-05-06", ""),
        ({(1, 2): 3, None: 4, 5: 6}, {"(1, 2)": 3, "null": 4, "5": 6}, ""),
        (Odd(), "<odd>", "results hold Odd"),
        ({"deep": [Odd()]}, {"deep": ["<odd>"]}, "results hold Odd"),
        (b"raw", "b'raw'", "results hold bytes"),
        (Point, repr(Point), "results hold type"),
        (float("nan"), None, "JSON has no NaN"),
        ([1.5, float("inf")], [1.5, None], "JSON has no NaN"),
    ],
)
def test_result_becomes_what_json_can_say(write, result, written, told):
    text, notices = write("o.jsonl", result, result)
    assert [json.loads(line)["result"] for line in text.splitlines()] == [written, written]
    assert len(notices) == bool(told)
    assert told in "".join(notices)


def test_result_nested_without_end_is_written_as_text(write):
    text, notices = write("o.jsonl", nested(100_000), 1)
    rows = [json.loads(line) for line in text.splitlines()]
    assert isinstance(rows[0]["result"], str)
    assert rows[1] == {"input": "in1", "result": 1}
    assert "nested too deeply" in notices[0]


def test_input_that_is_not_utf8_gives_valid_json(tmp_path):
    writer = output.open_writer(str(tmp_path / "o.jsonl"), -1, print, None)
    writer.write(Outcome(0, os.fsdecode(b"caf\xe9"), "ü"), None)
    writer.close()
    row = json.loads((tmp_path / "o.jsonl").read_text(encoding="utf-8"))
    assert os.fsencode(row["input"]) == b"caf\xe9"
    assert row["result"] == "ü"


def test_csv_columns_are_the_keys_of_the_first_result(write, tmp_path):
    text, notices = write("o.csv", FAILURE, {"n": 1, "tags": ["a"]}, {"n": None, "extra": 2}, FAILURE)
    assert list(csv.reader(text.splitlines(keepends=True))) == [
        ["input", "n", "tags", "error_type", "error_message", "more"],
        ["in0", "", "", "ValueError", 'not a "number",\nreally', ""],
        ["in1", "1", '["a"]', "", "", ""],
        ["in2", "", "", "", "", '{"extra": 2}'],
        ["in3", "", "", "ValueError", 'not a "number",\nreally', ""],
    ]
    assert len(notices) == 1
    assert "differ in their keys" in notices[0]


@pytest.mark.parametrize("results", [[], [FAILURE], [5, "text", None, [1]]])
def test_csv_has_a_header_whatever_the_results(write, results):
    rows = list(csv.reader(write("o.csv", *results)[0].splitlines(keepends=True)))
    assert rows[0] == ["input", "result", "error_type", "error_message", "more"]
    assert len(rows) == 1 + len(results)


def test_csv_does_not_wait_for_a_first_result_for_ever(write):
    text, _ = write("o.csv", *[FAILURE] * 1500, {"late": 1})
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert len(rows) == 1502
    assert rows[-1][1] == '{"late": 1}'


def test_parquet_columns_have_the_types_of_the_results(write, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path, _ = write("o.parquet", {"n": 1, "mixed": 1}, {"n": 2.5, "mixed": "a", "flag": True}, FAILURE)
    table = parquet.read_table(path)
    assert table.to_pylist()[1] == {
        "input": "in1",
        "n": 2.5,
        "mixed": '"a"',
        "flag": True,
        "error_type": None,
        "error_message": None,
    }
    assert table.to_pylist()[2]["error_type"] == "ValueError"
    assert os.listdir(tmp_path) == ["o.parquet"]


@pytest.mark.parametrize(
    ("path", "said"), [("out.txt", "cannot tell the format of out.txt"), ("out", "cannot tell the format of out")]
)
def test_unknown_ending_is_refused(path, said):
    with pytest.raises(output.OutputError, match=said):
        output.check_path(path)


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(output.OutputError, match="No such file or directory"):
        output.open_writer(str(tmp_path / "gone" / "o.jsonl"), -1, print, None)


def test_file_holds_whole_lines_only_before_and_after_every_flush(tmp_path):
    """O1: whoever kills the program finds a file that can be read up to its last line."""
    path = tmp_path / "o.jsonl"
    writer = output.open_writer(str(path), -1, print, None)
    for index in range(3000):
        writer.write(Outcome(index, "x" * 50, "y" * 50), None)
        if index % 100 == 0:
            text = path.read_bytes()
            assert text == b"" or text.endswith(b"}\n")
    writer.close()
    assert len(path.read_bytes().splitlines()) == 3000


def test_full_disk_is_told_in_words(tmp_path):
    writer = output.JsonLines(output._Lines(os.open("/dev/full", os.O_WRONLY), "out.jsonl"), print)
    writer.write(Outcome(0, "a", 1), None)
    with pytest.raises(output.OutputError, match="cannot write out.jsonl: No space left on device"):
        writer.close()
