# ruff: noqa: INP001 - no package: only the file is copied into the Python image
"""Finds out what a program imports from the installed packages of its code.

It reads the program's own modules from the entry file on, in the order of the import statements. Only
statements count that are executed when a module is imported: those in functions and in handlers of exceptions
do not. An installed package has a folder `*.dist-info`, as `pip install --target` makes it.

The importer calls `find` in a child process (importer.py), because the code is parsed there.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

ONLY_AST = 0x400  # ast.PyCF_ONLY_AST
MAX_FILES, MAX_BYTES, MAX_NAMES = 200, 1 << 20, 2000
LISTS = ("body", "orelse", "finalbody", "cases")  # the fields of statements that have statements
SKIPPED = ("FunctionDef", "AsyncFunctionDef", "Lambda")


def find(folder: str, entry: str) -> "tuple[list[str], set[str]]":
    """Find out what a program imports. Blocking.

    Args:
        folder: The folder of the program.
        entry: The name of the entry file, without its suffix.

    Returns:
        The names in order: `module`, or `module:name` for `from module import name`. And the top-level names
        of all installed packages.
    """
    packages = installed(folder)
    search = Search(folder, packages)
    search.read_module(entry, f"{folder}/{entry}.py", is_package=False)
    return list(search.found)[:MAX_NAMES], packages


def installed(folder: str) -> "set[str]":
    """Return the top-level names of the installed packages in a folder."""
    names: set[str] = set()
    for entry in os.listdir(folder):  # noqa: PTH208
        if entry.endswith(".dist-info"):
            names.update(recorded(f"{folder}/{entry}"))
    return names


def recorded(dist_info: str) -> "Iterator[str]":
    """Yield the top-level names of a package, from its list of files.

    https://packaging.python.org/en/latest/specifications/recording-installed-packages/
    """
    for line in read(f"{dist_info}/RECORD").splitlines():
        path = line.lstrip('"').partition(",")[0]
        top, slash, _ = path.partition("/")
        stem, _, suffix = top.partition(".")
        if not stem or stem == "__pycache__":
            continue
        if slash and not suffix:
            yield top
        elif not slash and suffix.rpartition(".")[2] in {"py", "pyc", "so"}:
            yield stem
    yield from read(f"{dist_info}/top_level.txt").split()


def read(path: str) -> str:
    """Return the text of a file; an empty text if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


class Search:
    """The search through the modules of a program.

    Args:
        folder: The folder of the program.
        packages: The top-level names of installed packages.

    Attributes:
        found: The names, in order.
    """

    def __init__(self, folder: str, packages: "set[str]") -> None:
        self._folder = folder
        self._packages = packages
        self._read: set[str] = set()
        self._bytes = 0
        self.found: dict[str, None] = {}

    def read_module(self, module: str, path: str, *, is_package: bool) -> None:
        """Note the imports of one of the program's own modules.

        Args:
            module: Its full name.
            path: Its file.
            is_package: Whether the file is the `__init__.py` of a package.
        """
        if path in self._read or len(self._read) >= MAX_FILES:
            return
        self._read.add(path)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                source = file.read(MAX_BYTES - self._bytes)
            self._bytes += len(source)
            tree: Any = compile(source, path, "exec", ONLY_AST, dont_inherit=True)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            return  # the run will show it to its author
        package = module if is_package else module.rpartition(".")[0]
        for statement in executed(tree.body):
            if type(statement).__name__ == "Import":
                for alias in statement.names:
                    self._note(alias.name, ())
            else:
                base = absolute(statement.module or "", statement.level, package)
                self._note(base, [alias.name for alias in statement.names])

    def _note(self, module: str, names: "Iterable[str]") -> None:
        """Note an import of a package, or read an imported module of the program."""
        top = module.partition(".")[0]
        if top in self._packages:
            self.found.update(dict.fromkeys([f"{module}:{name}" for name in names] or [module]))
        elif top:
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                self._read_own(".".join(parts[:end]))
            for name in names:
                self._read_own(f"{module}.{name}")

    def _read_own(self, module: str) -> None:
        path = f"{self._folder}/{module.replace('.', '/')}"
        if os.path.isfile(f"{path}/__init__.py"):  # noqa: PTH113
            self.read_module(module, f"{path}/__init__.py", is_package=True)
        elif os.path.isfile(f"{path}.py"):  # noqa: PTH113
            self.read_module(module, f"{path}.py", is_package=False)


def absolute(module: str, level: int, package: str) -> str:
    """Return the full name of the module in a statement `from ... import`; empty if it cannot exist."""
    if not level:
        return module
    parts = package.split(".") if package else []
    if len(parts) < level:
        return ""
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [module])])


def executed(statements: "Iterable[Any]") -> "Iterator[Any]":
    """Yield the import statements that are executed when their module is imported, in order."""
    pending = list(statements)[::-1]
    while pending:
        statement = pending.pop()
        kind = type(statement).__name__
        if kind in {"Import", "ImportFrom"}:
            yield statement
        elif kind not in SKIPPED:
            fields = ("orelse",) if kind == "If" and is_for_type_checkers(statement.test) else LISTS
            for field in reversed(fields):
                pending += getattr(statement, field, ())[::-1]


def is_for_type_checkers(test: "Any") -> bool:
    """Whether a condition is `TYPE_CHECKING` or `typing.TYPE_CHECKING`, which is false in a run."""
    return "TYPE_CHECKING" in {getattr(test, "id", ""), getattr(test, "attr", "")}
