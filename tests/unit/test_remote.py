"""Whatever a task raises, one exception comes out at the other end, and it never ends the program (X1, X2)."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest

from shoal._wire import remote
from shoal.errors import RemoteError, RemoteTraceback


def raised(error):
    """Return `error` as a task would raise it, with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def home(error):
    return remote.rebuild(remote.capture(raised(error), "f"))


class Plain(Exception):
    pass


class Fields(Exception):
    def __init__(self, code, *, detail):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail

    def __reduce__(self):
        return _fields, (self.code, self.detail)


def _fields(code, detail):
    return Fields(code, detail=detail)


class NeedsTwo(Exception):
    """Pickles, and cannot be rebuilt: the classic."""

    def __init__(self, code, *, detail):
        super().__init__(code)


class Unpicklable(Exception):
    def __init__(self):
        super().__init__(lambda: 0)
        self.gen = (x for x in ())


class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")


class MuteForGood(Exception):
    def __str__(self):
        raise SystemExit(9)


class LeavesWhenPickled(Exception):
    def __reduce__(self):
        raise SystemExit(3)


class LeavesWhenRebuilt(Exception):
    def __reduce__(self):
        return _leave, ()


def _leave():
    raise KeyboardInterrupt


class BecomesText(Exception):
    def __reduce__(self):
        return str, ("not an exception",)


@dataclass(frozen=True)
class Frozen(Exception):
    code: int

    def __reduce__(self):
        return Frozen, (self.code,)


class NameRaises(type):
    @property
    def __module__(cls):
        raise RuntimeError("no module")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"),
        Plain("p"),
        KeyError(3),
        OSError(2, "gone", "a.txt"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "r"),
    ],
)
def test_ordinary_exceptions_come_home_as_themselves(error):
    got = home(error)
    assert type(got) is type(error)
    assert str(got) == str(error)
    assert got.args == error.args
    assert isinstance(got.__cause__, RemoteTraceback)
    assert "test_remote.py" in str(got.__cause__)


def test_fields_and_notes_travel():
    error = Fields(7, detail="full")
    got = home(error)
    assert (got.code, got.detail) == (7, "full")
    noted = ValueError("v")
    noted.add_note("while counting")
    assert home(noted).__notes__ == ["while counting"]


def test_a_cause_is_told_in_the_text():
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as outer:
        got = remote.rebuild(remote.capture(outer, "f"))
    assert "KeyError: 'inner'" in str(got.__cause__)
    assert "direct cause" in str(got.__cause__)


def test_a_local_class_comes_home_by_value():
    class Local(Exception):
        pass

    got = home(Local("x"))
    assert type(got).__name__ == "Local"
    assert str(got) == "x"


def test_a_frozen_dataclass_comes_home():
    got = home(Frozen(4))
    assert got == Frozen(4)
    assert isinstance(got.__cause__, RemoteTraceback)


def test_groups_come_home_whole():
    got = home(ExceptionGroup("many", [ValueError(1), ExceptionGroup("more", [KeyError(2)])]))
    assert isinstance(got, ExceptionGroup)
    assert isinstance(got.exceptions[1].exceptions[0], KeyError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NeedsTwo(1, detail="x"), "cannot be rebuilt"),
        (Unpicklable(), "cannot be pickled"),
        (LeavesWhenPickled("x"), "cannot be pickled"),
        (LeavesWhenRebuilt("x"), "cannot be rebuilt"),
        (BecomesText("x"), "rebuilt as something else"),
        (SystemExit(3), "f tried to end its process"),
        (KeyboardInterrupt(), "f tried to end its process"),
        (GeneratorExit(), "f tried to end its process"),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), "f tried to end its process"),
        (ExceptionGroup("g", [Unpicklable()]), "cannot be pickled"),
    ],
)
def test_what_cannot_travel_as_itself_arrives_as_a_remote_error(error, words):
    got = home(error)
    assert type(got) is RemoteError
    assert words in str(got)
    assert type(error).__name__ in got.type_name
    assert isinstance(got.__cause__, RemoteTraceback)
    assert pickle.loads(pickle.dumps(got)).type_name == got.type_name


@pytest.mark.parametrize("kind", [Mute, MuteForGood])
def test_an_exception_without_words_is_told_all_the_same(kind):
    assert type(home(kind())) is kind
    error = kind()
    error.lock = (x for x in ())
    got = home(error)
    assert isinstance(got, RemoteError)
    assert "its text cannot be had" in got.message


def test_a_huge_message_is_cut_where_it_becomes_text():
    error = Unpicklable()
    error.args = ("y" * 1_000_000,)
    error.gen = (x for x in ())
    assert len(home(error).message) <= 10_000


def test_an_exception_that_changes_its_mind_at_home_becomes_a_remote_error(monkeypatch):
    data = remote.capture(raised(Frozen(1)), "f")
    monkeypatch.setattr(Frozen, "__init__", lambda self, code: _leave())
    got = remote.rebuild(data)
    assert isinstance(got, RemoteError)
    assert "cannot be rebuilt here" in str(got)


def test_frames_of_the_worker_itself_are_left_out():
    scope = {"__name__": "shoal._worker.loop"}
    exec("def run(fn):\n    fn()", scope)

    def task():
        raise ValueError("mine")

    try:
        scope["run"](task)
    except ValueError as error:
        # The test's own frame comes first here; a worker's is its loop.
        error.__traceback__ = error.__traceback__.tb_next
        text = str(remote.rebuild(remote.capture(error, "f")).__cause__)
    assert "in task" in text
    assert "in run" not in text
