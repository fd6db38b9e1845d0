"""What the tests of large data let workers run, and how they make and compare it.

Role: tasks by name, data from a few numbers, and equality as promised: values, dtype, order, writability. Owner: the tests.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

STATE: dict[str, Any] = {}
DTYPES = (
    "u1", "?", "<i8", ">i4", "f2", "f8", "c16", "M8[ns]", "m8[s]", "S7", "U5", "V9",
    [("name", "S8"), ("at", "f4", (3,)), ("n", ">i8")],
)  # fmt: skip
LAYOUTS = ("C", "F", "strided", "reversed", "transposed", "read-only", "offset", "broadcast")


class Spec(NamedTuple):
    """An array, by what it takes to make it."""

    dtype: Any
    shape: tuple[int, ...]
    layout: str
    seed: int


@dataclass
class Box:
    """Somebody's class with data in it."""

    name: str
    content: Any


def make(spec):
    """Make the array; always the same for the same spec."""
    dtype = np.dtype([tuple(one) for one in spec.dtype] if isinstance(spec.dtype, list) else spec.dtype)
    shape = tuple(spec.shape)
    random = np.random.default_rng(spec.seed)
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    if dtype.kind == "U":
        array = random.integers(65, 91, count // 4, dtype="u4").view(dtype).reshape(shape)
    elif dtype.kind == "b":
        array = random.integers(0, 2, shape, dtype="u1").view(bool)
    else:
        array = np.frombuffer(random.bytes(count) + bytes(dtype.itemsize), dtype, count // dtype.itemsize).reshape(
            shape
        )
    return _laid_out(array.copy(), spec.layout)


def _laid_out(array, layout):
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided" and array.ndim:
        return np.repeat(array, 2, axis=0)[::2]
    if layout == "reversed" and array.ndim:
        return array[::-1]
    if layout == "transposed":
        return array.T
    if layout == "read-only":
        array.flags.writeable = False
    if layout == "offset" and array.ndim and len(array):
        return np.concatenate([array[:1], array])[1:]
    if layout == "broadcast":
        return np.broadcast_to(array, (2, *array.shape))
    return array


def assert_same(got, wanted):
    """Equal as promised, through any nesting."""
    if isinstance(wanted, np.ndarray):
        assert type(got) is type(wanted)
        assert got.shape == wanted.shape
        if wanted.flags.c_contiguous or wanted.flags.f_contiguous:
            assert got.dtype == wanted.dtype
            assert got.flags.c_contiguous == wanted.flags.c_contiguous
            assert got.flags.f_contiguous == wanted.flags.f_contiguous
            assert got.flags.writeable >= wanted.flags.writeable
        else:  # numpy's own pickle copies it, into this machine's byte order
            assert got.dtype in {wanted.dtype, wanted.dtype.newbyteorder("=")}
        assert got.flags.aligned
        assert got.astype(wanted.dtype).tobytes() == wanted.tobytes()
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key, value in wanted.items():
            assert_same(got[key], value)
    elif isinstance(wanted, list | tuple):
        assert type(got) is type(wanted)
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, Box):
        assert got.name == wanted.name
        assert_same(got.content, wanted.content)
    elif isinstance(wanted, memoryview):
        assert (got.format, got.shape, got.tobytes()) == (wanted.format, wanted.shape, wanted.tobytes())
        assert got.readonly <= wanted.readonly
    else:
        assert type(got) is type(wanted)
        assert got == wanted


WRAPS = {
    "bare": lambda array: array,
    "list": lambda array: [array, None, array],
    "dict": lambda array: {"a": array, 3: (array, "x")},
    "box": lambda array: Box("box", {"in": [array]}),
    "mixed": lambda array: (array, b"x" * 300_000, bytearray(100_000), [array[..., :1].copy()] if array.ndim else []),
}


def check_and_return(value, spec, wrap):
    """The argument must be what the spec says; it goes back as it came."""
    assert_same(value, WRAPS[wrap](make(spec)))
    return value


def made(spec, wrap):
    return WRAPS[wrap](make(spec))


# --- simple tasks -------------------------------------------------------------------------------


def filled(fill, nbytes):
    return np.full(nbytes, fill, np.uint8)


def seen(array):
    """The one value all of an array has; -1 if it has several."""
    low, high = int(array.min()), int(array.max())
    return low if low == high else -1


def sum_of_both(one, other):
    return seen(one) + seen(other)


def identity(value):
    return value


def add_one(array):
    array += 1
    return array


def scribble(array, fill=255):
    """What the array held; then write all over it."""
    before = seen(array)
    array[...] = fill
    return before, seen(array)


def stash(array):
    STATE.setdefault("stash", []).append(array)
    return len(STATE["stash"])


def stashed(*_args):
    return [seen(array) for array in STATE.get("stash", [])]


def drop_stash():
    STATE.clear()


def make_and_keep(fill, nbytes):
    STATE["kept"] = np.full(nbytes, fill, np.uint8)
    return STATE["kept"]


def change_what_is_kept(fill):
    STATE["kept"][...] = fill
    return seen(STATE["kept"])


def nap_and_see(seconds, array):
    time.sleep(seconds)
    return seen(array)


def nap_and_give(seconds, array):
    time.sleep(seconds)
    return array


def see_remembered(*_args):
    return seen(STATE["initial"])


def remember(array):
    STATE["initial"] = array


def die_first(marker, array):
    """Kill the worker the first time; then scribble, and return what was there."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return scribble(array)[0]
    array[...] = 99
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def fail_with(array):
    raise ValueError("with an array", array)


def own_pool(array, workers=1):
    """A pool in a task."""
    import shoal

    with shoal.Pool(workers) as pool:
        return pool.submit(add_one, array).result()


def forked_child_sees(array, path):
    """Start a child that looks at the argument when `path` appears, and leave it alone; returns the read end's number."""
    if os.fork() == 0:
        while not os.path.exists(path):
            time.sleep(0.001)
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write(str(seen(array)))
        os.rename(f"{path}.new", f"{path}.seen")
        os._exit(0)
    return seen(array)


def arena_figures(*_args):
    """What this worker's own arena holds."""
    from shoal._memory.arena import Arena

    gc.collect()
    found = [one.describe() for one in gc.get_objects() if type(one) is Arena]
    return {key: sum(one[key] for one in found) for key in ("used_bytes", "held_bytes", "lent")}


def descriptors_open(*_args):
    return len(os.listdir("/proc/self/fd"))


def total(array):
    return int(array.sum())
