# ruff: noqa: INP001, SLF001 - copied by itself into the Python image; it takes the place of the import system's parts
"""Modules that the zygote has imported and that a run has not: they are hidden until the run imports them.

A run finds in `sys.modules` what a plain interpreter has there. When it imports a hidden module, it gets the
module that is loaded already, but only if loading it anew would give the same. The search must find the same
file for it and for every module that was imported while it was loaded, and the run must have replaced none of
these and changed none of their names. In all other cases the import goes on as in any interpreter.

`Recorder` notes, in the zygote, which modules each module imports while it is loaded. `HiddenModules.hide`
takes them out of `sys.modules`. `HiddenModules.hand_out` is called by the import system for a hidden module
(zygote_imports.c).

One exception: a package with compiled parts outside the standard library (numpy) cannot be loaded twice in a
process. It is handed out although the program has replaced a module of another package that it uses.
"""

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from types import ModuleType
    from typing import Any, Self

bootstrap: "Any" = sys.modules["_frozen_importlib"]  # under the names that the interpreter itself uses
paths: "Any" = sys.modules["_frozen_importlib_external"]
MISSING = object()
# All code uses these two without an import.
ALWAYS_USED = ("builtins", "sys")
# Names that a run may set in these modules without an effect on modules that are loaded later.
FREELY_SET = {
    "sys": frozenset(
        (
            *(
                "stdin",
                "stdout",
                "stderr",
                "argv",
                "orig_argv",
                "path",
                "meta_path",
                "path_hooks",
                "excepthook",
            ),
            *(
                "displayhook",
                "unraisablehook",
                "last_exc",
                "last_type",
                "last_value",
                "last_traceback",
                "ps1",
            ),
            *("dont_write_bytecode", "pycache_prefix", "tracebacklimit", "ps2"),
        )
    )
}


class Load:
    """One load of a module.

    Attributes:
        spec: How it was found; None if another module has put it into `sys.modules`.
        needs: Names of the modules that were imported or put into `sys.modules` meanwhile, in order.
        finders: The finders that its code has added to `sys.meta_path`.
        module: The object in `sys.modules` under its name.
        is_known: Whether the next three have been found out.
        closure: Names of the hidden modules that would be loaded, in order of completion, its own last.
        touches: Names of all modules that it depends on.
        absent: Those of them that do not exist; the module works without them.
        is_bound: Whether its package got an attribute for it that is hidden, too.
        parent_path: Where its package looks for modules; None for a module at the top.
        is_once: Whether it cannot be loaded a second time.
    """

    __slots__ = (
        *("spec", "needs", "finders", "module", "is_known", "closure", "touches", "absent"),
        *("is_bound", "parent_path", "is_once"),
    )

    def __init__(self, spec: "Any") -> None:
        self.spec = spec
        self.needs: dict[str, None] = {}
        self.finders: list[Any] = []
        self.module: Any = None
        self.is_known = False
        self.closure: tuple[str, ...] = ()
        self.touches: frozenset[str] = frozenset()
        self.absent: tuple[str, ...] = ()
        self.is_bound = False
        self.parent_path: list[str] | None = None
        self.is_once = False


class Recorder:
    """While it is entered, every load is noted. The zygote has one thread.

    One kind of import is not seen: compiled code of Cython's that imports a module which is loaded already.

    Args:
        loads: Where loads are noted, by the module's name.
    """

    def __init__(self, loads: "dict[str, Load]") -> None:
        self._loads = loads
        self._loading: list[Load] = []
        self._seen, self._count = set(sys.modules), len(sys.modules)
        self._import, self._gcd_import = builtins.__import__, bootstrap._gcd_import
        self._load = bootstrap._load_unlocked

    def __enter__(self) -> "Self":
        builtins.__import__ = self.note_import
        bootstrap._gcd_import = self.note_gcd_import
        bootstrap._load_unlocked = self.note_load
        return self

    def __exit__(self, *_: object) -> None:
        builtins.__import__ = self._import
        bootstrap._gcd_import = self._gcd_import
        bootstrap._load_unlocked = self._load

    def note_import(
        self,
        name: str,
        globals: "Mapping[str, object] | None" = None,  # noqa: A002 - its parameters have these names
        locals: "Mapping[str, object] | None" = None,  # noqa: A002
        fromlist: "Sequence[str] | None" = (),
        level: int = 0,
    ) -> "ModuleType":
        """Replaces `builtins.__import__`."""
        self._note_put()
        absolute = name
        if level > 0:
            absolute = bootstrap._resolve_name(name, bootstrap._calc___package__(globals), level)
        self._need(absolute)
        imported = self._import(name, globals, locals, fromlist or (), level)
        for attribute in self._expand(absolute, fromlist or ()):
            if f"{absolute}.{attribute}" in sys.modules:
                self._need(f"{absolute}.{attribute}")
        return imported

    def note_gcd_import(self, name: str, package: "str | None" = None, level: int = 0) -> "ModuleType":
        """Replaces the function that `importlib.import_module` calls."""
        self._need(bootstrap._resolve_name(name, package, level) if level > 0 else name)
        module: ModuleType = self._gcd_import(name, package, level)
        return module

    def note_load(self, spec: "Any") -> "Any":
        """Replaces the function that loads a module that was found."""
        self._note_put()
        self._need(spec.name)
        load, finders = Load(spec), list(sys.meta_path)
        self._loading.append(load)
        self._seen.add(spec.name)
        try:
            loaded = self._load(spec)
            self._note_put()
        finally:
            self._loading.pop()
        self._loads[spec.name] = load
        if sys.meta_path != finders:
            finders += [finder for other in self._loads.values() for finder in other.finders]
            load.finders = [finder for finder in sys.meta_path if finder not in finders]
        return loaded

    def _note_put(self) -> None:
        """Note modules that the module being loaded has put into `sys.modules` itself."""
        if len(sys.modules) == self._count:
            return
        self._count = len(sys.modules)
        for name in sys.modules.keys() - self._seen:
            self._seen.add(name)
            if self._loading:
                self._loads[name] = Load(None)
                self._loading[-1].needs[name] = None

    @staticmethod
    def _expand(module: str, wanted: "Iterable[str]") -> "list[str]":
        names: list[str] = []
        for name in wanted:
            names += getattr(sys.modules.get(module), "__all__", ()) if name == "*" else (name,)
        return names

    def _need(self, name: str) -> None:
        """Note it, after the packages that it is in."""
        if self._loading:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                self._loading[-1].needs[".".join(parts[:end])] = None


