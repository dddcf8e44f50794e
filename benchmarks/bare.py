"""The baselines: a program that is started bare inside a container, by `docker exec`, and by `docker run`.

A `BareContainer` has the image and the limits of the containers of our runs. Its process 1 is bare.c. It
receives requests through a socket in a mounted folder, and starts and times programs. It ends when the socket
is closed, and Docker then removes the container. So a killed benchmark leaves no containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import struct
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import aiodocker

from nanoagent.container.spec import ContainerSpec, create_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from nanoagent.container.spec import Limits
    from nanoagent.model.job import Runtime

LABEL: Final = "nanoagent.benchmark"
SHARED: Final = "/bench"  # mount point of the benchmark's folder, read-only
WRITABLE: Final = "/out"  # mount point of the folder for built programs
_REQUEST: Final = struct.Struct("=III")
_REPLY: Final = struct.Struct("=QQiI")
_CONNECT_TIMEOUT_S: Final = 30.0
_RUN_TIMEOUT_S: Final = 300.0
_UID: Final = 1_999_999_999  # above the user IDs of agents' containers
_TMPFS: Final = "rw,exec,nosuid,nodev,size=1g,mode=1777"
_HELPER: Final = Path(__file__).with_name("bare.c")


Network = Literal["none", "host"]


class BaselineError(Exception):
    """The program of a baseline failed, printed another text, or was not started by Docker."""


@dataclass(frozen=True, slots=True)
class Program:
    """The program of a baseline.

    Attributes:
        arguments: The program and its arguments.
        folder: Its working directory, in the container.
        environment: All of its environment variables.
        input_file: The file for its standard input, in the container.
        expected: The expected output; None for builds, whose output is not checked.
    """

    arguments: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]
    input_file: str = "/dev/null"
    expected: str | None = None

    def check(self, status: int, output: str) -> None:
        """Check the end of a run.

        Raises:
            BaselineError: The exit code is not 0, or the output is not the expected one.
        """
        if status != 0 or (self.expected is not None and output != self.expected):
            raise BaselineError(f"{' '.join(self.arguments)}: exit code {status}, printed {output[-500:]!r}")


@dataclass(frozen=True, slots=True)
class BareRun:
    """The cost of one run.

    Attributes:
        wall_ms: The time from the request to the end of the program, ms.
        cpu_ms: The CPU time of the program and its children, ms.
    """

    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The limits of a container.

    Attributes:
        memory_mb: The memory, MiB.
        cpus: The CPUs while other containers use theirs.
        most_cpus: The CPUs while others are free.
        network: `none`, or `host` for a program that calls a server of the benchmark.
    """

    memory_mb: int
    cpus: float
    most_cpus: float
    network: Network = "none"


@dataclass(eq=False, slots=True)
class BareContainer:
    """A running container with the helper in it; `bare_container` makes it."""

    container_id: str
    _docker: aiodocker.Docker
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, program: Program) -> BareRun:
        """Start the program bare, and wait for its end.

        Raises:
            BaselineError: The program failed, or printed another text.
        """
        status, output, cost = await self.try_run(program)
        program.check(status, output)
        return cost

    async def try_run(self, program: Program) -> tuple[int, str, BareRun]:
        """Call `run` without checks; return the exit code (128+n after a signal), the output and the cost."""
        words = [program.folder, program.input_file, *program.arguments]
        words += [f"{name}={value}" for name, value in program.environment.items()]
        text = b"".join(word.encode() + b"\0" for word in words)
        async with self._one_at_a_time, asyncio.timeout(_RUN_TIMEOUT_S):
            self._writer.write(
                _REQUEST.pack(len(text), len(program.arguments), len(program.environment)) + text
            )
            wall_ns, cpu_us, wait_status, length = _REPLY.unpack(await self._reader.readexactly(_REPLY.size))
            output = (await self._reader.readexactly(length)).decode(errors="replace")
        code = os.waitstatus_to_exitcode(wait_status)
        return (code if code >= 0 else 128 - code), output, BareRun(wall_ns / 1e6, cpu_us / 1e3)

    async def exec(self, program: Program) -> float:
        """Start the program by `docker exec` through the API; return the time to its exit code, ms.

        Raises:
            BaselineError: The program failed, or printed another text.
        """
        begun = time.perf_counter()
        execution = await self._docker.containers.container(self.container_id).exec(
            list(program.arguments),
            environment=dict(program.environment),
            workdir=program.folder,
        )
        output = bytearray()
        async with execution.start() as stream:
            while (message := await stream.read_out()) is not None:
                output += message.data
        status = (await execution.inspect())["ExitCode"]
        elapsed_ms = (time.perf_counter() - begun) * 1000
        program.check(status, output.decode(errors="replace"))
        return elapsed_ms


async def compile_helper(docker: aiodocker.Docker, image: str, folder: Path) -> None:
    """Compile the helper into the folder, with the gcc of the image.

    Raises:
        BaselineError: The compiler failed.
    """
    shutil.copyfile(_HELPER, folder / "bare.c")
    config: dict[str, Any] = {
        "Image": image,
        "Entrypoint": ["gcc"],
        "Cmd": ["-O2", "-static", "-std=gnu17", "-o", f"{SHARED}/bare", f"{SHARED}/bare.c"],
        "Labels": {LABEL: "compiler"},
        "NetworkDisabled": True,
        "HostConfig": {"Binds": [f"{folder}:{SHARED}"]},
    }
    container = await docker.containers.create(config)
    try:
        await container.start()
        outcome = await container.wait()
        if outcome["StatusCode"] != 0:
            output = "".join(await container.log(stdout=True, stderr=True))
            raise BaselineError(f"the helper of the baseline was not compiled: {output}")
    finally:
        await container.delete(force=True)
    (folder / "bare").chmod(0o755)


