"""Does this system have what shoal stands on?

Role: one check, made once at import of `shoal`. Owner: nobody.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

#: Oldest kernel shoal supports: pidfd_open and waiting on pidfds (5.3), close_range (5.9), plus long-term support.
OLDEST_KERNEL = (5, 10)


#: What a system that forbids a call says; anything else (no descriptors left) is no answer to the question.
_REFUSALS = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL)
_checked = False


def kernel_version(release: str) -> tuple[int, int]:
    """Return (major, minor) of a kernel release text such as ``"5.10.0-28-amd64"``; (0, 0) if it has none."""
    numbers = []
    for part in release.split(".")[:2]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            return (0, 0)
        numbers.append(int(digits))
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def missing(system: str, release: str) -> str | None:
    """Return what is missing here, as a sentence, or `None` if nothing is.

    The two calls are tried, not only looked up: a sandbox may forbid what the kernel has.
    """
    oldest = ".".join(map(str, OLDEST_KERNEL))
    if system != "linux":
        return f"shoal needs Linux {oldest} or later; this is {system}"
    if kernel_version(release) < OLDEST_KERNEL:
        return f"shoal needs Linux {oldest} or later; this kernel is {release}"
    for module, name in ((os, "pidfd_open"), (signal, "pidfd_send_signal"), (os, "memfd_create")):
        if not hasattr(module, name):
            return f"shoal needs {name}, which this Python was built without"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        if error.errno in _REFUSALS:
            return f"shoal needs pidfd_open, which this system refuses: {error.strerror}"
    try:
        os.close(os.memfd_create("shoal-check", os.MFD_CLOEXEC))
    except OSError as error:
        if error.errno in _REFUSALS:
            return f"shoal needs memfd_create, which this system refuses: {error.strerror}"
    return None


def check_platform() -> None:
    """Return if shoal can run here. Looks once per process.

    Raises:
        UnsupportedPlatform: Not Linux, a kernel before 5.10, or no pidfd_open or memfd_create.
    """
    global _checked
    if _checked:
        return
    reason = missing(sys.platform, os.uname().release if hasattr(os, "uname") else "")
    if reason is not None:
        from shoal.errors import UnsupportedPlatform  # lazily: it pulls in concurrent.futures

        raise UnsupportedPlatform(reason=reason)
    _checked = True
