"""A running chunk and the watcher: each item is run and told once, or handed back, in every order of the two (K2, K3).

The real `Chunk`. One thread runs it, the other fetches finished results or takes back what is not started, with one
preemption at any byte code.
"""

from __future__ import annotations

import marshal
import pickle
from types import SimpleNamespace

import pytest

import shoal._worker.chunks as chunks_module
from shoal._wire import messages as m
from shoal._worker.chunks import Chunk
from tests.model.interleave import Lock, interleavings

FILES = {chunks_module.__file__}
ITEMS = 4


class Reporter:
    def __init__(self):
        self.lock = Lock()
        self.said = []

    def report(self, message, out, elapsed_ns, *, more):
        with self.lock:
            self.said.append(message)


class Scene:
    def __init__(self, length, *, explode):
        self.ran = []
        self.reporter = Reporter()
        self.back = None
        self.page = SimpleNamespace(words=[0] * 8)
        items = [pickle.dumps(n) for n in range(10, 10 + ITEMS)]
        self.chunk = Chunk((m.CHUNK, 7, 1, 10, False, 1, False, items), [], self.page, self.reporter)
        self.stretcher = SimpleNamespace(
            length=lambda _: length, learn=lambda *_: None
        )  # a clock would upset the orders
        self.explode = explode

    def function(self, item):
        self.ran.append(item)
        if item == self.explode:
            raise ValueError(item)
        return item

    def run(self):
        functions = SimpleNamespace(get=lambda _: self.function, captured=lambda error, _: marshal.dumps(str(error)))
        self.chunk.run(functions, self.stretcher)

    def fetch(self):
        with self.reporter.lock:
            part = self.chunk.finished()
            if part is not None:
                self.reporter.said.append(part)

    def take_back(self):
        with self.reporter.lock:
            self.back = self.chunk.hand_back()

    def check(self):
        settled = []
        for message in self.reporter.said:
            if message[0] == m.PART:
                settled += range(message[2], message[2] + message[3])
            elif message[0] == m.FAILED:
                settled.append(message[2])
        rest = self.back[2] if self.back else 10 + ITEMS
        assert all(
            len(pickle.loads(said[5])) == said[3] for said in self.reporter.said if said[0] == m.PART and said[4]
        )
        assert settled == self.ran == list(range(10, rest))


@pytest.mark.parametrize("explode", [None, 11])
@pytest.mark.parametrize("length", [2, ITEMS])
def test_each_item_is_run_or_handed_back(length, explode):
    def make():
        scene = Scene(length, explode=explode)
        return [scene.run, scene.take_back], scene.check

    assert interleavings(make, FILES) > 100


@pytest.mark.parametrize("explode", [None, 11])
@pytest.mark.parametrize("length", [2, ITEMS])
def test_each_item_is_told_once_when_results_are_fetched_meanwhile(length, explode):
    def make():
        scene = Scene(length, explode=explode)
        return [scene.run, scene.fetch], scene.check

    assert interleavings(make, FILES) > 100


def test_each_item_is_told_once_when_results_are_fetched_and_the_rest_is_taken_back():
    def make():
        scene = Scene(ITEMS, explode=None)

        def both():
            scene.fetch()
            scene.take_back()

        return [scene.run, both], scene.check

    assert interleavings(make, FILES) > 100


@pytest.mark.parametrize("length", [2, ITEMS])
def test_nothing_that_was_handed_back_is_run_after_a_second_recall(length):
    def make():
        scene = Scene(length, explode=None)

        def twice():
            scene.take_back()
            first = scene.back
            scene.take_back()
            scene.back = scene.back or first

        return [scene.run, twice], scene.check

    assert interleavings(make, FILES, preemptions=2, fine=False) > 100


def test_the_search_finds_a_loop_that_forgets_what_was_told(monkeypatch):
    def forgetful(chunk):
        part = real(chunk)
        chunk._told = 0
        return part

    def make():
        scene = Scene(ITEMS, explode=None)
        return [scene.run, scene.fetch], scene.check

    real = Chunk.finished
    monkeypatch.setattr(Chunk, "finished", forgetful)
    with pytest.raises(AssertionError):
        interleavings(make, FILES, fine=False)


def test_the_search_finds_a_cut_that_trusts_its_first_look(monkeypatch):
    looks = []
    real = chunks_module._fetched

    def once(position):
        looks.append(real(position))
        return looks[-1] if len(looks) == 1 else looks[0]

    def make():
        looks.clear()
        scene = Scene(ITEMS, explode=None)
        return [scene.run, scene.take_back], scene.check

    monkeypatch.setattr(chunks_module, "_fetched", once)
    with pytest.raises(AssertionError):
        interleavings(make, FILES, preemptions=2, fine=False)
