"""`nanoagent check`: whether a worker could start now with these settings.

Each probe calls the same check as the worker does at its start, so both get the same result. The model
servers are an exception: the worker does not ask them at its start, but this command does.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nanoagent.aws import clients as aws
from nanoagent.config import Settings
from nanoagent.container import engine
from nanoagent.container.docker_client import DockerClient
from nanoagent.model.errors import ConfigError, PlatformError
from nanoagent.secrets import probe as secrets_probe
from nanoagent.telemetry import status
from nanoagent.wiring import code, containers, network
from nanoagent.wiring.services import open_services, secret_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nanoagent.ai.inspection import Inspected
    from nanoagent.aws.clients import AwsClients

PROBE_MAX_S: Final = 20.0
"""The time limit for one probe, seconds."""

IMAGES: Final = "Docker and images"
BUCKETS: Final = "S3 buckets"
MODELS: Final = "model servers"
SECRETS: Final = "secrets"


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to one part of the worker or to a service.

    Attributes:
        part: The part's name in the report.
        ask: Returns None if a worker could use the part, a text with the problem if not, or a complete
            result. If it raises a `ConfigError` or a `PlatformError`, that is a problem, too.
    """

    part: str
    ask: Callable[[], Awaitable[str | ProbeResult | None]]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The answer to a probe.

    Attributes:
        part: The part that was asked.
        problem: Why a worker could not use it; None if it could.
        warnings: Possible faults that do not prevent jobs from running.
    """

    part: str
    problem: str | None
    warnings: tuple[str, ...] = ()


async def check(settings: Settings) -> list[ProbeResult]:
    """Send all probes at the same time. They leave no changes."""
    async with AsyncExitStack() as opened:
        probes = await _probes(settings, opened)
        return list(await asyncio.gather(*map(_answer, probes)))


async def _probes(settings: Settings, opened: AsyncExitStack) -> Sequence[Probe]:
    """Return one probe for each part. `opened` closes the clients that they use."""
    docker = DockerClient()
    opened.push_async_callback(docker.close)
    services = await open_services(settings, opened)

    async def images() -> ProbeResult:
        info = await containers.refuse_unfit_engine(settings, docker)
        await containers.find_images(settings, docker)
        share = engine.memory_share(info, settings.worker_memory_mb)
        warning = None if share is None else share.warning
        return ProbeResult(IMAGES, None, () if warning is None else (warning,))

    async def address() -> None:
        await status.check_address(settings.metrics_host, settings.metrics_port)

    async def all_folders() -> str | None:
        return "; ".join(await code.unusable_folders(settings)) or None

    async def buckets() -> ProbeResult:
        problem = await services.buckets.not_ready_reason()
        warnings = () if problem else await _buckets_elsewhere(settings, services.clients)
        return ProbeResult(BUCKETS, problem, warnings)

    async def models() -> ProbeResult:
        return models_result(await network.inspect_models(settings))

    async def secrets() -> ProbeResult:
        store = await secret_store(services.clients)
        return ProbeResult(SECRETS, None, await secrets_probe.warnings(settings.secret_rules, store))

    uses_model_servers = settings.upstreams and settings.ai_replay is None
    return (
        Probe("metrics and health", address),
        Probe("folders", all_folders),
        Probe(IMAGES, images),
        Probe("SQS queue", services.broker.verify),
        Probe(BUCKETS, buckets),
        Probe("Redis", services.result_store.verify),
        *((Probe(SECRETS, secrets),) if settings.secret_rules else ()),
        *((Probe(MODELS, models),) if uses_model_servers else ()),
    )


async def _buckets_elsewhere(settings: Settings, clients: AwsClients) -> tuple[str, ...]:
    """Return a warning for each default bucket that is not in AWS_REGION."""
    client = await clients.s3()
    warnings = []
    for setting in ("S3_CODE_BUCKET", "S3_USER_DATA_BUCKET"):
        bucket = getattr(settings, setting.lower())
        region = await aws.bucket_region(client, bucket)
        if (warning := aws.other_region_warning(setting, bucket, region, settings.aws_region)) is not None:
            warnings.append(warning)
    return tuple(warnings)


def models_result(inspected: Sequence[Inspected]) -> ProbeResult:
    """Return the answers of all model servers as one result."""
    problems = [f"{each.found} → {each.remedy}" for each in inspected if each.remedy and each.is_certain]
    warnings = [f"{each.found} → {each.remedy}" for each in inspected if each.remedy and not each.is_certain]
    return ProbeResult(MODELS, "; ".join(problems) or None, tuple(warnings))


async def _answer(probe: Probe) -> ProbeResult:
    try:
        async with asyncio.timeout(PROBE_MAX_S):
            problem: str | ProbeResult | None = await probe.ask()
    except ConfigError as exc:
        problem = "; ".join(exc.problems)
    except PlatformError as exc:
        problem = str(exc)
    except TimeoutError:
        problem = f"no answer within {PROBE_MAX_S:g} s"
    return problem if isinstance(problem, ProbeResult) else ProbeResult(probe.part, problem)


def changed(settings: Settings) -> dict[str, Any]:
    """Return the settings that differ from their defaults: name → default."""
    differing = {}
    for name, field in Settings.model_fields.items():
        if field.is_required() or name not in settings.model_fields_set:
            continue
        default = field.get_default(call_default_factory=True)
        if getattr(settings, name) != default:
            differing[name] = default
    return differing


def verdict(results: Sequence[ProbeResult]) -> str:
    """Return `ready`, or `not ready` and the parts that a worker could not use."""
    unusable = [result.part for result in results if result.problem is not None]
    return f"not ready: {', '.join(unusable)}" if unusable else "ready"
