"""How large things are taken apart for a pickle: as buffers, uncopied, where pickle or numpy would make bytes of them.

Role: what `share` and the codec both teach a pickler. Owner: nobody; stateless. Imports neither numpy nor `ctypes`.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

#: Errors by which a pickler says "not this object"; anything else in it is the object's own failure.
REFUSALS = (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError, RuntimeError)


class OnlyPassed(TypeError):
    """Raised by `__reduce_ex__` of what lies in shared memory if this pickle is not made to be passed to a process of ours."""


class _Passing(threading.local):
    """Whether this thread makes a pickle whose shared memory will be passed beside it; a context manager that says so.

    Not on from the start, because setting it costs each pickle something: who meets `OnlyPassed` tries again with it.
    """

    on = 0  # how many times

    def __enter__(self) -> None:
        self.on += 1

    def __exit__(self, *problem: object) -> None:
        self.on -= 1


passing = _Passing()


class Sink:
    """A file for a pickler that keeps what is written; large bytes objects come uncopied."""

    __slots__ = ("parts", "write")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.write = self.parts.append


def reducers() -> dict[type, Callable[[Any], Any]]:
    """Return a new dispatch table for memoryviews, and for arrays if numpy is loaded."""
    table: dict[type, Callable[[Any], Any]] = {memoryview: _reduce_view}
    numpy = sys.modules.get("numpy")
    if hasattr(numpy, "ndarray"):
        table[numpy.ndarray] = reduce_array  # type: ignore[union-attr]
    return table


def reduce_array(given: Any) -> Any:
    """As a buffer whatever its layout and dtype, where numpy makes bytes of some; of a shared array just its part."""
    import numpy as np

    plain = given.view(np.ndarray)
    if plain.dtype.hasobject or not plain.dtype.itemsize:
        return plain.__reduce_ex__(5)
    if not plain.flags.forc:
        plain = plain.copy()
    order = "C" if plain.flags.c_contiguous else "F"
    flat = plain.reshape(-1, order=order).view("u1")
    return _array, (pickle.PickleBuffer(flat), plain.dtype, plain.shape, order)


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    import numpy as np

    if not len(buffer):
        return np.ndarray(shape, dtype, buffer, order=order)
    # The way above would look through a read-only view, and let its user set the array writable.
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _reduce_view(view: memoryview) -> tuple[Any, ...]:
    flat = view if view.c_contiguous else memoryview(view.tobytes())
    memoryview(b"").cast(
        cast("Any", view.format)
    )  # a format of numpy's could not be cast to by the reader: refused here
    return _view, (pickle.PickleBuffer(flat), view.format, view.shape)


def _view(flat: Any, form: str, shape: tuple[int, ...]) -> memoryview:
    seen = memoryview(flat).cast("B")
    return seen.cast(form, shape) if all(shape) else seen.cast(form)  # type: ignore[call-overload,no-any-return]
