"""Real containers for tests: a driver, a worker's folder, a pool, and runs of Python snippets."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.container.docker import DockerDriver
from nanoagent.container.policy import Binding, PoolPolicy
from nanoagent.container.pool import Pool
from nanoagent.container.spec import ContainerSpec, Limits
from nanoagent.container.worker_home import WorkerHome
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from nanoagent.supervisor.wire import RunRequest
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from support.checks.packs import packed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from nanoagent.container.execution import Execution
    from nanoagent.container.pool import AcquiredContainer
    from nanoagent.container.work_directory import WorkDirectory
    from nanoagent.supervisor.wire import ImportsState


def image_of(runtime: Runtime) -> str:
    """Return the image for tests: NANOAGENT_TEST_<LANGUAGE>_IMAGE, or the locally built image."""
    return os.environ.get(f"NANOAGENT_TEST_{runtime.upper()}_IMAGE", f"nanoagent-{runtime}:latest")


IMAGE = os.environ.get("NANOAGENT_TEST_IMAGE", image_of(Runtime.PYTHON))
# Small, so that tests reach them quickly.
LIMITS = Limits(processes=64, tmp_bytes=32 * MIB, work_bytes=32 * MIB, output_bytes=32 * MIB, inodes=4096)
# Runs the Python code of its input, so that one container serves tests with different code.
INTERPRETER = "import sys\nexec(compile(sys.stdin.read(), 'snippet', 'exec'))\n"
# Functions that run the code of their input.
RUN_STDIN = {
    Runtime.PYTHON: {"main.py": INTERPRETER},
    Runtime.NODEJS: {"index.js": "eval(require('fs').readFileSync(0, 'utf8'));\n"},
}
# Reads the packages of the image from the disk, so that the pages are charged to this container. These
# commands hold less than a MiB.
FILL_PAGE_CACHE = """
find /usr/lib -name '*.so*' -type f | while read -r name; do
    dd if="$name" iflag=nocache count=0 2> /dev/null
    cat "$name" > /dev/null
done
"""
_UID_BASE = 1_900_000_000


@contextmanager
def worker_home() -> Iterator[WorkerHome]:
    """Claim a worker's folder whose path is short enough for Unix sockets."""
    root = Path(tempfile.mkdtemp(prefix="na-"))
    home = WorkerHome(root, f"test-{secrets.token_hex(3)}")
    home.claim()
    try:
        yield home
    finally:
        home.release()
        shutil.rmtree(root)


@asynccontextmanager
async def running_pool(home: WorkerHome, policy: PoolPolicy) -> AsyncIterator[Pool]:
    """Run a pool of real containers, which has all its generic containers."""
    driver = DockerDriver()
    pool = Pool(driver, home, policy, Metrics(), Health())
    await pool.start()
    try:
        await pool.filled()
        yield pool
    finally:
        await pool.close()
        await driver.close()


def spec_for(home: WorkerHome, directory: WorkDirectory, *, image: str = IMAGE) -> ContainerSpec:
    return ContainerSpec(
        runtime=Runtime.PYTHON,
        image=image,
        name=f"nanoagent-{home.path.name}-{directory.path.name}",
        worker_id=home.path.name,
        home=home.path,
        work_directory=directory.path,
        uid=_UID_BASE + secrets.randbelow(1_000_000),
        memory_mb=128,
        cpus=1.0,
        limits=LIMITS,
    )


def exec_in(container_id: str, *command: str) -> None:
    """Run a command in a container, in its control group, and let it continue."""
    subprocess.run(["docker", "exec", "-d", container_id, *command], check=True)


