"""What a channel carries: bytes, arrays of one dtype and shape, or instances of one dataclass.

Role: values into slots of shared memory and back, and refusing what is of another type. Owner: none; stateless.
"""

from __future__ import annotations

import dataclasses
import operator
import pickle
import struct
import typing
from typing import Any, Protocol

#: Codes of fields of fixed size.
_CODES = {int: "q", float: "d", bool: "?"}


class Kind(Protocol):
    """How values of one type lie in a slot."""

    #: Most bytes of a value.
    size: int

    def __str__(self) -> str: ...

    def write(self, view: memoryview, at: int, value: Any) -> int:
        """Write a value at `at`; returns how many bytes. Raises TypeError or ValueError if it is not of this kind."""

    def read(self, view: memoryview, at: int, size: int, out: Any) -> Any:
        """Return a copy of the value there, in `out` if that is given and can be."""


class Bytes:
    """Bytes of any number up to `size`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __str__(self) -> str:
        return "bytes"

    def write(self, view: memoryview, at: int, value: Any) -> int:
        if not isinstance(value, bytes | bytearray):
            raise _wrong(self, value)
        size = len(value)
        if size > self.size:
            raise _too_large(size, self.size)
        view[at : at + size] = value
        return size

    def read(self, view: memoryview, at: int, size: int, out: Any) -> Any:  # noqa: ARG002
        return view[at : at + size].tobytes()


class Array:
    """Arrays of one dtype and shape."""

    def __init__(self, dtype: Any, shape: tuple[int, ...]) -> None:
        import numpy as np

        self._numpy = np
        self._dtype = np.dtype(dtype)
        self._shape = shape
        if self._dtype.hasobject or not self._dtype.itemsize:
            raise TypeError(f"a channel carries arrays of a dtype of fixed size, not {self._dtype}")
        self.size: int = self._dtype.itemsize
        for length in shape:
            self.size *= length

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self._dtype, self._shape)

    def __str__(self) -> str:
        return f"an array of {self._dtype} with shape {self._shape}"

    def _slot(self, view: memoryview, at: int) -> Any:
        return self._numpy.ndarray(self._shape, self._dtype, view, at)

    def write(self, view: memoryview, at: int, value: Any) -> int:
        if not isinstance(value, self._numpy.ndarray) or value.dtype != self._dtype or value.shape != self._shape:
            raise _wrong(self, value)
        self._slot(view, at)[...] = value
        return self.size

    def read(self, view: memoryview, at: int, size: int, out: Any) -> Any:  # noqa: ARG002
        slot = self._slot(view, at)
        if out is None:
            return slot.copy()
        out[...] = slot
        return out


class Fields:
    """Instances of a dataclass whose fields are all of int, float and bool: packed, without a pickle."""

    def __init__(self, kind: type, codes: str) -> None:
        self._kind = kind
        self._codes = codes
        self._struct = struct.Struct("=" + codes)
        names = [field.name for field in dataclasses.fields(kind)]
        getter = operator.attrgetter(*names)
        self._values: Any = getter if len(names) > 1 else lambda value: (getter(value),)
        self.size = self._struct.size

    def __reduce__(self) -> tuple[Any, ...]:
        return Fields, (self._kind, self._codes)

    def __str__(self) -> str:
        return self._kind.__qualname__

    def write(self, view: memoryview, at: int, value: Any) -> int:
        if type(value) is not self._kind:
            raise _wrong(self, value)
        try:
            self._struct.pack_into(view, at, *self._values(value))
        except struct.error as error:
            raise TypeError(
                f"a field of {value!r} is not of its type, or an int of more than 64 bits: {error}"
            ) from None
        return self.size

    def read(self, view: memoryview, at: int, size: int, out: Any) -> Any:  # noqa: ARG002
        return self._kind(*self._struct.unpack_from(view, at))


class Pickled:
    """Instances of any other dataclass, up to `size` bytes pickled."""

    def __init__(self, kind: type, size: int) -> None:
        self._kind = kind
        self.size = size

    def __str__(self) -> str:
        return self._kind.__qualname__

    def write(self, view: memoryview, at: int, value: Any) -> int:
        if not isinstance(value, self._kind):
            raise _wrong(self, value)
        data = pickle.dumps(value, 5)
        size = len(data)
        if size > self.size:
            raise _too_large(size, self.size)
        view[at : at + size] = data
        return size

    def read(self, view: memoryview, at: int, size: int, out: Any) -> Any:  # noqa: ARG002
        return pickle.loads(view[at : at + size])


def _wrong(kind: Kind, value: Any) -> TypeError:
    given = type(value).__qualname__
    if given == "ndarray":
        given = f"an array of {value.dtype} with shape {value.shape}"
    return TypeError(f"this channel carries {kind}, not {given}")


def _too_large(size: int, most: int) -> ValueError:
    return ValueError(
        f"a message of {size} bytes is larger than the {most} this channel takes; make it with message_bytes={size}"
    )


def find(kind: Any, shape: tuple[int, ...] | int | None, message_bytes: int) -> Kind:
    """Return how to carry values of `kind`.

    Raises:
        TypeError: No channel carries that.
        ValueError: `shape` is no shape.
    """
    if kind is bytes:
        return Bytes(message_bytes)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        codes = _field_codes(kind)
        return Fields(kind, codes) if codes else Pickled(kind, message_bytes)
    if shape is None:
        raise TypeError(
            f"a channel carries bytes, instances of a dataclass, or arrays of a dtype with shape=, not {kind!r}"
        )
    lengths = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(not hasattr(type(length), "__index__") or length < 0 for length in lengths):
        raise ValueError(f"shape must be lengths, whole numbers of 0 or more, not {shape!r}")
    try:
        return Array(kind, lengths)
    except ImportError as error:
        raise ImportError('channels of arrays need numpy: pip install "shoal[numpy]"') from error


def _field_codes(kind: type) -> str:
    """Return the codes of a dataclass's fields; "" if it has others, or is not made from them in order."""
    try:
        types = typing.get_type_hints(kind)
    except Exception:  # a name that is not there
        return ""
    fields = dataclasses.fields(kind)
    if not all(field.init and not field.kw_only for field in fields):
        return ""
    codes = [_CODES.get(types.get(field.name, object)) for field in fields]
    return "".join(code for code in codes if code) if all(codes) else ""
