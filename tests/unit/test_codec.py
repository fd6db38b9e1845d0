"""Objects cross whole, large data uncopied and writable (C1 to C3), and what cannot cross is named."""

from __future__ import annotations

import array
import functools
import pickle
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._wire import codec, words
from shoal._wire.frames import LARGE_BYTES, FrameReader, encode
from shoal.errors import NotPicklable

numpy = pytest.importorskip("numpy")


def f(x):
    return x


def cross(obj, **options):
    """Pack, send as a frame among other buffers, receive, unpack."""
    buffers = [b"somebody else's"]
    payload = codec.pack(obj, buffers, ("the argument of", f), **options)
    data = b"".join(bytes(piece) for piece in encode([(1, payload)], buffers))
    reader = FrameReader()
    reader._pending += data
    (frame,) = reader.frames()
    return codec.unpack(frame.messages[0][1], frame.buffers)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner) | st.frozensets(st.integers()),
    max_leaves=20,
)
dtypes = st.sampled_from(["u1", "<i4", ">f8", "complex128", "S3", "U2", "M8[s]", [("a", "i4"), ("b", "f8", (2,))], "?"])
shapes = st.lists(st.integers(0, 7), min_size=0, max_size=3)


@given(values)
def test_plain_data_crosses(value):
    assert cross(value) == value
    packed = codec.pack_plain(value)
    assert packed is not None
    assert pickle.loads(packed) == value


@settings(deadline=None, max_examples=60)
@given(dtypes, shapes, st.sampled_from("CF"), st.booleans())
def test_arrays_of_every_kind_cross(dtype, shape, order, large):
    if large and shape:
        shape = [*shape[:-1], 20_000]
    sent = numpy.zeros(shape, dtype, order=order)
    if isinstance(dtype, str) and dtype[0] not in "SUM":
        sent[...] = numpy.arange(sent.size).reshape(shape)
    got = cross(sent)
    assert got.dtype == sent.dtype
    assert got.shape == sent.shape
    assert got.flags.f_contiguous == sent.flags.f_contiguous
    assert got.flags.writeable
    assert got.tobytes() == sent.tobytes()


def test_large_arrays_travel_as_buffers_and_arrive_writable_and_alone():
    sent = numpy.arange(LARGE_BYTES)
    buffers = []
    payload = codec.pack([sent, sent[:10]], buffers, ("", f))
    assert payload[1:] == (0, 1)
    assert memoryview(buffers[0]).obj is not None
    assert len(payload[0]) < 1000
    sent[0] = 77  # not copied yet: a frame is sent from where the data lies
    assert numpy.frombuffer(buffers[0], sent.dtype)[0] == 77
    got, _ = cross([sent, 1])
    got[:] = -1
    assert sent[1] == 1


def test_an_array_that_may_not_be_written_arrives_so():
    sent = numpy.arange(LARGE_BYTES)
    sent.flags.writeable = False
    assert not cross(sent).flags.writeable


@pytest.mark.parametrize("view", [lambda a: a[::2], lambda a: a[:, 1:], lambda a: a[::-1]])
def test_views_that_are_not_contiguous_cross(view):
    sent = view(numpy.arange(400_000).reshape(400, 1000))
    assert (cross(sent) == sent).all()


@pytest.mark.parametrize("size", [LARGE_BYTES - 100, LARGE_BYTES, 5 * LARGE_BYTES])
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda n: array.array("b", bytes(n)), lambda n: "x" * n])
def test_large_data_of_other_kinds_crosses(kind, size):
    assert cross(kind(size)) == kind(size)


def test_a_failed_pickle_leaves_no_buffers_behind():
    buffers = []
    with pytest.raises(NotPicklable):
        codec.pack([numpy.zeros(LARGE_BYTES), threading.Lock()], buffers, ("the argument of", f))
    assert buffers == []  # C1


def test_a_second_try_by_value_sends_each_buffer_once():
    buffers = []
    payload = codec.pack([numpy.arange(LARGE_BYTES), lambda: 5], buffers, ("the argument of", f))
    assert len(buffers) == payload[2] == 1
    array_back, fn = codec.unpack(payload, buffers)
    assert (array_back[-1], fn()) == (LARGE_BYTES - 1, 5)


# --- functions ----------------------------------------------------------------------------------


def test_lambdas_and_closures_cross_by_value():
    offset = 10
    assert cross(lambda x: x + offset)(1) == 11
    assert cross(functools.partial(lambda a, b: a - b, 5))(3) == 2


def test_the_array_of_a_closure_does_not_become_part_of_the_pickle():
    weights = numpy.ones(LARGE_BYTES)
    buffers = []
    payload = codec.pack_function(lambda: weights.sum() + 0, buffers, by_value=False)
    assert sum(len(part) for part in (payload[0] or b"", buffers[0])) > 0
    assert max(memoryview(part).nbytes for part in buffers) >= weights.nbytes
    assert codec.unpack(payload, [bytearray(part) for part in buffers])() == LARGE_BYTES


def test_what_lives_in_a_main_that_workers_lack_goes_by_value(monkeypatch):
    import __main__

    class Guarded:
        pass

    Guarded.__module__, Guarded.__qualname__ = "__main__", "Guarded"
    monkeypatch.setattr(__main__, "Guarded", Guarded, raising=False)
    assert type(cross(Guarded())) is Guarded
    buffers = []
    payload = codec.pack(Guarded(), buffers, ("", f), main_is_lost=True)
    monkeypatch.delattr(__main__, "Guarded")
    assert type(codec.unpack(payload, buffers)).__name__ == "Guarded"


