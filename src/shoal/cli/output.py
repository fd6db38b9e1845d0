"""Write outcomes as they arrive: JSON lines, CSV, or Parquet.

Role: one writer per format behind one small interface, and the rules for results JSON has no words for.
Owner: the main thread.

Invariants
    O1  A file is made of whole lines at every instant: lines are collected here and handed to the system together.
    O2  What a result becomes is the same in every format: `plain` decides.
    O3  A Parquet file cannot be read until it is complete, so its rows live in a JSON lines file until then.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from shoal.cli.flow import Outcome
from shoal.cli.report import Failure

_BUFFER_BYTES = 1 << 16
#: Rows a CSV file may hold back until the first result tells the columns.
_HEADER_WAIT_ROWS = 1000
_PARQUET_GROUP_ROWS = 20_000

Notice = Callable[[str], None]
Row = dict[str, Any]


class Writer(Protocol):
    """Takes outcomes; `failure` is given when the outcome is an error."""

    def write(self, outcome: Outcome, failure: Failure | None) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class OutputError(Exception):
    """The output cannot be written. The text says what was wrong, and a hint where there is one."""


# --- what a result becomes ------------------------------------------------------------------------


class Plain:
    """Turn results into what JSON can say; what it cannot becomes its `repr`, with one notice."""

    def __init__(self, notice: Notice) -> None:
        self._notice = notice
        self._told: set[str] = set()

    def json(self, row: Row) -> str:
        """Return one line of JSON."""
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            text = json.dumps(
                {key: self.result(part) for key, part in row.items()}, ensure_ascii=False, allow_nan=False
            )
        try:
            text.encode()
        except UnicodeEncodeError:  # a file name that is not UTF-8
            return json.dumps(json.loads(text), ensure_ascii=True)
        return text

    def result(self, value: Any) -> Any:
        """Return `value` as JSON's own types, whatever it is."""
        try:
            return self._value(value)
        except RecursionError:
            self._tell("deep", "a result is nested too deeply for JSON; its repr is written instead")
            return _shallow(value)

    def _value(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return self._number(value)
        if isinstance(value, dict):
            return {key if isinstance(key, str) else self._key(key): self._value(part) for key, part in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value(part) for part in (_in_order(value) if isinstance(value, set | frozenset) else value)]
        return self._other(value)

    def _number(self, value: float) -> float | None:
        if math.isfinite(value):
            return float(value)
        self._tell("nan", "JSON has no NaN or infinity; null is written instead")
        return None

    def _key(self, key: Any) -> str:
        return json.dumps(key) if key is None or isinstance(key, bool | int | float) else str(key)

    def _other(self, value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        for method in ("isoformat", "tolist"):  # dates and times; arrays and their numbers
            if callable(change := getattr(value, method, None)):
                try:
                    return self._value(change())
                except (TypeError, ValueError):
                    break
        if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
            return {name: self._value(getattr(value, name)) for name in value.__dataclass_fields__}
        self._tell(
            "repr", f"results hold {type(value).__qualname__}, which JSON cannot say; its repr is written instead"
        )
        return repr(value)

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._notice(text)


def _shallow(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return f"<{type(value).__qualname__}, nested too deeply>"


def _in_order(values: set[Any] | frozenset[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def as_row(outcome: Outcome, failure: Failure | None) -> Row:
    """Return an outcome as a row of JSON lines."""
    if failure is not None:
        return {"input": outcome.input, "error": {"type": failure.type, "message": failure.message}}
    return {"input": outcome.input, "result": outcome.result}


# --- formats --------------------------------------------------------------------------------------


class _Lines:
    """Whole lines to a descriptor, or to `show` when that is a screen somebody else draws on."""

    def __init__(self, descriptor: int, name: str, show: Callable[[str], None] | None = None) -> None:
        self._descriptor = descriptor
        self._name = name
        self._show = show
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, text: str) -> None:
        try:
            line = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            line = text.encode("utf-8", "backslashreplace")
        self._waiting.append(line)
        self._size += len(line)
        if self._size >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        data = memoryview(b"".join(self._waiting))
        self._waiting.clear()
        self._size = 0
        if self._show is not None:
            self._show(bytes(data).decode("utf-8", "replace"))
            return
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {self._name}: {error.strerror}") from None

    def close(self) -> None:
        try:
            self.flush()
        finally:
            os.close(self._descriptor)


class JsonLines:
    def __init__(self, lines: _Lines, notice: Notice) -> None:
        self._lines = lines
        self._plain = Plain(notice)

    def write(self, outcome: Outcome, failure: Failure | None) -> None:
        self._lines.add(self._plain.json(as_row(outcome, failure)) + "\n")

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


class Csv:
    """Columns `input`, then the keys of the first result (or `result`), then `error_type` and `error_message`.

    A later result's other keys go into a last column, `more`, as JSON: a header cannot be changed once it is written.
    """

    def __init__(self, lines: _Lines, notice: Notice) -> None:
        self._lines = lines
        self._plain = Plain(notice)
        self._notice = notice
        self._columns: list[str] | None = None
        self._held: list[tuple[Outcome, Failure]] = []
        self._told = False

    def write(self, outcome: Outcome, failure: Failure | None) -> None:
        if self._columns is None:
            if failure is not None and len(self._held) < _HEADER_WAIT_ROWS:
                self._held.append((outcome, failure))
                return
            self._begin(None if failure is not None else self._plain.result(outcome.result))
        self._row(outcome, failure)

    def _begin(self, first: Any) -> None:
        keys = [str(key) for key in first] if isinstance(first, dict) and first else ["result"]
        self._columns = keys
        self._cells(["input", *keys, "error_type", "error_message", "more"])
        for outcome, failure in self._held:
            self._row(outcome, failure)
        self._held.clear()

    def _row(self, outcome: Outcome, failure: Failure | None) -> None:
        columns = self._columns or []
        if failure is not None:
            self._cells([outcome.input, *[""] * len(columns), failure.type, failure.message, ""])
            return
        result = self._plain.result(outcome.result)
        parts = result if isinstance(result, dict) and columns != ["result"] else {"result": result}
        more = {key: value for key, value in parts.items() if key not in columns}
        if more and not self._told:
            self._told = True
            self._notice("results differ in their keys; what the first one lacks is in the column `more`, as JSON")
        cells = [_cell(parts.get(column)) for column in columns]
        self._cells([outcome.input, *cells, "", "", json.dumps(more, ensure_ascii=False) if more else ""])

    def _cells(self, cells: list[str]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        self._lines.add(text.getvalue())

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        if self._columns is None:
            self._begin(None)
        self._lines.close()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Parquet:
    """Columns as in CSV. Rows are kept beside the file as JSON lines and become Parquet at the end (O3)."""

    def __init__(self, path: str, notice: Notice) -> None:
        self._path = path
        self._rows = f"{path}.rows.jsonl"
        self._lines = JsonLines(_Lines(_created(self._rows), self._rows), notice)

    def write(self, outcome: Outcome, failure: Failure | None) -> None:
        self._lines.write(outcome, failure)

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()
        try:
            _to_parquet(self._rows, self._path)
        except Exception as error:
            raise OutputError(
                f"cannot write {self._path}: {error}\nhint: nothing is lost: the rows are in {self._rows}"
            ) from error
        os.unlink(self._rows)


def _flat_rows(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            error = row.get("error")
            result = row.get("result")
            flat = {"input": row["input"]}
            if error is not None:
                flat |= {"error_type": error["type"], "error_message": error["message"]}
            elif isinstance(result, dict):
                flat |= {
                    key if key not in ("input", "error_type", "error_message") else f"result_{key}": result[key]
                    for key in result
                }
            else:
                flat["result"] = result
            yield flat


def _to_parquet(rows: str, path: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, set[type]] = {"input": {str}}
    for row in _flat_rows(rows):
        for name, value in row.items():
            kinds.setdefault(name, set()).add(type(value))
    kinds.setdefault("error_type", {str})
    kinds.setdefault("error_message", {str})
    arrow = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    types = {name: _column_type(seen) for name, seen in kinds.items()}
    schema = pa.schema([(name, arrow[kind or str]) for name, kind in types.items()])
    with pq.ParquetWriter(path, schema) as file:
        group: list[Row] = []
        for row in _flat_rows(rows):
            group.append({name: _arrow_cell(row.get(name), kind) for name, kind in types.items()})
            if len(group) >= _PARQUET_GROUP_ROWS:
                file.write_table(pa.Table.from_pylist(group, schema))
                group.clear()
        file.write_table(pa.Table.from_pylist(group, schema))


def _column_type(seen: set[type]) -> type | None:
    """Return the one type a column can have, or None for JSON text."""
    seen = seen - {type(None)}
    if seen == {int, float}:
        return float
    return next(iter(seen)) if len(seen) == 1 and seen <= {bool, int, float, str} else None


def _arrow_cell(value: Any, kind: type | None) -> Any:
    if value is None:
        return None
    return kind(value) if kind is not None else json.dumps(value, ensure_ascii=False)


# --- which one ------------------------------------------------------------------------------------


def check_path(path: str | None) -> None:
    """Refuse an output that cannot work, before anything else is done.

    Raises:
        OutputError: The ending is not one we write, or what it needs is not installed.
    """
    if path is None or path == "-" or path.endswith((".jsonl", ".ndjson", ".csv")):
        return
    if path.endswith(".parquet"):
        import importlib.util

        if importlib.util.find_spec("pyarrow") is None:
            raise OutputError(
                "writing .parquet needs pyarrow, which is not installed\nhint: pip install pyarrow, or write .jsonl"
            )
        return
    raise OutputError(f"cannot tell the format of {path}\nhint: end it in .jsonl, .csv or .parquet")


def open_writer(path: str | None, descriptor: int, notice: Notice, show: Callable[[str], None] | None) -> Writer:
    """Return the writer for `path`, or one of JSON lines to `descriptor` when there is no path."""
    if path is None or path == "-":
        return JsonLines(_Lines(descriptor, "to standard output", show), notice)
    if path.endswith(".parquet"):
        return Parquet(path, notice)
    lines = _Lines(_created(path), path)
    return Csv(lines, notice) if path.endswith(".csv") else JsonLines(lines, notice)


def _created(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def claim_stdout() -> int:
    """Return a descriptor for results; whatever else is printed from here on goes to standard error.

    A user's function may print. On the standard output that would end up between the rows, where no reader expects it.
    """
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    return results
