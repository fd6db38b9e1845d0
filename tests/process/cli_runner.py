"""Run the real `shoal` command in a folder of its own, with a file of functions to call."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import support

#: As an installed `shoal` starts, whether or not this environment has it installed.
COMMAND = [sys.executable, "-c", "from shoal.cli.main import main; main()"]

JOB = """\
import os, signal, sys, time

def length(text):
    return len(text)

def picky(text):
    if text.startswith("bad"):
        raise ValueError("not good: " + text)
    return {"text": text, "size": len(text)}

def loud(text):
    print("printed", text)
    print("warned", text, file=sys.stderr)
    return text

def odd(text):
    return object()

def deadly(text):
    if text.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    return text

def slow(text):
    if text.startswith("wait"):
        open("started." + text, "w").close()
        time.sleep(600)
    return text

def leaves(text):
    sys.exit(3)
"""


def make_job(folder: Path) -> Path:
    folder.joinpath("job.py").write_text(JOB, encoding="utf-8")
    return folder


def environment(**changes: str) -> dict[str, str]:
    found = support.program_environment(**changes)
    found.pop("PYTHONUNBUFFERED")  # as a user has it
    return found


def shoal(
    folder: Path, *words: object, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `shoal` to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        cwd=folder,
        env=environment(**(env or {})),
        timeout=support.HANG_LIMIT_S,
    )


@contextmanager
def started(folder: Path, *words: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start `shoal` and leave it running; it is ended with the block."""
    settings: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    settings |= options
    process = subprocess.Popen([*COMMAND, *map(str, words)], cwd=folder, env=environment(), **settings)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(support.HANG_LIMIT_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Terminal:
    """A command on a terminal of its own; everything it draws is kept."""

    def __init__(
        self,
        folder: Path,
        *words: object,
        command: Sequence[str] = COMMAND,
        columns: int = 80,
        env: dict[str, str] | None = None,
    ) -> None:
        self.text = ""
        self._grew = threading.Condition()
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            changes = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24"} | (env or {})
            os.execve(sys.executable, [*command, *map(str, words)], environment(**changes))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._screen, 1 << 16)
            except OSError:  # the other side is closed: Linux says so by EIO
                data = b""
            with self._grew:
                self.text += data.decode("utf-8", "replace")
                self._grew.notify_all()
            if not data:
                return

    def wait_for(self, text: str) -> None:
        with self._grew:
            found = self._grew.wait_for(lambda: text in self.text, timeout=support.HANG_LIMIT_S)
        assert found, f"hung: waited for {text!r} on the terminal; it shows:\n{self.text}"

    def press(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def finish(self) -> int:
        """Wait for the command's own end and return its exit code."""
        self._reader.join(support.HANG_LIMIT_S)
        if self._reader.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._screen)
        return os.waitstatus_to_exitcode(status)
