"""No credential, address or folder of the host gets into a container, a result or a log.

Everything that a worker is given carries a mark (`cnry…`, or a loopback address of its own). Programs in four
languages look for marks wherever a program can look (programs/seekers), jobs end in every way, services fail;
then whatever came out is searched. `ALLOWED` says which kind may stand where, and why.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import aiodocker
import pytest
from redis import asyncio as redis

from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from support.agents.worker import RESULT_DEADLINE_S, WorkerUnderTest
from support.sandboxes.adversarial import yard
from support.services.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nanoagent.dev.local_services import EmbeddedStack

ROOT: Final = Path(__file__).parents[2]
SEEKERS: Final = Path(__file__).parent / "programs/seekers"
BAIT: Final = "cnry0123456789abcdef"  # of no secret: that it is found shows that the seekers see


class Kind(StrEnum):
    CREDENTIAL = "credential"
    USER = "user name"
    ADDRESS = "address"
    STORE = "address of the object store"
    FOLDER = "folder"
    MACHINE = "machine"


# What is in no row is allowed nowhere. A row that nothing needs fails the test.
ALLOWED: Final = {
    ("log", Kind.ADDRESS): "an operator has to know which address did not answer",
    ("log", Kind.FOLDER): "an operator has to know which folder cannot be written to",
    ("log", Kind.STORE): "the same",
    ("readyz", Kind.STORE): "the same: readiness gives the reason that the log gives",
    ("result", Kind.STORE): "links to output files lead to the endpoint that the worker uses",
    ("readyz", Kind.ADDRESS): "the same: readiness gives the reason that the log gives",
    ("readyz", Kind.FOLDER): "the same",
    ("inspect", Kind.FOLDER): "what is bound, and the label by which left-overs are found; it asks root",
    ("check", Kind.STORE): "it says which service does not answer",
    ("check", Kind.ADDRESS): "it shows the settings to who has made them",
    ("check", Kind.FOLDER): "the same",
    ("check", Kind.USER): "the same; not its password",
}
# The kernel shows every process what is mounted where, and of a bound folder the path within its file system.
# What a sandbox could do about it, and what a deployment can: docs/security.md.
MOUNTS: Final = re.compile(r"/proc/\d+/mountinfo")


def mark() -> str:
    return f"cnry{secrets.token_hex(8)}"


def address() -> str:
    return f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}"


@dataclass(frozen=True)
class Canaries:
    """What the worker under test has, by the name under which it is told of."""

    access_key: str = field(default_factory=mark)
    secret_key: str = field(default_factory=mark)
    session_token: str = field(default_factory=mark)
    redis_user: str = field(default_factory=mark)
    redis_password: str = field(default_factory=mark)
    ai_user: str = field(default_factory=mark)
    ai_password: str = field(default_factory=mark)
    ai_key: str = field(default_factory=mark)
    variable: str = field(default_factory=mark)
    aws_address: str = field(default_factory=address)
    s3_address: str = field(default_factory=address)
    redis_address: str = field(default_factory=address)
    ai_address: str = field(default_factory=address)
    tasks: str = field(default_factory=mark)
    cache: str = field(default_factory=mark)
    home: str = field(default_factory=mark)
    user: str = field(default_factory=mark)
    host: str = field(default_factory=mark)

    def kind(self, name: str) -> Kind:
        if name == "s3_address":
            return Kind.STORE
        if name.endswith("_address"):
            return Kind.ADDRESS
        if name in {"tasks", "cache"}:
            return Kind.FOLDER
        if name in {"redis_user", "ai_user"}:
            return Kind.USER
        return Kind.MACHINE if name in {"home", "user", "host"} else Kind.CREDENTIAL

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": self.session_token,
            "AI_ENDPOINT": f"http://{self.ai_user}:{self.ai_password}@{self.ai_address}:9/v1",
            "OPENAI_API_KEY": self.ai_key,
            "CANARY": self.variable,
            "REDIS_HOST": self.redis_address,
            "REDIS_USERNAME": self.redis_user,
            "REDIS_PASSWORD": self.redis_password,
            "DOCKER_WORK_DIR_ROOT": f"/tmp/na-{self.tasks}",
            "CODE_CACHE_DIR": f"/tmp/na-{self.cache}",
            "HOME": f"/nonexistent/{self.home}",
            "USER": self.user,
            "LOGNAME": self.user,
            "HOSTNAME": self.host,
            "LOG_LEVEL": "DEBUG",
        }

    def in_text(self, text: str) -> set[str]:
        """The names of those that stand in a text, also as base64 has them when they begin it."""
        values = vars(self).items()
        return {
            name
            for name, value in values
            if value in text or base64.b64encode(value.encode())[:20].decode() in text
        }


@dataclass
class Sightings:
    """What was seen where."""

    canaries: Canaries
    seen: dict[tuple[str, Kind], set[str]] = field(default_factory=dict)

    def look(self, place: str, text: str) -> None:
        for name in self.canaries.in_text(text):
            line = next((line for line in text.splitlines() if vars(self.canaries)[name] in line), "")
            self.seen.setdefault((place, self.canaries.kind(name)), set()).add(f"{name}: {line[:300]}")

    def surprises(self) -> dict[tuple[str, Kind], set[str]]:
        return {where: what for where, what in self.seen.items() if where not in ALLOWED}


@contextmanager
def own_redis(canaries: Canaries, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A Redis that wants the user and the password, at its own address; yields process and port."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    assert program is not None, "install redis-server"
    with socket.socket() as probe:
        probe.bind((canaries.redis_address, 0))
        port = probe.getsockname()[1]
    settings = folder / "redis.conf"
    settings.write_text(
        f"bind {canaries.redis_address}\nport {port}\nsave ''\nappendonly no\nuser default off\n"
        f"user {canaries.redis_user} on >{canaries.redis_password} ~* &* +@all\n"
    )
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([program, settings], cwd=folder, stdout=log, stderr=log)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


class MarkedWorker(WorkerUnderTest):
    """A worker all of whose settings are marked.

    Args:
        aws: The way to SQS and CloudWatch, started.
        s3: The way to S3, started.
        redis_port: Of its own Redis.
    """

    def __init__(
        self,
        stack: EmbeddedStack,
        folder: Path,
        canaries: Canaries,
        aws: Recorder,
        s3: Recorder,
        redis_port: int,
    ) -> None:
        endpoints = aws.environment() | {"AWS_ENDPOINT_URL_S3": s3.url, "REDIS_PORT": str(redis_port)}
        own = {"MAX_ATTEMPTS": "1", "BUILD_CPUS": "2", "CLOUDWATCH_INTERVAL_SECONDS": "1"}
        # A new process, because a fork would have the host name and the memory of a test process.
        super().__init__(stack, folder, endpoints | own | canaries.environment(), forks=False)
        self.tasks = Path(self.settings["DOCKER_WORK_DIR_ROOT"])
        self._canaries = canaries
        self._aws = aws

    def environment(self) -> dict[str, str]:
        path = self.queue_url.partition("//")[2].partition("/")[2]
        return super().environment() | {"SQS_QUEUE_URL": f"{self._aws.url}/{path}"}

    async def __aenter__(self) -> Self:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(self._on_a_machine_of_its_own()))
            await super().__aenter__()
        await self.redis.aclose()
        self.redis = redis.Redis(
            host=self._canaries.redis_address,
            port=int(self.settings["REDIS_PORT"]),
            username=self._canaries.redis_user,
            password=self._canaries.redis_password,
        )
        self._opened.push_async_callback(self.redis.aclose)
        return self

    def _on_a_machine_of_its_own(self) -> Path:
        """A program that is this Python on a machine of another name, where that can be had."""
        program = self.folder / "python"
        name = f"echo {self._canaries.host} > /proc/sys/kernel/hostname"
        inner = f'{name}; exec {shlex.quote(sys.executable)} "$@"'
        become = (
            f"exec unshare --uts sh -c {shlex.quote(inner)} sh"
            if os.geteuid() == 0
            else f"exec {sys.executable}"
        )
        program.write_text(f'#!/bin/sh\n{become} "$@"\n')
        program.chmod(0o755)
        return program


def findings_of(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Where a seeker has found which mark; they are taken out of the result."""
    assert (result["status"], result["stderr"]) == ("SUCCESS", ""), result
    *lines, files = result.pop("stdout").splitlines()
    assert int(files.split("\t")[1]) > 1000
    found = [tuple(line.split("\t")) for line in lines]
    places = {place for place, seen in found if seen == BAIT}
    assert places >= {"environment", "memory", "/input/payload.json"}
    return [(place, seen) for place, seen in found if seen != BAIT]


