"""What a map was given, and the places of its results. Imports nothing: maps of a few microseconds use it.

Role: arguments to a sequence of items; the two values that stand for no result. Owner: nobody.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it; importing `typing` would cost more than a small map
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


class _Mark:
    """A value no user's function can return."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


#: In the place of a result that is not there yet, or never will be.
PENDING, FAILED = _Mark("<pending>"), _Mark("<failed>")


def as_items(iterables: tuple[Iterable[Any], ...]) -> tuple[Sequence[Any], bool]:
    """Return (items, star) of a map's arguments, taken now so that later changes do not matter."""
    if len(iterables) == 1:
        only = iterables[0]
        return (only if isinstance(only, range | tuple) else list(only)), False
    return list(zip(*iterables, strict=False)), True
