# ruff: noqa: INP001, SLF001 - no package: only the file is copied into the Python image; it replaces parts of
# the import system
"""Hidden modules: the zygote has imported them, but a run does not see them until it imports them.

In a run, `sys.modules` has only the modules of a plain interpreter. When the run imports a hidden module,
it gets the module that the zygote has loaded, if a new load would give the same result. That has two
conditions. First, the search must still find the same file for the module, and for every module that was
imported during its load. Second, the run must not have replaced any of these modules, or changed a name in
them. In all other cases the import system loads the module as usual.

`Recorder` notes, in the zygote, which modules each module imports while it is loaded. `HiddenModules.hide`
removes the modules from `sys.modules`. The import system calls `HiddenModules.hand_out` for a hidden module
(zygote_imports.c).

One exception: a package that has compiled parts and is not in the standard library (numpy) cannot be loaded
twice in a process. It is handed out even if the program has changed one of its modules, or has replaced or
changed a module of another package that it uses.
"""

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from types import ModuleType
    from typing import Any, Self

# The import system: its core, and its part for files.
bootstrap: "Any" = sys.modules["_frozen_importlib"]
paths: "Any" = sys.modules["_frozen_importlib_external"]
MISSING = object()
# All code uses these modules without an import.
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
        spec: The module's spec; None if another module has put it into `sys.modules`.
        needs: Names of the modules that were imported or put into `sys.modules` during the load, in order.
        finders: The finders that the module's code has added to `sys.meta_path`.
        module: The object in `sys.modules` under the module's name.
        is_resolved: Whether the next three attributes are set.
        closure: Names of the hidden modules that an import of this module would load, in order of completion.
        touches: Names of all modules on which the module depends.
        absent: The names in `touches` of modules that do not exist; the module works without them.
        hides_attribute: Whether the package's attribute for the module is hidden, too.
        parent_path: The `__path__` of the module's package; None for a top-level module.
        is_once: Whether the module cannot be loaded a second time.
        stamp: The `file_stamp` of a file that a run may change; None for a file that it cannot change.
    """

    __slots__ = (
        *("spec", "needs", "finders", "module", "is_resolved", "closure", "touches", "absent"),
        *("hides_attribute", "parent_path", "is_once", "stamp"),
    )

    def __init__(self, spec: "Any") -> None:
        self.spec = spec
        self.needs: dict[str, None] = {}
        self.finders: list[Any] = []
        self.module: Any = None
        self.is_resolved = False
        self.closure: tuple[str, ...] = ()
        self.touches: frozenset[str] = frozenset()
        self.absent: tuple[str, ...] = ()
        self.hides_attribute = False
        self.parent_path: list[str] | None = None
        self.is_once = False
        self.stamp: object = None


class Recorder:
    """A context manager that notes every load of a module. It relies on the zygote having one thread.

    It does not notice if code compiled by Cython imports a module that is already loaded.

    Args:
        loads: The recorder adds each load to this dict, under the module's name.
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
        """Replace `builtins.__import__`."""
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
        """Replace the function that `importlib.import_module` calls."""
        self._need(bootstrap._resolve_name(name, package, level) if level > 0 else name)
        module: ModuleType = self._gcd_import(name, package, level)
        return module

    def note_load(self, spec: "Any") -> "Any":
        """Replace the function that loads a module after its spec is found."""
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
        """Note modules that the code being loaded has put into `sys.modules` without an import."""
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
        """Note a module as needed, after its packages."""
        if self._loading:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                self._loading[-1].needs[".".join(parts[:end])] = None