async def jobs_that_end_each_way(worker: MarkedWorker) -> list[tuple[str | None, dict[str, Any]]]:
    """What each should be called, and the job."""
    python = {"raise": "USER_ERROR", "sleep": "TIMEOUT", "memory": "OUT_OF_MEMORY", "fill": "DISK_LIMIT"}
    sources = {
        "raise": "import os\nraise KeyError(dict(os.environ))",
        "sleep": "while True: pass",
        "memory": "held = bytearray(1 << 30)\nheld[::4096] = b'x' * (1 << 18)",
        "fill": "for number in range(20_000):\n    open(f'/tmp/{number}', 'w').close()",
    }
    jobs: list[tuple[str | None, dict[str, Any]]] = [
        (
            ends,
            {
                "s3Key": await worker.upload({"main.py": sources[case]}),
                "timeoutMs": 1000 if ends == "TIMEOUT" else 60_000,
            },
        )
        for case, ends in python.items()
    ]
    jobs += [
        (
            "BUILD_FAILED",
            {"runtime": "cpp", "s3Key": await worker.upload({"main.cpp": "#include <none>\nint x"})},
        ),
        (
            "BUILD_FAILED",
            {"runtime": "go", "s3Key": await worker.upload({"main.go": "package main\nvar x y"})},
        ),
        ("INVALID_CODE", {"s3Key": await worker.upload(b"no zip")}),
        ("INVALID_CODE", {"s3Key": await worker.upload({"other.py": ""})}),
        ("CODE_NOT_FOUND", {"s3Key": "none.zip"}),
        ("CODE_NOT_FOUND", {"s3Key": "none.zip", "s3Bucket": "no-such-bucket"}),
        ("INVALID_JOB", {"s3Key": "none.zip", "memoryMb": "lots"}),
    ]
    return jobs


