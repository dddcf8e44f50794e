"""The resources that measurements share: a scratch folder, services, an agent, a bare container per runtime.

A resource is created at its first use, and removed when the lab closes, in reverse order, also after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import aiodocker
from benchmarks import bare, ours, services
from benchmarks.bare import SHARED, WRITABLE, BareContainer, BareParts, DockerRun, Program, Size
from benchmarks.ours import AgentUnderTest, Call

from nanoagent.common.units import MIB
from nanoagent.config import Settings
from nanoagent.container import cgroup
from nanoagent.container.spec import LABEL_RUNTIME, LABEL_WORKER
from nanoagent.dev.sender import pack
from nanoagent.jobs.environment import environment_of
from nanoagent.languages.recipes import BUILT_PROGRAM, RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.message import parse_job
from nanoagent.telemetry import logs
from nanoagent.wiring import containers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from benchmarks.bare import Network

BUCKET: Final = "benchmark-code"
MEMORY_MB: Final = 128  # a job's default
_PAYLOAD: Final = b'{"name":"benchmark"}'
_REGION: Final = "ap-northeast-2"


@dataclass(frozen=True, slots=True)
class Function:
    """A program.

    Attributes:
        name: The name of its folder and of its zip.
        runtime: Its language.
        files: Its code, by file name.
        expected: Its output.
        folders: Folders with more code. A later folder replaces files of an earlier one.
        payload: Its input, a JSON document.
        memory_mb: The job's memoryMb.
        calls_model: Whether it calls a model server. The baselines call it directly, the agent's runs through
            the gateway.
    """

    name: str
    runtime: Runtime
    files: Mapping[str, str]
    expected: str = "hello\n"
    folders: tuple[Path, ...] = ()
    payload: bytes = _PAYLOAD
    memory_mb: int = MEMORY_MB
    calls_model: bool = False

    @property
    def network(self) -> Network:
        """The network of the containers of the baselines."""
        return "host" if self.calls_model else "none"

    @property
    def payload_file(self) -> str:
        """The path of its input in the containers of the baselines."""
        return f"{SHARED}/{self.name}.json"


PYTHON: Final = Function("python-hello", Runtime.PYTHON, {"main.py": 'print("hello")\n'})
PANDAS: Final = Function(
    "python-pandas",
    Runtime.PYTHON,
    {
        "main.py": "import numpy as np\nimport pandas as pd\n\n"
        'frame = pd.DataFrame({"n": np.arange(6), "even": [True, False] * 3})\n'
        'print(int(frame[frame["even"]]["n"].sum()))\n'
    },
    expected="6\n",
)
NODE: Final = Function("node-hello", Runtime.NODEJS, {"index.js": 'console.log("hello")\n'})
CPP: Final = Function(
    "cpp-hello",
    Runtime.CPP,
    {
        "main.cpp": "#include <algorithm>\n#include <iostream>\n#include <map>\n#include <string>\n"
        "#include <vector>\n\nint main()\n{\n"
        '    std::map<std::string, std::vector<int>> words{{"hello", {3, 1, 2}}};\n'
        "    for (auto &[word, numbers] : words) {\n"
        "        std::sort(numbers.begin(), numbers.end());\n"
        "        std::cout << word << '\\n';\n    }\n}\n"
    },
)
GO: Final = Function(
    "go-hello",
    Runtime.GO,
    {"main.go": 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'},
)


class Baselines:
    """The bare containers of a lab, and `docker run`.

    Args:
        settings: The settings of the agent, for images and limits.
        parts: The common properties of the containers.
        opened: Removes the containers.
    """

    def __init__(self, settings: Settings, parts: BareParts, opened: AsyncExitStack) -> None:
        self._settings = settings
        self._parts = parts
        self._opened = opened
        self._containers: dict[tuple[Runtime, str, int, Size], BareContainer] = {}

    async def bare(self, runtime: Runtime, number: int = 0) -> BareContainer:
        """Return a container with the limits of a default job's container. Each `number` has its own."""
        return await self._container(runtime, "run", number, self._size(MEMORY_MB))

    async def bare_for(self, function: Function) -> BareContainer:
        """Return a container with the limits of the container of a function's job."""
        size = replace(self._size(function.memory_mb), network=function.network)
        return await self._container(function.runtime, "run", 0, size)

    def _size(self, memory_mb: int) -> Size:
        settings = self._settings
        return Size(
            memory_mb=memory_mb,
            cpus=settings.cpus_for(memory_mb),
            most_cpus=settings.most_cpus_for(memory_mb),
        )

    async def builder(self, runtime: Runtime) -> BareContainer:
        """Return a container with the CPUs of a build's container, and memory for a build without a cache."""
        settings = self._settings
        size = Size(
            memory_mb=2 * settings.build_memory_mb, cpus=settings.build_cpus, most_cpus=settings.worker_cpus
        )
        return await self._container(runtime, "build", 0, size)

    async def _container(self, runtime: Runtime, purpose: str, number: int, size: Size) -> BareContainer:
        key = (runtime, purpose, number, size)
        if key not in self._containers:
            making = bare.bare_container(self._parts, runtime, self._settings.image(runtime), size)
            self._containers[key] = await self._opened.enter_async_context(making)
        return self._containers[key]

    def docker_run(self, runtime: Runtime, network: Network = "none") -> DockerRun:
        """Return `docker run` with the image of a runtime."""
        parts = self._parts
        return DockerRun(self._settings.image(runtime), parts.shared, parts.writable, parts.label, network)


