# ruff: noqa: INP001, SLF001, I001 - no package: only the file is copied into the Python image; it renews
# private state of other modules; and the order of its imports matters
"""The zygote: an interpreter that has already started, before there is a job.

In the image this file is called main.py. It is started in its own folder, as `/usr/bin/python3 main.py`.

The zygote imports the modules that functions import most often, freezes its heap, and forks one process for
each run, before the run has a job (`_nanozygote`, zygote_module.c). It never sees code, input or output. The
forked process is confined before any Python runs in it. It waits on descriptor 3 for its one job and then
does the same as `python3 main.py`. This file and zygote_program.c remove every difference that a program
could observe. If they cannot do that exactly for a job, its program is started with execve
(`needs_plain_start`).

A hidden module is one that the zygote has imported, but that a run does not see in `sys.modules` until the
program imports it (hidden_modules.py).

Three things cannot be renewed after a fork: the seed of str hashes, the layout of memory, and the content
of /proc/self/environ. The first two are new with every zygote, so only runs of one container share them.
/proc/self/environ contains only PATH, HOME and LANG. /proc/self/cmdline is the same as after a plain start,
because this file is called main.py.
"""

import os
import sys

# The modules that a plain interpreter has loaded before the program's first line. If the program's folder has
# a file of such a name, the interpreter never imports that file.
PLAIN_MODULES = frozenset(sys.modules)

import hidden_modules  # type: ignore[import-not-found] # noqa: E402

WORK = "/work"
MODULES = hidden_modules.HiddenModules(PLAIN_MODULES, WORK)
OWN_MODULES = ("_nanozygote", "hidden_modules", "importer")

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

# Modules that are small, and that most functions import. A function's other modules are imported when the
# container is bound to it (`preload`; code/imports.py has the list). Measured: with 18 more modules, such as
# logging, dataclasses and the AI client, the start of the zygote takes twice the CPU time, and an idle
# container holds 17.4 MiB instead of 10.0.
PRELOADED = (
    *("json", "re", "traceback", "threading", "random", "datetime", "enum", "functools", "collections"),
    *("contextlib", "copy", "math", "importlib.util"),
)
MAIN_PARTS = {"PIL": "PIL.Image"}  # package -> the module to import, because the package itself loads nothing
# After 20 hand-outs of a hidden module, CPython has specialized the code for that (`HiddenModules.rehearse`).
REHEARSED, REHEARSALS = "json", 20
HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - avoids loading pathlib
STREAM_ENCODING, STREAM_ERRORS = sys.stdout.encoding, sys.stdout.errors or "strict"
JOB = 3
JOB_HEADER_BYTES = 12
JOB_READY = b"r"  # job.h
NAMES_UNKNOWN, NAMES_FREE, NAMES_TAKEN = b"?", b"f", b"t"
ARGUMENTS = ["/usr/bin/python3", "main.py"]
NOT_FOUND = 127

# Variables that an interpreter or its C library reads only when it starts.
STARTUP_VARIABLES = (b"HOME", b"LANG", b"TZ")
STARTUP_PREFIXES = (b"PYTHON", b"LC_", b"LD_", b"MALLOC_", b"GLIBC_")
FINDER: "Any" = importlib.machinery.PathFinder
SUFFIXES = importlib.machinery.all_suffixes()
MAGIC_BYTES = 2  # a file that starts like compiled code is run as compiled code, whatever its name
MAGIC = importlib.util.MAGIC_NUMBER[:MAGIC_BYTES]


# --- variables that need a plain start


def startup_variables(environment: "Iterable[bytes]") -> "set[bytes]":
    """Return the variables that an interpreter reads only when it starts."""
    return {
        variable
        for variable in environment
        if variable.startswith(STARTUP_PREFIXES) or variable.partition(b"=")[0] in STARTUP_VARIABLES
    }


OWN_STARTUP_VARIABLES = startup_variables(b"%s=%s" % pair for pair in os.environb.items())


# --- in the zygote


def import_all(modules: "Iterable[str]") -> None:
    """Import these modules, except those that this image does not have.

    Raises:
        Exception: Any exception of a module that exists and cannot be imported.
    """
    for module in modules:
        try:
            __import__(MAIN_PARTS.get(module, module))
        except ModuleNotFoundError as exc:
            if exc.name != module:
                raise


