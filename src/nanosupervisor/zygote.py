# ruff: noqa: INP001, SLF001, I001 - copied by itself into the Python image; here to renew what other modules
# keep to themselves; and what it imports is chosen and ordered with care
"""The interpreter that is up already: `/usr/bin/python3 main.py` in this file's folder.

It imports what functions import most, freezes its heap, and forks one process for each run ahead of its
job (`_nanozygote`, zygote_module.c). It never sees code, input or output. The process is confined before any
Python runs in it; it then waits on descriptor 3 for its one job and becomes `python3 main.py`. Whatever a
program could tell the two apart by is made the same here and in zygote_program.c; a job for which that cannot
be done exactly is started plainly, with execve (`is_for_a_plain_start`).

Three things cannot be made anew in a fork: the seed of str hashes, the layout of memory, and what
/proc/self/environ shows. The first two are new with every zygote, so they are shared by the runs of one
container only; the environment there has nothing but PATH, HOME and LANG. /proc/self/cmdline is right because
this file is called main.py in the image.
"""

import os
import sys

# What a plain interpreter has loaded when the program's first line runs: a file of such a name cannot win.
PLAIN_MODULES = frozenset(sys.modules)

import hidden_modules  # type: ignore[import-not-found] # noqa: E402

WORK = "/work"
MODULES = hidden_modules.HiddenModules(PLAIN_MODULES, WORK)
OWN_MODULES = ("_nanozygote", "hidden_modules")

with MODULES.recorder():
    import _nanozygote  # type: ignore[import-not-found] # zygote_module.c
    import importlib.machinery
    import importlib.util
    import io
    import json
    import linecache
    import time
    import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import Any, NoReturn

# What functions import most, all of the standard library but the AI client. Measured (medians, two cores):
# with json, re and traceback alone the zygote holds 5.9 MB of its own and hello takes 1.2 ms from the job to
# the end of its output; with all of these 13.3 MB and 1.5 ms. A plain start takes 11.5 ms, and importing
# datetime, logging, random, uuid, base64 and hashlib another 16. asyncio would cost 1.5 MB more,
# multiprocessing and unittest 2.5.
PRELOADED = (
    *("json", "re", "traceback", "logging", "threading", "random", "datetime", "typing", "dataclasses"),
    *("enum", "pathlib", "functools", "collections", "contextlib", "base64", "uuid", "string", "csv", "copy"),
    *("math", "statistics", "decimal", "hashlib", "hmac", "tempfile", "shutil", "subprocess", "inspect"),
    *("pickle", "importlib.util", "ai_client"),
)
MAIN_PARTS = {"PIL": "PIL.Image"}  # packages that are empty by themselves
REHEARSED, REHEARSALS = "json", 20  # so many hand-outs until CPython has specialized their code
HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would be loaded for it
STREAM_ENCODING, STREAM_ERRORS = sys.stdout.encoding, sys.stdout.errors or "strict"
JOB = 3
JOB_HEADER_BYTES = 12
ARGUMENTS = ["/usr/bin/python3", "main.py"]
NOT_FOUND = 127

# Read when an interpreter or its C library comes up: later changes would be too late.
STARTUP_VARIABLES = (b"HOME", b"LANG", b"TZ")
STARTUP_PREFIXES = (b"PYTHON", b"LC_", b"LD_", b"MALLOC_", b"GLIBC_")
FINDER: "Any" = importlib.machinery.PathFinder
SUFFIXES = importlib.machinery.all_suffixes()
MAGIC_BYTES = 2  # a file that starts like compiled code is run as such, whatever its name
MAGIC = importlib.util.MAGIC_NUMBER[:MAGIC_BYTES]


# --- what makes a difference from the start


def startup_variables(environment: "Iterable[bytes]") -> "set[bytes]":
    """Those that have their effect when an interpreter comes up."""
    return {
        variable
        for variable in environment
        if variable.startswith(STARTUP_PREFIXES) or variable.partition(b"=")[0] in STARTUP_VARIABLES
    }


OWN_STARTUP_VARIABLES = startup_variables(b"%s=%s" % pair for pair in os.environb.items())


# --- in the zygote


def import_all(modules: "Iterable[str]") -> None:
    """Import what this image has of these modules.

    Raises:
        Exception: Of whatever kind, by a module that is there and cannot be imported.
    """
    for module in modules:
        try:
            __import__(MAIN_PARTS.get(module, module))
        except ModuleNotFoundError as exc:
            if exc.name != module:
                raise


def warm_up() -> None:
    """Take the ways that a run takes, so that what is made on first use is made here, and shared."""
    names: dict[str, object] = {"__name__": "__warm__"}
    source = (
        "import json\nclass A:\n  def f(self, x=1, *y, **z):\n"
        "    return [f'{i:.2f}' for i in range(x)]\nA().f(3)\n"
    )
    exec(compile(source, "/warm.py", "exec"), names)  # noqa: S102 - a text of our own
    json.loads(json.dumps({"a": [1, 2.5, "ä", None, True]}, indent=1))
    try:
        compile("(", "/warm.py", "exec")
    except SyntaxError:
        traceback.print_exc(file=io.StringIO())
    try:
        exec("A().f('x')", names)  # noqa: S102
    except TypeError:
        traceback.print_exc(file=io.StringIO())
    linecache.clearcache()


