"""What a Process may be given.

Role: refuse it where it is given, with what would be right. Owner: nobody.
"""

from __future__ import annotations

from shoal._os.latch import StopEvent


def check(cls: type | None, group: object, name: object, daemon: object, capture: object) -> None:
    """Refuse what `multiprocessing` refuses for a Process, or a subclass `cls`, and what means nothing. Raises AssertionError, TypeError, ValueError."""
    if group is not None:
        own = f"; a {cls.__name__} has no __init__ of its own that would take arguments" if cls is not None else ""
        raise AssertionError(
            f"the first argument is group, which is None, not {group!r}: give a function as target=, its arguments as args={own}"
        )
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be text, not {name!r}")
    check_daemon(daemon)
    check_capture(capture)


def check_capture(capture: object) -> None:
    """Refuse what cannot be meant by `capture`. Raises ValueError."""
    if capture not in (True, False, "prefix", "inherit"):
        raise ValueError(f"capture must be True, False, 'prefix' (as True) or 'inherit' (as False), not {capture!r}")


def check_daemon(daemon: object) -> None:
    """Refuse what is neither yes nor no. Raises TypeError."""
    if daemon not in (None, True, False):
        raise TypeError(f"daemon must be True or False, not {daemon!r}")


def not_ours(name: str) -> StopEvent:
    """Return the `stopping` of a process that was not started here: setting it is refused. Raises nothing itself."""

    def refuse() -> None:
        raise RuntimeError(f"{name} was not started by this process, so it cannot be asked to stop")

    return StopEvent(refuse)