async def jobs_that_fail_by_the_platform(
    worker: MarkedWorker, s3: Recorder, canaries: Canaries
) -> list[dict[str, Any]]:
    """S3 refuses, the cache's folder is gone."""
    leaves = await worker.upload({"main.py": "open('/output/file', 'w').write('x')"})
    other = await worker.upload({"main.py": "print(1)"})
    s3.fault = lambda call: call.operation == "PutObject"
    results = [await worker.run(s3Key=leaves)]
    s3.fault = lambda _: False

    workspaces = Path(f"/tmp/na-{canaries.cache}/code/workspaces")
    hidden = workspaces.rename(workspaces.with_name("hidden"))
    results.append(await worker.run(s3Key=other))
    hidden.rename(workspaces)
    return results


async def readiness_without_s3(worker: MarkedWorker, s3: Recorder, mark_of_address: str) -> str:
    """A job that wants its code finds that S3 is gone, and goes back."""
    key = await worker.upload({"main.py": "print(2)"})
    await s3.stop()
    await worker.stack.queues.send(json.dumps(worker.message(s3Key=key)), queue_url=worker.queue_url)
    return await ready_with(worker, mark_of_address)


async def readiness_without_slots(worker: MarkedWorker, mark_of_folder: str) -> str:
    """A job takes the container that is ready, and no other can be made: slots are gone for a while."""
    slots = worker.tasks / worker.worker_id / "slots"
    key = await worker.upload({"main.py": ""})
    hidden = slots.rename(slots.with_name("hidden"))
    body = json.dumps(worker.message(s3Key=key, functionId="new"))
    await worker.stack.queues.send(body, queue_url=worker.queue_url)
    said = await ready_with(worker, mark_of_folder)
    hidden.rename(slots)
    return said


