"""The front page in seven chapters: each verdict holds here, and would not if its claim were false.

A claim that cannot fail says nothing, so each check is also run against something for which it is false. Claims about speed are
made from figures that are given: a test machine has other things to do.
"""

from __future__ import annotations

import contextlib
import multiprocessing.resource_sharer
import re
import subprocess
import sys
import time

import pytest

import shoal
from examples.article import (
    ch1_listing,
    ch2_isolation,
    ch3_messages,
    ch4_race,
    ch5_reliability,
    ch6_cores,
    ch7_overhead,
)
from examples.article.claims import Figure, Figures, Verdict, seconds
from examples.article.picture import draw
from tests.process.cli_runner import Terminal
from tests.support import HANG_LIMIT_S, ROOT, SETTLE_S, eventually, program_environment

COMMAND = [sys.executable, "-m", "examples.article"]
ESCAPE = "\x1b["
COLOUR = re.compile(r"\x1b\[[\d;]*3[0-7]")


def quiet(what):
    """What is being done is told to nobody."""


@pytest.fixture(autouse=True)
def _no_pipe_server():
    """A pipe in an argument is handed over by a thread of multiprocessing's, which stays."""
    yield
    multiprocessing.resource_sharer.stop(timeout=SETTLE_S)


# --- 1. the listing -----------------------------------------------------------------------------


def test_the_listing_does_the_same_over_both_libraries(monkeypatch):
    monkeypatch.setattr(ch1_listing, "METHODS", ("forkserver",))
    verdict = ch1_listing.same_program(ch1_listing.LISTING, quiet)
    assert verdict.holds, verdict.figure
    assert "1 of 12 lines changed" in verdict.figure


def test_a_listing_that_tells_the_libraries_apart_does_not_hold(monkeypatch):
    monkeypatch.setattr(ch1_listing, "METHODS", ("fork",))
    listing = ch1_listing.LISTING.replace('"MyProcess is running..."', "Process.__module__")
    verdict = ch1_listing.same_program(listing, quiet)
    assert not verdict.holds
    assert "'multiprocessing.context', shoal 'shoal." in verdict.figure


# --- 2. isolation -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ch2_isolation.METHODS)
def test_a_child_writes_to_its_own_memory_and_to_what_is_shared(method):
    seen = ch2_isolation.look_after(ch2_isolation.in_process(method))
    assert all(verdict.holds for verdict in ch2_isolation.judge({method: seen}))


def test_a_thread_is_not_isolated():
    seen = ch2_isolation.look_after(lambda function, things: function(things))
    mine, shared = ch2_isolation.judge({"a thread": seen})
    assert not mine.holds
    assert shared.holds


def test_a_child_that_wrote_nothing_proves_nothing():
    seen = ch2_isolation.look_after(lambda function, things: ("", 0, 0.0))
    assert [verdict.holds for verdict in ch2_isolation.judge({"nobody": seen})] == [False, False]


# --- 3. messages --------------------------------------------------------------------------------


def flipped(message):
    return message[:-1] + bytes([message[-1] ^ 1]) if message else message


def copy_less(array, half):
    array[half:-1] = array[: half - 1]
    return ch3_messages.hashlib.sha256(array[:half]).hexdigest()


@pytest.mark.parametrize(("what", "make"), ch3_messages.WAYS, ids=["pipe", "queue", "channel"])
def test_the_same_bytes_come_back(what, make):
    sent = ch3_messages.messages(1 << 20)
    verdict = ch3_messages.judge(what, sent, *ch3_messages.through(make(1 << 20), sent))
    assert verdict.holds, verdict.figure


def test_one_bit_that_changes_on_the_way_is_seen():
    sent = ch3_messages.messages(100)
    verdict = ch3_messages.judge("a pipe", sent, *ch3_messages.through(ch3_messages.PipeLine(), sent, flipped))
    assert not verdict.holds
    assert "something else came back" in verdict.figure


@pytest.mark.parametrize(("copy", "same"), [(ch3_messages.copy_over, True), (copy_less, False)])
def test_what_is_in_shared_memory_is_there_for_both(copy, same):
    assert ch3_messages.through_memory(ch3_messages.messages(65_536)[-1], copy)[0] is same


# --- 4. the race --------------------------------------------------------------------------------


