"""The functions a worker knows.

Role: function ids to callables, loaded at first use. Owner: the worker's main thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from shoal._wire import codec, remote
from shoal._wire.words import describe_callable


class FunctionMissing(Exception):
    """A function cannot be loaded here: its name is unknown, say because it stands under the main guard."""


class _Unloaded:
    __slots__ = ("buffers", "payload")

    def __init__(self, payload: codec.Payload, buffers: list[Any]) -> None:
        self.payload = payload
        self.buffers = buffers


class FunctionTable:
    """What the pool has sent. A function is unpickled when its first task is announced, so that a crash in
    its import is blamed on that task.
    """

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def receive(self, function_id: int, payload: codec.Payload, buffers: list[Any]) -> None:
        self._known[function_id] = _Unloaded(payload, buffers)

    def forget(self, function_id: int) -> None:
        self._known.pop(function_id, None)

    def get(self, function_id: int) -> Callable[..., Any]:
        """Return the callable.

        Raises:
            FunctionMissing: It cannot be found by its name in this process.
        """
        fn = self._known[function_id]
        if type(fn) is _Unloaded:
            try:
                fn = codec.unpack(fn.payload, list(fn.buffers))  # its own list: a second try needs them, too
            except (AttributeError, ImportError) as error:
                raise FunctionMissing from error
            self._known[function_id] = fn
        return fn  # type: ignore[no-any-return]

    def captured(self, error: BaseException, function_id: int) -> bytes:
        """Describe what a task of this function raised. Never raises."""
        fn = self._known.get(function_id)
        label = "the task" if fn is None or type(fn) is _Unloaded else describe_callable(fn)
        try:
            _hint_at_shared(error)
            return remote.capture(error, label)
        except BaseException:  # no memory left even for this
            return remote.capture(MemoryError("no memory left to describe the error"), label)


def _hint_at_shared(error: BaseException) -> None:
    """Say on an error what to do, if it comes from writing to what `shoal.share` gave."""
    shared = sys.modules.get("shoal._memory.shared")  # not loaded: nothing was shared
    hint = shared.read_only_hint(error) if shared is not None else None
    if hint is not None:
        error.add_note(hint)
