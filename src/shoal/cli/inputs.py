"""Turn the INPUTS of a command line into the inputs of the tasks.

Role: globs, plain words, `@file` and `-` to one stream of texts, counted ahead where that is possible.
Owner: the commands. The stream is consumed by the feeder thread of `flow.py`.

Invariants
    I1  Everything that can be wrong with the words themselves is found by `collect`, before any task runs.
    I2  Standard input is read by `os.read` alone: a thread asleep in it holds no lock, so the program can end.
    I3  Bytes that are not UTF-8 survive as surrogates, so that any file name can be opened again.
"""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

_GLOB_CHARACTERS = frozenset("*?[")
_READ_BYTES = 1 << 16


class InputError(Exception):
    """The inputs cannot be used. The text says what was wrong, and a hint where there is one."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A stream of inputs and, when known, how many it will give."""

    items: Iterator[str]
    total: int | None


def collect(words: Iterable[str], *, output: str | None = None) -> Inputs:
    """Return what `words` stand for, in their order.

    A word is `-` (lines of standard input), `@file` (lines of a file), a glob (its files, sorted; its folders
    if it ends in a slash), or itself.

    Raises:
        InputError: A glob matches nothing, a list cannot be read, `-` is given twice, or `output` is an input.
    """
    words = list(words)
    if words.count("-") > 1:
        raise InputError("'-' is given twice, but standard input can be read once")
    avoid = os.path.realpath(output) if output is not None and output != "-" else None
    parts = [_expand(word, avoid) for word in words]
    totals = [part.total for part in parts]
    total = sum(count for count in totals if count is not None)
    return Inputs(chain.from_iterable(part.items for part in parts), None if None in totals else total)


def _expand(word: str, avoid: str | None) -> Inputs:
    if word == "-":
        return Inputs(_lines(0), None)
    if word.startswith("@") and len(word) > 1:
        return _listed(word[1:])
    found = [word] if _GLOB_CHARACTERS.isdisjoint(word) or os.path.lexists(word) else _matches(word)
    if avoid is not None and os.path.exists(avoid):
        clash = next((path for path in found if os.path.realpath(path) == avoid), None)
        if clash is not None:
            raise InputError(f"{clash} is an input and the output; writing it would destroy it")
    return Inputs(iter(found), len(found))


def _matches(pattern: str) -> list[str]:
    found = glob.glob(os.path.expanduser(pattern), recursive=True)
    if not found:
        shown = "'" + pattern + "'"
        hint = "a glob leaves out names that start with a dot; '**' stands for folders of any depth"
        raise InputError(
            f"no file matches {shown}\nhint: {hint}\nhint: to pass such a text as it is, give it on standard input"
        )
    if pattern.endswith(os.sep):
        return sorted(found)
    files = sorted(path for path in found if not os.path.isdir(path))
    if not files:
        raise InputError(
            f"'{pattern}' matches folders only\nhint: end it in a slash to pass the folders, or in /** to go into them"
        )
    return files


def _listed(path: str) -> Inputs:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"cannot read the list of inputs {path}: it is a folder")
        if not stat.S_ISREG(mode):
            return Inputs(_file_lines(path), None)  # a pipe, as in @<(find …): counting it would use it up
        return Inputs(_file_lines(path), sum(1 for _ in _file_lines(path)))
    except OSError as error:
        raise InputError(f"cannot read the list of inputs {path}: {error.strerror}") from None


def _file_lines(path: str) -> Iterator[str]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from _lines(descriptor)
    finally:
        os.close(descriptor)


def _lines(descriptor: int) -> Iterator[str]:
    """Yield the lines of an open file without their ends; empty lines are left out."""
    rest = b""
    while chunk := _read(descriptor):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if text := line.removesuffix(b"\r"):
                yield text.decode("utf-8", "surrogateescape")
    if text := rest.removesuffix(b"\r"):
        yield text.decode("utf-8", "surrogateescape")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError as error:
        raise InputError(f"the inputs cannot be read any further: {error.strerror}") from None


def reads_terminal(words: Iterable[str]) -> bool:
    """Tell whether somebody is expected to type the inputs."""
    return "-" in words and sys.stdin is not None and sys.stdin.isatty()
