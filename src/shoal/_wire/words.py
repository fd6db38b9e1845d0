"""The user's objects in words, for errors and reports. Imports nothing: maps of a few microseconds use it.

Role: short names and texts of callables and values. Owner: nobody; stateless. `repr` is code of the user.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it; importing `typing` would cost more than a small map
if TYPE_CHECKING:
    from typing import Any


def describe_callable(fn: Any) -> str:
    """Name a callable for people: ``f``, ``Model.predict``, ``partial(f)``."""
    name = getattr(fn, "__qualname__", None)
    if isinstance(name, str):
        return name.replace("<locals>.", "")
    inner = getattr(fn, "func", None)
    if inner is not None and inner is not fn:
        return f"{type(fn).__name__}({describe_callable(inner)})"
    return type(fn).__name__


def short(value: Any, limit: int = 60) -> str:
    """A `repr` for messages: bounded, on one line, and never failing."""
    try:
        text = " ".join(repr(value).split())
    except BaseException as error:
        text = f"<{type(value).__name__} whose repr() raised {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