@pytest.mark.parametrize(
    ("fn", "name"),
    [(len, "len"), (f, "f"), (dict.fromkeys, "dict.fromkeys"), (functools.partial(f), "partial(f)"), ({}, "dict")],
)
def test_callables_are_named_for_people(fn, name):
    assert words.describe_callable(fn) == name


def test_only_what_is_found_under_its_name_counts_as_named():
    assert codec.is_named(len)
    assert codec.is_named(f)
    assert not codec.is_named(lambda: 0)
    assert not codec.is_named([].append)
    assert not codec.is_named(functools.partial(f))


# --- plain data ---------------------------------------------------------------------------------


class Witness:
    """Tells when it is pickled."""

    seen = 0

    def __reduce__(self):
        Witness.seen += 1
        return Witness, ()


class Sub(int):
    pass


@pytest.mark.parametrize("item", [Witness(), Sub(3), f, Witness, numpy.zeros(2), threading.Lock(), ValueError("x")])
def test_whatever_runs_code_is_not_plain_and_its_code_does_not_run_to_find_out(item):
    before = Witness.seen
    assert codec.pack_plain([1, {"deep": (item,)}]) is None
    assert Witness.seen == before


@pytest.mark.parametrize("item", [range(3), slice(1, 2), 1j, bytearray(b"x"), {1, 2}, frozenset(), None, ...])
def test_built_in_data_is_plain(item):
    packed = codec.pack_plain([item])
    assert packed is not None or item is ...
    assert packed is None or pickle.loads(packed) == [item]


def test_what_is_too_deep_is_not_plain():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert codec.pack_plain(deep) is None
    with pytest.raises(NotPicklable, match="nested too deeply"):
        codec.pack(deep, [], ("the result of", f))
    while deep:  # freeing it at once would recurse as deeply
        deep = deep.pop()


# --- refusals -----------------------------------------------------------------------------------


class Holder:
    def __init__(self, **inside):
        self.__dict__.update(inside)


class Grumpy:
    def __reduce__(self):
        raise KeyError("not today")

    def __repr__(self):
        raise RuntimeError("no words")


class Proxy:
    def __getattr__(self, name):
        raise LookupError(name)

    def __reduce__(self):
        raise TypeError("a proxy stays here")


class Leaver:
    def __reduce__(self):
        raise SystemExit(3)


LOCK = threading.Lock()


def capturing(lock):
    return lambda: lock


def recursive():
    def inner():
        return later, LOCK, held

    held = LOCK
    return inner
    later = inner  # a captured name that never gets a value


@pytest.mark.parametrize(
    ("obj", "path", "culprit"),
    [
        (LOCK, "", "lock "),
        ([1, {"a": (2, LOCK)}], "[1]['a'][1]", "lock "),
        (Holder(model=Holder(handle=LOCK)), ".model.handle", "lock "),
        (functools.partial(f, 1, key=[LOCK]), ".keywords['key'][0]", "lock "),
        (capturing(LOCK), " (captured 'lock')", "lock "),
        (recursive(), " (captured 'held')", "lock "),
        (Holder(lock=LOCK).__init__, "", "method "),
        ({"x": Grumpy()}, "['x']", "Grumpy <Grumpy whose repr() raised RuntimeError>"),
        ([Proxy()], None, ""),
        ([0, Leaver()], "[1]", "Leaver "),
    ],
)
def test_a_refusal_says_what_and_where(obj, path, culprit):
    buffers = []
    with pytest.raises(NotPicklable) as caught:
        codec.pack(obj, buffers, ("the argument of", f))
    error = caught.value
    assert error.what == "the argument of f"
    if path and culprit != "method ":
        assert error.path == path
    if culprit != "method ":
        assert error.culprit.startswith(culprit)
    assert str(error).startswith("the argument of f cannot be sent to another process")
    assert pickle.loads(pickle.dumps(error)).path == error.path


def test_an_argument_is_named_by_its_place_or_its_keyword():
    with pytest.raises(NotPicklable, match="^argument 1 of f "):
        codec.pack(((1, LOCK), {}), [], (codec.ARGUMENTS, f))
    with pytest.raises(NotPicklable, match="^argument 'lock' of f ") as caught:
        codec.pack(((), {"lock": [LOCK]}), [], (codec.ARGUMENTS, f))
    assert caught.value.path == "[0]"


def test_a_culprit_in_a_circle_is_found():
    circle = []
    circle += [circle, LOCK]
    with pytest.raises(NotPicklable) as caught:
        codec.pack(circle, [], ("the result of", f))
    assert caught.value.culprit.startswith("lock ")
    assert caught.value.path == "[1]"


def test_short_texts_are_short_and_on_one_line():
    assert words.short("a\n b" * 100, 20) == words.short("a\n b" * 100, 20)[:20]
    assert len(words.short("x" * 1000)) == 60
    assert "\n" not in words.short(numpy.zeros((3, 3)))
    assert words.short(Grumpy()) == "<Grumpy whose repr() raised RuntimeError>"


def test_payloads_move_into_a_larger_frame():
    mine = []
    payload = codec.pack(numpy.arange(LARGE_BYTES), mine, ("", f))
    buffers = [b"first"]
    moved = codec.shifted(payload, mine, buffers)
    assert (codec.unpack(moved, buffers) == numpy.arange(LARGE_BYTES)).all()
    assert codec.shifted(b"small", [], buffers) == b"small"


def test_large_bytes_do_not_hide_a_class_of_a_lost_main(monkeypatch):
    """Beside large bytes, too, what lives in a `__main__` that workers cannot import is pickled by value."""
    kind = type("Kind", (), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Kind", kind, raising=False)
    buffers = []
    codec.pack((bytes(codec.LARGE_BYTES), kind()), buffers, ("the argument of", f), main_is_lost=True)
    assert any(b"cloudpickle" in bytes(one) for one in buffers)
