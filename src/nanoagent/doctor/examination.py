"""The whole examination: gathers the facts, and judges them. Each request to a service has a time limit."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nanoagent.aws.clients import AwsClients
from nanoagent.doctor import configuration, report
from nanoagent.doctor.finding import Area, Finding, problem, unknown, warning
from nanoagent.doctor.gather import aws as aws_facts
from nanoagent.doctor.gather import docker as docker_facts
from nanoagent.doctor.gather import host as host_facts
from nanoagent.doctor.gather import redis as redis_facts
from nanoagent.doctor.judge import aws, docker, host, redis, s3, sqs
from nanoagent.model.errors import ConfigError
from nanoagent.telemetry import logs, status
from nanoagent.wiring import network

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from nanoagent.ai.inspection import Inspected
    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Answer

_PREFIXES: Final = ("outputs/", "logs/")  # where the worker writes in S3_USER_DATA_BUCKET


@dataclass(frozen=True, slots=True)
class Examination:
    """The result of an examination.

    Attributes:
        findings: All findings, in the order of the report and without secrets.
        settings_are_wrong: Whether the worker would refuse the settings.
    """

    findings: Sequence[Finding]
    settings_are_wrong: bool

    @property
    def has_problem(self) -> bool:
        """Whether a finding is a problem."""
        return report.has_problem(self.findings)


async def examine(env_file: Path | None, environment: Mapping[str, str] = os.environ) -> Examination:
    """Examine the settings, the host, and every service that the settings name.

    Args:
        env_file: The settings file; None for the default. Environment variables override it.
        environment: All variables. Their secret values are not shown in the findings.
    """
    # `replaced`: names of the settings whose values are unusable. Their services are not asked.
    settings, replaced = configuration.usable(env_file)
    logs.hide([*settings.secrets, *report.secrets_in(environment)])
    problems = configuration.problems(env_file)
    findings = list(configuration.judge(problems, env_file, environment, settings))
    async with AwsClients(settings.aws_region, max_attempts=1) as clients:
        parts = await asyncio.gather(
            _part(Area.DOCKER, lambda: _host_and_docker(settings, are_wrong=bool(problems))),
            _part(Area.SQS, lambda: _aws(settings, clients, replaced)),
            _part(Area.REDIS, lambda: _redis(settings, replaced)),
            _part(Area.MODELS, lambda: _models(settings, replaced)),
        )
    printable = (report.printable(finding) for part in (findings, *parts) for finding in part)
    return Examination(report.in_order(printable), bool(problems))


async def _part(area: Area, examine_part: Callable[[], Awaitable[Iterable[Finding]]]) -> list[Finding]:
    """Examine one part. An internal error becomes a finding, so that the other parts are reported, too."""
    try:
        return list(await examine_part())
    except Exception as exc:  # noqa: BLE001 - the error is reported as a finding
        return [
            unknown(
                area,
                f"the examination itself failed with an internal error: {type(exc).__name__}: {exc}",
                "please report this error",
            )
        ]


async def _host_and_docker(settings: Settings, *, are_wrong: bool) -> list[Finding]:
    machine, engine = await asyncio.gather(
        asyncio.to_thread(host_facts.collect, settings), docker_facts.collect(settings)
    )
    machine = await asyncio.to_thread(host_facts.with_docker_root, machine, engine)
    findings = [*host.judge(machine, engine, settings), *docker.judge(engine, machine, settings)]
    if not are_wrong:
        findings += [*docker.sizes(engine, settings), *await _address(settings)]
    return findings


async def _address(settings: Settings) -> list[Finding]:
    """Judge whether a worker could listen on the address for metrics now."""
    try:
        await status.check_address(settings.metrics_host, settings.metrics_port)
    except ConfigError as exc:
        remedy = "no fault if this worker is running now; else set another METRICS_HOST or METRICS_PORT"
        return [warning(Area.LIMITS, each, remedy) for each in exc.problems]
    address = f"METRICS_HOST={settings.metrics_host} METRICS_PORT={settings.metrics_port}"
    return [Finding(Area.LIMITS, f"the worker can listen on {address}")]


# --- AWS


async def _aws(settings: Settings, clients: AwsClients, replaced: frozenset[str]) -> list[Finding]:
    if "AWS_REGION" in replaced:
        return [_not_asked(area, replaced, "AWS_REGION") for area in (Area.SQS, Area.S3, Area.CLOUDWATCH)]
    (queue, queue_answers), (buckets, bucket_answers), (metrics, metric_answers) = await asyncio.gather(
        _sqs(settings, clients, replaced), _s3(settings, clients, replaced), _cloudwatch(settings, clients)
    )
    answers = [*queue_answers, *bucket_answers, *metric_answers]
    clock = [aws.clock(answers)] if answers else []
    return [*queue, *buckets, *metrics, *clock]


async def _sqs(
    settings: Settings, clients: AwsClients, replaced: frozenset[str]
) -> tuple[list[Finding], list[Answer]]:
    if "SQS_QUEUE_URL" in replaced:
        return [_not_asked(Area.SQS, replaced, "SQS_QUEUE")], []
    answers = await aws_facts.sqs(settings, clients)
    return list(sqs.judge(settings, answers)), list(answers.values())


async def _s3(
    settings: Settings, clients: AwsClients, replaced: frozenset[str]
) -> tuple[list[Finding], list[Answer]]:
    buckets = {"S3_CODE_BUCKET": settings.s3_code_bucket, "S3_USER_DATA_BUCKET": settings.s3_user_data_bucket}
    known = {bucket for setting, bucket in buckets.items() if setting not in replaced}
    (code, code_answers), (data, data_answers), regions, links = await asyncio.gather(
        _code_bucket(settings, clients, replaced),
        _data_bucket(settings, clients, replaced),
        aws_facts.bucket_regions(clients, known),
        _links(settings, clients),
    )
    return [*code, *data, *s3.regions(settings, regions), *links], [*code_answers, *data_answers]


async def _code_bucket(
    settings: Settings, clients: AwsClients, replaced: frozenset[str]
) -> tuple[list[Finding], list[Answer]]:
    if "S3_CODE_BUCKET" in replaced:
        return [_not_asked(Area.S3, replaced, "S3_CODE")], []
    answer = await aws_facts.code_bucket(settings, clients)
    return [s3.code_bucket(settings, answer)], [answer]


async def _data_bucket(
    settings: Settings, clients: AwsClients, replaced: frozenset[str]
) -> tuple[list[Finding], list[Answer]]:
    if "S3_USER_DATA_BUCKET" in replaced:
        return [_not_asked(Area.S3, replaced, "S3_USER")], []
    pairs = await asyncio.gather(*(aws_facts.data_bucket(settings, clients, prefix) for prefix in _PREFIXES))
    findings = [
        finding
        for prefix, (upload_begun, upload_aborted) in zip(_PREFIXES, pairs, strict=True)
        for finding in s3.data_bucket(settings, prefix, upload_begun, upload_aborted)
    ]
    return findings, [upload_begun for upload_begun, _ in pairs]


async def _links(settings: Settings, clients: AwsClients) -> list[Finding]:
    if settings.output_url_style != "presigned":
        return []
    return list(s3.links(settings, await aws_facts.credentials_lifetime(clients), time.time()))


async def _cloudwatch(settings: Settings, clients: AwsClients) -> tuple[list[Finding], list[Answer]]:
    if not settings.cloudwatch_enabled:
        return [Finding(Area.CLOUDWATCH, "not used (CLOUDWATCH_ENABLED=false)")], []
    answer = await aws_facts.cloudwatch(clients)
    return [aws.cloudwatch(answer)], [answer]


# --- other services


async def _redis(settings: Settings, replaced: frozenset[str]) -> list[Finding]:
    if any(name.startswith("REDIS_") for name in replaced):
        return [_not_asked(Area.REDIS, replaced, "REDIS_")]
    return list(redis.judge(settings, await redis_facts.collect(settings)))


async def _models(settings: Settings, replaced: frozenset[str]) -> list[Finding]:
    if any(name.startswith("AI_") for name in replaced):
        return [_not_asked(Area.MODELS, replaced, "AI_")]
    return [models_finding(inspected) for inspected in await network.inspect_models(settings)]


def models_finding(inspected: Inspected) -> Finding:
    """Return the finding about a model server, or about the models in the settings."""
    if inspected.remedy is None:
        return Finding(Area.MODELS, inspected.found)
    finding = problem if inspected.is_certain else warning
    return finding(Area.MODELS, inspected.found, inspected.remedy)


def _not_asked(area: Area, replaced: Iterable[str], prefix: str) -> Finding:
    names = sorted(name for name in replaced if name.startswith(prefix))
    return unknown(area, f"not asked: {', '.join(names)} cannot be used", "correct the settings")