async def kept_in_redis(worker: WorkerUnderTest, key: bytes) -> Any:
    """Return what Redis keeps under a key of any type."""
    client = worker.redis
    reads: dict[bytes | str, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": client.xrange,
    }
    return await reads[await client.type(key)](key)


@pytest.mark.timeout(300)  # two builds among fifteen jobs, and five commands
async def test_no_name_or_secret_of_the_host_appears_where_it_must_not(
    stack: EmbeddedStack, tmp_path: Path, record_property: Callable[[str, object], None]
):
    canaries = Canaries()
    sightings = Sightings(canaries)
    async with AsyncExitStack() as opened:
        server, port = opened.enter_context(own_redis(canaries, tmp_path))
        aws = await opened.enter_async_context(Recorder(stack.endpoint_url, host=canaries.aws_address))
        s3 = await opened.enter_async_context(Recorder(stack.endpoint_url, host=canaries.s3_address))
        for folder in (canaries.tasks, canaries.cache):
            opened.callback(shutil.rmtree, f"/tmp/na-{folder}", ignore_errors=True)
        worker = await opened.enter_async_context(MarkedWorker(stack, tmp_path, canaries, aws, s3, port))

        # Programs look for themselves; jobs end in each way.
        seekers = {"memoryMb": 512, "timeoutMs": 60_000, "input": {"bait": BAIT}}
        messages = [
            worker.message(
                runtime=runtime, functionId=runtime, s3Key=await worker.upload(SEEKERS / runtime), **seekers
            )
            for runtime in Runtime
        ]
        endings = await jobs_that_end_each_way(worker)
        messages += [worker.message(**fields) for _, fields in endings]
        results = await worker.run_all(messages)
        assert [result["errorType"] for result in results[len(Runtime) :]] == [ends for ends, _ in endings]
        for runtime, result in zip(Runtime, results, strict=False):
            found = findings_of(result)
            assert found, "nothing was marked"
            unexplained = [
                (runtime, place, name)
                for place, seen in found
                for name in canaries.in_text(seen)
                if not (name == "tasks" and MOUNTS.fullmatch(place))
            ]
            assert unexplained == []
        await look_from_outside(worker, sightings)

        # Our side fails, and says so.
        sightings.look("readyz", await readiness_without_slots(worker, canaries.tasks))
        failures = await jobs_that_fail_by_the_platform(worker, s3, canaries)
        assert [result["errorType"] for result in failures] == ["PLATFORM"] * len(failures)
        results += failures
        sightings.look("readyz", await readiness_without_s3(worker, s3, canaries.s3_address))
        for result in results:
            sightings.look("result", json.dumps(result))
        async for key in worker.redis.scan_iter("*"):
            kept = await kept_in_redis(worker, key)
            if not any(seeker["requestId"].encode() in key for seeker in messages[: len(Runtime)]):
                sightings.look("result", f"{key!r} {kept!r}")
        for letter in await stack.queues.dead_letters(queue_url=worker.dead_letter_url):
            sightings.look("dead letter", json.dumps(letter))
        server.kill()
        sightings.look("readyz", await ready_with(worker, canaries.redis_address))
        await worker.agent.stop()
        sightings.look("log", worker.log.read_text())
        sightings.look("check", await said_by(worker, "check"))
        sightings.look("check", await said_by(worker, "check", "--json"))
    record_property("tried", ["secrets", len(vars(canaries))])
    assert sightings.surprises() == {}
    assert set(ALLOWED) - set(sightings.seen) == set()


