"""The errors of the pool that take some finding out.

Role: from what went wrong to the error the user sees. Owner: nobody; stateless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal._os.interpreter import main_module
from shoal.errors import (
    InitializerFailed,
    MainGuardMissing,
    NoSharedMemory,
    RemoteError,
    RemoteTraceback,
    ShoalError,
    StartFailed,
)

if TYPE_CHECKING:
    from shoal._pool.jobs import Job


def unreadable(job: Job, index: int, error: BaseException) -> ShoalError:
    """A result arrived and cannot be rebuilt here."""
    return unreadable_value(f"the result of {job.label(index)}", error)


def unreadable_value(what: str, error: BaseException) -> ShoalError:
    """`what` arrived and cannot be rebuilt here."""
    import traceback

    if isinstance(error, NoSharedMemory):
        return error

    failure = RemoteError(
        type_name=type(error).__name__,
        message=str(error),
        traceback_text="".join(traceback.format_exception(error)),
        why=f"{what} cannot be rebuilt in this process",
        hint="return plain data, or a class whose __reduce__ works here",
    )
    failure.__cause__ = error
    return failure


def start_error(kind: str, reason: str, text: str | None, what: str = "worker") -> ShoalError:
    """Say why no worker, or `what` it is, can be had. `kind`: start, main, guard or initializer."""
    if kind == "initializer":
        return InitializerFailed(reason=reason, traceback_text=text)
    main = main_module()
    script = main.path or main.name or "the main script"
    if kind == "guard":
        return MainGuardMissing(script=script, traceback_text=text)
    if kind == "main":
        last = (text or reason).strip().splitlines()[-1]
        failure = StartFailed(
            reason=f"a {what} cannot import {script}: {last}",
            hint='put code that only the program itself may run under  if __name__ == "__main__":',
            what=what,
        )
        failure.__cause__ = RemoteTraceback(text or reason)
        return failure
    return StartFailed(reason=reason, hint=text, what=what)


def start_refused(error: OSError, what: str = "worker") -> StartFailed:
    """Say why a pool could not be opened, or a process not be started."""
    reason, hint = explain_refusal(error, f"{what}s" if what == "worker" else f"{what}es")
    return StartFailed(reason=reason, hint=hint, what=what)


def explain_refusal(error: OSError, what: str = "workers") -> tuple[str, str | None]:
    """Return (reason, hint) for a failed start."""
    import errno
    import resource

    if error.errno == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"too many open files in this program (limit {soft})",
            f"raise the limit (ulimit -n, up to {hard}), close files, or use fewer {what}: each takes six",
        )
    if error.errno in (errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        return f"the system has no room for another process or thread ({error.strerror})", f"use fewer {what}"
    return str(error), None