class Careless:
    """A lock that anybody gets at any time, and that remembers nobody."""

    def acquire(self, timeout=None):
        return True

    def release(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass


class Gone(Careless):
    """A lock that is not to be had once somebody died with it, as `multiprocessing`'s."""

    def __init__(self, taken):
        self.taken = taken

    def acquire(self, timeout=None):
        if self.taken[0]:
            return False
        self.taken[0] = 1
        return True


def test_an_unlocked_counter_loses_updates():
    verdict = ch4_race.lost_without(20_000, contextlib.nullcontext())
    assert verdict.holds, verdict.figure


def test_a_counter_that_is_locked_after_all_loses_none(monkeypatch):
    monkeypatch.setattr(ch4_race, "LOOK_S", 0.0)
    assert not ch4_race.lost_without(200, shoal.Lock()).holds
    assert ch4_race.none_lost_with(200, shoal.Lock()).holds


def test_with_the_lock_left_out_the_claim_does_not_hold():
    eventually(
        lambda: not ch4_race.none_lost_with(20_000, contextlib.nullcontext()).holds,
        what="a lost update, though nothing keeps two processes from adding at once",
    )


def test_a_killed_holder_is_survived_and_named():
    verdict = ch4_race.survives(shoal.Lock(), quiet)
    assert verdict.holds, verdict.figure
    assert verdict.figure.endswith("(multiprocessing.Lock: still not to be had after 0.5 s)")


def test_a_lock_that_forgets_its_dead_holder_does_not_hold(monkeypatch):
    monkeypatch.setattr(ch4_race, "standard_lock", lambda: "")
    verdict = ch4_race.survives(Careless(), quiet)
    assert not verdict.holds
    assert "was told nothing" in verdict.figure
    assert "90 of 100" in verdict.figure


def test_a_lock_that_is_never_free_again_does_not_hold(monkeypatch):
    monkeypatch.setattr(ch4_race, "standard_lock", lambda: "")
    verdict = ch4_race.survives(Gone(shoal.zeros(1, "int64")), quiet)
    assert not verdict.holds
    assert "was not to be had" in verdict.figure


# --- 5. reliability -----------------------------------------------------------------------------


def test_a_fault_costs_one_task_with_shoal_and_many_with_the_standard_library():
    numbers = ch5_reliability.tasks(200)
    ours = ch5_reliability.outcome(numbers, ch5_reliability.with_shoal)
    theirs = ch5_reliability.outcome(numbers, ch5_reliability.with_executor)
    assert ch5_reliability.judge(200, ours, theirs, 0.1).holds
    assert not ch5_reliability.judge(200, theirs, ours, 0.1).holds


def test_a_task_that_fails_for_another_reason_proves_nothing():
    ours = ch5_reliability.Outcome(199, [ValueError("not a fault")])
    assert not ch5_reliability.judge(200, ours, ours, 0.1).holds


# --- 6. cores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "tried"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_powers_of_two_and_all_cores_are_tried(cores, tried):
    assert ch6_cores.crowds(cores) == tried


@pytest.mark.parametrize(("two_workers", "holds"), [(1.9, True), (1.0, False)])
def test_a_pool_that_does_not_use_its_cores_does_not_hold(two_workers, holds):
    found = {
        "shoal.Pool": {1: 0.98, 2: two_workers},
        "bare processes": {1: 0.99, 2: 1.96},
        "threads": {1: 1.0, 2: 1.0},
    }
    assert ch6_cores.judge(found).holds is holds


def test_every_way_does_all_the_work():
    found = ch6_cores.speed_ups([1000] * 4, 2, 1)
    assert {name: set(by) for name, by in found.items()} == {
        "shoal.Pool": {1, 2},
        "bare processes": {1, 2},
        "threads": {1, 2},
    }


# --- 7. overhead --------------------------------------------------------------------------------


def figures(unit, higher_is_better=False, **values):
    found = tuple(Figure(name.replace("_", " "), "ours", value) for name, value in values.items())
    return Figures("something", unit, found, higher_is_better)


@pytest.mark.parametrize(("ours_ms", "holds"), [(6.0, True), (60.0, False)])
def test_a_process_that_starts_late_does_not_hold(ours_ms, holds):
    found = Figures(
        "starts",
        "ms",
        (
            Figure("shoal.Process, forkserver", "ours", ours_ms),
            Figure("multiprocessing.Process, forkserver", "standard", 20.0),
            Figure("a thread", "thread", 0.1),
        ),
    )
    thread, process = ch7_overhead.judge_starts(found)
    assert thread.holds
    assert process.holds is holds


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (figures("µs", ours=10.0, theirs=20.0), True),
        (figures("µs", ours=40.0, theirs=20.0), False),
        (figures("GB/s", True, ours=4.0, theirs=1.0), True),
        (figures("GB/s", True, ours=0.5, theirs=1.0), False),
    ],
)
def test_the_slower_of_two_does_not_hold(found, holds):
    assert ch7_overhead.judge_pair(found, "ours", "theirs", "ours is as quick").holds is holds