async def ready_with(worker: MarkedWorker, reason: str) -> str:
    """What readiness says as soon as it says that."""
    async with asyncio.timeout(RESULT_DEADLINE_S):
        while reason not in (said := (await worker.get("/readyz"))[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # another process's state has no event
    return said


async def look_from_outside(worker: MarkedWorker, sightings: Sightings) -> None:
    """At what the worker tells everyone, and Docker those who may ask."""
    for path in ("metrics", "healthz", "readyz"):
        sightings.look(path, (await worker.get(f"/{path}"))[1])
    async with aiodocker.Docker() as docker:
        filters = json.dumps({"label": [f"nanoagent.worker={worker.worker_id}"]})
        containers = await docker.containers.list(all=1, filters=filters)
        assert containers
        for container in containers:
            with suppress(aiodocker.DockerError):  # one that is being removed just now
                sightings.look("inspect", json.dumps(await container.show()))


async def said_by(worker: MarkedWorker, *command: str, **settings: str) -> str:
    """What a command of ours says, on both streams, with the worker's settings."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", *command, "--env-file", os.devnull),
        env=os.environ | worker.environment() | {"COLUMNS": "500"} | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(RESULT_DEADLINE_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return said.decode()


@pytest.mark.parametrize("level", [Isolation.SHARED, Isolation.CONTAINER])
async def test_without_a_sandbox_only_the_mount_list_shows_the_workers_folders(
    level: Isolation, monkeypatch: pytest.MonkeyPatch
):
    # Interpreters alone: what a level changes is what the kernel shows, and that it shows to all alike.
    canaries = Canaries()
    folder = Path(f"/tmp/{canaries.tasks}")
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    try:
        async with yard(level, (Runtime.PYTHON, Runtime.NODEJS)) as yards:
            for runtime in (Runtime.PYTHON, Runtime.NODEJS):
                entry = RECIPES[runtime].entry
                function = yards.function(runtime, {entry: (SEEKERS / runtime / entry).read_text()})
                ran = await yards.run(function, json.dumps({"bait": BAIT}), memory_mb=512)
                found = [line.split("\t") for line in ran.stdout.splitlines()]
                assert ["/input/payload.json", BAIT] in found, ran.stderr
                places = {place for place, seen in found if seen == canaries.tasks}
                assert places, "a level that hides more than is said here"
                assert {place for place in places if not MOUNTS.fullmatch(place)} == set()
    finally:
        shutil.rmtree(folder)


async def test_a_sandbox_hides_the_kernel_parameters_and_devices_of_the_host():
    # Kernel parameters may hold passwords; loop devices and swap name files; DMI has an instance's id.
    program = (
        "import os\n"
        "for file in ('/proc/cmdline', '/proc/swaps'):\n"
        "    print(file, open(file).read())\n"
        "for folder in ('block', 'dmi'):\n"
        "    folder = f'/sys/devices/virtual/{folder}'\n"
        "    print(folder, *(os.listdir(folder) if os.path.exists(folder) else ()))\n"
    )
    assert Path("/proc/cmdline").read_text().strip()
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as yards:
        ran = await yards.run(yards.function(Runtime.PYTHON, {"main.py": program}), "")
    assert [line.split() for line in ran.stdout.splitlines()] == [
        ["/proc/cmdline"],
        ["/proc/swaps"],
        ["/sys/devices/virtual/block"],
        ["/sys/devices/virtual/dmi"],
    ]


def test_an_image_contains_nothing_about_the_machine_that_built_it():
    for runtime in Runtime:
        for asked in (["image", "inspect"], ["history", "--no-trunc"]):
            command = ["docker", *asked, f"nanoagent-{runtime}:latest"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert runtime in said or "nanosupervisor" in said
            assert f"{ROOT}/" not in said
            assert not re.search(r"https?://[^\s/]*@|_proxy=\S", said, re.IGNORECASE)


# --- what is wrong with the settings themselves


def a_server_that_quotes(stream: socket.socket) -> None:
    """A Redis without AUTH, or what stands before one: it repeats what it was sent, as Redis does."""
    with suppress(OSError):
        while True:
            client, _ = stream.accept()
            with client:
                words = re.findall(rb"\r\n([^*$\r\n]+)", client.recv(65536))
                quoted = b" ".join(b"'%b'" % word for word in words[1:])
                client.sendall(b"-ERR unknown command 'AUTH', with args beginning with: %b\r\n" % quoted)


@contextmanager
def quoting_redis() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as stream:
        thread = threading.Thread(target=a_server_that_quotes, args=(stream,), daemon=True)
        thread.start()
        yield int(stream.getsockname()[1])
        stream.shutdown(socket.SHUT_RDWR)
        thread.join()


async def test_errors_in_settings_show_no_secrets(stack: EmbeddedStack, tmp_path: Path):
    canaries = Canaries()
    worker = MarkedWorker(stack, tmp_path, canaries, Recorder(""), Recorder(""), 1)
    worker.queue_url = stack.queue_url
    bad_url = f"http://{canaries.ai_user}:{canaries.ai_password}"
    with quoting_redis() as port:
        # All of the marked settings but where the services are.
        services = {
            name: value for name, value in stack.environment().items() if not re.search("KEY|TOKEN", name)
        }
        here = services | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(port), "LOG_FORMAT": "text"}
        tried: list[tuple[list[str], dict[str, str], str]] = [
            (["check"], {}, "unknown command"),
            (["send", str(SEEKERS / "python")], {}, "unknown command"),
            (["run"], {"AWS_ENDPOINT_URL_S3": f"{bad_url}@[bad"}, "AWS_ENDPOINT_URL"),
            (["run"], {"REDIS_PORT": canaries.redis_password, "AI_ENDPOINT": bad_url[7:]}, "REDIS_PORT"),
        ]
        for command, settings, says in tried:
            said = await said_by(worker, *command, **(here | settings))
            assert says in said, (command, settings, said)
            assert "Traceback" not in said
            seen = {canaries.kind(name) for name in canaries.in_text(said)}
            assert not seen & {Kind.CREDENTIAL, Kind.MACHINE}, (command, settings, said)


async def test_no_value_of_a_jobs_variables_is_logged(stack: EmbeddedStack, tmp_path: Path):
    """The program prints the value into its output, which only the result has."""
    secret = mark()
    prints = "import os\nprint(os.environ['TOKEN'], flush=True)\n"
    settings = {"LOG_LEVEL": "DEBUG", "MAX_ATTEMPTS": "1"}
    async with WorkerUnderTest(stack, tmp_path, settings) as worker:
        jobs: list[dict[str, Any]] = [
            {"s3Key": await worker.upload({"main.py": prints})},
            {
                "s3Key": await worker.upload({"main.py": f"{prints}import time\ntime.sleep(60)"}),
                "timeoutMs": 500,
            },
            {"s3Key": await worker.upload({"main.py": f"{prints}raise SystemExit(3)"})},
            {"s3Key": await worker.upload({"main.cpp": "int x"}), "runtime": "cpp"},
            {"s3Key": "none.zip", "memoryMb": "lots"},
        ]
        ended = [await worker.run(**job, env={"TOKEN": secret}) for job in jobs]
        log = worker.log.read_text()
    assert [result["stdout"] for result in ended] == [f"{secret}\n"] * 3 + [""] * 2
    assert [result["errorType"] for result in ended] == [
        *(None, "TIMEOUT", "USER_ERROR", "BUILD_FAILED", "INVALID_JOB")
    ]
    assert "run begins" in log
    assert secret not in log
