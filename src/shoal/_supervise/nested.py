"""Supervisors within supervisors, and the end of the program.

Role: the recipe by which a supervisor makes another one run; stopping all of them when the program ends. Owner: the outer
supervisor; the process.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING

from shoal._supervise.children import Begin, Exit, Readiness

if TYPE_CHECKING:
    from shoal._supervise.driver import Driver
    from shoal._supervise.tree import Supervisor


# --- supervisors as children --------------------------------------------------------------------


class SupervisorRecipe:
    """A supervisor within a supervisor: begun anew for each run, with the children that were added to it."""

    is_supervisor = True
    readiness: Readiness = "always"

    def __init__(self, supervisor: Supervisor) -> None:
        if supervisor._driver is not None:
            raise ValueError(
                f"{supervisor.name} runs already: a supervisor that is given as a child is started by its parent"
            )
        self._supervisor = supervisor
        self.name = supervisor.name

    def make(self, begin: Begin) -> _SupervisorRun:
        return _SupervisorRun(self._supervisor, begin)

    def rest(self) -> None:
        pass


class _SupervisorRun:
    """One run of a supervisor."""

    pid = None

    def __init__(self, supervisor: Supervisor, begin: Begin) -> None:
        self.value = supervisor
        self._begin = begin
        with supervisor._opening:
            before = supervisor._driver
            if before is not None and not before.ended.is_set():
                raise RuntimeError(f"{supervisor.name} runs already")
            self._driver = supervisor._begin()
        self._driver.call_at_end(self._ended)

    def wait_ready(self, timeout: float | None) -> None:  # noqa: ARG002 - its children have limits of their own
        self.value._start_declared(self._driver)

    def ask(self) -> None:
        self._driver.stop()

    def kill(self) -> None:
        self._driver.kill()

    def _ended(self) -> None:
        ended = self._driver.policy.ended
        assert ended is not None
        last = self._driver.last_words
        # As OTP's, which exits with reason `shutdown` in each of these cases: that is no crash, so it is restarted if permanent.
        self._begin.on_exit(Exit(True, ended.why, last.obituary if last is not None else None))


# --- the end of the program ---------------------------------------------------------------------


class _Running:
    """Every supervisor of this process that has not ended. At the program's end they are stopped, children in reverse."""

    def __init__(self) -> None:
        self.drivers: set[Driver] = set()
        self._registered_by = 0

    def add(self, driver: Driver) -> None:
        from shoal._process import starting

        if self._registered_by != os.getpid():
            self._registered_by = os.getpid()
            self.drivers.clear()
            starting._at_exit_once()  # it waits for processes, so it has to run after ours, which is to be registered later
            atexit.register(self.end_all)
        self.drivers.add(driver)
        driver.call_at_end(lambda: self.drivers.discard(driver))

    def end_all(self) -> None:
        if self._registered_by != os.getpid():
            return
        drivers = list(self.drivers)
        try:
            for driver in drivers:
                driver.stop()
            for driver in drivers:
                if not driver.ended.wait(driver.exit_grace_s):
                    driver.kill()
                    driver.ended.wait()
        except KeyboardInterrupt:
            for driver in drivers:
                driver.kill()
            for driver in drivers:
                driver.ended.wait()


running_here = _Running()
