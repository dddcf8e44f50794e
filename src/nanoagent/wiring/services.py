"""Builds the adapters of the external services: the queue, the buckets, Redis and the spool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoagent.aws.clients import AwsClients
from nanoagent.broker.sqs import SqsBroker
from nanoagent.common.units import MIB
from nanoagent.jobs.capsules import CapsuleParts, Capsules
from nanoagent.results.redis import RedisResultStore
from nanoagent.results.spool import Spool
from nanoagent.secrets.aws import AwsSecretStore
from nanoagent.secrets.cache import SecretCache
from nanoagent.secrets.resolver import SecretResolver
from nanoagent.storage.default_buckets import DefaultBuckets
from nanoagent.storage.resilient import ResilientStore
from nanoagent.storage.s3 import S3Store
from nanoagent.wiring.closing import CLOSE_MAX_S, close_within
from nanoagent.wiring.redis_address import redis_server
from nanoagent.worker.live_logs import LiveLogs, Policy

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from nanoagent.config import Settings
    from nanoagent.host.background import Background
    from nanoagent.results.cancellations import RedisCancellations
    from nanoagent.wiring.runs import Runs
    from nanoagent.wiring.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Services:
    """The adapters of the external services, for `nanoagent check` and `doctor`, which start no worker.

    Attributes:
        broker: The queue.
        buckets: The default buckets.
        result_store: Redis.
        clients: The AWS clients of the queue and the buckets.
    """

    broker: SqsBroker
    buckets: DefaultBuckets
    result_store: RedisResultStore
    clients: AwsClients


async def open_services(settings: Settings, opened: AsyncExitStack) -> Services:
    """Make the adapters as the worker does. No request is sent."""
    clients = open_clients(settings, opened)
    broker = await open_broker(settings, clients)
    opened.push_async_callback(broker.close)
    buckets = await open_buckets(settings, clients, opened)
    result_store = redis_result_store(settings)
    opened.push_async_callback(result_store.close)
    return Services(broker, buckets, result_store, clients)


def open_clients(settings: Settings, opened: AsyncExitStack) -> AwsClients:
    """Make the AWS clients in the region of the settings."""
    clients = AwsClients(settings.aws_region)
    opened.push_async_callback(clients.close)
    return clients


async def open_buckets(settings: Settings, clients: AwsClients, opened: AsyncExitStack) -> DefaultBuckets:
    """Make the checks of the default buckets, with separate connections that no file transfer uses."""
    separate = AwsClients(settings.aws_region, max_attempts=1, session=clients.session)
    opened.push_async_callback(separate.close)
    return DefaultBuckets(await separate.s3(), settings.s3_code_bucket, settings.s3_user_data_bucket)


async def open_store(settings: Settings, clients: AwsClients, buckets: DefaultBuckets) -> ResilientStore:
    """Make the object store, with its circuit breaker."""
    return ResilientStore(S3Store(await clients.s3()), buckets.probe, code_bucket=settings.s3_code_bucket)


async def secret_store(clients: AwsClients) -> AwsSecretStore:
    """Make the store of secrets."""
    return AwsSecretStore(await clients.ssm(), await clients.secrets_manager())


async def open_secrets(
    settings: Settings, clients: AwsClients, telemetry: Telemetry, opened: AsyncExitStack
) -> SecretResolver:
    """Make the resolver of secrets. Without rules, no client is made, and every reference is refused."""
    count = telemetry.metrics.jobs.secret_resolved
    if not settings.secret_rules:
        return SecretResolver(on_refused=lambda: count("refused"))
    cache = SecretCache(await secret_store(clients), settings.secrets_cache_seconds, on_read=count)
    opened.push_async_callback(cache.close)
    return SecretResolver(settings.secret_rules, cache, on_refused=lambda: count("refused"))


async def open_capsules(
    settings: Settings, clients: AwsClients, runs: Runs, telemetry: Telemetry, opened: AsyncExitStack
) -> Capsules | None:
    """Make the part that stores capsules; None if CAPSULES is off.

    Its store has no circuit breaker: a failure to store a capsule is no reason to take no jobs.
    """
    if settings.capsules == "off":
        return None
    capsules = Capsules(
        CapsuleParts(
            settings=settings,
            store=S3Store(await clients.s3()),
            code=runs.code,
            image_ids=runs.parts.image_ids,
            observe=telemetry.metrics.jobs.capsule,
        )
    )
    close_within(opened, "capsules", capsules.close, CLOSE_MAX_S)
    return capsules


async def open_broker(
    settings: Settings, clients: AwsClients, background: Background | None = None
) -> SqsBroker:
    """Make the broker. The caller closes it."""
    return SqsBroker(
        await clients.sqs(),
        settings.sqs_queue_url,
        dlq_url=settings.sqs_dlq_url,
        wait_s=settings.sqs_wait_seconds,
        visibility_s=settings.sqs_visibility_seconds,
        worker=settings.worker_id,
        min_max_receive_count=settings.min_max_receive_count,
        background=background,
    )


def redis_result_store(settings: Settings, background: Background | None = None) -> RedisResultStore:
    """Make the result store. The caller closes it."""
    return RedisResultStore(
        redis_server(settings),
        ttl_s=settings.result_ttl_seconds,
        # As long as a lease. So when SQS delivers a dead worker's message again, that worker's claim has also
        # ended.
        claim_s=settings.sqs_visibility_seconds,
        owner=settings.worker_id,
        indexed_jobs=settings.job_index_size,
        index_ttl_s=settings.job_index_ttl_seconds,
        background=background,
    )


@dataclass(frozen=True, slots=True)
class Results:
    """The parts that deliver results and receive cancellations.

    Attributes:
        store: Redis.
        cancellations: The cancellations that senders publish on Redis.
        live_logs: The output of jobs that somebody follows.
        spool: The results that wait on disk while Redis is unavailable.
    """

    store: RedisResultStore
    cancellations: RedisCancellations
    live_logs: LiveLogs
    spool: Spool


async def open_results(settings: Settings, telemetry: Telemetry, opened: AsyncExitStack) -> Results:
    """Open the result store, the cancellations, the live logs and the spool."""
    store = redis_result_store(settings, telemetry.background)
    opened.push_async_callback(store.close)
    cancellations = store.cancellations(hears_followers=settings.live_logs != "off")
    opened.push_async_callback(cancellations.close)
    live_log = store.live_log(ttl_s=settings.live_logs_ttl_seconds, max_bytes=settings.live_logs_max_bytes)
    policy = Policy(
        is_on=settings.live_logs != "off",
        is_always=settings.live_logs == "always",
        bytes_per_s=settings.live_logs_bytes_per_second,
        max_jobs=settings.live_logs_max_jobs,
        worker_id=settings.worker_id,
    )
    live_logs = LiveLogs(live_log, policy, telemetry.background)
    opened.push_async_callback(live_logs.close)
    # The spool is next to the caches, because it must outlive the worker, the worker's folder, and a reboot,
    # which empties /tmp.
    folder, max_bytes = settings.code_cache_dir / "results", settings.result_spool_mb * MIB
    spool = Spool(folder, store, max_bytes, telemetry.metrics.worker.spooled, telemetry.background)
    await spool.open()
    opened.push_async_callback(spool.close)
    return Results(store, cancellations, live_logs, spool)
