"""Memory without a name, which therefore cannot be left behind.

Role: memfd_create, mappings of it. Owner: the caller; the kernel frees the memory with its last descriptor and mapping.
"""

from __future__ import annotations

import errno
import mmap
import os

#: memfd_create flag (kernel 6.3): not executable. Without it some hardened systems refuse.
_MFD_NOEXEC_SEAL = 0x8


def anonymous_file(name: str) -> int:
    """Return a close-on-exec descriptor of an empty file in memory; it grows when written to.

    `name` only shows in /proc/<pid>/fd and maps; it need not be unique.

    Raises:
        OSError: No descriptors or memory left.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: a kernel before 6.3
            raise
    return os.memfd_create(name, os.MFD_CLOEXEC)


def memory_file(name: str, size: int) -> int:
    """Return a close-on-exec descriptor of a file in memory of `size` zero bytes. Pages are taken as they are touched.

    Raises:
        OSError: No descriptors or memory left. No descriptor is left open.
    """
    fd = anonymous_file(name)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_shared(fd: int, size: int) -> mmap.mmap:
    """Map the first `size` bytes of `fd`, readable and writable, shared with all who map it. `fd` may be closed after.

    Raises:
        ValueError: `size` is 0 or larger than the file.
        OSError: No address space left, or `fd` cannot be written.
    """
    if size <= 0:
        raise ValueError(f"size must be above 0, not {size}")
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def read_all(fd: int) -> bytes:
    """Return the whole file as it is now, without moving its offset, which other processes may share."""
    parts = []
    offset = 0
    while part := os.pread(fd, 1 << 16, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def reserve(fd: int, offset: int, size: int) -> None:
    """Have the kernel set memory aside for part of a file, so that writing there cannot fail later (SIGBUS).

    Raises:
        OSError: There is not enough.
    """
    os.posix_fallocate(fd, offset, size)


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` into a file: for pages that are new this is quicker than a mapping, and fails with an error.

    Raises:
        OSError: There is not enough memory; part of it may be written.
    """
    done = 0
    while done < data.nbytes:
        done += os.pwrite(fd, data[done : done + (1 << 30)], offset + done)
