"""The baselines: a program started bare inside a container, by `docker exec`, by `docker run`.

A `BareContainer` has the image and the limits of the container that our runs have. Its process 1 is bare.c,
which starts programs when told to through a socket in a folder that is bound into it, and times them itself.
It ends when the socket is hung up on, and Docker then removes the container: nothing is left of a killed
benchmark.
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
from typing import TYPE_CHECKING, Any, Final

import aiodocker

from nanoagent.container.spec import ContainerSpec, create_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from nanoagent.container.spec import Limits
    from nanoagent.model.job import Runtime

LABEL: Final = "nanoagent.benchmark"
SHARED: Final = "/bench"  # the benchmark's folder as containers see it, read-only
WRITABLE: Final = "/out"  # the same for what is built in them
_REQUEST: Final = struct.Struct("=III")
_REPLY: Final = struct.Struct("=QQiI")
_CONNECT_TIMEOUT_S: Final = 30.0
_RUN_TIMEOUT_S: Final = 300.0
_UID: Final = 1_999_999_999  # below it lie those that agents give their containers
_TMPFS: Final = "rw,exec,nosuid,nodev,size=1g,mode=1777"
_HELPER: Final = Path(__file__).with_name("bare.c")


class BaselineError(Exception):
    """A baseline's program did not do what it should, or Docker did not start it."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a baseline starts.

    Attributes:
        arguments: The program and its arguments.
        folder: Its working directory, in the container.
        environment: All of it.
        input_file: For standard input, in the container.
        expected: What it must print; None for builds, whose words are their own.
    """

    arguments: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]
    input_file: str = "/dev/null"
    expected: str | None = None

    def check(self, status: int, output: str) -> None:
        """Raise unless that is how it should end."""
        if status != 0 or (self.expected is not None and output != self.expected):
            raise BaselineError(f"{' '.join(self.arguments)}: exit code {status}, printed {output[-500:]!r}")


@dataclass(frozen=True, slots=True)
class BareRun:
    """One run's cost.

    Attributes:
        wall_ms: From the request to the end.
        cpu_ms: Of the program and its children.
    """

    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A container's limits: memory in MiB, CPU share, the most CPU while CPUs are free."""

    memory_mb: int
    cpus: float
    most_cpus: float


@dataclass(eq=False, slots=True)
class BareContainer:
    """A running container with the helper in it; made by `bare_container`."""

    container_id: str
    _docker: aiodocker.Docker
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, program: Program) -> BareRun:
        """Start the program bare and wait for its end.

        Raises:
            BaselineError: It failed, or printed something else.
        """
        status, output, cost = await self.try_run(program)
        program.check(status, output)
        return cost

    async def try_run(self, program: Program) -> tuple[int, str, BareRun]:
        """As `run`, whatever comes of it: exit code (128+n after a signal), output, cost."""
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
        """Start the program by `docker exec` through the API; ms until its exit code is known.

        Raises:
            BaselineError: It failed, or printed something else.
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
    """Put the helper into the folder, compiled by the image's gcc.

    Raises:
        BaselineError: The compiler refused it.
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
            said = "".join(await container.log(stdout=True, stderr=True))
            raise BaselineError(f"the baseline's helper was not compiled: {said}")
    finally:
        await container.delete(force=True)
    (folder / "bare").chmod(0o755)


@dataclass(frozen=True, slots=True, kw_only=True)
class BareParts:
    """What all bare containers of a benchmark have in common.

    Attributes:
        docker: The engine.
        shared: The folder that is bound into them at /bench; its path is short enough for sockets below it.
        writable: The folder that is bound into them at /out.
        label: Names the benchmark, so that what it made can be found.
        limits: The agent's.
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
    """A container of that image and size with the helper in it, removed at the end.

    Raises:
        BaselineError: It did not come up.
    """
    name = secrets.token_hex(5)
    path = parts.shared / f"{name}.sock"
    connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    connected = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not connected.done():
            connected.set_result((reader, writer))

    server = await asyncio.start_unix_server(accept, path)
    path.chmod(0o666)  # the container's user is another; the folder above is ours alone
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
    """The settings of a run's container, with another process 1 and other folders."""
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
    # Not the agent's labels: an agent that starts removes containers of workers that are dead.
    body["Labels"] = {LABEL: parts.label}
    host = body["HostConfig"]
    host["CpuQuota"] = int(size.most_cpus * host["CpuPeriod"])
    host["AutoRemove"] = True
    host["Mounts"] = [
        {"Type": "bind", "Source": str(parts.shared), "Target": SHARED, "ReadOnly": True},
        {"Type": "bind", "Source": str(parts.writable), "Target": WRITABLE},
    ]
    host["Tmpfs"] = dict.fromkeys(("/work", "/tmp", "/output"), _TMPFS)  # noqa: S108 - the container's own
    return body


async def remove(container: aiodocker.containers.DockerContainer) -> None:
    """Kill and remove; one that removes itself at the same moment is fine."""
    try:
        await container.delete(force=True)
    except aiodocker.DockerError as exc:
        if exc.status not in {404, 409}:
            raise


async def remove_all(docker: aiodocker.Docker, label: str) -> None:
    """Remove what a benchmark has started and was interrupted before it could remove it."""
    for container in await docker.containers.list(all=1, filters=f'{{"label":["{LABEL}={label}"]}}'):
        await remove(container)


@dataclass(frozen=True, slots=True)
class DockerRun:
    """`docker run --rm --network none` through the command line, as a person would.

    Attributes:
        image: The image.
        shared: The folder that is bound in at /bench.
        writable: The one that is bound in at /out.
        label: The benchmark's.
    """

    image: str
    shared: Path
    writable: Path
    label: str

    async def run(self, program: Program) -> float:
        """Start the program; ms until the command has ended.

        Raises:
            BaselineError: It failed, or printed something else.
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
            *("docker", "run", "--rm", "--network", "none", "--label", f"{LABEL}={self.label}", *variables),
            *("--volume", f"{self.shared}:{SHARED}:ro", "--volume", f"{self.writable}:{WRITABLE}:ro"),
            *("--workdir", program.folder, "--entrypoint", program.arguments[0]),
            *(self.image, *program.arguments[1:]),
        ]