def warm_up() -> None:
    """Run code that most runs use, so that all runs share the objects that CPython makes at first use."""
    names: dict[str, object] = {"__name__": "__warm__"}
    source = (
        "import json\nclass A:\n  def f(self, x=1, *y, **z):\n"
        "    return [f'{i:.2f}' for i in range(x)]\nA().f(3)\n"
    )
    exec(compile(source, "/warm.py", "exec"), names)  # noqa: S102 - a constant
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
    """Import more modules: for every run of the container, or for the runs of a function.

    Returns:
        False if an import failed, or if a file in the code's folder has the name of a new module. In the
        second case, the code must import its own file.
    """
    before = set(MODULES.loads)
    MODULES.show()
    try:
        with MODULES.recorder():
            import_all(modules)
    except Exception:  # noqa: BLE001 - any exception: the run will show it to its author
        return False
    open_streams()  # a module may have replaced them or written to them
    hide_modules(modules)
    return not shadowed(
        entries, {hidden_modules.top_of(name) for name in MODULES.loads if name not in before}
    )


def hide_modules(wanted: "Iterable[str]") -> None:
    """Leave in `sys.modules` only the modules of a plain interpreter, and watch all modules for changes."""
    MODULES.hide(OWN_MODULES, wanted)
    for module in (*sys.modules.values(), *(load.module for load in MODULES.waiting.values())):
        _nanozygote.watch(module, MODULES.changed, hidden_modules.FREELY_SET)
    # Counting references to these objects would write to their memory, which the kernel would then copy.
    for load in MODULES.waiting.values():
        for part in (load, load.module, load.closure, load.touches, load.absent, *load.closure):
            _nanozygote.hold(part)
    MODULES.rehearse(REHEARSED, REHEARSALS)
    for path in [path for path in sys.path_importer_cache if path.startswith(HERE)]:
        del sys.path_importer_cache[path]


def open_stream(descriptor: int, name: str, mode: str, errors: str) -> None:
    """Make a standard stream as the interpreter does: create_stdio() in Python/pylifecycle.c."""
    buffer: Any = open(descriptor, mode + "b", closefd=False)  # noqa: SIM115 - it stays open
    buffer.raw.name = f"<{name}>"
    stream: Any = io.TextIOWrapper(buffer, STREAM_ENCODING, errors, "\n", line_buffering=descriptor == 2)
    stream.mode = mode
    for attribute in (name, f"__{name}__"):
        setattr(sys, attribute, stream)


def open_streams() -> None:
    """Make the standard streams of all runs.

    A stream stores whether its file can be positioned. All three files of a run are pipes, so the streams are
    made while the descriptors are pipes. In a forked process the same descriptors are the pipes of its run.
    """
    kept = [os.dup(descriptor) for descriptor in range(3)]
    reader, writer = os.pipe()
    for descriptor, end in enumerate((reader, writer, writer)):
        os.dup2(end, descriptor)
    open_stream(0, "stdin", "r", STREAM_ERRORS)
    open_stream(1, "stdout", "w", STREAM_ERRORS)
    open_stream(2, "stderr", "w", "backslashreplace")
    for descriptor, original in enumerate(kept):
        os.dup2(original, descriptor)
    for spent in (reader, writer, *kept):
        os.close(spent)


def serve() -> bool:
    """Serve the supervisor. Return only in a forked process: whether it is to be the importer."""
    message = b"R"  # ready; later b"p" and the result of `preload` (zygote_protocol.h)
    while isinstance(more := _nanozygote.serve(message), tuple):
        message = b"p" + bytes([preload(*more)])
    return more is not None


def serve_as_importer() -> None:
    """Import the packages of the code, and serve the supervisor. Return only in a process for a run."""
    sys.path.insert(0, HERE)
    sys.modules |= {"_nanozygote": _nanozygote, "hidden_modules": hidden_modules}
    import importer  # type: ignore[import-not-found] # noqa: PLC0415 - only the importer needs it

    del sys.path[0]
    for name in OWN_MODULES:
        del sys.modules[name]
    renew_secrets()
    message = JOB_READY  # later b"i" and the result (zygote_protocol.h)
    while _nanozygote.serve_importer(message):
        message = b"i" + bytes([importer.prepare(sys.modules["__main__"])])


