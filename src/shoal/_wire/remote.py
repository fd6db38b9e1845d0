"""Exceptions on their way home: as themselves with the remote traceback as cause, else as text.

Role: exception to payload in the worker, payload to exception here. Owner: none; stateless.

Invariants
    X1  Whatever a task raises, exactly one exception comes out of `rebuild`, whatever its class does
        while being pickled or unpickled.
    X2  An exception that is not an `Exception` (SystemExit, KeyboardInterrupt, ...) never leaves
        `result()` as itself: it would end the caller's program for the task's wish.
"""

from __future__ import annotations

import pickle
from typing import Any

#: What travels: (pickled exception or None, why None, type name, message, traceback text).
Captured = tuple[bytes | None, str, str, str, str]

#: A message longer than this is cut on its way into a `RemoteError`.
_MESSAGE_LIMIT = 10_000
#: Modules whose frames tell the user nothing where a traceback begins.
_OURS = ("shoal._worker", "shoal._process")


def capture(error: BaseException, label: str) -> bytes:
    """Turn what a task raised into bytes. Never raises."""
    name = _type_name(error)
    message = _message(error)
    text = format_error(error)
    why, data = "", None
    if isinstance(error, Exception):
        data, why = _pickle(error, _who(label))
    else:
        why = f"{label} tried to end its process"
    return pickle.dumps((data, why, name, message, text), 5)


def _who(label: str) -> str:
    """Return who raised, in the words of an error: a Process's `run`, or a task."""
    return label if label == "run()" else "the task"


def _pickle(error: Exception, who: str) -> tuple[bytes | None, str]:
    try:
        data = _dumps(error)
    except BaseException as problem:
        return None, f"{who} raised an exception that cannot be pickled ({_said(problem)})"
    try:
        # Many classes pickle well and cannot be rebuilt; here it costs nothing to find out.
        pickle.loads(data)
    except BaseException as problem:
        return None, f"{who} raised an exception that cannot be rebuilt ({_said(problem)})"
    return data, ""


def _dumps(error: Exception) -> bytes:
    # The default pickling of exceptions keeps __dict__, so notes travel; traceback and cause do not,
    # and the remote traceback text tells both.
    try:
        return pickle.dumps(error, 5)
    except BaseException:
        import cloudpickle

        return bytes(cloudpickle.dumps(error, 5))


def type_name(data: bytes) -> str:
    """Return the name of what `capture` took in."""
    return str(pickle.loads(data)[2])


def rebuild(data: bytes, who: str = "the task") -> BaseException:
    """Turn `capture`'s bytes back into the exception to raise here; `who` is said to have raised it. Never raises."""
    from shoal.errors import RemoteError, RemoteTraceback

    pickled, why, name, message, text = pickle.loads(data)
    if pickled is not None:
        try:
            error = pickle.loads(pickled)
        except BaseException as problem:
            why = f"{who} raised an exception that cannot be rebuilt here ({_said(problem)})"
        else:
            if isinstance(error, Exception):
                # Past the class's own __setattr__: a frozen dataclass would refuse.
                BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))
                return error
            why = f"{who} raised an exception that was rebuilt as something else"
    remote = RemoteError(type_name=name, message=message, traceback_text=text, why=why)
    remote.__cause__ = RemoteTraceback(text)
    return remote


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)[:_MESSAGE_LIMIT]
    except BaseException as problem:
        return f"<its text cannot be had: {_said(problem)}>"


def _said(problem: BaseException) -> str:
    try:
        return f"{type(problem).__name__}: {problem}"[:300]
    except BaseException:
        return type(problem).__name__


def format_error(error: BaseException) -> str:
    """Return the traceback as text, without the frames of the worker itself. Never raises."""
    import traceback

    try:
        trace: Any = error.__traceback__
        # The frames of the worker's own loop tell the user nothing.
        while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(error), error, trace))
    except BaseException as problem:
        return f"{_type_name(error)} (its traceback cannot be formatted: {_said(problem)})"