@pytest.mark.parametrize(("processes", "holds"), [(4.0, True), (40.0, False)])
def test_slow_switches_do_not_hold(processes, holds):
    assert ch7_overhead.judge_switches(figures("µs", processes=processes, threads=4.0)).holds is holds


def test_switches_leave_this_thread_on_all_its_cores():
    before = ch7_overhead.os.sched_getaffinity(0)
    found = ch7_overhead.switches(20)
    assert all(figure.value > 0 for figure in found.figures)
    assert ch7_overhead.os.sched_getaffinity(0) == before


def test_a_start_is_timed_to_the_first_line_of_the_other():
    assert 0 < ch7_overhead.start_of_thread() < HANG_LIMIT_S
    assert 0 < ch7_overhead.start_of_ours("forkserver") < HANG_LIMIT_S
    assert 0 < ch7_overhead.start_of_theirs("fork") < HANG_LIMIT_S


# --- the command --------------------------------------------------------------------------------


def run_command(*words, folder):
    start = time.monotonic()
    ended = subprocess.run(
        [*COMMAND, *words, "--picture", str(folder / "overheads.svg")],
        cwd=ROOT,
        env=program_environment(),
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT_S,
    )
    return ended, time.monotonic() - start


def test_the_quick_command_reads_all_chapters_and_its_exit_code_is_what_they_say(tmp_path):
    ended, took_s = run_command("--quick", folder=tmp_path)
    assert took_s < 60
    assert re.findall(r"^(\d)\. ", ended.stdout, re.MULTILINE) == list("1234567")
    held, of = map(int, re.search(r"^(\d+) of (\d+) claims hold here", ended.stdout, re.MULTILINE).groups())
    assert ended.returncode == (0 if held == of else 1)
    assert ended.stdout.count("  does not hold here: ") == of - held
    before_speed = ended.stdout.partition("\n6. ")[0]
    assert "does not hold here" not in before_speed, ended.stdout
    assert ESCAPE not in ended.stdout
    assert not ended.stderr
    assert (tmp_path / "overheads.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.stress
@pytest.mark.hang_limit(120)
def test_the_whole_command_takes_less_than_a_minute(tmp_path):
    ended, took_s = run_command(folder=tmp_path)
    assert took_s < 60
    assert ended.returncode == 0, ended.stdout


def test_a_chapter_that_cannot_be_measured_does_not_hold(capsys, monkeypatch):
    from examples.article import __main__ as command

    def broken(sizes, doing):
        yield Verdict("begun", holds=True, figure="")
        raise OSError("no such machine")

    chapter = ch1_listing.Chapter(1, "Broken", "It breaks.", broken)
    monkeypatch.setattr(command, "chapters", lambda: (chapter,))
    assert command.main(["--quick"]) == 1
    assert "no such machine" in capsys.readouterr().out


def test_ctrl_c_ends_it_without_a_traceback(tmp_path):
    terminal = Terminal(ROOT, "--quick", "--picture", tmp_path / "p.svg", command=COMMAND)
    terminal.wait_for("the listing over shoal")
    terminal.press("\x03")
    assert terminal.finish() == 130
    assert "interrupted" in terminal.text
    assert "Traceback" not in terminal.text


def test_a_chapter_that_does_not_exist_is_refused(capsys):
    from examples.article import __main__ as command

    with pytest.raises(SystemExit):
        command.main(["--only", "8"])
    assert "there is no chapter 8; they go from 1 to 7" in capsys.readouterr().err


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_on_a_terminal_verdicts_are_coloured_unless_told_otherwise(env, coloured):
    terminal = Terminal(ROOT, "--quick", "--only", "5", command=COMMAND, env=env)
    assert terminal.finish() == 0
    assert "✓ holds" in terminal.text
    assert "the same with shoal ..." in terminal.text, "nothing says what is being measured"
    assert bool(COLOUR.search(terminal.text)) is coloured


# --- words and picture --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (45e-6, "45 µs"), (2e-7, "200 ns"), (0.0, "0 ns")]
)
def test_times_are_written_with_their_unit(value, text):
    assert seconds(value) == text


def test_the_picture_has_a_bar_for_each_figure_and_is_sound():
    import xml.etree.ElementTree as ET

    found = Figures("starts & stops", "ms", (Figure("ours", "ours", 3.0), Figure("a <thread>", "thread", 0.05)))
    root = ET.fromstring(draw("What it costs", [found, found]))
    bars = [one for one in root.iter() if one.tag.endswith("rect") and one.get("height") == "12"]
    assert len(bars) == 4
    assert all(float(bar.get("width")) > 0 for bar in bars)
    with pytest.raises(ValueError, match="nothing to show"):
        draw("What it costs", [])