class HiddenModules:
    """The modules of the zygote that a plain interpreter does not have.

    Args:
        plain: Names of the modules that it has.
        program_folder: The folder of the program, which comes first on `sys.path`.
    """

    def __init__(self, plain: "Collection[str]", program_folder: str) -> None:
        self._plain = plain
        self._folder = program_folder
        self.loads: dict[str, Load] = {}
        self.waiting: dict[str, Load] = {}  # those that have not been handed out
        self.changed: dict[str, None] = {}  # names of modules in which the run has set a name
        # The first parts of the names of hidden modules, and of modules that they look for. For `begin`, the
        # program's folder must not have them.
        self.top_names: set[str] = set()
        self._path: list[str] = []
        self._finders: list[Any] = []
        self._hooks: list[Any] = []
        self._stamp: object = None

    # --- in the zygote

    def recorder(self) -> Recorder:
        """To be entered around imports."""
        return Recorder(self.loads)

    def hide(self, own: "Collection[str]", wanted: "Iterable[str]") -> None:
        """Leave in `sys.modules` only the modules of a plain interpreter.

        Args:
            own: Names of the zygote's own modules, which runs must not get.
            wanted: Names of modules that runs will import: their dependencies are found out here.
        """
        modules = sys.modules
        for name in own:
            modules.pop(name, None)
            self.loads.pop(name, None)
        hidden = {
            name: load for name, load in self.loads.items() if name not in self._plain and name in modules
        }
        compiled = {top_of(name) for name, load in hidden.items() if is_compiled_package(load.spec)}
        self.waiting.clear()
        self.waiting.update(hidden)
        for name, load in hidden.items():
            load.module = modules[name]
            load.is_once = top_of(name) in compiled
        for name, load in hidden.items():
            self._unbind(name, load)
        for name in wanted:
            if name in hidden:
                self._find_out(name, hidden[name])
        for name in [name for name in modules if name not in self._plain]:
            del modules[name]
        for load in hidden.values():
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in load.finders]
        needed = {need for load in hidden.values() for need in load.needs if need not in self._plain}
        self.top_names = {top_of(name) for name in (*hidden, *needed)}

    def rehearse(self, name: str, times: int) -> None:
        """Hand that module out and hide it again.

        In the zygote, so that the code is specialized there and not in each run; in a process for a run, so
        that the memory that this writes to is its own before somebody waits for it.
        """
        for _ in range(times):
            self.begin(folder_stamp(self._folder))
            known = set(sys.modules)
            self.hand_out(name)
            for one in sys.modules.keys() - known:
                del sys.modules[one]
                self.waiting[one] = load = self.loads[one]
                if load.is_bound:
                    package, _, attribute = one.rpartition(".")
                    delattr(self.loads[package].module, attribute)

    def show(self) -> None:
        """Undo `hide`, to import more."""
        for name, load in self.waiting.items():
            self._bind(name, load)

    def _find_out(self, name: str, load: Load) -> None:
        """Find out which modules it would load. The answer holds while only hidden modules are loaded."""
        if load.is_known:
            return
        visited: dict[str, None] = dict.fromkeys(ALWAYS_USED)
        order: list[str] = []
        packages = name.split(".")
        pending = [(".".join(packages[:end]), False) for end in range(len(packages), 0, -1)]
        while pending:
            one, is_done = pending.pop()
            if is_done:
                order.append(one)
            elif one not in visited:
                visited[one] = None
                if one in self.loads:
                    pending.append((one, True))
                    pending += [(need, False) for need in reversed(self.loads[one].needs)]
        load.closure, load.touches = tuple(order), frozenset(visited)
        load.absent = tuple(one for one in visited if one not in self.loads and one not in self._plain)
        load.is_known = True

    def _unbind(self, name: str, load: Load) -> None:
        """Take the attribute for a submodule off its package, unless the package itself imports it."""
        package, _, attribute = name.rpartition(".")
        if not package or load.spec is None:
            return
        parent = sys.modules.get(package)
        load.parent_path = list(getattr(parent, "__path__", ()))
        if package in self.waiting:
            self._find_out(package, self.waiting[package])
            if name in self.waiting[package].touches:
                return
        if getattr(parent, "__dict__", {}).get(attribute) is load.module:
            delattr(parent, attribute)
            load.is_bound = True

    @staticmethod
    def _bind(name: str, load: Load) -> None:
        sys.modules[name] = load.module
        if load.is_bound:
            package, _, attribute = name.rpartition(".")
            setattr(sys.modules[package], attribute, load.module)
        if load.finders:
            sys.meta_path += load.finders

    # --- in a process for a run

    def begin(self, stamp: object) -> None:
        """Take the present state of the import system as the start of the program.

        Args:
            stamp: Of the program's folder, in which no file has the name of a hidden module.
        """
        self._path = sys.path[:]
        self._finders = sys.meta_path[:]
        self._hooks = sys.path_hooks[:]
        self._stamp = stamp
        self.changed.clear()

    def hand_out(self, name: str) -> "ModuleType | None":
        """The hidden module of that name, if loading it would give the same; it is in `sys.modules` then."""
        load = self.waiting.get(name)
        if load is None or load.spec is None or not self._is_search_the_same():
            return None
        self._find_out(name, load)
        fresh = self._loadable(load)
        if fresh is None:
            return None
        for one in fresh:
            other = self.loads[one]
            self._bind(one, other)
            if other.finders:
                self._finders += other.finders
            self.waiting.pop(one, None)
        module: ModuleType = load.module
        return module

    def _is_search_the_same(self) -> bool:
        """Whether only the standard finders look for modules."""
        return sys.meta_path == self._finders and sys.path_hooks == self._hooks

    def _loadable(self, load: Load) -> "list[str] | None":
        """The hidden modules that a load would load; None if it would load other modules instead."""
        doubtful = self._doubtful_names()
        fresh: dict[str, None] = {}
        is_whole = (not self.changed or load.touches.isdisjoint(self.changed)) and all(
            self._is_absent(one, doubtful) for one in load.absent
        )
        for one in load.closure:
            if not is_whole and not load.is_once:
                return None
            other = self.loads[one]
            present = sys.modules.get(one, MISSING)
            if present is MISSING and one in self.waiting and self._is_found(one, other, doubtful):
                fresh[one] = None
            elif present is not other.module:
                is_whole = False
                if other.is_once:
                    return None
        if is_whole:
            return list(fresh)
        return [one for one in fresh if self.loads[one].is_once] if load.is_once else None

    def _doubtful_names(self) -> "Collection[str] | None":
        """Names at the top for which the search may find another file than at the start; None: all."""
        added = [entry for entry in sys.path if entry not in self._path]
        if added:
            if [entry for entry in sys.path if entry in self._path] != self._path:
                return None
        elif sys.path != self._path:
            return None
        if folder_stamp(self._folder) != self._stamp:
            added.append(self._folder)
        names: set[str] = set()
        for entry in added:
            try:
                names.update(name.partition(".")[0] for name in paths._os.listdir(entry or "."))
            except FileNotFoundError:
                continue
            except (OSError, TypeError, ValueError):
                return None  # an archive, for example
        return names

    @staticmethod
    def _is_absent(name: str, doubtful: "Collection[str] | None") -> bool:
        """Whether a module that did not exist still does not exist."""
        if name in sys.modules:
            return False
        if "." in name or (doubtful is not None and name not in doubtful):
            return True
        return paths.PathFinder.find_spec(name) is None

    def _is_found(self, name: str, load: Load, doubtful: "Collection[str] | None") -> bool:
        """Whether a search now would find the file of the module."""
        spec = load.spec
        if spec is None:
            return True
        if load.parent_path is not None:
            package = self.loads.get(name.rpartition(".")[0])
            parent = package.module if package is not None else sys.modules.get(name.rpartition(".")[0])
            return list(getattr(parent, "__path__", ())) == load.parent_path
        if (doubtful is not None and name not in doubtful) or spec.origin in {"built-in", "frozen"}:
            return True
        found = paths.PathFinder.find_spec(name)
        return (
            found is not None
            and found.origin == spec.origin
            and type(found.loader) is type(spec.loader)
            and found.submodule_search_locations == spec.submodule_search_locations
        )


def top_of(name: str) -> str:
    """The first part of a module's name."""
    return name.partition(".")[0]


def is_compiled_package(spec: "Any") -> bool:
    """Whether it is compiled code outside the standard library."""
    return (
        spec is not None
        and isinstance(spec.loader, paths.ExtensionFileLoader)
        and "-packages/" in (spec.origin or "")
    )


def folder_stamp(folder: str) -> object:
    """Changes when an entry of the folder is added, removed or renamed."""
    try:
        status = paths._path_stat(folder)
    except OSError:
        return None
    return status.st_mtime_ns
