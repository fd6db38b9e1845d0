"""Mappings of memory files that end with the last view of them, and moving bytes without holding up other threads.

Role: mmap, munmap, madvise and memmove through `ctypes`. Owner: whoever holds a view; nobody unmaps by hand.

Python's own `mmap` keeps a descriptor open for each mapping and cannot tell when its last view goes; thousands of results
in the caller's hands would then cost thousands of descriptors.

Invariants
    A1  The address range of a mapping stays valid while any buffer over it exists, and is unmapped in the moment the
        last one goes, in whatever thread that happens; nothing here takes a lock then.
    A2  `on_gone` is called when the range is unmapped already.
    A3  A mapping that a forked child does not have is not unmapped there.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

_PROT_READ_WRITE = 0x1 | 0x2
_MAP_SHARED, _MAP_PRIVATE, _MAP_NORESERVE = 0x01, 0x02, 0x4000
_MADV_DONTFORK = 10
_FAILED = ctypes.c_void_p(-1).value

#: Below this, memoryview assignment is quicker than finding out two addresses.
_MOVE_BYTES = 1 << 20

#: Forks of this process so far. What was mapped before one may be mapped in the child, too, for as long as that lives.
forks = 0


def _about_to_fork() -> None:
    global forks
    forks += 1


os.register_at_fork(before=_about_to_fork)

#: Live mappings: id of the array -> what keeps its end in view.
_live: dict[int, weakref.ref[Any]] = {}


def map_file(
    fd: int,
    size: int,
    *,
    offset: int = 0,
    private: bool = False,
    inherited: bool = True,
    on_gone: Callable[[], object] | None = None,
) -> Any:
    """Map part of a file, readable and writable, and return an object with the buffer of it, a `ctypes` array.

    Args:
        fd: The file; may be closed afterwards.
        size: Bytes, above 0.
        offset: A multiple of the page size.
        private: Writes stay in this process (copy on write).
        inherited: A forked child has the mapping too.
        on_gone: Called when the last buffer over it is gone. Any thread; must not block or take locks.

    Raises:
        OSError: No address space or mappings left, or the file cannot be mapped so.
    """
    flags = _MAP_PRIVATE | _MAP_NORESERVE if private else _MAP_SHARED
    address = _libc.mmap(None, size, _PROT_READ_WRITE, flags, fd, offset)
    if address == _FAILED or address is None:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {size} bytes: {os.strerror(number)}")
    if not inherited:
        _libc.madvise(address, size, _MADV_DONTFORK)
    array = (ctypes.c_ubyte * size).from_address(address)
    key = id(array)
    maker = 0 if inherited else os.getpid()

    # Defaults: at the interpreter's end the module's globals may be gone before the last view.
    def gone(_ref: object, unmap: Any = _libc.munmap, live: dict[int, Any] = _live) -> None:
        live.pop(key, None)
        if maker and maker != os.getpid():
            return  # A3
        unmap(address, size)
        if on_gone is not None:
            on_gone()

    _live[key] = weakref.ref(array, gone)
    return array


def view(array: Any) -> memoryview:
    """Return the bytes of a mapping; the view keeps it alive."""
    return memoryview(array).cast("B")


def part(array: memoryview, offset: int, size: int, owner: object) -> memoryview:
    """Return a piece of a writable view that keeps `owner` alive as well."""
    piece: Any = (ctypes.c_ubyte * size).from_buffer(array, offset)
    piece.owner = owner
    return memoryview(piece).cast("B")


def mapped_array(buffer: Any) -> Any:
    """Return the array behind a memoryview of a mapping, or None if it is over something else."""
    while type(buffer) is memoryview:
        buffer = buffer.obj
    ref = _live.get(id(buffer))
    return buffer if ref is not None and ref() is buffer else None


class _Buffer(ctypes.Structure):
    """CPython's `Py_buffer`, part of its stable interface."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address(contiguous: memoryview) -> int:
    """Return where the bytes of a contiguous view begin; valid while the view is."""
    raw = _Buffer()
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get(ctypes.py_object(contiguous), ctypes.byref(raw), 0)
    try:
        return raw.buf or 0
    finally:
        release(ctypes.byref(raw))


def copy(target: memoryview, source: memoryview) -> None:
    """Copy all of `source` to the start of `target`. Both contiguous bytes; other threads run meanwhile if it is much."""
    size = source.nbytes
    if size < _MOVE_BYTES:
        target[:size] = source
    else:
        if target.readonly or target.nbytes < size:
            raise ValueError(f"{size} bytes do not fit into a view of {target.nbytes}, or it is read-only")
        ctypes.memmove(address(target), address(source), size)


def same(one: memoryview, other: memoryview) -> bool:
    """Say whether two contiguous views of equal length hold the same bytes. Other threads run meanwhile."""
    return one.nbytes == other.nbytes and _libc.memcmp(address(one), address(other), one.nbytes) == 0
