"""Programs ended at hundreds of random moments, and cells of the crash table over and over.

Role: repetition; `make stress` only. Owner: pytest.
"""

from __future__ import annotations

import random
import signal
import time

import pytest

import shoal
from tests import support
from tests.crash import programs, tasks, test_crash_table, test_main_dies

pytestmark = pytest.mark.hang_limit(900)

MOMENTS = 200
#: Rounds of the whole crash table.
ROUNDS = 5


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=lambda one: one.name)
def test_nobody_survives_a_program_ended_at_a_random_moment(tmp_path, start_method, signum):
    moments = test_main_dies.moments(start_method, MOMENTS, seed=int(signum) + 1000)
    programs.kill_at_moments(tmp_path, start_method, moments, signum=signum)


@pytest.mark.parametrize("way", test_main_dies.WAYS)
def test_ctrl_c_at_a_random_moment_of_the_work(tmp_path, start_method, way):
    chance = random.Random(f"long {way} {start_method}")
    for _ in range(25):
        program = programs.Victim(tmp_path, test_main_dies.INTERRUPTED, start_method, way)
        try:
            program.wait_for("begun")
            time.sleep(chance.uniform(0.0, 0.2))  # not to wait for anything: the moment is what is tested
            test_main_dies.interrupt(program)
        finally:
            program.close()


@pytest.mark.parametrize("round_number", range(ROUNDS))
@pytest.mark.parametrize("stage", test_crash_table.TABLE)
def test_the_crash_table_again(stage, round_number, pool_factory, tmp_path):
    for cell_stage, manner, expected in test_crash_table.CELLS:
        if cell_stage == stage and expected is not test_crash_table.NEVER:
            folder = tmp_path / manner
            folder.mkdir()
            test_crash_table.PLAYS[stage](test_crash_table.Play(pool_factory, folder, manner, expected))


def test_many_spawning_pools_leave_nothing():
    before = support.Footprint.take()
    for number in range(200):
        with shoal.Pool(1, start_method="spawn") as pool:
            assert pool.submit(tasks.twice, number).result() == 2 * number
    assert not support.wait_for_no_leak(before)


def test_a_thousand_pools_leave_nothing(start_method):
    before = support.Footprint.take()
    for number in range(1000 if start_method != "spawn" else 50):
        with shoal.Pool(2, start_method=start_method) as pool:
            assert list(pool.map(tasks.twice, range(number % 7))) == [2 * one for one in range(number % 7)]
    assert not support.wait_for_no_leak(before)
