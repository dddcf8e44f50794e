"""Starts and stops the embedded stack: local replacements of all services that a worker needs."""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from nanoagent.aws.clients import AwsClients
from nanoagent.dev.local_services import servers
from nanoagent.dev.local_services.buckets import CODE_BUCKET, DATA_BUCKET, LocalBuckets
from nanoagent.dev.local_services.calls import ServiceCalls
from nanoagent.dev.local_services.queues import LocalQueues
from nanoagent.dev.local_services.service import Service, StackError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path
    from types import TracebackType

_REGION: Final = "ap-northeast-2"
_ACCESS_KEY: Final = "embedded"  # moto requires a signature, and does not check it

_T = TypeVar("_T")


class EmbeddedStack:
    """Local replacements of all services that a worker needs.

    A context manager, plain and asynchronous. `start`, `stop`, `new_queue`, `redrive_policy` and `new_bucket`
    block.

    Args:
        folder: The folder of the processes' logs, and Redis's working directory; created if it is missing.
        redis_address: Host and port of a Redis server to use; by default the stack starts one.

    Attributes:
        endpoint_url: The URL of SQS, S3 and CloudWatch.
        redis_host: The host of Redis.
        redis_port: The port of Redis.
        queues: The queues of SQS.
        buckets: The buckets of S3.
        code_bucket: The bucket of code zips.
        data_bucket: The bucket of output files.
        services: The processes that were started.
    """

    def __init__(self, folder: Path, *, redis_address: tuple[str, int] | None = None) -> None:
        self.endpoint_url = ""
        self.redis_host, self.redis_port = redis_address or ("", 0)
        self._calls = ServiceCalls(self.clients)
        self.queues = LocalQueues(self._calls)
        self.buckets = LocalBuckets(self._calls, _REGION)
        self.code_bucket = CODE_BUCKET
        self.data_bucket = DATA_BUCKET
        self.services: list[Service] = []
        self._folder = folder
        self._template = AwsClients(_REGION, access_key_id=_ACCESS_KEY, secret_access_key=_ACCESS_KEY)
        self._starts_redis = redis_address is None
        self._running = ExitStack()

    def start(self) -> None:
        """Start the processes and create the queues and buckets. After a failure no process is left running.

        Raises:
            StackError: A service is not installed (the message names a remedy) or did not start.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.services.clear()
        with ExitStack() as starting:
            self._start_redis(starting)
            service, self.endpoint_url = servers.start_moto(self._folder, starting)
            self.services.append(service)
            starting.enter_context(self._calls)
            _run_in_thread(self.queues.create())
            _run_in_thread(self.buckets.create())
            self._running = starting.pop_all()

    def _start_redis(self, starting: ExitStack) -> None:
        if self._starts_redis:
            service, self.redis_port = servers.start_redis(self._folder, starting)
            self.redis_host = servers.HOST
            self.services.append(service)
        elif servers.redis_process(self.redis_host, self.redis_port) is None:
            raise StackError(f"no Redis answers at {self.redis_host}:{self.redis_port}; start one there")

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

    @property
    def queue_url(self) -> str:
        """The URL of the queue of the worker."""
        return self.queues.url

    @property
    def dead_letter_url(self) -> str:
        """The URL of the dead-letter queue of that queue."""
        return self.queues.dead_letter_url

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which a worker uses this stack."""
        # Set the variable of each service, because it has priority over the common one.
        names = ("", "_SQS", "_S3", "_CLOUDWATCH", "_SSM", "_SECRETS_MANAGER")
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
        """Make AWS clients of this stack, independent of the environment; the caller closes them."""
        return dataclasses.replace(self._template, endpoint_url=self.endpoint_url)

    def new_queue(self, **attributes: str) -> str:
        """Create another queue; see `LocalQueues.new`."""
        return _run_in_thread(self.queues.new(**attributes))

    def redrive_policy(self, dead_letter_url: str, **options: int) -> str:
        """Return a `RedrivePolicy`; see `LocalQueues.redrive_policy`."""
        return _run_in_thread(self.queues.redrive_policy(dead_letter_url, **options))

    def new_bucket(self) -> str:
        """Create another bucket; see `LocalBuckets.new`."""
        return _run_in_thread(self.buckets.new())


def _run_in_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end in another thread, because this thread may already run an event loop."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()
