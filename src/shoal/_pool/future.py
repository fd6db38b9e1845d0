"""The future of a submitted call.

Role: `concurrent.futures.Future` whose `result` reads the workers' sockets itself while it waits, and whose
`cancel` stops a running task. Owner: the caller; settled by its `jobs.Task`.

The condition and the list of waiters that `concurrent.futures` expects on a future are made when somebody
first asks for them: most futures are settled before anybody waits, and making both costs more than the rest.

Invariants
    U1  If anybody has made the condition, the final state is written with it held: `concurrent.futures.wait` looks at the
        state twice under it, and the two looks must agree. Else the place of the condition is sealed first, in one step.
    U2  Whoever claims the future first settles it; a cancel and a result cannot both win.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from shoal._pool.engine import Engine
    from shoal._pool.jobs import Task

T = TypeVar("T")


#: Who may settle a future.
_SETTLE, _DROP = "settled", "dropped"


#: In the place of a condition: the future was settled before anybody asked for one.
_SEALED = object()


class _Lazy:
    """An attribute made at first use. Not a data descriptor: afterwards the instance's own wins."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return instance.__dict__.setdefault(self._name, self._make())  # setdefault: one thread wins (U1)


class _LazyCondition:
    """The condition of a future, made when somebody first asks for it (U1). Settling uses the instance's dict itself."""

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        made = instance.__dict__
        condition = made.get("_condition")
        if condition is None:
            condition = made.setdefault("_condition", threading.Condition())
        if condition is _SEALED:
            while not instance.done():  # whoever sealed it is one byte code away from writing the state
                time.sleep(0)
            # Nothing changes any more: any condition will do, but always the same.
            condition = made.setdefault("_late_condition", threading.Condition())
        return condition

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__["_condition"] = value


class Future(concurrent.futures.Future[T]):
    """The outcome of a task that a worker runs, or will run.

    Works wherever a `concurrent.futures.Future` does. In addition `cancel` stops the task if it is running.
    Safe from any thread.
    """

    _condition = _LazyCondition()
    _waiters = _Lazy(list)
    _done_callbacks = _Lazy(list)
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _task: Task | None = None

    def __init__(self, engine: Engine) -> None:
        # Not calling the base class: it would make what U1 says is made later.
        self._engine = engine

    # --- waiting --------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> T:
        """Return what the task returned, waiting for it.

        Raises:
            TimeoutError: `timeout` seconds passed first. The task goes on.
            CancelledError: It was cancelled.
            WorkerDied, TaskTimeout, RemoteError, ...: See `shoal.errors`; and whatever the task raised, as itself.
        """
        if self._state != FINISHED:
            self._wait(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # noqa: PLW0642 - breaks the cycle with the traceback
        return self._result  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None, waiting for it. Raises as `result` does."""
        if self._state != FINISHED:
            self._wait(timeout)
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        self._engine.wait(self.done, lambda: self._condition, timeout)
        if self._state != FINISHED:
            if self.cancelled():
                raise concurrent.futures.CancelledError
            raise TimeoutError

    # --- state ----------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Give the task up; if it is running, its worker is killed. Other tasks are not disturbed.

        Does not wait for the kill. Returns False if the task had finished.
        """
        if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
            return True
        task = self._task
        if task is None or not self._engine.cancel(task):
            return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)
        self._drop()
        return self.cancelled()

    def _claim(self, who: str) -> bool:
        """Say whether `who` may settle this future: the first to ask. One step, so exactly one wins (U2)."""
        return self.__dict__.setdefault("_claimed_by", who) is who

    def _drop(self) -> None:
        """Become cancelled, unless it was settled first; the engine has given the task up."""
        if not self._claim(_DROP):
            return
        self._task = None
        # At once, and not by way of CANCELLED: a waiter that came between the two would never be told (U1).
        self._publish(CANCELLED_AND_NOTIFIED)

    def done(self) -> bool:
        """Say whether the task has finished, failed or been cancelled."""
        return self._state in (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)

    def cancelled(self) -> bool:
        """Say whether the task was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """Say whether a worker is running the task now."""
        task = self._task
        return self._state == RUNNING or (task is not None and self._engine.is_running(task))

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if not self._claim(_SETTLE):
            return
        self._task = None
        if error is None:
            self._result = value
        else:
            self._exception = error
        self._publish(FINISHED)

    def _publish(self, state: str) -> None:
        """Write the final state and tell whoever waits (U1). Callbacks are left to the background thread: a caller that
        reads for itself may hold a lock that a callback wants.
        """
        made = self.__dict__
        condition = made.setdefault("_condition", _SEALED)  # one step: either they asked first, or nobody can any more
        if condition is _SEALED:
            self._state = state
        else:
            with condition:
                self._state = state
                for waiter in made.get("_waiters", ()):
                    if state == CANCELLED_AND_NOTIFIED:
                        waiter.add_cancelled(self)
                    elif self._exception is not None:
                        waiter.add_exception(self)
                    else:
                        waiter.add_result(self)
                condition.notify_all()
        if "_done_callbacks" in made:
            self._engine.callbacks.add(self.run_callbacks)

    def run_callbacks(self) -> None:
        """Call what was added by `add_done_callback`. The background thread only."""
        for callback in self._done_callbacks:
            try:
                callback(self)
            except BaseException:  # SystemExit too: it would end the thread that serves everybody
                LOGGER.exception("exception calling callback for %r", self)
