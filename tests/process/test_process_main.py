"""Processes of every kind of program: scripts, modules, `-c`, stdin, without a guard, under one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import HANG_LIMIT_S, program_environment

CLASSIC = """
    from {module} import Process
    class MyProcess(Process):
        def run(self):
            print("MyProcess is running...")
    if __name__ == "__main__":
        p = MyProcess()
        p.start()
        p.join()
"""


@pytest.mark.parametrize("module", ["multiprocessing", "shoal"])
def test_the_classic_listing_works_with_only_the_import_changed(run_script, start_method, module):
    done = run_script(CLASSIC.format(module=module), env={"SHOAL_START_METHOD": start_method})
    assert (done.returncode, done.stdout, done.stderr) == (0, "MyProcess is running...\n", "")


#: What stands in a `__main__` that cannot be imported, or under its guard, goes by value.
BY_VALUE = """
import shoal
class Doubler(shoal.Process):
    def __init__(self, value):
        super().__init__()
        self.value = value
    def run(self):
        return help_me(self.value)
def help_me(value):
    return 2 * value
process = Doubler(21)
process.start()
print(process.result(), flush=True)
process = shoal.Process(target=help_me, args=(4,))
process.start()
print(process.result(), flush=True)
"""


@pytest.mark.parametrize("how", ["-c", "stdin", "prompt"])
def test_classes_of_a_main_that_cannot_be_imported_go_by_value(start_method, how):
    arguments = {"-c": ["-c", BY_VALUE], "stdin": ["-"], "prompt": ["-i", "-q"]}[how]
    source = BY_VALUE
    if how == "prompt":  # where an empty line ends a block
        source = source.replace("\nclass", "\n\nclass").replace("\ndef", "\n\ndef").replace("\nprocess", "\n\nprocess")
    done = subprocess.run(
        [sys.executable, *arguments],
        input="" if how == "-c" else source,
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT_S,
        env=program_environment(SHOAL_START_METHOD=start_method),
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["42", "8"]), done.stderr
    assert "Traceback" not in done.stderr


def test_what_stands_under_the_guard_goes_by_value(run_script, start_method):
    """A process imports the main module without it, so it cannot be found by its name there."""
    done = run_script(
        """
        import shoal
        if __name__ == "__main__":
            class Doubler(shoal.Process):
                def run(self):
                    return help_me(21)
            def help_me(value):
                return 2 * value
            process = Doubler()
            process.start()
            print(process.result())
            process = shoal.Process(target=help_me, args=(4,))
            process.start()
            print(process.result())
        """,
        env={"SHOAL_START_METHOD": start_method},
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["42", "8"], "")


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_forgotten_guard_is_one_clear_error(run_script, start_method):
    done = run_script(
        """
        import sys, shoal
        print("the module runs", flush=True)
        process = shoal.Process(target=print, args=("never",))
        process.start()
        process.join()
        try:
            process.result()
        except shoal.MainGuardMissing:
            sys.exit(1)
        """,
        env={"SHOAL_START_METHOD": start_method},
    )
    assert done.returncode == 1
    assert done.stderr.count("MainGuardMissing: ") == 1
    assert done.stderr.count('put the code that starts the work under  if __name__ == "__main__":') == 1
    assert "never" not in done.stdout
    assert done.stdout.count("the module runs") == 2


@pytest.mark.start_methods("fork")
def test_fork_needs_no_guard(run_script, start_method):
    done = run_script(
        CLASSIC.format(module="shoal").replace("if __name__", "if True or __name__"),
        env={"SHOAL_START_METHOD": start_method},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "MyProcess is running...\n", "")


@pytest.mark.start_methods("forkserver", "spawn")
def test_a_main_module_that_cannot_be_imported_is_one_clear_error(run_script, start_method):
    done = run_script(
        """
        import shoal
        if __name__ != "__main__":
            raise LookupError("only as the main program")
        process = shoal.Process(target=print)
        process.start()
        process.result()
        """,
        env={"SHOAL_START_METHOD": start_method},
    )
    assert done.returncode == 1
    assert "LookupError: only as the main program" in done.stderr


def test_a_program_without_standard_streams_has_processes_all_the_same(run_script, start_method, tmp_path):
    done = run_script(
        """
        import os, sys
        import shoal

        def work():
            print("nowhere")
            return "done"

        if __name__ == "__main__":
            for stream in (0, 1, 2):
                os.close(stream)
            for _ in range(2):
                process = shoal.Process(target=work)
                process.start()
                with open(sys.argv[1], "a") as file:
                    file.write(process.result())
        """,
        tmp_path / "told",
        env={"SHOAL_START_METHOD": start_method},
    )
    assert done.returncode == 0
    assert (tmp_path / "told").read_text() == "donedone"


def test_a_process_of_a_module_run_by_name(run_script, start_method, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "tool.py").write_text(
        "import shoal\n"
        "def work():\n    return __name__\n"
        "if __name__ == '__main__':\n"
        "    process = shoal.Process(target=work)\n    process.start()\n    print(process.result())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "package.tool"],
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT_S,
        cwd=tmp_path,
        env=program_environment(SHOAL_START_METHOD=start_method),
        check=False,
    )
    expected = "__main__" if start_method == "fork" else "__mp_main__"
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")


def test_main_module_that_reads_its_arguments_finds_them_where_it_is_imported(run_script, start_method):
    """As with `multiprocessing`: whoever imports the script has the program's `sys.argv`."""
    done = run_script(
        """
        import sys
        import shoal

        WORD = sys.argv[1]

        def word():
            return WORD

        if __name__ == "__main__":
            process = shoal.Process(target=word)
            process.start()
            with shoal.Pool(1) as pool:
                print(process.result(), pool.submit(word).result())
        """,
        "herring",
        env={"SHOAL_START_METHOD": start_method},
    )
    assert (done.stdout, done.stderr) == ("herring herring\n", "")
