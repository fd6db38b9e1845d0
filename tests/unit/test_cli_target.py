"""A target is found by name or by file, and every way to get it wrong is answered in words."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from shoal.cli import target

SOURCE = """\
import os

LIMIT = 3

def size(path):
    return len(path)

def pair(left, right):
    pass

def _hidden(path):
    pass

async def later(path):
    pass

class Box:
    @staticmethod
    def double(text):
        return text * 2

class Fault(Exception):
    pass
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of functions, which is the current one; what gets imported is forgotten afterwards."""
    (tmp_path / "job_of_test.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(text: str) -> str:
    with pytest.raises(target.TargetError) as caught:
        target.find(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "given", "result"),
    [
        ("job_of_test:size", "abc", 3),
        ("job_of_test.py:size", "abc", 3),
        ("./job_of_test.py:size", "abc", 3),
        ("job_of_test:Box.double", "ab", "abab"),
        ("job_of_test.py:Box.double", "ab", "abab"),
        ("os.path:basename", "a/b", "b"),
        ("builtins:len", "abcd", 4),
    ],
)
def test_target_is_found_and_callable(here, text, given, result):
    assert target.find(text)(given) == result


def test_target_pickles_as_the_users_own_function(here):
    """T2: no frame of ours stands around the function in a worker."""
    found = target.find("job_of_test.py:size")
    assert pickle.loads(pickle.dumps(found)) is found.function


def test_file_is_loaded_under_the_name_its_classes_have(here):
    """T1: what the function raises, of a class of its file, can be unpickled on the other side."""
    found = target.find("job_of_test.py:Fault")
    error = found("text")
    assert isinstance(pickle.loads(pickle.dumps(error)), type(error))


def test_file_named_like_a_known_module_does_not_replace_it(here):
    (here / "json.py").write_text("def load_me(text): return 'mine'\n", encoding="utf-8")
    found = target.find("json.py:load_me")
    assert found("x") == "mine"
    assert sys.modules["json"].__name__ == "json"
    assert pickle.loads(pickle.dumps(found))("x") == "mine"


def test_file_of_a_package_is_imported_as_part_of_it(here):
    package = here / "pack_of_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "base.py").write_text("WORD = 'found'\n", encoding="utf-8")
    (package / "job.py").write_text("from .base import WORD\ndef say(text): return WORD\n", encoding="utf-8")
    assert target.find("pack_of_test/job.py:say")("x") == "found"


def test_target_describes_itself_by_the_functions_name(here):
    found = target.find("job_of_test:Box.double")
    assert (found.__module__, found.__qualname__, found.__name__) == ("job_of_test", "Box.double", "double")


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("job_of_test.py", "does not say which function", "it defines pair, size"),
        ("job_of_test.size", "has no colon", "did you mean job_of_test:size ?"),
        ("nonsense", "is not a target", ""),
        (":size", "is not a target", ""),
        ("job_of_test:", "is not a target", ""),
        ("job_of_test:si-ze", "is not the name of a function", ""),
        ("job of test:size", "neither the name of a module nor a file", ""),
        ("jop_of_test.py:size", "no file jop_of_test.py", "did you mean job_of_test.py:size ?"),
        ("nowhere/job.py:size", "No such file or directory: nowhere", ""),
        ("jop_of_test:size", "no module named jop_of_test", "did you mean job_of_test:size ?"),
        ("qqq_of_nowhere:size", "no module named qqq_of_nowhere", "modules are looked for here"),
        ("job_of_test:siez", "job_of_test has no siez", "did you mean job_of_test:size ?"),
        ("job_of_test.py:siez", "job_of_test.py has no siez", "did you mean job_of_test.py:size ?"),
        ("job_of_test:zzz", "job_of_test has no zzz", "it defines Box, Fault, later, pair, size"),
        ("job_of_test:Box.dubble", "job_of_test:Box has no dubble", "did you mean job_of_test:Box.double ?"),
        ("job_of_test:LIMIT", "is an int, not a function", ""),
        ("job_of_test:later", "is an async function", "asyncio.run(later(input))"),
        ("job_of_test:pair", "missing a required argument: 'right'", "its signature is pair(left, right)"),
    ],
)
def test_mistake_is_answered_with_what_was_wrong_and_a_hint(here, text, said, hint):
    words = refusal(text)
    assert said in words
    assert hint in words
    assert ("hint:" in words) is bool(hint)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import gone_module_of_test\n", "ModuleNotFoundError: No module named 'gone_module_of_test'"),
        ("x = 1\nx.gone\n", "AttributeError: 'int' object has no attribute 'gone'"),
        ("def f(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_file_that_cannot_be_imported_is_told_by_its_own_lines_only(here, source, said):
    (here / "broken_of_test.py").write_text(source, encoding="utf-8")
    words = refusal("broken_of_test.py:f")
    assert words.startswith("broken_of_test.py cannot be imported")
    assert said in words
    assert "broken_of_test.py" in words.partition("\n")[2]
    assert "importlib" not in words
    assert "cli/target.py" not in words


def test_script_without_a_main_guard_is_told_how_to_have_one(here):
    (here / "script_of_test.py").write_text("import sys\ndef f(x): pass\nsys.exit(3)\n", encoding="utf-8")
    words = refusal("script_of_test.py:f")
    assert "ended the program while it was imported" in words
    assert '__name__ == "__main__"' in words
