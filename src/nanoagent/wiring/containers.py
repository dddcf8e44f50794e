"""Builds the pool of containers: Docker, the images, the isolation level and the pool."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from nanoagent.common.units import MIB
from nanoagent.container import engine
from nanoagent.container.docker import DockerDriver
from nanoagent.container.isolation import isolation_problems, probe
from nanoagent.container.orphans import remove_orphans
from nanoagent.container.policy import GENERIC_MEMORY_MB, PoolPolicy, Sharing
from nanoagent.container.pool import Pool
from nanoagent.container.spec import PAGE_BYTES, Limits
from nanoagent.host import resources
from nanoagent.model.errors import ConfigError, ContainerError
from nanoagent.model.job import Runtime
from nanoagent.wiring.closing import CLOSE_MAX_S, close_within

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from nanoagent.config import Settings
    from nanoagent.container.docker_client import DockerClient
    from nanoagent.container.worker_home import WorkerHome
    from nanoagent.network.listening_sockets import ListeningAddress
    from nanoagent.wiring.telemetry import Telemetry

log = structlog.get_logger(__name__)


async def open_pool(
    settings: Settings,
    home: WorkerHome,
    telemetry: Telemetry,
    opened: AsyncExitStack,
    listening_addresses: tuple[ListeningAddress, ...] = (),
) -> tuple[Pool, dict[Runtime, str]]:
    """Open the pool, after removing the containers and folders of dead workers.

    Args:
        settings: The settings.
        home: The worker's folder.
        telemetry: Counts containers, and shows the isolation level.
        opened: The exit stack that closes the pool.
        listening_addresses: The addresses that the worker listens on in the network of runs.

    Returns:
        The pool, and the image ID of each runtime.

    Raises:
        ConfigError: Docker, the images or the isolation level do not fit the settings.
        ContainerError: Docker cannot be asked.
    """
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
    most_containers = resources.descriptor_plan(raise_descriptor_limit(), len(listening_addresses)).containers
    wanted = replace(pool_policy(settings, listening_addresses), most_containers=most_containers)
    policy = await _with_isolation(settings, wanted, driver, home, telemetry)
    pool = Pool(driver, home, policy, telemetry.metrics, telemetry.health, background=telemetry.background)
    if telemetry.status is not None:
        telemetry.status.watch_pool(pool.overview)
    await pool.start()
    close_within(opened, "containers", pool.close, CLOSE_MAX_S)
    return pool, image_ids


async def _with_isolation(
    settings: Settings, policy: PoolPolicy, driver: DockerDriver, home: WorkerHome, telemetry: Telemetry
) -> PoolPolicy:
    """Return the policy with the highest isolation level that this host allows.

    Raises:
        ConfigError: The level is below the required level.
    """
    profile = settings.container_apparmor_profile if await driver.client.confines_with_apparmor() else None
    verdict = await probe(driver, home, policy, apparmor=profile)
    problems = isolation_problems(verdict, settings.min_isolation, policy.sharing)
    if problems:
        raise ConfigError(problems)
    policy = replace(policy, isolation=verdict.isolation, apparmor=verdict.apparmor)
    telemetry.metrics.containers.isolation(policy.isolation_between_runs)
    telemetry.health.set("isolation", ok=True, reason=verdict.reason or "")
    if verdict.reason is None:
        log.info("isolation", between_runs=policy.isolation_between_runs, apparmor=verdict.apparmor)
    else:
        log.warning(
            "isolation below the highest level",
            between_runs=policy.isolation_between_runs,
            reason=verdict.reason,
        )
    return policy


async def refuse_unfit_engine(settings: Settings, client: DockerClient) -> dict[str, Any]:
    """Check that Docker can create the containers of the settings.

    Returns:
        Docker's answer to `GET /info`.

    Raises:
        ConfigError: Docker lacks the runtime of DOCKER_RUNTIME, cannot enforce limits, or remaps user IDs and
            does not have the user IDs of the containers (CONTAINER_UID_BASE).
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
    """Return the image ID of each runtime.

    Raises:
        ConfigError: Images are missing; the error names all of them.
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


def raise_descriptor_limit() -> int:
    """Raise the limit on file descriptors as far as possible, and return it.

    Raises:
        ConfigError: The limit is too low.
    """
    limit = resources.raise_descriptor_limit()
    if limit < resources.MIN_DESCRIPTORS:
        least = resources.MIN_DESCRIPTORS
        raise ConfigError(
            [f"ulimit -n: {limit} file descriptors are too few; allow at least {least}, better 65536"]
        )
    return limit


def pool_policy(settings: Settings, listening_addresses: tuple[ListeningAddress, ...] = ()) -> PoolPolicy:
    """Return the settings of the pool.

    Args:
        settings: The settings.
        listening_addresses: The addresses that the worker listens on in the network of runs.
    """
    return PoolPolicy(
        images={runtime: settings.image(runtime) for runtime in Runtime},
        sizes={runtime: settings.pool_size(runtime) for runtime in Runtime},
        memory_mb=settings.worker_memory_mb,
        # A generic container belongs to no function yet. It gets the CPUs of a job with its memory limit.
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
            # In memory, each file takes whole pages, so one page per file is added.
            code_bytes=settings.code_max_unpacked_mb * MIB + settings.code_max_entries * PAGE_BYTES,
            code_files=settings.code_max_entries,
            shm_bytes=settings.largest_job_mb * MIB,
            file_size_bytes=settings.max_file_mb * MIB,
            open_files=settings.max_open_files,
        ),
        docker_runtime=settings.docker_runtime,
        sharing=Sharing(settings.container_sharing),
        recycles=settings.container_recycling == "auto",
        modules=settings.preloaded_modules,
        listening_addresses=listening_addresses,
    )