# --- in a forked process, before its job


def renew_authkey(process: "Any") -> None:
    """Renew the key with which the processes of a multiprocessing program recognize each other."""
    config = process.current_process()._config
    config["authkey"] = process.AuthenticationString(os.urandom(32))


def renew_names(tempfile: "Any") -> None:
    """Renew the random names of temporary files.

    Python does so only if the process number changes, but a run in a sandbox can have the zygote's number.
    """
    tempfile._name_sequence = None


# Other modules need no function. `random` seeds itself again after a fork. `secrets`, uuid4, numpy's
# default_rng and the zygote's OpenSSL (zygote_module.c) take each number from the kernel.
SECRETS: "dict[str, Callable[[Any], object]]" = {
    "multiprocessing.process": renew_authkey,
    "numpy.random": lambda random: random.seed(),
    "tempfile": renew_names,
}


def renew_secrets() -> None:
    """Renew the random state of all modules that have a random state."""
    for name, renew in SECRETS.items():
        load = MODULES.waiting.get(name)
        if load is not None:
            renew(load.module)


def read_exactly(count: int) -> bytes:
    """Return exactly `count` bytes of the job.

    Exit if the job socket is closed, because then no run will use this sandbox.
    """
    parts = b""
    while len(parts) < count:
        part = os.read(JOB, count - len(parts))
        if not part:
            os._exit(0)
        parts += part
    return parts


def has_hidden_names(hidden: "Collection[str]") -> bool:
    """Wait for the code. Return whether one of its entries would be imported instead of a hidden module.

    The time for it grows with the number of entries. So the supervisor remembers the answer of one process
    for the others, until the code or the zygote changes. The code does not change between this answer and the
    job: in this sandbox only the run can write to it.
    """
    answer = read_exactly(1)
    if answer == NAMES_UNKNOWN:
        answer = NAMES_TAKEN if shadowed(os.listdir(WORK), hidden, WORK) else NAMES_FREE  # noqa: PTH208
        os.write(JOB, answer)
    return answer != NAMES_FREE


def receive_job() -> "tuple[list[bytes], list[bytes]]":
    """Wait for the job. Return its arguments, and its environment as NAME=value."""
    header = read_exactly(JOB_HEADER_BYTES)
    length, argument_count, _ = (int.from_bytes(header[at : at + 4], "little") for at in (0, 4, 8))
    strings = read_exactly(length).split(b"\0")[:-1]
    os.close(JOB)
    return strings[:argument_count], strings[argument_count:]


# --- in a forked process, with its job


def shadowed(entries: "Iterable[str]", names: "Collection[str]", folder: str = "") -> bool:
    """Whether one of a folder's entries would be imported instead of one of the modules.

    Args:
        entries: Names of files and folders.
        names: Names of top-level modules.
        folder: The folder that has the entries. A subfolder counts only if it is a package with an
            `__init__`. If the folder is not known (""), every subfolder counts.
    """
    suffixes = SUFFIXES
    for entry in entries:
        stem, dot, rest = entry.partition(".")
        if stem in names and (dot + rest in suffixes if dot else is_package(folder, entry)):
            return True
    return False


def is_package(folder: str, entry: str) -> bool:
    """Whether a folder is a regular package, not part of a namespace package. True if that is not known."""
    if not folder:
        return True
    try:
        return any(name.partition(".")[0] == "__init__" for name in os.listdir(f"{folder}/{entry}"))  # noqa: PTH208
    except NotADirectoryError:
        return False


def is_source(path: str) -> bool:
    """Whether a path is a plain file of source text, not an archive or compiled code.

    This also caches the path's importer, as a plain start does: pymain_get_importer().
    """
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
    importer = FINDER._path_importer_cache(path)  # not None for an archive
    return start != MAGIC and importer is None


