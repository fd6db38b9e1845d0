"""A main script without its guard, where supervisors and actors are concerned.

Role: find it in the thread whose code is at fault; the starts, in threads of their own, cannot see that. Owner: nobody.
"""

from __future__ import annotations

from shoal._os.interpreter import unguarded_import


def check_main_guard() -> None:
    """Refuse to begin while a child imports the main script. Raises MainGuardMissing."""
    place = unguarded_import()
    if place is not None:
        from shoal.errors import MainGuardMissing

        raise MainGuardMissing(script=place)


def is_guard_error(error: BaseException | None) -> bool:
    """Whether this is that error; told by its name, so that nothing has to be loaded for it."""
    return type(error).__name__ == "MainGuardMissing"