class HiddenModules:
    """The modules of the zygote that a plain interpreter has not loaded.

    Args:
        plain: Names of the modules that a plain interpreter has loaded.
        program_folder: The folder of the program, which is first on `sys.path`.
    """

    def __init__(self, plain: "Collection[str]", program_folder: str) -> None:
        self._plain = plain
        self._folder = program_folder
        self.loads: dict[str, Load] = {}
        self.waiting: dict[str, Load] = {}  # hidden modules that have not been handed out
        self.changed: dict[str, None] = {}  # names of modules in which the run has set a name
        # The top-level names of hidden modules, and of modules that they try to import. The process checks
        # that the program's folder has none of these names before it calls `begin`.
        self.top_names: set[str] = set()
        self._path: list[str] = []
        self._finders: list[Any] = []
        self._hooks: list[Any] = []
        self._stamp: object = None

    # --- in the zygote

    def recorder(self) -> Recorder:
        """Return a context manager for imports that are to be noted."""
        return Recorder(self.loads)

    def hide(self, own: "Collection[str]", wanted: "Iterable[str]") -> None:
        """Leave in `sys.modules` only the modules of a plain interpreter.

        Args:
            own: Names of the zygote's own modules, which runs must not get.
            wanted: Names of modules that runs will import: their dependencies are resolved here.
        """
        modules = sys.modules
        for name in own:
            modules.pop(name, None)
            self.loads.pop(name, None)
        hidden = {
            name: load for name, load in self.loads.items() if name not in self._plain and name in modules
        }
        compiled = {
            top_of(name) for name, load in hidden.items() if is_compiled_package(load.spec, self._folder)
        }
        self.waiting.clear()
        self.waiting.update(hidden)
        for name, load in hidden.items():
            load.module = modules[name]
            load.is_once = top_of(name) in compiled
        for name, load in hidden.items():
            self._unbind(name, load)
        for name in wanted:
            if name in hidden:
                self._resolve(name, hidden[name])
        for name in [name for name in modules if name not in self._plain]:
            del modules[name]
        for load in hidden.values():
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in load.finders]
        needed = {need for load in hidden.values() for need in load.needs if need not in self._plain}
        # The program's folder has a file for a module that was loaded from there.
        own = {top_of(name) for name, load in hidden.items() if is_below(self._folder, load.spec)}
        self.top_names = {top_of(name) for name in (*hidden, *needed)} - own

    def rehearse(self, name: str, times: int) -> None:
        """Hand a module out and hide it again.

        In the zygote, this lets CPython specialize the code once, not in each run. In a forked process, a
        hand-out writes to memory, which the kernel must copy. The rehearsal does that before a job waits.
        """
        for _ in range(times):
            self.begin(folder_stamp(self._folder))
            known = set(sys.modules)
            self.hand_out(name)
            for one in sys.modules.keys() - known:
                del sys.modules[one]
                self.waiting[one] = load = self.loads[one]
                if load.hides_attribute:
                    package, _, attribute = one.rpartition(".")
                    delattr(self.loads[package].module, attribute)

    def show(self) -> None:
        """Undo `hide`, so that more modules can be imported."""
        for name, load in self.waiting.items():
            self._bind(name, load)

    def _resolve(self, name: str, load: Load) -> None:
        """Find the modules that an import of this module would load.

        The result is right if the import loads only hidden modules, and no files of the program.
        """
        if load.is_resolved:
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
        load.is_resolved = True

    def _unbind(self, name: str, load: Load) -> None:
        """Remove a submodule's attribute from its package, unless the package itself imports it."""
        package, _, attribute = name.rpartition(".")
        if not package or load.spec is None:
            return
        parent = sys.modules.get(package)
        load.parent_path = list(getattr(parent, "__path__", ()))
        if package in self.waiting:
            self._resolve(package, self.waiting[package])
            if name in self.waiting[package].touches:
                return
        if getattr(parent, "__dict__", {}).get(attribute) is load.module:
            delattr(parent, attribute)
            load.hides_attribute = True

    @staticmethod
    def _bind(name: str, load: Load) -> None:
        sys.modules[name] = load.module
        if load.hides_attribute:
            package, _, attribute = name.rpartition(".")
            setattr(sys.modules[package], attribute, load.module)
        if load.finders:
            sys.meta_path += load.finders

    # --- in a forked process

    def begin(self, stamp: object) -> None:
        """Take the current state of the import system as that of the program's start.

        Args:
            stamp: The stamp of the program's folder, in which no file has the name of a hidden module.
        """
        self._path = sys.path[:]
        self._finders = sys.meta_path[:]
        self._hooks = sys.path_hooks[:]
        self._stamp = stamp
        self.changed.clear()

    def hand_out(self, name: str) -> "ModuleType | None":
        """Put a hidden module into `sys.modules` and return it; None if a new load might differ from it."""
        load = self.waiting.get(name)
        if load is None or load.spec is None or not self._is_search_unchanged():
            return None
        self._resolve(name, load)
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

    def _is_search_unchanged(self) -> bool:
        """Whether the finders and path hooks are those of the program's start."""
        return sys.meta_path == self._finders and sys.path_hooks == self._hooks

    def _loadable(self, load: Load) -> "list[str] | None":
        """Return the names of the hidden modules to hand out for one import.

        None if the import would load at least one other module instead.
        """
        changed_names = self._names_to_search()
        fresh: dict[str, None] = {}
        is_whole = (not self.changed or load.touches.isdisjoint(self.changed)) and all(
            self._is_absent(one, changed_names) for one in load.absent
        )
        for one in load.closure:
            if not is_whole and not load.is_once:
                return None
            other = self.loads[one]
            present = sys.modules.get(one, MISSING)
            if present is MISSING and one in self.waiting and self._is_found(one, other, changed_names):
                fresh[one] = None
            elif present is not other.module:
                is_whole = False
                if other.is_once:
                    return None
        if is_whole:
            return list(fresh)
        return [one for one in fresh if self.loads[one].is_once] if load.is_once else None

    def _names_to_search(self) -> "Collection[str] | None":
        """Return the top-level names for which a search may now find another file than at the start.

        None means all names.
        """
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
    def _is_absent(name: str, changed_names: "Collection[str] | None") -> bool:
        """Whether a module that did not exist in the zygote does not exist now."""
        if name in sys.modules:
            return False
        if "." in name or (changed_names is not None and name not in changed_names):
            return True
        return paths.PathFinder.find_spec(name) is None

    def _is_found(self, name: str, load: Load, changed_names: "Collection[str] | None") -> bool:
        """Whether a search would still find the same file for the module."""
        spec = load.spec
        if spec is None:
            return True
        if load.stamp is not None and file_stamp(spec.origin) != load.stamp:
            return False
        if load.parent_path is not None:
            package = self.loads.get(name.rpartition(".")[0])
            parent = package.module if package is not None else sys.modules.get(name.rpartition(".")[0])
            return list(getattr(parent, "__path__", ())) == load.parent_path
        if (changed_names is not None and name not in changed_names) or spec.origin in {"built-in", "frozen"}:
            return True
        found = paths.PathFinder.find_spec(name)
        return (
            found is not None
            and found.origin == spec.origin
            and type(found.loader) is type(spec.loader)
            and found.submodule_search_locations == spec.submodule_search_locations
        )


def top_of(name: str) -> str:
    """Return the first part of a module's name."""
    return name.partition(".")[0]


def is_below(folder: str, spec: "Any") -> bool:
    """Whether a module's file, or one of the folders of a namespace package, is in a folder."""
    if spec is None:
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or ())]
    return any(str(place).startswith(f"{folder}/") for place in places)


def is_compiled_package(spec: "Any", program_folder: str) -> bool:
    """Whether a module is compiled code outside the standard library."""
    return (
        spec is not None
        and isinstance(spec.loader, paths.ExtensionFileLoader)
        and ("-packages/" in (spec.origin or "") or is_below(program_folder, spec))
    )


def file_stamp(path: str) -> object:
    """Return a value that changes when a file is written; None if there is no such file."""
    try:
        status = paths._path_stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def folder_stamp(folder: str) -> object:
    """Return a value that changes when an entry of the folder is added, removed or renamed."""
    try:
        status = paths._path_stat(folder)
    except OSError:
        return None
    return status.st_mtime_ns
