"""Find the function a command line names, and find it again in a worker.

Role: `module:function` and `path/file.py:function` to a callable, with an answer for every way to get it wrong.
Owner: the commands; `load` also runs in every worker, so this module imports neither click nor rich.

Invariants
    T1  Both sides load a file under the same module name, so what the function returns or raises, of classes
        defined in that file, can travel.
    T2  A `Target` pickles as "call `load`": the worker gets the user's function itself, with no frame of ours around it.
    T3  Whatever goes wrong is a `TargetError` whose text is for the person who typed the command.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

#: Set by the compiler on the code of an `async def`; spelled out so that a worker need not import `inspect`.
_ASYNC_FLAGS = 0x80 | 0x200


class TargetError(Exception):
    """The target cannot be used. The text says what was wrong, and a hint where there is one."""


class Target:
    """A function and how to find it again. Callable, and pickled as an order to load it."""

    def __init__(
        self, function: Callable[..., Any], module: str, attribute: str, file: str | None, search: str
    ) -> None:
        self.function = function
        self.module = module
        self.attribute = attribute
        self.file = file
        self.search = search
        # For whoever describes a call in words: the pool, in errors and in its list of workers.
        self.__module__ = module
        self.__name__ = attribute.rpartition(".")[2]
        self.__qualname__ = attribute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.module, self.attribute, self.file, self.search)


def load(module: str, attribute: str, file: str | None, search: str) -> Any:
    """Import `module` (from `file`, if given) with `search` on the path and return its `attribute`."""
    if search not in sys.path:
        sys.path.insert(0, search)
    found: Any = sys.modules.get(module)
    if file is None:
        found = importlib.import_module(module)
    elif found is None:
        spec = importlib.util.spec_from_file_location(module, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} cannot be loaded as Python")
        found = importlib.util.module_from_spec(spec)
        sys.modules[module] = found
        try:
            spec.loader.exec_module(found)
        except BaseException:
            del sys.modules[module]
            raise
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


def find(text: str) -> Target:
    """Return the target that `text` names.

    Raises:
        TargetError: It names nothing that can be called with one input.
    """
    place, colon, attribute = text.rpartition(":")
    if not colon or not place or not attribute:
        raise TargetError(_not_a_pair(text))
    if not all(part.isidentifier() for part in attribute.split(".")):
        raise TargetError(f"{attribute!r} in {text!r} is not the name of a function")
    by_file = place.endswith(".py") or os.sep in place
    module, file, search = _from_file(place, attribute) if by_file else (place, None, os.getcwd())
    if file is None and not all(part.isidentifier() for part in module.split(".")):
        raise TargetError(f"{module!r} in {text!r} is neither the name of a module nor a file that ends in .py")
    try:
        function = load(module, attribute, file, search)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise TargetError(_load_failure(module, attribute, place, error)) from error
    _check_callable(function, text)
    return Target(function, module, attribute, file, search)


def _from_file(place: str, attribute: str) -> tuple[str, str | None, str]:
    """Return (module name, file or None, search path) for a file; a package's file is imported as part of it."""
    path = os.path.abspath(place)
    if not os.path.isfile(path):
        raise TargetError(_no_such_file(place, attribute))
    folder, base = os.path.split(path)
    stem = base.removesuffix(".py")
    parts = [stem] if stem != "__init__" else []
    root = folder
    while os.path.isfile(os.path.join(root, "__init__.py")) and os.path.basename(root).isidentifier():
        root, package = os.path.split(root)
        parts.insert(0, package)
    if len(parts) > 1 and all(part.isidentifier() for part in parts):
        return ".".join(parts), None, root  # so that its relative imports work
    taken = not stem.isidentifier() or stem in sys.modules or stem in sys.stdlib_module_names
    return (f"_target_{stem}" if taken else stem), path, folder


# --- what can be wrong, in words ------------------------------------------------------------------


def _not_a_pair(text: str) -> str:
    shape = "write it as module:function or path/file.py:function"
    path = text.rstrip(":")
    if path.endswith(".py") and os.path.isfile(path):
        names = _functions_in(path)
        return f"{text!r} does not say which function; {shape}" + (
            f"\nhint: it defines {_listed(names)}" if names else ""
        )
    module, dot, name = path.rpartition(".")
    if dot and module and name.isidentifier() and ":" not in text:
        return f"{text!r} has no colon; {shape}\nhint: did you mean {module}:{name} ?"
    return f"{text!r} is not a target; {shape}"