def preload(modules: "Sequence[str]", entries: "Iterable[str]") -> bool:
    """Import more, for every run or for those of a function; returns whether that succeeded.

    Not when something that came in has a name that the code's folder has: there its own file must win.
    """
    before = set(MODULES.loads)
    MODULES.show()
    try:
        with MODULES.recorder():
            import_all(modules)
    except Exception:  # noqa: BLE001 - of whatever kind: the run itself will show it to its author
        return False
    hide_modules(modules)
    return not shadowed(
        entries, {hidden_modules.top_of(name) for name in MODULES.loads if name not in before}
    )


def hide_modules(wanted: "Iterable[str]") -> None:
    """Leave in `sys.modules` what a plain interpreter has, and watch what a run changes in all modules."""
    MODULES.hide(OWN_MODULES, wanted)
    for module in (*sys.modules.values(), *(load.module for load in MODULES.waiting.values())):
        _nanozygote.watch(module, MODULES.changed, hidden_modules.FREELY_SET)
    for load in MODULES.waiting.values():
        for part in (load, load.module, load.closure, load.touches, load.absent, *load.closure):
            _nanozygote.hold(part)
    MODULES.rehearse(REHEARSED, REHEARSALS)
    for path in [path for path in sys.path_importer_cache if path.startswith(HERE)]:
        del sys.path_importer_cache[path]


def serve() -> None:
    """Serve the supervisor; returns in a process for a run."""
    message = b"R"
    while (more := _nanozygote.serve(message)) is not None:
        message = b"p" + bytes([preload(*more)])


# --- in a process for a run, before its job


def open_stream(descriptor: int, name: str, mode: str, errors: str) -> None:
    """Make a standard stream as the interpreter makes it: create_stdio() in Python/pylifecycle.c."""
    buffer: Any = open(descriptor, mode + "b", closefd=False)  # noqa: SIM115 - it is to stay open
    buffer.raw.name = f"<{name}>"
    stream: Any = io.TextIOWrapper(buffer, STREAM_ENCODING, errors, "\n", line_buffering=descriptor == 2)
    stream.mode = mode
    for attribute in (name, f"__{name}__"):
        setattr(sys, attribute, stream)


def renew_authkey(process: "Any") -> None:
    """The key by which a multiprocessing program knows its own processes."""
    config = process.current_process()._config
    config["authkey"] = process.AuthenticationString(os.urandom(32))


def renew_names(tempfile: "Any") -> None:
    """The random part of temporary files' names: renews itself for another process number only."""
    tempfile._name_sequence = None


# `random` reseeds itself after a fork; `secrets`, uuid4 and numpy's default_rng ask the kernel each time, and
# so does OpenSSL here (zygote_module.c).
SECRETS: "dict[str, Callable[[Any], object]]" = {
    "multiprocessing.process": renew_authkey,
    "numpy.random": lambda random: random.seed(),
    "tempfile": renew_names,
}


def renew_secrets() -> None:
    """Give this process random state of its own, wherever a module holds some."""
    for name, renew in SECRETS.items():
        load = MODULES.waiting.get(name)
        if load is not None:
            renew(load.module)


def read_exactly(count: int) -> bytes:
    """So many bytes of the job; ends the process when no job will come."""
    parts = b""
    while len(parts) < count:
        part = os.read(JOB, count - len(parts))
        if not part:
            os._exit(0)
        parts += part
    return parts


def receive_job() -> "tuple[list[bytes], list[bytes]]":
    """Wait for the job: arguments, and the environment as NAME=value."""
    os.write(JOB, b"r")
    header = read_exactly(JOB_HEADER_BYTES)
    length, argument_count, _ = (int.from_bytes(header[at : at + 4], "little") for at in (0, 4, 8))
    strings = read_exactly(length).split(b"\0")[:-1]
    os.close(JOB)
    return strings[:argument_count], strings[argument_count:]


# --- in it, with its job


def shadowed(entries: "Iterable[str]", names: "Collection[str]", folder: str = "") -> bool:
    """Whether a folder's entries have one that would be imported instead of one of the modules.

    Args:
        entries: Names of files and folders.
        names: Names of modules at the top.
        folder: Where the entries are. A folder in it wins only if it is a package with an `__init__`; unless
            it is known where they are, each folder counts as one.
    """
    suffixes = SUFFIXES
    for entry in entries:
        stem, dot, rest = entry.partition(".")
        if stem in names and (dot + rest in suffixes if dot else is_package(folder, entry)):
            return True
    return False


def is_package(folder: str, entry: str) -> bool:
    """Whether that folder is a package, not just part of a namespace; in doubt, it is."""
    if not folder:
        return True
    try:
        return any(name.partition(".")[0] == "__init__" for name in os.listdir(f"{folder}/{entry}"))  # noqa: PTH208
    except NotADirectoryError:
        return False


