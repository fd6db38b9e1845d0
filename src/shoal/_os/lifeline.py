"""Make the kernel kill a worker's whole process group when the main program dies.

Role: a pipe nobody writes to. Only the main program holds its write end, so the kernel closes that end when the
main program ends, in whatever way, and tells every armed reader by SIGKILL to the reader's process group.

Guarantees
    L1  Main program gone => every armed group gets SIGKILL from the kernel: stopped processes, processes that hold
        the GIL or block every signal, and grandchildren that stayed in the group included.
    L2  Arming after the main program died kills the group at once; no instant lies between.
    L3  Armed groups are independent: each has its own open file description, hence its own owner.
Relies on
    - Nobody but the main program keeps the write end. A child forked from it must close its copy (`os.fork`
      copies close-on-exec descriptors too); a program started by exec loses it by itself.
    - Nobody writes: one byte would also raise the signal.
    - The caller of `arm` leads its process group; else it would kill somebody else's.

Rejected
    PR_SET_PDEATHSIG alone     follows the parent thread, not the process; grandchildren never get it
    end-of-file in a thread    a thread does not run while a task holds the GIL
    prctl on each grandchild   we do not run in them
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

#: fcntl command "which signal instead of SIGIO"; Python's `fcntl` does not name it before 3.13.
_F_SETSIG = 10


class Lifeline:
    """A pipe whose write end is the life of the main program. See the module's header for what it guarantees."""

    @staticmethod
    def create() -> tuple[int, int]:
        """Return (read_fd, write_fd), both close-on-exec. The caller closes both."""
        return os.pipe2(os.O_CLOEXEC)

    @staticmethod
    def arm(read_fd: int) -> None:
        """Have this process's group killed when the write end of `read_fd` closes. Does not return if it has.

        Call it in the child, once it leads its group and has closed any copy of the write end.
        `read_fd` may be shared with other processes: its number is moved to a private open file description.
        Keep it open for the life of the process; closing it disarms, unless a fork of this process still has it.

        Raises:
            OSError: The descriptor is no pipe, or /proc is not mounted.
        """
        # The owner of O_ASYNC belongs to the open file description, which inherited and passed descriptors share:
        # on a shared one the last to arm would be the only group killed (L3).
        private = os.open(f"/proc/self/fd/{read_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(private, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(private, _F_SETSIG, signal.SIGKILL)
            flags = fcntl.fcntl(private, fcntl.F_GETFL)
            fcntl.fcntl(private, fcntl.F_SETFL, flags | os.O_ASYNC)
            # Closed before O_ASYNC: no signal was sent, so look (L2). The old description is asked, because a
            # reader that opens after the last writer left is not told of the hang-up on a named pipe.
            if _hung_up(read_fd):
                os.killpg(0, signal.SIGKILL)
            os.dup2(private, read_fd, inheritable=False)
        finally:
            os.close(private)


def _hung_up(read_fd: int) -> bool:
    poll = select.poll()
    poll.register(read_fd, 0)  # POLLHUP is reported whether asked for or not
    return any(event & select.POLLHUP for _, event in poll.poll(0))
