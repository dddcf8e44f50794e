"""SQS, S3, CloudWatch and Redis on this machine, for the demo and the tests.

moto's server plays the AWS services, a `redis-server` is itself. Both are child processes on free ports of
127.0.0.1 that forget everything when they stop.

    async with EmbeddedStack(folder) as stack:
        environment = os.environ | stack.environment()   # for an agent's process
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from nanoagent.aws.clients import AwsClients
from nanoagent.model.errors import PlatformError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from types import TracebackType

_HOST: Final = "127.0.0.1"
_REGION: Final = "ap-northeast-2"
_ACCESS_KEY: Final = "embedded"  # moto wants a signature and does not check it
_START_DEADLINE_S: Final = 60.0  # moto imports for 3 s on an idle machine
_STOP_DEADLINE_S: Final = 5.0
_PROBE_EVERY_S: Final = 0.05
_PROBE_TIMEOUT_S: Final = 2.0
_PORT_ATTEMPTS: Final = 5
_VISIBILITY_S: Final = 30
_MAX_RECEIVES: Final = 10

_T = TypeVar("_T")


class StackError(PlatformError):
    """A part of the embedded stack is not installed, did not start, or did not answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """A child process of the stack.

    Attributes:
        name: Its name, for people.
        process: The process.
        log: The file that it writes its output to.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, command: list[str], folder: Path) -> Service:
        """Start it in a process group of its own: Ctrl-C ends the agent first, and the agent ends us."""
        log = folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(name, process, log)

    def wait_until(self, probe: Callable[[], _T | None]) -> _T:
        """What the probe returns as soon as it is not None.

        Raises:
            StackError: The process ended, or the deadline passed, before.
        """
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise StackError(f"{self.name} ended at its start; it said:\n{self.output()[-2000:]}")
            answer = probe()
            if answer is not None:
                return answer
            time.sleep(_PROBE_EVERY_S)
        raise StackError(
            f"{self.name} did not answer within {_START_DEADLINE_S:.0f} s; it said:\n{self.output()[-2000:]}"
        )

    async def ended(self) -> None:
        """Wait until the process ends."""
        try:
            descriptor = os.pidfd_open(self.process.pid)
        except ProcessLookupError:  # it has ended, and somebody has asked for its exit code
            return
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, is_over.set)
        try:
            await is_over.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    @property
    def has_ended(self) -> bool:
        """Whether the process does not run any more."""
        return self.process.poll() is not None

    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """Ask it to end, and make it. Idempotent."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class EmbeddedStack:
    """The services that an agent needs, started together and stopped together.

    A context manager, plain and asynchronous. `start`, `stop`, `new_queue` and `new_bucket` block; the
    other calls are coroutines and may be used from any event loop.

    Args:
        folder: For the processes' logs and Redis's working directory; made if it is missing.
        redis_address: Host and port of a Redis to use instead of starting one.

    Attributes:
        endpoint_url: Where SQS, S3 and CloudWatch answer.
        redis_host: Where Redis answers.
        redis_port: Its port.
        queue_url: The queue; visibility timeout 30 s, dead-lettered after 10 receipts.
        dead_letter_url: Its dead-letter queue.
        code_bucket: For code zips.
        data_bucket: For output files.
        services: The processes that were started.
    """

    def __init__(self, folder: Path, *, redis_address: tuple[str, int] | None = None) -> None:
        self.endpoint_url = ""
        self.redis_host, self.redis_port = redis_address or ("", 0)
        self.queue_url = ""
        self.dead_letter_url = ""
        self.code_bucket = "nanoagent-code"
        self.data_bucket = "nanoagent-data"
        self.services: list[Service] = []
        self._folder = folder
        self._template = AwsClients(_REGION, access_key_id=_ACCESS_KEY, secret_access_key=_ACCESS_KEY)
        self._starts_redis = redis_address is None
        self._running = ExitStack()
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Start the processes and make the queues and buckets; on failure nothing is left running.

        Raises:
            StackError: Something is not installed (the message says how to get it) or did not start.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.services.clear()
        with ExitStack() as starting:
            self._start_redis(starting)
            self._start_aws(starting)
            _run(self._furnish())
            self._running = starting.pop_all()

    def stop(self) -> None:
        """Stop the processes. Idempotent."""
        self._running.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def environment(self) -> dict[str, str]:
        """The variables that make an agent's process use this stack, to be laid over its own."""
        names = ("", "_SQS", "_S3", "_CLOUDWATCH")  # a service's own variable would win over the common one
        return {
            **{f"AWS_ENDPOINT_URL{name}": self.endpoint_url for name in names},
            "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": _ACCESS_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "SQS_QUEUE_URL": self.queue_url,
            "S3_CODE_BUCKET": self.code_bucket,
            "S3_USER_DATA_BUCKET": self.data_bucket,
            "REDIS_HOST": self.redis_host,
            "REDIS_PORT": str(self.redis_port),
        }

    def clients(self) -> AwsClients:
        """Clients of this stack, whatever the environment says; the caller closes them."""
        return dataclasses.replace(self._template, endpoint_url=self.endpoint_url)

    def new_queue(self, **attributes: str) -> str:
        """Make another queue; returns its URL.

        Args:
            **attributes: As SQS's CreateQueue takes them: `VisibilityTimeout="2"`, `FifoQueue="true"`.
        """
        suffix = ".fifo" if attributes.get("FifoQueue") == "true" else ""
        return _run(self._make_queue(f"queue-{next(self._numbers)}{suffix}", attributes))

    def redrive_policy(self, dead_letter_url: str, *, max_receives: int = _MAX_RECEIVES) -> str:
        """The `RedrivePolicy` attribute that leads to a queue."""
        return _run(self._policy(dead_letter_url, max_receives))

    def new_bucket(self) -> str:
        """Make another bucket; returns its name."""
        return _run(self._make_bucket(f"bucket-{next(self._numbers)}"))

    async def put_code(self, key: str, content: bytes) -> None:
        """Store an object in the code bucket."""
        async with self.clients() as clients:
            await (await clients.s3()).put_object(Bucket=self.code_bucket, Key=key, Body=content)

    async def send(self, body: str, *, queue_url: str | None = None) -> str:
        """Send a message; returns its id."""
        async with self.clients() as clients:
            client = await clients.sqs()
            answer = await client.send_message(QueueUrl=queue_url or self.queue_url, MessageBody=body)
        return str(answer["MessageId"])

    async def queue_depth(self, *, queue_url: str | None = None) -> tuple[int, int, int]:
        """How many messages are visible, in flight and delayed."""
        names = ("", "NotVisible", "Delayed")
        async with self.clients() as clients:
            client = await clients.sqs()
            answer = await client.get_queue_attributes(
                QueueUrl=queue_url or self.queue_url, AttributeNames=["All"]
            )
        counts = [int(answer["Attributes"][f"ApproximateNumberOfMessages{name}"]) for name in names]
        return counts[0], counts[1], counts[2]

    async def dead_letters(self, *, queue_url: str | None = None) -> list[dict[str, Any]]:
        """The messages of a dead-letter queue, which stay there.

        Returns:
            For each `message_id`, `body` and `attributes` (name → text), the oldest first.
        """
        url = queue_url or self.dead_letter_url
        messages: list[dict[str, Any]] = []
        async with self.clients() as clients:
            client = await clients.sqs()
            while batch := (await _peek(client, url)).get("Messages"):
                messages += batch
            for message in messages:
                await client.change_message_visibility(
                    QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
                )
        return [_as_dead_letter(message) for message in messages]

    async def read_object(self, bucket: str, key: str) -> bytes:
        """An object's bytes."""
        async with self.clients() as clients:
            answer = await (await clients.s3()).get_object(Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                return bytes(await body.read())

    async def list_objects(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys that start with `prefix`, sorted."""
        keys: list[str] = []
        async with self.clients() as clients:
            pages = (await clients.s3()).get_paginator("list_objects_v2")
            async for page in pages.paginate(Bucket=bucket, Prefix=prefix):
                keys += [entry["Key"] for entry in page.get("Contents", [])]
        return sorted(keys)

    # --- starting

    def _start_redis(self, starting: ExitStack) -> None:
        if not self._starts_redis:
            if _redis_process(self.redis_host, self.redis_port) is None:
                raise StackError(f"no Redis answers at {self.redis_host}:{self.redis_port}; start one there")
            return
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise StackError(
                "neither redis-server nor valkey-server is on PATH; install one "
                "(Debian, Ubuntu: apt-get install redis-server) or name a running one"
            )
        self.redis_host = _HOST
        self.redis_port = self._start_redis_server(program, starting)

    def _start_redis_server(self, program: str, starting: ExitStack) -> int:
        """Start it on a free port, and on another if someone was faster; returns the port."""
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = _free_port()
            command = [program, "--bind", _HOST, "--port", str(port), "--save", "", "--appendonly", "no"]
            service = Service.start("redis", command, self._folder)
            starting.callback(service.stop)
            try:
                pid = service.wait_until(lambda port=port: _redis_process(_HOST, port))  # type: ignore[misc]
            except StackError:
                if attempt == _PORT_ATTEMPTS or "Address already in use" not in service.output():
                    raise
                continue
            if pid == service.process.pid:
                self.services.append(service)
                return port
        raise StackError(f"no free port for Redis in {_PORT_ATTEMPTS} attempts")

    def _start_aws(self, starting: ExitStack) -> None:
        if any(importlib.util.find_spec(name) is None for name in ("moto", "flask")):
            raise StackError("moto's server is not installed; get it with: pip install 'moto[server]'")
        # Port 0: the system chooses, and moto's log tells.
        command = [sys.executable, "-m", "moto.server", "-H", _HOST, "-p", "0"]
        service = Service.start("moto", command, self._folder)
        starting.callback(service.stop)
        self.endpoint_url = service.wait_until(lambda: _announced_url(service.output()))
        service.wait_until(lambda: _answers(f"{self.endpoint_url}/moto-api/"))
        self.services.append(service)

    async def _furnish(self) -> None:
        self.dead_letter_url = await self._make_queue("nanoagent-dead-letters", {})
        policy = await self._policy(self.dead_letter_url, _MAX_RECEIVES)
        attributes = {"VisibilityTimeout": str(_VISIBILITY_S), "RedrivePolicy": policy}
        self.queue_url = await self._make_queue("nanoagent-jobs", attributes)
        await self._make_bucket(self.code_bucket)
        await self._make_bucket(self.data_bucket)

    async def _make_queue(self, name: str, attributes: dict[str, str]) -> str:
        async with self.clients() as clients:
            answer = await (await clients.sqs()).create_queue(QueueName=name, Attributes=attributes)
        return str(answer["QueueUrl"])

    async def _policy(self, dead_letter_url: str, max_receives: int) -> str:
        async with self.clients() as clients:
            client = await clients.sqs()
            answer = await client.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])
        return json.dumps(
            {"deadLetterTargetArn": answer["Attributes"]["QueueArn"], "maxReceiveCount": max_receives}
        )

    async def _make_bucket(self, name: str) -> str:
        async with self.clients() as clients:
            await (await clients.s3()).create_bucket(
                Bucket=name, CreateBucketConfiguration={"LocationConstraint": _REGION}
            )
        return name


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, also where this thread already has an event loop running."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _redis_process(host: str, port: int) -> int | None:
    """The process id of the Redis that answers there; None if none does."""
    client = Redis(
        host=host, port=port, socket_timeout=_PROBE_TIMEOUT_S, protocol=2, retry=Retry(NoBackoff(), 0)
    )
    with client:
        try:
            return int(client.info("server")["process_id"])
        except (RedisError, OSError):
            return None


def _announced_url(log: str) -> str | None:
    found = re.search(r"Running on (http://[\d.]+:\d+)\s", log)
    return found[1] if found else None


def _answers(url: str) -> bool | None:
    """True when the URL is answered, None when not."""
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S):  # noqa: S310 - our own http address
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return None


async def _peek(client: Any, queue_url: str) -> Any:
    return await client.receive_message(
        QueueUrl=queue_url,
        MaxNumberOfMessages=10,
        VisibilityTimeout=_VISIBILITY_S,
        WaitTimeSeconds=0,
        MessageAttributeNames=["All"],
    )


def _as_dead_letter(message: dict[str, Any]) -> dict[str, Any]:
    attributes = message.get("MessageAttributes", {})
    return {
        "message_id": message["MessageId"],
        "body": message["Body"],
        "attributes": {name: value.get("StringValue", "") for name, value in attributes.items()},
    }
