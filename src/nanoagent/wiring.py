"""The composition root: builds every part of the worker from the settings. Only this module builds adapters.

Start order matters: what a dead worker left is removed before anything new is made. The worker is ready when
the pool is full, and the queue, both buckets and Redis have answered once. Everything is closed in the
reverse order; leases last until the worker is done.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.ai import inspection
from nanoagent.ai.gateway import Gateway
from nanoagent.ai.limits import GatewayLimits, RunLimits
from nanoagent.ai.refusals import Api
from nanoagent.ai.replay import Replay
from nanoagent.ai.upstreams import HttpUpstream, Upstreams, new_session
from nanoagent.aws.clients import AwsClients
from nanoagent.aws.interruption import InterruptionWatcher, endpoint_of
from nanoagent.broker.sqs import SqsBroker
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.code_cache import MOST_FRESH, CodeCache
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.container import engine
from nanoagent.container.docker import DockerDriver
from nanoagent.container.isolation import isolation_problems, probe
from nanoagent.container.orphans import remove_orphans
from nanoagent.container.policy import GENERIC_MEMORY_MB, PoolPolicy, Sharing
from nanoagent.container.pool import Pool
from nanoagent.container.spec import PAGE_BYTES, Limits
from nanoagent.container.worker_home import WorkerHome
from nanoagent.host import private_dirs, resources
from nanoagent.host.background import Background, TaskName
from nanoagent.host.disk import DiskRoom
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.admission_rules import Budget
from nanoagent.jobs.executor import Executor, ExecutorParts
from nanoagent.jobs.failure_cache import FailureCache
from nanoagent.jobs.outputs import OutputUploader
from nanoagent.jobs.parts import RunnerParts
from nanoagent.jobs.runner import Runner
from nanoagent.jobs.tuner import Prices, Tuner
from nanoagent.model.errors import ConfigError, ContainerError
from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.network.egress import Egress
from nanoagent.network.listeners import Network
from nanoagent.network.policy import AllowedHosts
from nanoagent.results.redis import RedisResultStore
from nanoagent.results.server import RedisServer, Tls
from nanoagent.results.spool import Spool
from nanoagent.selftest.schedule import SelfTestSchedule
from nanoagent.selftest.suite import SelfTestResult, Suite, run_all
from nanoagent.storage.default_buckets import DefaultBuckets
from nanoagent.storage.resilient import ResilientStore
from nanoagent.storage.s3 import S3Store
from nanoagent.telemetry import systemd
from nanoagent.telemetry.cloudwatch import CloudWatchSender, PeakMemoryReporter
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health, StatusServer
from nanoagent.worker.drain import DRAIN_TAIL_S
from nanoagent.worker.parts import WorkerParts
from nanoagent.worker.readiness import ReadinessCheck, ReadinessChecks
from nanoagent.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    import aiohttp

    from nanoagent.ai.upstreams import Upstream
    from nanoagent.aws.interruption import InterruptionNotice
    from nanoagent.config import Settings
    from nanoagent.container.docker_client import DockerClient
    from nanoagent.network.listening_sockets import ListeningAddress
    from nanoagent.results.cancellations import RedisCancellations
    from nanoagent.storage.base import ObjectStore

log = structlog.get_logger(__name__)

_CLOSE_MAX_S: Final = 20.0  # for what asks others to answer; the longest poll of SQS comes on top
_START_S: Final = 60.0  # asked of systemd again and again while the start waits
_FIRST_PARTS: Final = ("containers", "queue", "results", "storage")
_ASK_AGAIN_S: Final = 1.0

STOP_TAIL_S: Final = DRAIN_TAIL_S + 3 * _CLOSE_MAX_S
"""How long the end may take after DRAIN_SECONDS, where nothing answers any more; a second or two is usual."""

NOTICE_RESERVE_S: Final = 10.0
"""So long before a machine ends, running jobs return to the queue, seconds. It takes one if all is well."""


def _close_in_time(opened: AsyncExitStack, part: str, close: Callable[[], Awaitable[None]], s: float) -> None:
    """Have a part closed at the end; one that hangs must not keep the process from its."""

    async def close_in_time() -> None:
        try:
            async with asyncio.timeout(s):
                await close()
        except TimeoutError:
            log.warning("not closed in time", part=part, seconds=s)

    opened.push_async_callback(close_in_time)


def new_metrics(settings: Settings) -> Metrics:
    """The worker's metrics, in which the models that the settings name keep their own labels.

    Other names share the remaining labels.
    """
    metrics = Metrics()
    for model in settings.named_models:
        metrics.model_labels.label(model)
    return metrics


async def assemble(settings: Settings, opened: AsyncExitStack) -> Worker:
    """Build every part; `opened` closes them, last first."""
    telemetry = await _open_telemetry(settings, opened)
    metrics, health = telemetry.metrics, telemetry.health
    notices = await _open_notices(settings, health, opened)
    clients = AwsClients(settings.aws_region)
    opened.push_async_callback(clients.close)
    buckets = await _buckets(settings, clients, opened)
    store = await _store(settings, clients, buckets)
    outputs = OutputUploader(store, settings, metrics)
    limit = _descriptor_limit()
    metrics.worker.watch_descriptors(limit, resources.open_descriptors)
    running, code = await _open_runs(settings, store, telemetry, limit, opened)
    broker = await _broker(settings, clients, telemetry.background)
    _close_in_time(opened, "queue", broker.close, settings.sqs_wait_seconds + _CLOSE_MAX_S)
    result_store, cancellations, spool = await _open_result_store(settings, telemetry, opened)
    await running.parts.pool.filled()
    blocked = await _start_self_test(settings, running.parts, running.home, telemetry, opened)
    # What there is by now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    worker = Worker(
        WorkerParts(
            settings=settings,
            broker=broker,
            result_store=result_store,
            cancellations=cancellations,
            spool=spool,
            executor=_executor(settings, running.parts, code, outputs, metrics),
            outputs=outputs,
            admission=running.parts.admission,
            pool=running.parts.pool,
            metrics=metrics,
            health=health,
            cloudwatch=await _cloudwatch(settings, clients, telemetry, opened),
            blocked=blocked,
            checks=(
                ReadinessCheck("storage", store.reason_now),
                ReadinessCheck("disk", _disk_room(settings, code, running.parts.programs).reason_now),
                ReadinessCheck(
                    "descriptors", resources.Descriptors(limit, running.parts.pool.evict).reason_now
                ),
                ReadinessCheck("host", resources.HostRoom().reason_now),
            ),
            background=telemetry.background,
        )
    )
    first = ReadinessChecks(
        (ReadinessCheck("queue", broker.verify), ReadinessCheck("storage", buckets.not_ready_reason)),
        health,
    )
    await _until_all_answered(first, worker)
    if notices is not None:
        _heed(notices, worker, settings, opened)
    return worker


async def _open_telemetry(settings: Settings, opened: AsyncExitStack) -> Telemetry:
    """Metrics and readiness, served from now on."""
    metrics = new_metrics(settings)
    health = Health(metrics.worker.part)
    background = _background(metrics, health)
    for part in _FIRST_PARTS:
        health.set(part, ok=False, reason="the worker is starting; it has not answered yet")
    status = StatusServer(health, metrics.registry, settings.metrics_host, settings.metrics_port)
    await status.start()
    opened.push_async_callback(status.stop)
    log.info("metrics and health", port=status.port)
    return Telemetry(metrics, health, background)


@dataclass(frozen=True, slots=True)
class Runs:
    """What runs take place in.

    Attributes:
        parts: The runner's collaborators.
        home: The worker's folder.
    """

    parts: RunnerParts
    home: WorkerHome


async def _open_runs(
    settings: Settings, store: ObjectStore, telemetry: Telemetry, limit: int, opened: AsyncExitStack
) -> tuple[Runs, CodeCache]:
    """The worker's folder, the network of runs, the pool and the caches."""
    await _refuse_unusable_folders(settings)
    home = WorkerHome(settings.docker_work_dir_root, settings.worker_id)
    home.claim()
    opened.callback(home.release)
    metrics = telemetry.metrics
    network = await _network(settings, metrics, opened, _connections_of_a_run(settings, limit))
    pool, image_ids = await _open_pool(settings, home, telemetry, opened, network.listening_addresses)
    programs = await opened.enter_async_context(_program_cache(settings))
    code = await opened.enter_async_context(_code_cache(settings, store, metrics, limit))
    admission = Admission(settings.worker_memory_mb, settings.worker_cpus, settings.function_max_share)
    metrics.jobs.watch_admission(admission)
    parts = RunnerParts(
        settings=settings,
        programs=programs,
        admission=admission,
        pool=pool,
        image_ids=image_ids,
        spool=home.spool,
        failures=FailureCache.for_seconds(settings.failure_memory_seconds),
        network=network,
    )
    return Runs(parts, home), code


