"""On a terminal: a live display that is gone at the end, rows above it, colours only where they are wanted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.process import cli_runner
from tests.process.cli_runner import Terminal

COLOUR = re.compile(r"\x1b\[[\d;]*3[0-7]")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return cli_runner.make_job(tmp_path)


def test_display_shows_the_bar_and_the_running_input_and_ctrl_c_keeps_what_is_done(here):
    terminal = Terminal(here, "map", "job.py:slow", "a", "wait-here", "-o", "o.jsonl", "-w", "1")
    terminal.wait_for("1/2")
    terminal.wait_for("slow('wait-here')")
    terminal.press("\x03")
    assert terminal.finish() == 130
    assert "1 done, 0 failed, 1 not done (interrupted)" in terminal.text
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l"), "the cursor is left hidden"
    assert (here / "o.jsonl").read_text(encoding="utf-8") == '{"input": "a", "result": "a"}\n'


def test_rows_and_display_share_a_terminal(here):
    terminal = Terminal(here, "map", "job.py:slow", "a", "wait", "-w", "1")
    terminal.wait_for('{"input": "a", "result": "a"}')
    terminal.wait_for("slow('wait')")
    terminal.press("\x03")
    assert terminal.finish() == 130


def test_failures_are_coloured_unless_told_otherwise(here):
    assert _coloured(here, {})
    assert not _coloured(here, {"NO_COLOR": "1"})


def _coloured(here: Path, env: dict[str, str]) -> bool:
    terminal = Terminal(here, "map", "job.py:picky", "a", "bad", "-o", "o.jsonl", env=env)
    assert terminal.finish() == 1
    assert "1 done, 1 failed" in terminal.text
    return bool(COLOUR.search(terminal.text))


def test_no_progress_draws_nothing(here):
    terminal = Terminal(here, "map", "job.py:length", "a", "-o", "o.jsonl", "--no-progress")
    assert terminal.finish() == 0
    assert "\x1b[?25l" not in terminal.text
    assert "1 done, 0 failed" in terminal.text