def is_source(path: str) -> bool:
    """Whether that is a plain file of source text; an archive or compiled code is run in ways of its own."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        start = os.read(file, MAGIC_BYTES)
    except OSError:
        return False
    finally:
        os.close(file)
    # Looks whether it is an archive, and leaves the same trace as a plain start: pymain_get_importer()
    importer = FINDER._path_importer_cache(path)
    return start != MAGIC and importer is None


def is_for_a_plain_start(
    arguments: "Sequence[bytes]", environment: "Sequence[bytes]", hidden: "Collection[str]"
) -> bool:
    """Whether the job needs an interpreter that comes up for it: to be exactly right, at the old price.

    Args:
        arguments: Interpreter, script, and what the script is told.
        environment: NAME=value.
        hidden: Names at the top of the modules that are here, but would not be when a plain interpreter runs
            its first line, and of modules that they look for.
    """
    return (
        [os.fsdecode(argument) for argument in arguments] != ARGUMENTS
        or startup_variables(environment) != OWN_STARTUP_VARIABLES
        or shadowed(os.listdir(WORK), hidden, WORK)  # noqa: PTH208
        or not is_source(f"{WORK}/main.py")
    )


def start_plainly(arguments: "list[bytes]", environment: "Iterable[bytes]") -> "NoReturn":
    """Become whatever the arguments say."""
    _nanozygote.restore_signals()
    try:
        os.execve(arguments[0], arguments, dict(split(variable) for variable in environment))  # noqa: S606 - no shell
    except OSError as exc:
        os.write(
            2, f"nanosupervisor: {os.fsdecode(arguments[0])} could not be started: {exc.strerror}\n".encode()
        )
        os._exit(NOT_FOUND)


def split(variable: bytes) -> "tuple[bytes, bytes]":
    """Name and value."""
    name, _, value = variable.partition(b"=")
    return name, value


def run(environment: "Iterable[bytes]", stamp: object) -> "NoReturn":
    """Become `python3 main.py`.

    Args:
        environment: NAME=value.
        stamp: Of the program's folder, from before its names were looked at.
    """
    os.environb.clear()
    os.environb.update(dict(split(variable) for variable in environment))
    open_stream(0, "stdin", "r", STREAM_ERRORS)
    sys.orig_argv[:] = ARGUMENTS
    sys.argv[:] = ARGUMENTS[1:]
    sys.path.insert(0, WORK)
    renew_clocks()
    MODULES.begin(stamp)
    _nanozygote.run(f"{WORK}/main.py")
    raise AssertionError("it does not return")


def renew_clocks() -> None:
    """What modules have noted when they were imported: the time and the folder."""
    logging = MODULES.waiting.get("logging")
    if logging is not None:
        logging.module._startTime = time.time_ns()
    process = MODULES.waiting.get("multiprocessing.process")
    if process is not None:
        process.module.ORIGINAL_DIR = WORK


def take_own_pages(hidden: "Collection[str]") -> None:
    """Write to the pages that a run will write to at once, while nobody waits for it.

    All memory is the zygote's until it is written to, and each page's first write costs a copy. So take, for
    nothing, the ways that every run takes.
    """
    names: dict[str, object] = {"__name__": "__warm__", "__builtins__": __builtins__}
    source = "import sys\ndef f(x, *y, **z):\n    return f'{x:>4}' + str(y)\nf(1, 2, a=3).split()\n"
    exec(compile(source, "/warm.py", "exec"), names)  # noqa: S102 - a text of our own
    startup_variables([b"PATH=/bin", b"HOME=/tmp", *(b"%s=%s" % pair for pair in os.environb.items())])
    shadowed(["main.py", "data"], hidden)
    with open("/dev/null", "rb") as nothing:  # noqa: PTH123
        nothing.read()
    with open("/dev/null", encoding="utf-8") as nothing_said:  # noqa: PTH123
        nothing_said.read()
    MODULES.rehearse(REHEARSED, 1)
    bytearray(64 * 1024)
    os.listdir("/input")  # noqa: PTH208
    dict(split(variable) for variable in (b"A=1", b"B=2"))
    str(b"main.py", "utf-8").encode()


def live() -> "NoReturn":
    """Be a process for a run, from its first breath to its last."""
    open_stream(1, "stdout", "w", STREAM_ERRORS)
    open_stream(2, "stderr", "w", "backslashreplace")
    renew_secrets()
    hidden = MODULES.top_names
    take_own_pages(hidden)
    arguments, environment = receive_job()
    os.chdir(WORK)
    stamp = hidden_modules.folder_stamp(WORK)
    if is_for_a_plain_start(arguments, environment, hidden):
        start_plainly(arguments, environment)
    run(environment, stamp)


def main() -> "NoReturn":
    """Come up, serve, and in each process that leads to, live for one run."""
    del sys.path[0]  # this file's folder: nothing is to be imported from there
    _nanozygote.hook(MODULES.waiting, MODULES.hand_out)
    with MODULES.recorder():
        import_all(PRELOADED)
        warm_up()
    hide_modules(PRELOADED)
    serve()
    live()


main()