def _no_such_file(place: str, attribute: str) -> str:
    folder, base = os.path.split(place)
    try:
        there = [name for name in os.listdir(folder or ".") if name.endswith(".py")]
    except OSError as error:
        return f"no file {place}: {error.strerror}: {folder}"
    near = _nearest(base, there)
    hint = f"\nhint: did you mean {os.path.join(folder, near)}:{attribute} ?" if near else ""
    return f"no file {place}{hint}"


def _load_failure(module: str, attribute: str, place: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        near = _nearest(error.name, _modules_here())
        hint = (
            f"did you mean {near}:{attribute} ?" if near else "modules are looked for here and where Python finds them"
        )
        return f"no module named {error.name}\nhint: {hint}"
    frames = _user_frames(error)
    if isinstance(error, AttributeError) and not frames:
        return _no_attribute(module, attribute, place)
    if isinstance(error, SystemExit):
        hint = '\nhint: put what it does as a script under  if __name__ == "__main__":'
        return f"{place} ended the program while it was imported (sys.exit){hint}"
    said = "".join(traceback_only(error)).rstrip()
    return f"{place} cannot be imported\n" + "".join(f"  {line}\n" for line in [*frames, *said.splitlines()]).rstrip()


def _no_attribute(module: str, attribute: str, place: str) -> str:
    owner: Any = sys.modules.get(module)
    said = place
    for name in attribute.split("."):
        if not hasattr(owner, name):
            names = [entry for entry in vars(owner) if not entry.startswith("__")] if hasattr(owner, "__dict__") else []
            near = _nearest(name, names)
            wanted = attribute.replace(name, near) if near else ""
            own = [entry for entry in names if _is_own_function(getattr(owner, entry, None), module)]
            hint = (
                f"\nhint: did you mean {place}:{wanted} ?" if near else f"\nhint: it defines {_listed(own)}" * bool(own)
            )
            return f"{said} has no {name}{hint}"
        owner = getattr(owner, name)
        said = f"{said}:{name}" if said == place else f"{said}.{name}"
    return f"{place} has no {attribute}"


def _is_own_function(value: Any, module: str) -> bool:
    return (
        callable(value)
        and getattr(value, "__module__", None) == module
        and not getattr(value, "__name__", "_").startswith("_")
    )


def _check_callable(function: Any, text: str) -> None:
    if not callable(function):
        raise TargetError(f"{text} is {_a(type(function).__name__)}, not a function")
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & _ASYNC_FLAGS:
        raise TargetError(
            f"{text} is an async function; shoal map calls plain functions\nhint: wrap it: asyncio.run({text.rpartition(':')[2]}(input))"
        )
    import inspect

    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # some builtins do not tell; then the call itself will
    try:
        signature.bind("input")
    except TypeError as error:
        raise TargetError(
            f"{text} cannot be called with one input: {error}\nhint: its signature is {text.rpartition(':')[2]}{signature}"
        ) from None


def _a(word: str) -> str:
    return f"an {word}" if word[:1].lower() in "aeiou" else f"a {word}"


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "")


def _nearest(word: str, choices: Iterable[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(word, list(choices), n=1)), None)


def _modules_here() -> set[str]:
    here = {name.removesuffix(".py") for name in os.listdir() if name.endswith(".py") or os.path.isdir(name)}
    return {name for name in here if name.isidentifier()} | set(sys.stdlib_module_names)


def _functions_in(path: str) -> list[str]:
    """Return the public functions a file defines, without running it."""
    import ast

    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def _user_frames(error: BaseException) -> list[str]:
    """Return the lines of a traceback that are the user's: without ours and the import machinery's."""
    import traceback

    ours = os.path.dirname(os.path.abspath(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen importlib", ours)) and "importlib" not in frame.filename
    ]
    return [line for frame in frames for line in traceback.format_list([frame])[0].rstrip().splitlines()]


def traceback_only(error: BaseException) -> list[str]:
    """Return the last lines of an error's traceback: its type and message, with the spot of a SyntaxError."""
    import traceback

    return traceback.format_exception_only(error)
