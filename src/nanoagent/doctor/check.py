"""`nanoagent check`: the settings, and whether a worker could start on them now; it ends with a verdict.

Each probe asks a part as the worker does at its start, so that both come to the same answer.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nanoagent import wiring
from nanoagent.aws import clients as aws
from nanoagent.config import Settings
from nanoagent.container import engine
from nanoagent.container.docker import DockerDriver
from nanoagent.model.errors import ConfigError, PlatformError
from nanoagent.telemetry import status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nanoagent.ai.inspection import Inspected
    from nanoagent.aws.clients import AwsClients

PROBE_MAX_S: Final = 20.0
"""The longest that one probe may take, seconds."""

IMAGES: Final = "Docker and images"
BUCKETS: Final = "S3 buckets"
MODELS: Final = "model servers"


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to one part.

    Attributes:
        part: Its name, for people.
        ask: Returns why a worker could not use the part, None if it could, or a complete finding. A
            `ConfigError` or a `PlatformError` is a problem.
    """

    part: str
    ask: Callable[[], Awaitable[str | Finding | None]]


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to a probe.

    Attributes:
        part: The part that was asked.
        problem: Why a worker could not use it; None when it could.
        warnings: Possible faults that do not keep jobs from running.
    """

    part: str
    problem: str | None
    warnings: tuple[str, ...] = ()


async def check(settings: Settings) -> list[Finding]:
    """Ask the machine and every external service, all at once; nothing stays changed."""
    async with AsyncExitStack() as opened:
        probes = await _probes(settings, opened)
        return list(await asyncio.gather(*map(_answer, probes)))


async def _probes(settings: Settings, opened: AsyncExitStack) -> Sequence[Probe]:
    """One probe for each part; `opened` closes their clients."""
    driver = DockerDriver()
    opened.push_async_callback(driver.close)
    services = await wiring.open_services(settings, opened)

    async def images() -> Finding:
        info = await wiring.refuse_unfit_engine(settings, driver)
        await wiring.find_images(settings, driver)
        share = engine.memory_share(info, settings.worker_memory_mb)
        told = None if share is None else share.warning
        return Finding(IMAGES, None, () if told is None else (told,))

    async def address() -> None:
        await status.check_address(settings.metrics_host, settings.metrics_port)

    async def all_folders() -> str | None:
        return "; ".join(await wiring.unusable_folders(settings)) or None

    async def buckets() -> Finding:
        problem = await services.buckets.unusable()
        warnings = () if problem else await _buckets_elsewhere(settings, services.clients)
        return Finding(BUCKETS, problem, warnings)

    async def models() -> Finding:
        return models_finding(await wiring.inspect_models(settings))

    asks_models = settings.upstreams and settings.ai_replay is None
    return (
        Probe("metrics and health", address),
        Probe("folders", all_folders),
        Probe(IMAGES, images),
        Probe("SQS queue", services.broker.verify),
        Probe(BUCKETS, buckets),
        Probe("Redis", services.result_store.verify),
        *((Probe(MODELS, models),) if asks_models else ()),
    )


async def _buckets_elsewhere(settings: Settings, clients: AwsClients) -> tuple[str, ...]:
    """Default buckets in another region than the worker's."""
    client = await clients.s3()
    told = []
    for setting in ("S3_CODE_BUCKET", "S3_USER_DATA_BUCKET"):
        bucket = getattr(settings, setting.lower())
        region = await aws.bucket_region(client, bucket)
        if (said := aws.other_region_warning(setting, bucket, region, settings.aws_region)) is not None:
            told.append(said)
    return tuple(told)


def models_finding(inspected: Sequence[Inspected]) -> Finding:
    """The answers of the model servers as one finding."""
    problems = [f"{each.found} → {each.remedy}" for each in inspected if each.remedy and each.is_certain]
    warnings = [f"{each.found} → {each.remedy}" for each in inspected if each.remedy and not each.is_certain]
    return Finding(MODELS, "; ".join(problems) or None, tuple(warnings))


async def _answer(probe: Probe) -> Finding:
    try:
        async with asyncio.timeout(PROBE_MAX_S):
            problem: str | Finding | None = await probe.ask()
    except ConfigError as exc:
        problem = "; ".join(exc.problems)
    except PlatformError as exc:
        problem = str(exc)
    except TimeoutError:
        problem = f"no answer within {PROBE_MAX_S:g} s"
    return problem if isinstance(problem, Finding) else Finding(probe.part, problem)


def changed(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults, each with its default; required ones have none."""
    differing = {}
    for name, field in Settings.model_fields.items():
        if field.is_required() or name not in settings.model_fields_set:
            continue
        default = field.get_default(call_default_factory=True)
        if getattr(settings, name) != default:
            differing[name] = default
    return differing


def verdict(findings: Sequence[Finding]) -> str:
    """The last line: whether a worker could start, and if not, because of which parts."""
    wrong = [finding.part for finding in findings if finding.problem is not None]
    return f"not ready: {', '.join(wrong)}" if wrong else "ready"