def _executor(
    settings: Settings, running: RunnerParts, code: CodeCache, outputs: OutputUploader, metrics: Metrics
) -> Executor:
    return Executor(
        ExecutorParts(
            settings=settings,
            code=code,
            runner=Runner(running),
            outputs=outputs,
            tuner=_tuner(settings),
            on_cached_failure=metrics.jobs.failure_remembered,
        )
    )


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Where the parts report counts, readiness and failures of background tasks.

    Attributes:
        metrics: Counts.
        health: Readiness.
        background: Starts background tasks, and reports their failures to both.
    """

    metrics: Metrics
    health: Health
    background: Background


def _background(metrics: Metrics, health: Health) -> Background:
    def report(ok: bool, reason: str) -> None:  # noqa: FBT001 - as `Health.set` has it
        health.set("background", ok=ok, reason=reason)

    report(ok=True, reason="")
    return Background(metrics.worker.background_task_failed, report)


async def _until_all_answered(first: ReadinessChecks, worker: Worker) -> None:
    """Wait until every part has answered once and is well; nothing is received before.

    A supervisor that replaces a worker stops the old one when the new one is ready.

    Args:
        first: The parts that are asked at the start only.
        worker: Knows the others.
    """
    while await first.reason() is not None or await worker.why_no_jobs() is not None:
        systemd.extend_start(_START_S)
        await asyncio.sleep(_ASK_AGAIN_S)


async def _open_notices(
    settings: Settings, health: Health, opened: AsyncExitStack
) -> InterruptionWatcher | None:
    """What tells of the machine's end, if it is to be heard.

    While a notice stands already, the start waits: a worker that has drained for it is started anew by
    whatever looks after it, and would take jobs that it cannot finish.
    """
    if settings.interruption_notices == "none":
        return None
    endpoint = endpoint_of(os.environ)
    if endpoint is None:
        log.warning("INTERRUPTION_NOTICES=ec2 has no effect: AWS_EC2_METADATA_DISABLED is true")
        return None
    notices = await opened.enter_async_context(InterruptionWatcher(endpoint))
    told: InterruptionNotice | None = None
    while (notice := await notices.poll()) is not None:
        if notice != told:
            log.warning("not started while this stands", reason=notice.reason)
            health.set("drain", ok=False, reason=f"not started: {notice.reason}")
        told = notice
        systemd.extend_start(_START_S)
        await notices.pause()
    health.set("drain", ok=True)
    return notices


def _heed(notices: InterruptionWatcher, worker: Worker, settings: Settings, opened: AsyncExitStack) -> None:
    """Drain when a notice comes, for as long as it leaves."""

    def heard(notice: InterruptionNotice) -> None:
        systemd.stopping(settings.drain_seconds + STOP_TAIL_S)
        worker.drain(notice.reason, notice.grace_s(time.time(), NOTICE_RESERVE_S))

    watching = worker.background.keep(TaskName.INTERRUPTION_NOTICES, lambda: notices.watch(heard))
    opened.callback(watching.cancel)


async def _buckets(settings: Settings, clients: AwsClients, opened: AsyncExitStack) -> DefaultBuckets:
    apart = AwsClients(settings.aws_region, max_attempts=1, session=clients.session)
    opened.push_async_callback(apart.close)
    return DefaultBuckets(await apart.s3(), settings.s3_code_bucket, settings.s3_user_data_bucket)


async def _store(settings: Settings, clients: AwsClients, buckets: DefaultBuckets) -> ResilientStore:
    """The object store with its circuit breaker, whose probes do not wait for transfers."""
    return ResilientStore(S3Store(await clients.s3()), buckets.probe, code_bucket=settings.s3_code_bucket)


async def _open_result_store(
    settings: Settings, telemetry: Telemetry, opened: AsyncExitStack
) -> tuple[RedisResultStore, RedisCancellations, Spool]:
    """Where results go, what is heard from there, and where results wait while it is away."""
    result_store = redis_result_store(settings, telemetry.background)
    opened.push_async_callback(result_store.close)
    cancellations = result_store.cancellations()
    opened.push_async_callback(cancellations.close)
    # Beside the caches, because it has to outlive the worker and its home, and a reboot: /tmp does not.
    folder, most_bytes = settings.code_cache_dir / "results", settings.result_spool_mb * MIB
    spool = Spool(folder, result_store, most_bytes, telemetry.metrics.worker.spooled, telemetry.background)
    await spool.open()
    opened.push_async_callback(spool.close)
    return result_store, cancellations, spool


async def _start_self_test(
    settings: Settings,
    running: RunnerParts,
    home: WorkerHome,
    telemetry: Telemetry,
    opened: AsyncExitStack,
) -> Callable[[Runtime], str | None]:
    """Test every runtime now and at intervals. Returns a function: why a runtime takes no jobs, or None."""
    if not settings.selftest_interval_seconds:
        return lambda _: None
    memory_mb = settings.job_defaults.memory_mb
    cpus = settings.cpus_for(memory_mb)
    schedule = SelfTestSchedule(
        Suite(running, home.path / "selftest"),
        lambda: running.admission.free_for(memory_mb, cpus) > 0,
        telemetry.metrics,
        telemetry.health,
        settings.selftest_interval_seconds,
        telemetry.background,
    )
    opened.push_async_callback(schedule.close)
    await schedule.start()
    return schedule.blocked


async def selftest(settings: Settings) -> SelfTestResult:
    """Test every runtime once, in separate containers. A worker may run meanwhile.

    Raises:
        ConfigError: Images are missing, or the machine cannot provide the required isolation.
        PlatformError: No containers can be created.
    """
    async with AsyncExitStack() as opened:
        await _refuse_unusable_folders(settings)
        home = WorkerHome(settings.docker_work_dir_root, f"selftest-{os.getpid()}")
        home.claim()
        opened.callback(home.release)
        telemetry = Telemetry(Metrics(), Health(), Background())
        pool, image_ids = await _open_pool(settings, home, telemetry, opened)
        running = RunnerParts(
            settings=settings,
            programs=await opened.enter_async_context(_program_cache(settings)),
            admission=Admission(settings.worker_memory_mb, settings.worker_cpus),
            pool=pool,
            image_ids=image_ids,
            spool=home.spool,
        )
        results = await run_all(Suite(running, home.path / "selftest"))
        return SelfTestResult(pool.between_runs, results)


async def _open_pool(
    settings: Settings,
    home: WorkerHome,
    telemetry: Telemetry,
    opened: AsyncExitStack,
    listening_addresses: tuple[ListeningAddress, ...] = (),
) -> tuple[Pool, dict[Runtime, str]]:
    driver = DockerDriver()
    opened.push_async_callback(driver.close)
    info = await refuse_unfit_engine(settings, driver.client)
    share = engine.memory_share(info, settings.worker_memory_mb)
    if share is not None and share.warning is not None:
        log.warning("memory setting too large", reason=share.warning)
    image_ids = await find_images(settings, driver.client)
    orphans = await remove_orphans(driver.client, home.path)
    if orphans:
        log.info("removed containers of dead workers", count=orphans)
    await asyncio.to_thread(home.remove_dead_siblings)
    metrics, health = telemetry.metrics, telemetry.health
    most = resources.descriptor_plan(_descriptor_limit(), len(listening_addresses)).containers
    wanted = replace(pool_policy(settings, listening_addresses), most_containers=most)
    policy = await _isolated(settings, wanted, driver, home, metrics, health)
    pool = Pool(driver, home, policy, metrics, health, background=telemetry.background)
    await pool.start()
    _close_in_time(opened, "containers", pool.close, _CLOSE_MAX_S)
    return pool, image_ids


async def _isolated(
    settings: Settings,
    policy: PoolPolicy,
    driver: DockerDriver,
    home: WorkerHome,
    metrics: Metrics,
    health: Health,
) -> PoolPolicy:
    """The policy with the highest level of isolation that this host allows.

    Raises:
        ConfigError: It is below what the settings ask for.
    """
    profile = settings.container_apparmor_profile if await driver.client.confines_with_apparmor() else None
    verdict = await probe(driver, home, policy, apparmor=profile)
    problems = isolation_problems(verdict, settings.min_isolation, policy.sharing)
    if problems:
        raise ConfigError(problems)
    policy = replace(policy, isolation=verdict.isolation, apparmor=verdict.apparmor)
    metrics.containers.isolation(policy.between_runs)
    health.set("isolation", ok=True, reason=verdict.reason or "")
    if verdict.reason is None:
        log.info("isolation", between_runs=policy.between_runs, apparmor=verdict.apparmor)
    else:
        log.warning(
            "isolation is not the best there is", between_runs=policy.between_runs, reason=verdict.reason
        )
    return policy


def _folders_of(settings: Settings) -> dict[str, Path]:
    """The folders that the worker writes to, by their settings."""
    return {
        "CODE_CACHE_DIR": settings.code_cache_dir,
        "DOCKER_WORK_DIR_ROOT": settings.docker_work_dir_root,
    }


async def unusable_folders(settings: Settings) -> list[str]:
    """Why the worker could not make its folders, one sentence for each setting; empty if it could."""
    wanted = _folders_of(settings).items()
    found = [await asyncio.to_thread(private_dirs.unusable, folder, name) for name, folder in wanted]
    return [problem for problem in found if problem is not None]


async def _refuse_unusable_folders(settings: Settings) -> None:
    problems = await unusable_folders(settings)
    if problems:
        raise ConfigError(problems)


async def refuse_unfit_engine(settings: Settings, client: DockerClient) -> dict[str, Any]:
    """Look whether Docker can make containers as the settings ask, before any is made.

    Returns:
        Docker's answer to `GET /info`.

    Raises:
        ConfigError: It has no such runtime, cannot keep limits, or has no such user ids.
        ContainerError: Docker cannot be asked.
    """
    info = await client.get("info")
    problems = engine.engine_problems(
        info,
        docker_runtime=settings.docker_runtime,
        uid_base=settings.container_uid_base,
    )
    if problems:
        raise ConfigError(problems)
    return info


async def find_images(settings: Settings, client: DockerClient) -> dict[Runtime, str]:
    """The id of every runtime's image.

    Raises:
        ConfigError: One or more are not there; all of them are named.
        ContainerError: Docker cannot be asked.
    """
    await client.ping()
    found: dict[Runtime, str] = {}
    problems = []
    for runtime in Runtime:
        try:
            found[runtime] = await client.image_id(settings.image(runtime))
        except ContainerError as exc:
            problems.append(f"DOCKER_{runtime.upper()}_IMAGE: {exc}")
    if problems:
        raise ConfigError(problems)
    return found


def _descriptor_limit() -> int:
    """Raise the limit on file descriptors as far as possible; returns the limit.

    Raises:
        ConfigError: They are too few.
    """
    limit = resources.raise_descriptor_limit()
    if limit < resources.MIN_DESCRIPTORS:
        least = resources.MIN_DESCRIPTORS
        raise ConfigError(
            [f"ulimit -n: {limit} file descriptors are too few; allow {least} at least, better 65536"]
        )
    return limit


def _connections_of_a_run(settings: Settings, limit: int) -> int:
    """NETWORK_MAX_CONNECTIONS, or fewer if concurrent runs could use up the file descriptors."""
    if settings.network is NetworkPolicy.NONE:
        return settings.network_max_connections
    smallest_mb = settings.job_defaults.memory_mb
    total = Budget.of(settings.worker_memory_mb, settings.worker_cpus)
    runs = Budget.of(smallest_mb, settings.cpus_for(smallest_mb)).times_in(total)
    most = max(1, resources.descriptor_plan(limit, 0).connections // max(1, runs))
    if most < settings.network_max_connections:
        log.warning("connections of a run limited by file descriptors", connections=most, descriptors=limit)
    return min(most, settings.network_max_connections)


async def _network(
    settings: Settings, metrics: Metrics, opened: AsyncExitStack, max_connections: int
) -> Network:
    """What runs may reach."""
    gateway, egress = None, None
    if settings.network.allows(NetworkPolicy.AI):
        gateway = await opened.enter_async_context(ai_gateway(settings, metrics))
    if settings.network.allows(NetworkPolicy.EGRESS):
        hosts = AllowedHosts(settings.egress_hosts)
        egress = Egress(hosts, settings.egress_denied, settings.egress_max_mb * MIB, metrics.worker.egress)
        opened.callback(egress.close)
    network = Network(settings.network, gateway, egress, settings.egress_port_numbers, max_connections)
    opened.callback(network.close)
    return network


def pool_policy(settings: Settings, listening_addresses: tuple[ListeningAddress, ...] = ()) -> PoolPolicy:
    """The pool's part of the settings.

    Args:
        settings: All of them.
        listening_addresses: Where the agent wants to be able to listen in the network of runs.
    """
    return PoolPolicy(
        images={runtime: settings.image(runtime) for runtime in Runtime},
        sizes={runtime: settings.pool_size(runtime) for runtime in Runtime},
        memory_mb=settings.worker_memory_mb,
        generic_cpus=settings.cpus_for(GENERIC_MEMORY_MB),
        idle_s=settings.container_idle_seconds,
        max_runs=settings.container_max_runs,
        max_age_s=settings.container_max_age_seconds,
        uid_base=settings.container_uid_base,
        limits=Limits(
            processes=settings.max_processes,
            tmp_bytes=settings.tmp_max_mb * MIB,
            work_bytes=settings.work_max_mb * MIB,
            output_bytes=settings.output_dir_max_mb * MIB,
            inodes=settings.max_inodes,
            # Each file takes whole pages in memory.
            code_bytes=settings.code_max_unpacked_mb * MIB + settings.code_max_entries * PAGE_BYTES,
            code_files=settings.code_max_entries,
            shm_bytes=settings.largest_job_mb * MIB,
            file_size_bytes=settings.max_file_mb * MIB,
            open_files=settings.max_open_files,
        ),
        docker_runtime=settings.docker_runtime,
        sharing=Sharing(settings.container_sharing),
        modules=settings.preloaded_modules,
        listening_addresses=listening_addresses,
    )


@asynccontextmanager
async def _code_cache(
    settings: Settings, store: ObjectStore, metrics: Metrics, descriptors: int
) -> AsyncIterator[CodeCache]:
    limits = ArchiveLimits(
        zip_bytes=settings.code_max_zip_mb * MIB,
        unpacked_bytes=settings.code_max_unpacked_mb * MIB,
        file_bytes=settings.code_max_file_mb * MIB,
        entries=settings.code_max_entries,
    )
    cache = CodeCache(
        settings.code_cache_dir / "code",
        store,
        limits,
        settings.code_cache_mb * MIB,
        lambda outcome: metrics.worker.cache_request("code", outcome),
        fresh_s=settings.code_fresh_seconds,
        most_fresh=min(MOST_FRESH, resources.descriptor_plan(descriptors, 0).fresh_trees),
    )
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


@asynccontextmanager
async def _program_cache(settings: Settings) -> AsyncIterator[ProgramCache]:
    cache = ProgramCache(settings.code_cache_dir / "programs", settings.code_cache_mb * MIB)
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


def _disk_room(settings: Settings, code: CodeCache, programs: ProgramCache) -> DiskRoom:
    async def make_room(size_bytes: float) -> None:
        await code.make_room(size_bytes)
        await programs.make_room(size_bytes)

    wanted = _folders_of(settings)
    return DiskRoom(wanted, settings.min_free_disk_mb, make_room, least_files=settings.code_max_entries)


async def _broker(settings: Settings, clients: AwsClients, background: Background | None = None) -> SqsBroker:
    return SqsBroker(
        await clients.sqs(),
        settings.sqs_queue_url,
        dlq_url=settings.sqs_dlq_url,
        wait_s=settings.sqs_wait_seconds,
        visibility_s=settings.sqs_visibility_seconds,
        worker=settings.worker_id,
        least_receives=settings.least_receives,
        background=background,
    )


@asynccontextmanager
async def ai_gateway(settings: Settings, metrics: Metrics) -> AsyncIterator[Gateway]:
    """The gateway to the model servers that the settings name.

    Raises:
        ConfigError: What is to be replayed cannot be read.
    """
    limits = GatewayLimits(
        run=RunLimits(
            tokens=settings.ai_max_tokens,
            requests=settings.ai_max_requests,
            concurrent=settings.ai_max_concurrent,
            bytes=settings.ai_max_bytes,
        ),
        function_tokens_per_minute=settings.ai_function_tokens_per_minute,
        request_bytes=settings.ai_max_request_bytes,
        timeout_s=settings.ai_timeout_seconds,
        drain_s=settings.ai_drain_seconds,
        remote_tools=settings.ai_remote_tools,
    )
    session = new_session()
    try:
        servers: list[Upstream] = [server.upstream for server in model_servers(settings, session)]
        if settings.ai_replay is not None:
            servers = [_replay(settings.ai_replay)]
        yield Gateway(Upstreams(tuple(servers), settings.allowed_models), limits, metrics)
    finally:
        await session.close()


def model_servers(settings: Settings, session: aiohttp.ClientSession) -> list[inspection.Server]:
    """The model servers that the settings name, in the order in which they are asked."""
    servers = []
    for number, setting in enumerate(settings.upstreams, 1):
        is_endpoint = settings.ai_endpoint is not None and number == len(settings.upstreams)
        api = None if setting.api == "auto" else Api(setting.api)
        servers.append(
            inspection.Server(
                upstream=HttpUpstream(session, setting.url, setting.models, api=api, key=setting.key),
                api=api,
                setting="AI_ENDPOINT" if is_endpoint else f"AI_UPSTREAMS, entry {number}",
                key_setting="AI_API_KEY" if is_endpoint else f"the key of entry {number} in AI_UPSTREAMS",
                has_key=setting.key is not None,
            )
        )
    return servers


async def inspect_models(settings: Settings) -> list[inspection.Inspected]:
    """Ask each model server for its models; with AI_REPLAY none is asked."""
    if settings.ai_replay is not None:
        return [inspection.Inspected("AI_REPLAY is set: recordings answer, and no model server is asked")]
    session = new_session()
    try:
        servers = model_servers(settings, session)
        return await inspection.inspect(servers, settings.allowed_models, settings.ai_model)
    finally:
        await session.close()


def _replay(folder: Path) -> Replay:
    try:
        return Replay(sorted(folder.rglob("*.jsonl")))
    except (OSError, ValueError) as exc:
        raise ConfigError([f"AI_REPLAY: {exc}"]) from exc


def redis_server(settings: Settings) -> RedisServer:
    """The Redis server that the settings name."""
    tls = Tls(settings.redis_tls_ca_file, settings.redis_tls_cert_file, settings.redis_tls_key_file)
    return RedisServer(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        username=settings.redis_username,
        password=settings.redis_password,
        tls=tls if settings.redis_tls else None,
    )


def redis_result_store(settings: Settings, background: Background | None = None) -> RedisResultStore:
    """The result store that the settings name."""
    return RedisResultStore(
        redis_server(settings),
        ttl_s=settings.result_ttl_seconds,
        # As long as the lease on a message: when a dead worker's comes back, its claim is over as well.
        claim_s=settings.sqs_visibility_seconds,
        owner=settings.worker_id,
        background=background,
    )


async def _cloudwatch(
    settings: Settings, clients: AwsClients, telemetry: Telemetry, opened: AsyncExitStack
) -> PeakMemoryReporter | None:
    if not settings.cloudwatch_enabled:
        return None
    sender = CloudWatchSender(await clients.cloudwatch())
    interval_s, metrics = settings.cloudwatch_interval_seconds, telemetry.metrics
    reporter = PeakMemoryReporter(sender, interval_s, metrics, telemetry.background)
    return await opened.enter_async_context(reporter)


def _tuner(settings: Settings) -> Tuner:
    prices = Prices(
        per_gb_second=settings.price_per_gb_second,
        per_request=settings.price_per_request,
        currency=settings.price_currency,
        savings_runs=settings.savings_runs,
    )
    return Tuner(prices, settings.largest_job_mb)


@dataclass(frozen=True, slots=True)
class Services:
    """The adapters of the external services that a worker uses, without a worker.

    Attributes:
        broker: The queue.
        buckets: The default buckets.
        result_store: Redis.
        clients: The AWS clients of queue and buckets.
    """

    broker: SqsBroker
    buckets: DefaultBuckets
    result_store: RedisResultStore
    clients: AwsClients


async def open_services(settings: Settings, opened: AsyncExitStack) -> Services:
    """Make the adapters as the worker does; no request is sent yet."""
    clients = AwsClients(settings.aws_region)
    opened.push_async_callback(clients.close)
    broker = await _broker(settings, clients)
    opened.push_async_callback(broker.close)
    buckets = await _buckets(settings, clients, opened)
    result_store = redis_result_store(settings)
    opened.push_async_callback(result_store.close)
    return Services(broker, buckets, result_store, clients)
