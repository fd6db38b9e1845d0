"""The template: a clean, single-threaded process that workers are forked from.

Role: fork workers on request, tell how they ended, clean up after them. Owner: itself; one per program and
start method, started by `_pool/launcher.py`. It runs no code of the user but the import of the main module.

Sockets, all of kind SEQPACKET, one marshalled tuple per message
    front door    from the program. First ("hello", sys_path, argv, main or None, command or None, prelude),
                  then ("client",) + one descriptor for each pool. Its end-of-file: the program is gone.
    client        ("preload", names): import these modules, for those to come
                  ("fork", token, captured, entry) + eight descriptors (see `boot.py`); entry: "boot" or "solo",
                  the module of `_worker` in which it begins
                  -> ("forked", token, pid) + pidfd | ("failed", token, reason)
                  -> ("exited", pid, code, signal, peak_bytes, cpu_s), once per forked worker
                  -> ("broken", traceback, is_guard) instead, when the main module cannot be imported

Invariants
    T1  A worker is reaped here, after its process group was killed: its pid cannot be reused before that.
    T2  When a client's socket closes, its workers are killed; when the front door closes, everything is.
    T3  What a dead worker leaves outside its group is adopted here (subreaper) and killed.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from shoal._os import descriptors, processes, signals
from shoal._os.interpreter import MainModule, import_main
from shoal._os.lifeline import Lifeline
from shoal._worker.boot import DESCRIPTORS, run_worker

_MESSAGE_BYTES = 1 << 20


class Template:
    """State of the template process."""

    def __init__(self, front: socket.socket, lifeline: int) -> None:
        self._front = front
        self._lifeline = lifeline
        self._poll = select.poll()
        self._clients: dict[int, socket.socket] = {}
        self._workers: dict[int, tuple[int, int | None]] = {}  # pidfd -> (pid, client fd or None)
        self._untouchable: set[int] = set()
        self._broken: tuple[str, bool] | None = None
        self._exec_command: list[str] | None = None
        self._prelude = ""
        self._loaded = False

    def run(self) -> None:
        """Serve until the program is gone."""
        hello = self._receive(self._front)
        if hello is None:
            return
        (_, sys_path, sys.argv[:], main, self._exec_command, self._prelude), _ = hello
        if sys_path is not None:
            sys.path[:] = sys_path
        if main is not None:
            self._import_main(MainModule(*main))
        else:
            os.close(self._lifeline)
        gc.collect()
        gc.freeze()  # workers share these pages longer when the collector leaves them alone
        self._poll.register(self._front.fileno(), select.POLLIN)
        while self._serve_once():
            pass

    def _import_main(self, main: MainModule) -> None:
        # The user's code runs here, for as long as it likes: until it is done, end-of-file goes unseen.
        Lifeline.arm(self._lifeline)
        try:
            import_main(main)
        except BaseException as error:
            import traceback

            guard = type(error).__name__ == "MainGuardMissing"
            self._broken = "".join(traceback.format_exception(error)), guard
        finally:
            # From here on the end of the program is seen, and cleaned up after, instead of dying with it.
            os.close(self._lifeline)

    def _serve_once(self) -> bool:
        idle = None if self._loaded else 50
        events = self._poll.poll(idle)
        if not events:
            self._load_later()
        for fd, _ in events:
            if fd == self._front.fileno():
                if not self._admit():
                    return False
            elif fd in self._clients:
                self._answer(fd)
            elif fd in self._workers:
                self._bury(fd)
        return True

    def _load_later(self) -> None:
        """Import, now that nobody waits, what most workers need sooner or later."""
        self._loaded = True
        import traceback  # noqa: F401 - imported for the workers to inherit

        import cloudpickle  # noqa: F401 - as above

        import shoal.errors  # noqa: F401 - as above

        gc.freeze()

    # --- messages -------------------------------------------------------------------------------

    @staticmethod
    def _receive(sock: socket.socket) -> tuple[Any, list[int]] | None:
        try:
            data, fds = descriptors.recv_with_fds(sock, _MESSAGE_BYTES, len(DESCRIPTORS))
        except OSError:
            return None
        return (marshal.loads(data), fds) if data else None

    @staticmethod
    def _send(sock: socket.socket, message: tuple[Any, ...], fds: list[int] | None = None) -> None:
        try:
            descriptors.send_with_fds(sock, marshal.dumps(message), fds or [])
        except OSError:
            pass  # the client is gone; its end-of-file is on its way

    def _admit(self) -> bool:
        received = self._receive(self._front)
        if received is None:
            return False
        client = socket.socket(fileno=received[1][0])
        self._clients[client.fileno()] = client
        self._poll.register(client.fileno(), select.POLLIN)
        return True

    def _answer(self, fd: int) -> None:
        client = self._clients[fd]
        received = self._receive(client)
        if received is None:
            self._dismiss(fd)
            return
        (kind, *rest), fds = received
        if kind == "preload":
            self._preload(rest[0])
            return
        token, captured, entry = rest
        try:
            if self._broken is not None:
                self._send(client, ("broken", *self._broken))
            else:
                self._fork(client, token, fds, entry, captured=captured)
        finally:
            for one in fds:
                os.close(one)

    @staticmethod
    def _preload(names: list[str]) -> None:
        import importlib

        for name in names:
            with contextlib.suppress(Exception):  # whoever needs it finds out what is wrong with it
                importlib.import_module(name)
        gc.freeze()

    def _dismiss(self, fd: int) -> None:
        """A pool is gone: kill what it had (T2)."""
        self._poll.unregister(fd)
        self._clients.pop(fd).close()
        for pidfd, (pid, client) in list(self._workers.items()):
            if client == fd:
                self._workers[pidfd] = pid, None
                processes.kill_pidfd(pidfd, signal.SIGKILL)

    # --- workers --------------------------------------------------------------------------------

    def _fork(self, client: socket.socket, token: int, fds: list[int], entry: str, *, captured: bool) -> None:
        if len(fds) != len(DESCRIPTORS):
            self._send(client, ("failed", token, "its descriptors did not arrive"))
            return
        try:
            pid = processes.fork()
        except OSError as error:
            self._send(client, ("failed", token, f"fork: {error.strerror}"))
            return
        if pid == 0:
            self._become_worker(fds, entry, captured=captured)
        try:
            pidfd = processes.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            processes.reap(pid, block=True)
            self._send(client, ("failed", token, f"pidfd_open: {error.strerror}"))
            return
        self._workers[pidfd] = pid, client.fileno()
        self._poll.register(pidfd, select.POLLIN)
        self._send(client, ("forked", token, pid), [pidfd])

    def _become_worker(self, fds: list[int], entry: str, *, captured: bool) -> NoReturn:
        try:
            os.setpgid(0, 0)
            self._front.close()
            for client in self._clients.values():
                client.close()
            for pidfd in self._workers:
                os.close(pidfd)
            named = dict(zip(DESCRIPTORS, fds, strict=True))
            if self._exec_command is not None:
                for fd in fds:
                    os.set_inheritable(fd, True)
                numbers = ",".join(str(fd) for fd in named.values())
                call = f"from shoal._worker.{entry} import spawned; spawned({numbers!r}, captured={captured})"
                command = [*self._exec_command, self._prelude + call]
                os.execv(command[0], command)
            if entry == "solo":
                from shoal._worker.solo import run_solo  # loaded already, by a "preload"

                run_solo(named, captured=captured)
            run_worker(named, captured=captured)
        finally:
            os._exit(1)

    def _bury(self, pidfd: int) -> None:
        pid, client = self._workers.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        processes.kill_group(pid, signal.SIGKILL)  # T1
        status = processes.reap(pid, block=True)
        if client is not None and status is not None:
            told = ("exited", pid, status.code, status.signal, status.peak_rss_bytes, status.cpu_s)
            self._send(self._clients[client], told)
        self._adopt()

    def _adopt(self) -> None:
        """Kill what dead workers left behind (T3)."""
        known = {pid for pid, _ in self._workers.values()}
        for pid in processes.children_of(os.getpid()):
            if pid in known or pid in self._untouchable:
                continue
            try:
                os.kill(pid, signal.SIGKILL)
                pidfd = processes.pidfd_open(pid)
            except OSError:  # it runs as somebody else (sudo), or descriptors are short
                self._untouchable.add(pid)
                continue
            self._workers[pidfd] = pid, None
            self._poll.register(pidfd, select.POLLIN)

    def end(self) -> None:
        """Kill everything and wait for it, in case the kernel has not done it already (T2)."""
        for _ in range(100):
            self._adopt()
            for pidfd, (pid, _) in list(self._workers.items()):
                processes.kill_pidfd(pidfd, signal.SIGKILL)
                self._workers.pop(pidfd)
                processes.kill_group(pid, signal.SIGKILL)
                processes.reap(pid, block=True)
                os.close(pidfd)
            if not set(processes.children_of(os.getpid())) - self._untouchable:
                return


def main(front_fd: int, lifeline_fd: int) -> NoReturn:
    """Entry point of the template process."""
    for fd in (front_fd, lifeline_fd):
        os.set_inheritable(fd, False)
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)  # the program has closed a standard stream: nothing else is to have its number
    os.close(fd)
    processes.own_group()
    processes.become_subreaper()
    processes.name_process("shoal-template")
    signals.reset_signals()
    template = Template(socket.socket(fileno=front_fd), lifeline_fd)
    try:
        template.run()
    finally:
        template.end()
        os._exit(0)
