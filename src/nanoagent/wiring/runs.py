"""Builds the parts that run code: the worker's folder, the network, the pool, the caches and the executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoagent.container.worker_home import WorkerHome
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.byte_code import ByteCode, ByteCodeParts
from nanoagent.jobs.executor import Executor, ExecutorParts
from nanoagent.jobs.failure_cache import FailureCache
from nanoagent.jobs.parts import RunnerParts
from nanoagent.jobs.runner import Runner
from nanoagent.jobs.tuner import Prices, Tuner
from nanoagent.model.job import Runtime
from nanoagent.secrets.resolver import SecretResolver
from nanoagent.wiring import code, containers, network

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from nanoagent.code.code_cache import CodeCache
    from nanoagent.config import Settings
    from nanoagent.jobs.outputs import OutputUploader
    from nanoagent.storage.base import ObjectStore
    from nanoagent.wiring.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Runs:
    """The parts that run code.

    Attributes:
        home: The worker's folder.
        parts: The parts of the runner.
        code: The cache of code.
    """

    home: WorkerHome
    parts: RunnerParts
    code: CodeCache


async def open_runs(
    settings: Settings, store: ObjectStore, telemetry: Telemetry, descriptors: int, opened: AsyncExitStack
) -> Runs:
    """Open the parts that run code.

    Args:
        settings: The settings.
        store: The store that code is fetched from.
        telemetry: Metrics and health.
        descriptors: The limit on file descriptors.
        opened: The exit stack that closes the opened parts.
    """
    await code.refuse_unusable_folders(settings)
    home = open_home(settings, settings.worker_id, opened)
    metrics = telemetry.metrics
    run_network = await network.open_network(settings, metrics, opened, descriptors)
    pool, image_ids = await containers.open_pool(
        settings, home, telemetry, opened, run_network.listening_addresses
    )
    programs = await opened.enter_async_context(code.program_cache(settings))
    code_cache = await opened.enter_async_context(code.code_cache(settings, store, metrics, descriptors))
    admission = Admission(settings.worker_memory_mb, settings.worker_cpus, settings.function_max_share)
    metrics.jobs.watch_admission(admission)
    byte_code = None
    if settings.python_bytecode == "auto":
        byte_code = ByteCode(
            ByteCodeParts(
                settings=settings,
                cache=code.byte_code_cache(settings, code_cache, image_ids[Runtime.PYTHON]),
                admission=admission,
                pool=pool,
                staging=home.staging,
                background=telemetry.background,
                observe=metrics.worker.compiled,
            )
        )
        opened.push_async_callback(byte_code.close)
    parts = RunnerParts(
        settings=settings,
        programs=programs,
        admission=admission,
        pool=pool,
        image_ids=image_ids,
        staging=home.staging,
        failures=FailureCache.for_seconds(settings.failure_memory_seconds),
        network=run_network,
        byte_code=byte_code,
        objects=code.object_cache(settings, programs),
    )
    return Runs(home, parts, code_cache)


def open_home(settings: Settings, name: str, opened: AsyncExitStack) -> WorkerHome:
    """Claim a folder in DOCKER_WORK_DIR_ROOT for this process."""
    home = WorkerHome(settings.docker_work_dir_root, name)
    home.claim()
    opened.callback(home.release)
    return home


def new_executor(
    settings: Settings,
    runs: Runs,
    outputs: OutputUploader,
    telemetry: Telemetry,
    secrets: SecretResolver | None = None,
) -> Executor:
    """Make the executor of jobs. Without a resolver, references to secrets are refused."""
    prices = Prices(
        per_gb_second=settings.price_per_gb_second,
        per_request=settings.price_per_request,
        currency=settings.price_currency,
        savings_runs=settings.savings_runs,
    )
    return Executor(
        ExecutorParts(
            settings=settings,
            code=runs.code,
            runner=Runner(runs.parts),
            outputs=outputs,
            tuner=Tuner(prices, settings.largest_job_mb),
            secrets=secrets or SecretResolver(),
            on_cached_failure=telemetry.metrics.jobs.failure_remembered,
        )
    )