@dataclass(frozen=True, slots=True, kw_only=True)
class BareParts:
    """The common properties of all bare containers of a benchmark.

    Attributes:
        docker: The client of Docker.
        shared: The folder that is mounted at /bench. Its path is short enough for Unix sockets below it.
        writable: The folder that is mounted at /out.
        label: The label by which the containers of the benchmark are found.
        limits: The limits of the agent's containers.
    """

    docker: aiodocker.Docker
    shared: Path
    writable: Path
    label: str
    limits: Limits


@asynccontextmanager
async def bare_container(
    parts: BareParts, runtime: Runtime, image: str, size: Size
) -> AsyncIterator[BareContainer]:
    """Run a container with the helper in it; it is removed at the end.

    Raises:
        BaselineError: The helper did not connect.
    """
    name = secrets.token_hex(5)
    path = parts.shared / f"{name}.sock"
    connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    connected = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not connected.done():
            connected.set_result((reader, writer))

    server = await asyncio.start_unix_server(accept, path)
    path.chmod(0o666)  # for the user of the container; the parent folder is private
    container = None
    try:
        body = _body(parts, runtime, image, size, name)
        container = await parts.docker.containers.create(body, name=f"nanoagent-bench-{name}")
        await container.start()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                reader, writer = await connected
        except TimeoutError as exc:
            raise BaselineError(f"the helper in a container of {image} did not connect") from exc
        try:
            yield BareContainer(container.id, parts.docker, reader, writer)
        finally:
            writer.close()
    finally:
        server.close()
        path.unlink(missing_ok=True)
        if container is not None:
            await asyncio.shield(remove(container))


def _body(parts: BareParts, runtime: Runtime, image: str, size: Size, name: str) -> dict[str, Any]:
    """Return the settings of the agent's containers, with another process 1 and other folders."""
    body = create_body(
        ContainerSpec(
            runtime=runtime,
            image=image,
            name=name,
            worker_id=parts.label,
            home=parts.shared,
            work_directory=parts.shared,
            uid=_UID,
            memory_mb=size.memory_mb,
            cpus=size.cpus,
            limits=parts.limits,
        )
    )
    body["Entrypoint"] = [f"{SHARED}/bare", f"{SHARED}/{name}.sock"]
    # These replace the agent's labels: an agent removes the containers of dead workers at its start.
    body["Labels"] = {LABEL: parts.label}
    host = body["HostConfig"]
    if size.network == "host":
        del body["NetworkDisabled"], body["Hostname"]
        host["NetworkMode"] = "host"
    host["CpuQuota"] = int(size.most_cpus * host["CpuPeriod"])
    host["AutoRemove"] = True
    host["Mounts"] = [
        {"Type": "bind", "Source": str(parts.shared), "Target": SHARED, "ReadOnly": True},
        {"Type": "bind", "Source": str(parts.writable), "Target": WRITABLE},
    ]
    host["Tmpfs"] = dict.fromkeys(("/work", "/tmp", "/output"), _TMPFS)  # noqa: S108 - the container's own
    return body


async def remove(container: aiodocker.containers.DockerContainer) -> None:
    """Kill and remove a container. It may be removing itself at the same time."""
    try:
        await container.delete(force=True)
    except aiodocker.DockerError as exc:
        if exc.status not in {404, 409}:
            raise


async def remove_all(docker: aiodocker.Docker, label: str) -> None:
    """Remove all containers of a benchmark, for example after an interruption."""
    for container in await docker.containers.list(all=1, filters=f'{{"label":["{LABEL}={label}"]}}'):
        await remove(container)


@dataclass(frozen=True, slots=True)
class DockerRun:
    """`docker run --rm` on the command line.

    Attributes:
        image: The image.
        shared: The folder that is mounted at /bench.
        writable: The folder that is mounted at /out.
        label: The label of the benchmark.
        network: As for `Size`.
    """

    image: str
    shared: Path
    writable: Path
    label: str
    network: Network = "none"

    async def run(self, program: Program) -> float:
        """Start the program, and return the time until the command has ended, ms.

        Raises:
            BaselineError: The program failed, or printed another text.
        """
        command = self._command(program)
        begun = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        elapsed_ms = (time.perf_counter() - begun) * 1000
        assert process.returncode is not None
        program.check(process.returncode, output.decode(errors="replace"))
        return elapsed_ms

    def _command(self, program: Program) -> Sequence[str]:
        variables = [f"--env={name}={value}" for name, value in program.environment.items()]
        return [
            *("docker", "run", "--rm", "--network", self.network, "--label", f"{LABEL}={self.label}"),
            *variables,
            *("--volume", f"{self.shared}:{SHARED}:ro", "--volume", f"{self.writable}:{WRITABLE}:ro"),
            *("--workdir", program.folder, "--entrypoint", program.arguments[0]),
            *(self.image, *program.arguments[1:]),
        ]
