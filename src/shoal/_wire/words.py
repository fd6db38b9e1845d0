"""The user's objects in words, for errors and reports. Imports nothing: maps of a few microseconds use it.

Role: short names and texts of callables and values. Owner: nobody; stateless. `repr` is code of the user.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it; importing `typing` would cost more than a small map
if TYPE_CHECKING:
    from collections.abc import Callable
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


def describe_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Write a call as in source, shortened: ``resize(path='a.png')``."""
    parts = [short(value, 40) for value in args[:4]]
    if len(args) > len(parts):
        parts.append("…")
    parts += [f"{key}={short(value, 40)}" for key, value in list(kwargs.items())[:4]]
    return f"{name}({', '.join(parts)})"


def note_task(error: BaseException, index: int, label: Callable[[], str]) -> None:
    """Write on an error which task of a map it belongs to."""
    try:
        if not any(note.startswith("in task ") for note in getattr(error, "__notes__", ())):
            error.add_note(f"in task {index} of the map: {label()}")
    except Exception:
        return  # a class may refuse attributes; the note is not worth an error
