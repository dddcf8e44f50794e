"""A yard for hostile programs: real containers of all four languages at one isolation level.

tests/adversarial/programs/python/main.py describes the input and the output of the programs.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.container.execution import RunControl
from nanoagent.container.policy import Binding, Owner, OwnerSource, PoolPolicy, Sharing
from nanoagent.container.spec import Limits
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from support.checks.packs import packed
from support.sandboxes.containers import Ran, image_of, request_for, running_pool, worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from nanoagent.container.execution import Execution
    from nanoagent.container.pool import AcquiredContainer, Pool
    from nanoagent.container.worker_home import WorkerHome
    from nanoagent.network.listening_sockets import ListeningAddress
    from nanoagent.secrets.masking import Mask
    from nanoagent.supervisor.session import OnOutput

PROGRAMS = Path(__file__).parents[2] / "adversarial" / "programs"
# Two owners of functions, what one function leaves behind, and where the next one looks for it.
ALICE, BOB = Owner(OwnerSource.FIELD, "alice"), Owner(OwnerSource.FIELD, "bob")
LEFT = ("files", "code", "shared memory", "POSIX queue", "abstract socket", "listener", "time wait", "daemon")
LOOK = (
    *(
        "list /tmp",
        "list /output",
        "list /work",
        "list /input",
        "list /dev/shm",
        "names /dev/mqueue",
        "names /slot",
    ),
    *("read /proc/net/unix", "read /proc/net/tcp", "read /proc/sysvipc/shm", "variables", "names /proc"),
)
LEVELS = (Isolation.SANDBOX, Isolation.SHARED, Isolation.CONTAINER)
# Small, so that fork bombs and memory bombs reach them quickly. Node.js alone has eleven threads.
LIMITS = Limits(processes=40, tmp_bytes=48 * MIB, work_bytes=32 * MIB, output_bytes=32 * MIB, inodes=4096)
BUILD_LIMITS = replace(LIMITS, processes=512, tmp_bytes=256 * MIB)
_BUILD_MEMORY_MB = 1024
_CPUS = 1.0
_MOST_CPUS = 2.0
_UID_BASE = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Function:
    """A user's function.

    Attributes:
        runtime: Its language.
        name: Its ID.
        tree: Its code.
        program: The built program, for compiled languages.
        modules: Python modules that its code imports, as found by the worker.
        owner: Its owner.
    """

    runtime: Runtime
    name: str
    tree: Path
    program: Path | None = None
    modules: tuple[str, ...] = ()
    owner: Owner | None = None

    def binding(self, **changes: Any) -> Binding:
        fields: dict[str, Any] = {
            "runtime": self.runtime,
            "function_id": self.name,
            "digest": str(self.tree),
            "memory_mb": 128,
            "cpus": _CPUS,
            "most_cpus": _MOST_CPUS,
            "tree": packed(self.tree),
            "tree_bytes": sum(path.stat().st_size for path in self.tree.rglob("*")),
            "program": self.program,
            "find_modules": lambda: self.modules,
            "owner": self.owner,
        }
        return Binding(**(fields | changes))


class Yard:
    """Runs functions as the worker does, starting with the pool: without queue, cache or result store.

    Args:
        pool: A started pool.
        home: The folder of the pool's worker.

    Attributes:
        pool: The pool.
    """

    def __init__(self, pool: Pool, home: WorkerHome) -> None:
        self.pool = pool
        self._home = home
        self._functions = 0

    def function(self, runtime: Runtime, files: dict[str, str], **fields: Any) -> Function:
        """Make a function of these files."""
        self._functions += 1
        tree = self._home.path / f"code{self._functions}"
        for name, text in files.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Function(runtime, f"function{self._functions}", tree, **fields)

    def adversary(self, runtime: Runtime, program: bytes | None = None, **fields: Any) -> Function:
        """Make a new function with the adversary program of a language."""
        entry = RECIPES[runtime].entry
        text = (PROGRAMS / runtime / entry).read_text()
        made = self.function(runtime, {entry: text}, **fields)
        if program is None:
            return made
        built = made.tree.with_suffix(".program")
        built.write_bytes(program)
        built.chmod(0o755)
        return replace(made, program=built)

    @asynccontextmanager
    async def acquire(self, function: Function, **changes: Any) -> AsyncIterator[AcquiredContainer]:
        """Acquire a container that is bound to the function; `changes` are fields of `Binding`."""
        async with self.pool.acquire(function.binding(**changes)) as acquired:
            yield acquired

    async def run(self, function: Function, said: str, *, memory_mb: int = 128, **changes: Any) -> Ran:
        """Run a function with this standard input; `changes` are fields of `RunRequest`."""
        async with self.acquire(function, memory_mb=memory_mb) as acquired:
            return await self.run_in(acquired, function, said, **changes)

    async def run_in(
        self,
        acquired: AcquiredContainer,
        function: Function,
        said: str,
        *,
        network: AbstractAsyncContextManager[None] | None = None,
        on_output: OnOutput | None = None,
        mask: Mask | None = None,
        control: RunControl | None = None,
        **changes: Any,
    ) -> Ran:
        """Run a function in an acquired container, with a network, a reader of live output, and secrets.

        `control` replaces the control of the run, which `on_output` gives it otherwise.
        """
        fields = {"arguments": RECIPES[function.runtime].arguments, "prepare_next": acquired.reuse} | changes
        request = request_for(said.encode(), **fields)
        control = control or RunControl(live=request.live, on_output=on_output)
        if mask is not None:
            control.hide_secrets(mask)
        ended = await execution.execute(acquired, request, self._spool(), control, network)
        return Ran(ended, acquired)

    async def ask(self, function: Function, **said: Sequence[str]) -> tuple[dict[str, str], Ran]:
        """Send words to an adversary; return its answer to each word."""
        ran = await self.run(function, json.dumps(said))
        assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
        return json.loads(ran.stdout), ran

    async def recycle(self, container_id: str) -> bool:
        """Recycle an idle container as the pool does. Return whether it is generic; else it was retired."""
        pooled = self.pool._inventory.get(container_id)
        assert pooled is not None
        return await self.pool._creation._recycler.recycle(pooled)

    async def build(self, function: Function) -> bytes:
        """Build the function's program with the worker's recipe."""
        built = await self.try_to_build(function, timeout_ms=120_000)
        assert built.error_type is None, built.collected.stderr.text
        return built.collected.files[0].staged.read_bytes()

    async def try_to_build(self, function: Function, *, timeout_ms: int) -> Execution:
        """Build the function's program; return how the build ended."""
        binding = function.binding(purpose="build", memory_mb=_BUILD_MEMORY_MB)
        request = request_for(
            b"",
            arguments=RECIPES[function.runtime].build,
            timeout_ms=timeout_ms,
            open_files=1024,
            output_max_file_bytes=LIMITS.output_bytes,
            output_max_total_bytes=LIMITS.output_bytes,
            prepare_next=False,
        )
        async with self.pool.acquire(binding) as acquired:
            return await execution.execute(acquired, request, self._spool())

    def _spool(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._home.staging))