class Lab:
    """The shared resources; an asynchronous context manager.

    Args:
        has_model_server: Whether the agent has a model server, a stub.

    Attributes:
        label: A random text in the names of all containers of this lab.
        has_docker_command: Whether the command `docker` is on PATH.
        settings: The settings of the agent.
        baselines: The containers of the baselines.
    """

    def __init__(self, *, has_model_server: bool = False) -> None:
        self._opened = AsyncExitStack()
        self._has_model_server = has_model_server
        self._model_server: str | None = None
        self._agent: AgentUnderTest | None = None
        self._levels: set[str] = set()
        self.label = secrets.token_hex(4)
        self.has_docker_command = shutil.which("docker") is not None

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._opened.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    async def _open(self) -> None:
        # Unix sockets are made below this folder, so its path must be short. mkdtemp makes it private (0700).
        self.scratch = Path(tempfile.mkdtemp(prefix="na-bench-"))
        self._opened.callback(shutil.rmtree, self.scratch, ignore_errors=True)
        self.shared, self.writable, objects = (self.scratch / name for name in ("bench", "out", "objects"))
        for folder in (self.shared, self.writable, objects / BUCKET):
            folder.mkdir(parents=True)
        self.shared.chmod(0o755)
        self.writable.chmod(0o777)
        self._objects = objects / BUCKET

        self._log = self._opened.enter_context((self.scratch / "agent.log").open("w"))
        logs.configure("json", "INFO", stream=self._log)
        self._redis_port = await self._opened.enter_async_context(services.redis_server(self.scratch))
        self._point_aws_at(await self._opened.enter_async_context(services.object_stub(objects)))
        if self._has_model_server:
            self._model_server = await self._opened.enter_async_context(services.stub_model_server())
        self.docker = aiodocker.Docker()
        self._opened.push_async_callback(self.docker.close)
        self._opened.push_async_callback(bare.remove_all, self.docker, self.label)
        self.settings = self._settings("measured")
        parts = BareParts(
            docker=self.docker,
            shared=self.shared,
            writable=self.writable,
            label=self.label,
            limits=containers.pool_policy(self.settings).limits,
        )
        self.baselines = Baselines(self.settings, parts, self._opened)
        await bare.compile_helper(self.docker, self.settings.image(Runtime.CPP), self.shared)

    def _point_aws_at(self, url: str) -> None:
        before = dict(os.environ)

        def restore() -> None:
            os.environ.clear()
            os.environ.update(before)

        self._opened.callback(restore)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ |= {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _settings(self, role: str, **changes: Any) -> Settings:
        """Return the default settings, with the addresses and folders of this lab."""
        fields: dict[str, Any] = {
            "aws_region": _REGION,
            "sqs_queue_url": "http://127.0.0.1:9/none",
            "s3_code_bucket": BUCKET,
            "s3_user_data_bucket": "benchmark-data",
            "redis_host": services.HOST,
            "redis_port": self._redis_port,
            "worker_id": f"bench-{role}-{self.label}",
            "docker_work_dir_root": self.scratch / "w",
            "code_cache_dir": self.scratch / "cache",
            "metrics_host": services.HOST,
            "metrics_port": 0,
            "selftest_interval_seconds": 0,
            "cloudwatch_enabled": False,
            "drain_seconds": 5,
            "ai_endpoint": self._model_server,
            "function_max_share": 1,  # only one function uses the worker
        }
        return Settings(_env_file=None, **(fields | changes))  # type: ignore[call-arg]

    # --- the agent

    async def agent(self) -> AgentUnderTest:
        """Return the agent of most measurements. It has the default settings."""
        if self._agent is None:
            self._agent = await self._opened.enter_async_context(self.another_agent("measured"))
        return self._agent

    @property
    def levels(self) -> set[str]:
        """The isolation levels of the measured runs, without those of agents without sandboxes."""
        return self._levels

    @asynccontextmanager
    async def another_agent(
        self,
        role: str,
        sizes: Mapping[Runtime, int] | None = None,
        *,
        shared: bool = False,
        **changes: Any,
    ) -> AsyncIterator[AgentUnderTest]:
        """Run another agent.

        Args:
            role: A part of its worker ID.
            sizes: The sizes of its warm pool; None for the default sizes.
            shared: As for `agent_under_test`.
            **changes: Values of other settings.
        """
        if sizes is not None:
            changes |= {f"warm_pool_{runtime}_size": sizes.get(runtime, 0) for runtime in Runtime}
        settings = self._settings(role, **changes)
        async with ours.agent_under_test(settings, shared=shared) as agent:
            if not shared:
                agent.levels = self._levels
            yield agent

    def last_log_lines(self, count: int = 5) -> str:
        """Return the last lines of the agents' log."""
        self._log.flush()
        return "\n".join((self.scratch / "agent.log").read_text().splitlines()[-count:])

    async def used_mb(self, agent: AgentUnderTest) -> dict[Runtime, list[float]]:
        """Return the memory of each container of an agent, without page cache, MiB."""
        found: dict[Runtime, list[float]] = {runtime: [] for runtime in Runtime}
        filters = f'{{"label":["{LABEL_WORKER}={agent.worker_id}"]}}'
        for container in await self.docker.containers.list(filters=filters):
            details = await container.show()
            group = cgroup.find(int(details["State"]["Pid"]))
            if group is not None:
                runtime = Runtime(details["Config"]["Labels"][LABEL_RUNTIME])
                found[runtime].append(group.held_bytes() / MIB)
        return found

    # --- functions

    def put_object(self, key: str, content: bytes) -> None:
        """Store an object in the bucket with the code."""
        (self._objects / key).write_bytes(content)

    def install(self, function: Function) -> Call:
        """Store a function for the agent and for bare containers, and return a job that calls it."""
        folder = self.shared / "code" / function.name
        if not folder.exists():
            folder.mkdir(parents=True)
            for more in function.folders:
                shutil.copytree(more, folder, symlinks=True, dirs_exist_ok=True)
            for name, text in function.files.items():
                (folder / name).write_text(text)
            (self.shared / f"{function.name}.json").write_bytes(function.payload)
            self.put_object(f"{function.name}.zip", pack(folder))
        return Call(
            {
                "functionId": function.name,
                "runtime": function.runtime,
                "s3Key": f"{function.name}.zip",
                "memoryMb": function.memory_mb,
                "timeoutMs": 60_000,
                "input": json.loads(function.payload),
            },
            function.expected,
        )

    def environment(self, function: Function) -> dict[str, str]:
        """Return the environment variables of a run of the function."""
        job = {**self.install(function).message, "requestId": "bench"}
        variables = environment_of(parse_job(json.dumps(job), self.settings.job_defaults))
        if self._model_server is not None:
            variables["AI_ENDPOINT"] = self._model_server
        return variables | {"PAYLOAD_FILE": function.payload_file}

    async def program(self, function: Function) -> Program:
        """Return the program of the baselines: the interpreter with the script, or the built program."""
        self.install(function)
        recipe = RECIPES[function.runtime]
        arguments = recipe.arguments
        if recipe.build is not None:
            path = f"{WRITABLE}/{function.name}"
            if not (self.writable / function.name).exists():
                await (await self.baselines.builder(function.runtime)).run(
                    await self.build_of(function, into=path)
                )
            arguments = (path,)
        return Program(
            arguments,
            f"{SHARED}/code/{function.name}",
            self.environment(function),
            function.payload_file,
            function.expected,
        )

    async def build_of(self, function: Function, *, into: str) -> Program:
        """Return the build command of the worker, in a fresh writable copy of the code."""
        self.install(function)
        recipe = RECIPES[function.runtime].build
        assert recipe is not None
        arguments = tuple(into if word == BUILT_PROGRAM else word for word in recipe)
        return await self.in_fresh_copy(function, arguments)

    async def in_fresh_copy(self, function: Function, arguments: tuple[str, ...]) -> Program:
        """Return a command that runs in a new writable copy of the code, in the runtime's builder."""
        folder = f"/work/{secrets.token_hex(4)}"
        copy = Program(
            ("/bin/cp", "-r", f"{SHARED}/code/{function.name}", folder), "/", {"PATH": "/usr/bin:/bin"}
        )
        await (await self.baselines.builder(function.runtime)).run(copy)
        return Program(arguments, folder, {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp"})  # noqa: S108 - in the container