def needs_plain_start(
    arguments: "Sequence[bytes]", environment: "Sequence[bytes]", *, hides_modules: bool
) -> bool:
    """Whether this process cannot do exactly the same as a plain start would.

    Args:
        arguments: The interpreter, the script, and its arguments.
        environment: NAME=value.
        hides_modules: The result of `has_hidden_names`.
    """
    return (
        [os.fsdecode(argument) for argument in arguments] != ARGUMENTS
        or startup_variables(environment) != OWN_STARTUP_VARIABLES
        or hides_modules
        or not is_source(f"{WORK}/main.py")
    )


def start_plainly(arguments: "list[bytes]", environment: "Iterable[bytes]") -> "NoReturn":
    """Execute the program that the arguments name."""
    _nanozygote.restore_signals()
    try:
        os.execve(arguments[0], arguments, dict(split(variable) for variable in environment))  # noqa: S606 - no shell
    except OSError as exc:
        os.write(
            2, f"nanosupervisor: {os.fsdecode(arguments[0])} could not be started: {exc.strerror}\n".encode()
        )
        os._exit(NOT_FOUND)


def split(variable: bytes) -> "tuple[bytes, bytes]":
    """Return a variable's name and value."""
    name, _, value = variable.partition(b"=")
    return name, value


def run(environment: "Iterable[bytes]", stamp: object) -> "NoReturn":
    """Become `python3 main.py`.

    Args:
        environment: NAME=value.
        stamp: The `folder_stamp` of the program's folder, taken when the job arrived, before the run could
            change the folder. It shows later whether the folder has changed since then.
    """
    os.environb.clear()
    os.environb.update(dict(split(variable) for variable in environment))
    sys.orig_argv[:] = ARGUMENTS
    sys.argv[:] = ARGUMENTS[1:]
    sys.path.insert(0, WORK)
    renew_clocks()
    MODULES.begin(stamp)
    _nanozygote.run(f"{WORK}/main.py")
    raise AssertionError("_nanozygote.run has returned")


def renew_clocks() -> None:
    """Renew the start time and the working directory that modules stored when they were imported."""
    logging = MODULES.waiting.get("logging")
    if logging is not None:
        logging.module._startTime = time.time_ns()
    process = MODULES.waiting.get("multiprocessing.process")
    if process is not None:
        process.module.ORIGINAL_DIR = WORK


def take_own_pages() -> None:
    """Write to the memory pages that every run writes to, before a job arrives.

    A forked process shares all pages with the zygote. At the first write to a page, the kernel copies it. So
    run the code that every run uses, and discard the results. Code that only some runs use must not be here,
    because its pages would be copied for every run. A copy takes 4 µs, and MADV_POPULATE_WRITE saves only a
    tenth of that.
    """
    names: dict[str, object] = {"__name__": "__warm__", "__builtins__": __builtins__}
    source = "import sys\ndef f(x, *y, **z):\n    return f'{x:>4}' + str(y)\nf(1, 2, a=3).split()\n"
    exec(compile(source, "/warm.py", "exec"), names)  # noqa: S102 - a constant
    startup_variables([b"PATH=/bin", b"HOME=/tmp", *(b"%s=%s" % pair for pair in os.environb.items())])
    os.listdir("/input")  # noqa: PTH208
    dict(split(variable) for variable in (b"A=1", b"B=2"))
    MODULES.begin(None)


def serve_run() -> "NoReturn":
    """Serve one run, in a forked process."""
    renew_secrets()
    take_own_pages()
    os.write(JOB, JOB_READY)
    hides_modules = has_hidden_names(MODULES.top_names)
    arguments, environment = receive_job()
    os.chdir(WORK)
    stamp = hidden_modules.folder_stamp(WORK)
    if needs_plain_start(arguments, environment, hides_modules=hides_modules):
        start_plainly(arguments, environment)
    run(environment, stamp)


def main() -> "NoReturn":
    """Start, and serve the supervisor; in each forked process, serve one run."""
    del sys.path[0]  # this file's folder: a run must not import from it
    _nanozygote.hook(MODULES.waiting, MODULES.hand_out)
    with MODULES.recorder():
        import_all(PRELOADED)
        warm_up()
    open_streams()
    hide_modules(PRELOADED)
    if serve():
        serve_as_importer()
    serve_run()


main()