def request_for(payload: bytes, **changes: Any) -> RunRequest:
    """Return a request to run main.py with this standard input; `changes` are fields of `RunRequest`."""
    fields: dict[str, Any] = {
        "arguments": ("/usr/bin/python3", "main.py"),
        "environment": {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/tmp",
            "PAYLOAD_FILE": "/input/payload.json",
        },
        "payload": payload,
        "timeout_ms": 30_000,
        "grace_ms": 200,
        "capture_bytes": 64 * 1024,
        "file_size_bytes": 512 * MIB,
        "open_files": 256,
        "output_max_files": 100,
        "output_max_file_bytes": 8 * MIB,
        "output_max_total_bytes": 16 * MIB,
        "prepare_next": True,
    }
    return RunRequest(**(fields | changes))


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that has ended, and its container.

    Attributes:
        execution: How it ended.
        acquired: Its container, which has been released.
    """

    execution: Execution
    acquired: AcquiredContainer

    @property
    def stdout(self) -> str:
        return self.execution.collected.stdout.text

    @property
    def stderr(self) -> str:
        return self.execution.collected.stderr.text

    @property
    def container_id(self) -> str:
        return self.acquired.container.id


class Bench:
    """Runs Python snippets as the worker does, starting with the pool: without queue, cache or result store.

    Args:
        pool: A started pool.
        home: The folder of the pool's worker.
    """

    def __init__(self, pool: Pool, home: WorkerHome) -> None:
        self._pool = pool
        self._home = home
        self._tree = home.path / "code"
        self._tree.mkdir()
        (self._tree / "main.py").write_text(INTERPRETER)

    def binding(self, memory_mb: int = 128, tree: Path | None = None) -> Binding:
        code = tree or self._tree
        return Binding(
            runtime=Runtime.PYTHON,
            function_id="test",
            digest=hashlib.sha256(str(code).encode()).hexdigest(),
            memory_mb=memory_mb,
            cpus=1.0,
            most_cpus=1.0,
            tree=packed(code),
            tree_bytes=len(INTERPRETER),
        )

    @asynccontextmanager
    async def acquire(self, memory_mb: int = 128) -> AsyncIterator[AcquiredContainer]:
        """Acquire a container that is bound to the interpreter."""
        async with self._pool.acquire(self.binding(memory_mb)) as acquired:
            yield acquired

    async def run(self, snippet: str, *, memory_mb: int = 128, **changes: Any) -> Ran:
        """Run a snippet; `changes` are fields of `RunRequest`."""
        return await self.run_bound(self.binding(memory_mb), snippet, **changes)

    async def run_bound(
        self,
        binding: Binding,
        snippet: str = "",
        *,
        on_ready: Callable[[ImportsState], None] = lambda _: None,
        **changes: Any,
    ) -> Ran:
        """Run the main.py of a binding's tree with this standard input.

        Args:
            binding: The function.
            snippet: The standard input.
            on_ready: Called with the state of the imports just before the run.
            changes: Fields of `RunRequest`.
        """
        async with self._pool.acquire(binding) as acquired:
            await acquired.container.session.ready()
            on_ready(acquired.container.imports)
            executed = await execution.execute(
                acquired,
                request_for(snippet.encode(), **changes),
                self.staging(),
                language=Runtime.PYTHON,
            )
        return Ran(executed, acquired)

    @property
    def pool(self) -> Pool:
        """The pool with its containers."""
        return self._pool

    async def filled(self) -> None:
        """Wait until the pool has all its generic containers."""
        await self._pool.filled()

    def staging(self) -> Path:
        """Return a new folder for output files."""
        return Path(tempfile.mkdtemp(dir=self._home.staging))


@asynccontextmanager
async def bench(isolation: Isolation = Isolation.SANDBOX, limits: Limits = LIMITS) -> AsyncIterator[Bench]:
    """Make a bench with real containers of an isolation level and limits."""
    with worker_home() as home:
        policy = PoolPolicy(
            images={Runtime.PYTHON: IMAGE},
            sizes={Runtime.PYTHON: 2, Runtime.NODEJS: 0, Runtime.CPP: 0, Runtime.GO: 0},
            memory_mb=2048,
            generic_cpus=1.0,
            idle_s=600,
            max_runs=10_000,
            max_age_s=3600,
            uid_base=_UID_BASE,
            limits=limits,
            isolation=isolation,
        )
        async with running_pool(home, policy) as pool:
            yield Bench(pool, home)