@asynccontextmanager
async def yard(
    level: Isolation,
    runtimes: Sequence[Runtime] = tuple(Runtime),
    *,
    limits: Limits = LIMITS,
    sharing: Sharing | None = None,
    ready: int = 0,
    listening_addresses: tuple[ListeningAddress, ...] = (),
    modules: tuple[str, ...] = (),
    memory_mb: int = 4096,
    recycles: bool = False,
) -> AsyncIterator[Yard]:
    """Make a yard with real containers of an isolation level.

    Args:
        level: The isolation level. `CONTAINER` means that containers are never shared.
        runtimes: The languages.
        limits: The limits of the containers.
        sharing: The runs that a container may serve; one function version by default.
        ready: The number of generic containers of each language to keep ready.
        listening_addresses: The addresses at which the test listens in the network of runs.
        modules: Python modules that every interpreter imports in advance.
        memory_mb: The budget of memory of all containers.
        recycles: Whether the pool recycles containers.
    """
    never = level is Isolation.CONTAINER
    with worker_home() as home:
        policy = PoolPolicy(
            images={runtime: image_of(runtime) for runtime in Runtime},
            sizes={runtime: ready if runtime in runtimes else 0 for runtime in Runtime},
            memory_mb=memory_mb,
            modules=modules,
            recycles=recycles,
            generic_cpus=_MOST_CPUS,
            idle_s=600,
            max_runs=10_000,
            max_age_s=3600,
            uid_base=_UID_BASE,
            limits=limits,
            isolation=Isolation.SHARED if never else level,
            sharing=sharing or (Sharing.NEVER if never else Sharing.FUNCTION),
            listening_addresses=listening_addresses,
        )
        async with running_pool(home, policy) as pool:
            yield Yard(pool, home)


def as_seen(seen: dict[str, str]) -> dict[str, str]:
    """Return an adversary's answers with the number of processes instead of their IDs, which increase."""
    names = seen["names /proc"].splitlines()
    return seen | {"names /proc": str(sum(name.isdigit() for name in names))}


async def built(runtime: Runtime, files: dict[str, str] | None = None) -> bytes:
    """Build the program of a compiled language from these files; by default, its adversary."""
    async with yard(Isolation.SANDBOX, (runtime,), limits=BUILD_LIMITS) as builders:
        made = builders.adversary(runtime) if files is None else builders.function(runtime, files)
        return await builders.build(made)


class Shelf:
    """Objects that are made once for all processes of a test run.

    Args:
        folder: The common folder of all processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return the object of that name. The first process makes it."""
        path = self._folder / name
        with self._locked(name):
            if not path.exists():
                fresh = path.with_suffix(".part")
                fresh.write_bytes(make())
                shutil.move(fresh, path)
            return path.read_bytes()

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._folder / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
