# ruff: noqa: INP001 - no package: only the file is copied into the Python image; it reads private state of
# the interpreter
"""The importer: an interpreter in a sandbox of its function that imports packages once, for all runs.

The importer is a fork of the zygote (zygote.py). It imports installed packages of the code, and then serves
the supervisor: it forks a process for each run (zygote_importer.c, importer.h). A run must not notice the
difference to a new interpreter. So `prepare` compares the state of the process before and after the imports.
If something has changed that a fork inherits and that `import` in a new interpreter would do at another time,
the result is the reason, and the container has no importer.

The packages are untrusted, and so is this process from the first import on. The checks here are for the sake
of honest packages. The supervisor relies on none of them.
"""

import _locale
import gc
import os
import sys

import _nanozygote  # type: ignore[import-not-found] # zygote_importer.c
import hidden_modules  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import ModuleType
    from typing import Any

WORK = "/work"
PROGRAM = f"{WORK}/main.py"
HERE = os.path.dirname(__file__)  # noqa: PTH120 - avoids loading pathlib

# enum imports_state in wire.h
REUSED, NONE, SHADOWED, FAILED = 1, 3, 4, 5
THREADS, CHILDREN, DESCRIPTORS, SIGNALS, PROCESS = 10, 11, 12, 13, 14
ENVIRONMENT, INTERPRETER, MEMORY, OWN_CODE = 15, 16, 17, 18


def prepare(zygote: "ModuleType") -> int:
    """Import what the program imports from its installed packages, and get ready to fork.

    Args:
        zygote: The module of zygote.py.

    Returns:
        REUSED, or the reason for which no run may be forked from this process.
    """
    modules: Any = zygote.MODULES
    names, packages = find_imports()
    if not names:
        return NONE
    if zygote.shadowed(os.listdir(WORK), modules.top_names, WORK):  # noqa: PTH208
        return SHADOWED
    os.chdir(WORK)
    before, known = process_state(), set(modules.loads)
    if not import_as_program(modules, names):
        return FAILED
    if reason := difference(before, process_state()):
        return reason
    if imports_own_code(modules, known, packages):
        return OWN_CODE
    hide(zygote, names, known)
    os.chdir("/")
    return REUSED if _nanozygote.is_alone() else THREADS


def find_imports() -> "tuple[list[str], set[str]]":
    """Return what the program imports from installed packages, and the top-level names of these packages.

    A child process finds it out, so that this process contains nothing of the program's source.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with open(writer, "wb") as answer:  # noqa: PTH123
            answer.write("\n".join("\0".join(found) for found in find_in_child()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:  # noqa: PTH123
        names, _, packages = answer.read().decode().partition("\n")
    os.waitpid(child, 0)
    return names.split("\0") if names else [], set(packages.split("\0"))


def find_in_child() -> "tuple[list[str], set[str]]":
    """Load the module that reads the code, which only the child needs."""
    sys.path.insert(0, HERE)
    import package_imports  # type: ignore[import-not-found] # noqa: PLC0415

    found: tuple[list[str], set[str]] = package_imports.find(WORK, "main")
    return found


def import_as_program(modules: "Any", names: "Sequence[str]") -> bool:
    """Import with the path, the arguments and the `__main__` of a program; False after any exception."""
    own_main, writes = sys.modules["__main__"], sys.dont_write_bytecode
    sys.path.insert(0, WORK)
    sys.dont_write_bytecode = True  # the code is not this process's to change
    sys.argv[:], sys.orig_argv[:] = ["main.py"], ["/usr/bin/python3", "main.py"]
    sys.modules["__main__"] = main = type(sys)("__main__")
    main.__file__ = PROGRAM
    modules.show()
    try:
        with modules.recorder():
            for name in names:
                module, _, attribute = name.partition(":")
                __import__(module, None, None, (attribute,) if attribute else ())
    except BaseException:  # noqa: BLE001 - any exception: the run will show it to its author
        return False
    finally:
        flush()
        sys.modules["__main__"] = own_main
        sys.dont_write_bytecode = writes
        if sys.path[:1] == [WORK]:
            del sys.path[0]
    return True


def flush() -> None:
    """Write buffered output to the pipes, where the supervisor looks for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue


def process_state() -> "dict[int, object]":
    """Return the state that a fork inherits: reason -> a value that shows a change."""
    signals, variables = _nanozygote.process_state()
    return {
        CHILDREN: has_children(),
        DESCRIPTORS: descriptors(),
        SIGNALS: signals,
        PROCESS: (
            *(os.getcwd(), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)),  # noqa: PTH109
            *(read("limits"), [line for line in read("status").splitlines() if line.startswith("Umask")]),
        ),
        ENVIRONMENT: (sorted(variables), dict(os.environb)),
        INTERPRETER: interpreter_state(),
        MEMORY: [line for line in read("maps").splitlines() if line.split()[1][1:] in {"w-s", "wxs"}],
    }


def read(name: str) -> str:
    """Return the text of a file of this process in /proc."""
    with open(f"/proc/self/{name}", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        return file.read()


def has_children() -> bool:
    """Whether this process has children, also ended ones."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def descriptors() -> "list[tuple[str, str]]":
    """Return all open descriptors with their files, except that of the listing."""
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found.append((number, os.readlink(f"/proc/self/fd/{number}")))  # noqa: PTH115
        except FileNotFoundError:
            continue
    return sorted(found)


def interpreter_state() -> "tuple[object, ...]":
    """Return the state of the interpreter that a program sees before it imports anything."""
    streams = (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__)
    hooks = (sys.excepthook, sys.displayhook, sys.unraisablehook, sys.breakpointhook)
    return (
        *(tuple(sys.path), tuple(map(id, sys.path_hooks)), tuple(map(id, streams)), tuple(map(id, hooks))),
        *(sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), sys.getswitchinterval()),
        *(sys.get_int_max_str_digits(), gc.isenabled(), gc.get_threshold(), len(gc.callbacks)),
        *(_locale.setlocale(_locale.LC_ALL, None), {name: id(value) for name, value in builtins().items()}),
    )


def builtins() -> "dict[str, object]":
    """Return the names that every module sees. The recorder of imports replaces one of them for a while."""
    return {
        name: value
        for name, value in vars(sys.modules["builtins"]).items()
        if name not in {"_", "__import__"}
    }


def difference(before: "dict[int, object]", after: "dict[int, object]") -> int:
    """Return the first reason whose state has changed; 0 if there is none."""
    return next((reason for reason, value in before.items() if after[reason] != value), 0)


def imports_own_code(modules: "Any", known: "Collection[str]", packages: "set[str]") -> bool:
    """Whether a module of the code was loaded that belongs to no installed package."""
    return any(
        hidden_modules.is_below(WORK, load.spec) and hidden_modules.top_of(name) not in packages
        for name, load in modules.loads.items()
        if name not in known
    )


def hide(zygote: "ModuleType", names: "Sequence[str]", known: "Collection[str]") -> None:
    """Hide the modules until a run imports them."""
    modules: Any = zygote.MODULES
    for name, load in modules.loads.items():
        if name not in known and load.spec is not None and (load.spec.origin or "").startswith(f"{WORK}/"):
            load.stamp = hidden_modules.file_stamp(load.spec.origin)
    for path in [path for path in sys.path_importer_cache if path.startswith(WORK)]:
        del sys.path_importer_cache[path]
    wanted = {name.partition(":")[0] for name in names} | {name.replace(":", ".") for name in names}
    zygote.hide_modules([name for name in modules.loads if name in wanted])
