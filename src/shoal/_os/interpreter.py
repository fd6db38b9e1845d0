"""Start this Python again, with this program's main module.

Role: the command that starts an equal interpreter, what `__main__` is, and how a child imports it. Owner: nobody.

Invariants
    I1  `main_module` never runs or imports anything.
    I2  `import_main` runs the program's main module at most once per process, never under the name ``__main__``.
"""

from __future__ import annotations

import os
import sys
from types import FrameType, ModuleType

_MP_MAIN = "__mp_main__"

#: Set while `import_main` runs the program's main module here: whoever starts work then has no main guard.
_importing = False

_is_worker = False

#: Mains we replaced: their functions may still be called, and a collected module takes its globals along.
_replaced_mains: list[ModuleType] = []


def working_directory() -> str | None:
    """Return the current directory, or `None` if it was removed."""
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


#: A relative `__main__.__file__` is meant from here; the program may have moved since.
_STARTED_IN = working_directory()


class MainModule:
    """How a child can import the program's main module. Immutable; equal by value; made of plain text.

    Written out because `dataclasses` would double the import time of this module (O1).

    Attributes:
        kind: ``"file"`` (run the script at `path`), ``"module"`` (run the module `name`) or ``"none"``: there is
            nothing to import (prompt, notebook, ``-c``, standard input) or importing would start the program
            (a package's, directory's or zip archive's ``__main__.py``).
        name: Importable module name, for ``"module"``.
        path: Absolute path of the script, for ``"file"``.
        init_name: What the module is called while the child runs it.
    """

    __slots__ = ("init_name", "kind", "name", "path")
    __match_args__ = ("kind", "name", "path", "init_name")

    kind: str
    name: str | None
    path: str | None
    init_name: str

    def __init__(self, kind: str, name: str | None = None, path: str | None = None, init_name: str = _MP_MAIN) -> None:
        for field, value in zip(self.__match_args__, (kind, name, path, init_name), strict=True):
            object.__setattr__(self, field, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"MainModule is immutable: cannot set {name}")

    def _values(self) -> tuple[str, str | None, str | None, str]:
        return self.kind, self.name, self.path, self.init_name

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, MainModule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in zip(self.__match_args__, self._values(), strict=True))
        return f"MainModule({inside})"

    def __reduce__(self) -> tuple[object, ...]:
        return MainModule, self._values()


def interpreter_command() -> list[str]:
    """Return the command that starts this interpreter with the same flags (-O, -W, -X, -I ...), to be added to.

    Loads `subprocess`; for the starting side only.

    Raises:
        RuntimeError: This Python is embedded and does not know its executable.
    """
    from subprocess import _args_from_interpreter_flags as flags  # type: ignore[attr-defined]

    if not sys.executable:
        raise RuntimeError("sys.executable is empty: this Python cannot start another one")
    return [sys.executable, *flags()]


def main_module() -> MainModule:
    """Return how a child can import this program's main module, by the rules of `multiprocessing`."""
    main = sys.modules.get("__main__")
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        # These run the program without looking at __name__, so they cannot be imported.
        if name == "__main__" or name.endswith(".__main__"):
            return MainModule("none")
        return MainModule("module", name=name)
    path = getattr(main, "__file__", None)
    if not isinstance(path, str):
        return MainModule("none")
    path = os.path.normpath(os.path.join(_STARTED_IN or "", path))
    # Not a file: "<stdin>", or removed since. IPython's launcher runs without a main guard.
    if not os.path.isfile(path) or os.path.splitext(os.path.basename(path))[0] == "ipython":
        return MainModule("none")
    return MainModule("file", path=path)


def import_main(main: MainModule) -> None:
    """Run `main` as ``__mp_main__`` and let ``__main__`` name it too, so that what it defines can be unpickled.

    Does nothing for ``"none"``, nor if this process already has it (it was forked, or called before).
    Loads `runpy`. Whatever the program's main module raises comes through, and leaves ``__main__`` as it was.
    """
    global _importing
    if main.kind == "none" or _is_main(sys.modules.get("__main__"), main):
        return
    _importing = True
    try:
        content = _run(main)
    finally:
        _importing = False
    module = ModuleType(main.init_name)
    module.__dict__.update(content)
    old = sys.modules.get("__main__")
    if old is not None:
        _replaced_mains.append(old)
    sys.modules["__main__"] = sys.modules[main.init_name] = module


def answer_to_worker_name() -> None:
    """Let classes of the main module be found here under the name it has in workers. `multiprocessing`, if imported, does the same."""
    main = sys.modules.get("__main__")
    if main is not None:
        sys.modules.setdefault(_MP_MAIN, main)


def mark_worker() -> None:
    """Note that this process is a worker."""
    global _is_worker
    _is_worker = True


def is_worker() -> bool:
    """Say whether this process is a worker."""
    return _is_worker


def importing_main() -> bool:
    """Say whether this process is a worker or template that is running the program's main module right now."""
    return _importing


def unguarded_import() -> str | None:
    """Return the file and line of the module code that is running now, if a worker or template runs it by importing.

    Whoever starts processes from there would do so in every worker again, without end.
    """
    if not (_importing or _is_worker):
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("shoal._worker"):
            return None  # what lies below is how this worker came to be
        caller = frame.f_back
        if frame.f_code.co_name == "<module>" and caller is not None and _imports(caller):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = caller
    return None


def _imports(frame: FrameType) -> bool:
    """Say whether a frame is the import system's, or `runpy`'s, at running a module."""
    code = frame.f_code
    return code.co_filename.startswith("<frozen importlib") or (
        code.co_name == "_run_code" and "runpy" in code.co_filename
    )


def _run(main: MainModule) -> dict[str, object]:
    import runpy

    if main.kind == "module":
        if main.name is None:
            raise ValueError("a main module of kind 'module' has no name")
        return runpy.run_module(main.name, run_name=main.init_name, alter_sys=True)
    if main.path is None:
        raise ValueError("a main module of kind 'file' has no path")
    return runpy.run_path(main.path, run_name=main.init_name)


def _is_main(current: ModuleType | None, main: MainModule) -> bool:
    if main.kind == "module":
        return getattr(getattr(current, "__spec__", None), "name", None) == main.name
    return getattr(current, "__file__", None) == main.path
