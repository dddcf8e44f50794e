"""The whole examination: look and ask, all at once, then judge; half a minute at most, whatever is broken."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from nanoagent import config, wiring
from nanoagent.aws.clients import AwsClients
from nanoagent.config import Settings
from nanoagent.doctor import cloud, gather, host, report, results, variables
from nanoagent.doctor import engine as engines
from nanoagent.doctor.finding import Area, Finding, problem, unknown, warning
from nanoagent.model.errors import ConfigError
from nanoagent.telemetry import logs, status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from nanoagent.ai.inspection import Inspected
    from nanoagent.doctor.facts import Answer

_UNSET: Final = {
    "sqs_queue_url": "http://unset.invalid",
    "s3_code_bucket": "unset",
    "s3_user_data_bucket": "unset",
}
# In place of sizes that contradict each other, also where a default is too large for a small machine.
_CONSISTENT: Final[dict[str, Any]] = {
    "worker_memory_mb": 1024,
    "max_memory_mb": None,
    "build_memory_mb": 256,
    "worker_cpus": 1.0,
    "cpu_min": 0.5,
    "cpu_max": None,
    "retry_base_seconds": 2,
    "retry_max_seconds": 300,
}
_ROUNDS: Final = 4  # the file, the fields, what they are together, and then it is right
_PREFIXES: Final = ("outputs/", "logs/")  # of S3_USER_DATA_BUCKET: what `outputs` writes below


@dataclass(frozen=True, slots=True)
class Examination:
    """What came of it.

    Attributes:
        findings: In the order of the report, fit to be shown.
        settings_are_wrong: Whether the worker would not even read its settings.
    """

    findings: Sequence[Finding]
    settings_are_wrong: bool

    @property
    def is_well(self) -> bool:
        """Whether there is no problem."""
        return report.is_well(self.findings)


async def examine(env_file: Path | None, environment: Mapping[str, str] = os.environ) -> Examination:
    """Look at the host and at every service that the settings name.

    Args:
        env_file: A file of settings, or none; the environment wins.
        environment: Whose secrets are kept out of the findings.
    """
    settings, wrong = usable_settings(env_file)
    logs.hide([*settings.secrets, *report.secrets_in(environment)])
    problems = problems_of(env_file)
    findings = [_setting_finding(each) for each in problems]
    if not problems:
        findings.append(Finding(Area.SETTINGS, "all of them can be used (nanoagent check shows them)"))
    file = env_file or variables.DEFAULT_FILE
    findings += [
        warning(Area.SETTINGS, each, "correct the name or the path, or remove it")
        for each in variables.warnings(file, environment, used=settings.ai_upstreams or "")
    ]
    async with AwsClients(settings.aws_region, max_attempts=1) as clients:
        parts = await asyncio.gather(
            _part(Area.DOCKER, lambda: _host_and_docker(settings, are_wrong=bool(problems))),
            _part(Area.SQS, lambda: _aws(settings, clients, wrong)),
            _part(Area.REDIS, lambda: _redis(settings, wrong)),
            _part(Area.MODELS, lambda: _models(settings, wrong)),
        )
    shown = (report.shown(finding) for part in (findings, *parts) for finding in part)
    return Examination(report.in_order(shown), bool(problems))


def problems_of(env_file: Path | None) -> Sequence[str]:
    """What the worker would say of its settings."""
    try:
        config.load(env_file)
    except ConfigError as exc:
        return exc.problems
    return ()


def usable_settings(env_file: Path | None) -> tuple[Settings, frozenset[str]]:
    """The settings with others in place of what is wrong, and the names of those.

    The host can be looked at with these; a service is not asked where what it is named by is wrong.
    """
    file = env_file
    stand_ins: dict[str, Any] = {}
    for _ in range(_ROUNDS):
        try:
            settings = Settings(_env_file=file, **stand_ins)  # type: ignore[call-arg]
            return settings, frozenset(name.upper() for name in stand_ins)
        except ValidationError as exc:
            stand_ins |= _stand_ins(exc)
        except (OSError, UnicodeDecodeError):
            file = None
    raise ConfigError(problems_of(env_file))


def _stand_ins(exc: ValidationError) -> dict[str, Any]:
    stand_ins: dict[str, Any] = {}
    for error in exc.errors():
        if error["loc"]:
            name = str(error["loc"][0])
            field = Settings.model_fields[name]
            stand_ins[name] = (
                _UNSET[name] if field.is_required() else field.get_default(call_default_factory=True)
            )
        else:
            stand_ins |= _CONSISTENT
    return stand_ins


def _setting_finding(text: str) -> Finding:
    name = text.partition(" ")[0].rstrip(":")
    if name.lower() in Settings.model_fields:
        return problem(Area.SETTINGS, text, f"set {name}; docs/configuration.md lists all settings")
    return problem(Area.SETTINGS, text, "a file of UTF-8 text that this user may read, as .env.example")


async def _part(area: Area, judged: Callable[[], Awaitable[Iterable[Finding]]]) -> list[Finding]:
    """A part's findings; its own failure is one, so that the others are shown all the same."""
    try:
        return list(await judged())
    except Exception as exc:  # noqa: BLE001 - a doctor does not faint
        return [
            unknown(area, f"the examination itself failed: {type(exc).__name__}: {exc}", "please report this")
        ]


async def _host_and_docker(settings: Settings, *, are_wrong: bool) -> list[Finding]:
    seen, engine = await asyncio.gather(asyncio.to_thread(gather.host, settings), gather.engine(settings))
    seen = await asyncio.to_thread(gather.with_docker_root, seen, engine)
    sizes = () if are_wrong else engines.sizes(engine, settings)
    address = [] if are_wrong else await _address(settings)
    return [
        *host.judge(seen, engine, settings),
        *engines.judge(engine, seen, settings),
        *sizes,
        *address,
    ]


async def _address(settings: Settings) -> list[Finding]:
    """Whether a worker could listen for metrics now."""
    try:
        await status.check_address(settings.metrics_host, settings.metrics_port)
    except ConfigError as exc:
        remedy = "no fault if this worker is running now; else set another METRICS_HOST or METRICS_PORT"
        return [warning(Area.LIMITS, each, remedy) for each in exc.problems]
    where = f"METRICS_HOST={settings.metrics_host} METRICS_PORT={settings.metrics_port}"
    return [Finding(Area.LIMITS, f"{where} can be listened on")]


async def _aws(settings: Settings, clients: AwsClients, wrong: frozenset[str]) -> list[Finding]:
    if "AWS_REGION" in wrong:
        return [_not_asked(area, wrong, "AWS_REGION") for area in (Area.SQS, Area.S3, Area.CLOUDWATCH)]
    known = {
        bucket
        for name, bucket in (
            ("S3_CODE_BUCKET", settings.s3_code_bucket),
            ("S3_USER_DATA_BUCKET", settings.s3_user_data_bucket),
        )
        if name not in wrong
    }
    queue, bucket, outputs, metrics, regions, credentials = await asyncio.gather(
        gather.sqs(settings, clients) if "SQS_QUEUE_URL" not in wrong else _nothing(),
        gather.code_bucket(settings, clients) if "S3_CODE_BUCKET" not in wrong else _nothing(),
        _outputs(settings, clients) if "S3_USER_DATA_BUCKET" not in wrong else _nothing(),
        gather.cloudwatch(clients) if settings.cloudwatch_enabled else _nothing(),
        gather.bucket_regions(clients, known),
        gather.credentials(clients) if settings.output_url_style == "presigned" else _nothing(),
    )
    findings = [
        *(cloud.sqs(settings, queue) if queue else [_not_asked(Area.SQS, wrong, "SQS_QUEUE")]),
        cloud.code_bucket(settings, bucket) if bucket else _not_asked(Area.S3, wrong, "S3_CODE"),
        *(
            finding
            for prefix, begun, ended in outputs or ()
            for finding in cloud.data_bucket(settings, prefix, begun, ended)
        ),
        *cloud.regions(settings, regions),
        *([] if outputs else [_not_asked(Area.S3, wrong, "S3_USER")]),
        *cloud.links(settings, credentials, time.time()),
        cloud.cloudwatch(metrics)
        if metrics
        else Finding(Area.CLOUDWATCH, "not used (CLOUDWATCH_ENABLED=false)"),
    ]
    answers = [
        *(queue or {}).values(),
        *filter(None, (bucket, metrics)),
        *(begun for _, begun, _ in outputs or ()),
    ]
    return [*findings, cloud.clock(answers)] if answers else findings


async def _outputs(settings: Settings, clients: AwsClients) -> list[tuple[str, Answer, Answer | None]]:
    pairs = await asyncio.gather(*(gather.data_bucket(settings, clients, prefix) for prefix in _PREFIXES))
    return [(prefix, begun, ended) for prefix, (begun, ended) in zip(_PREFIXES, pairs, strict=True)]


async def _redis(settings: Settings, wrong: frozenset[str]) -> list[Finding]:
    if any(name.startswith("REDIS_") for name in wrong):
        return [_not_asked(Area.REDIS, wrong, "REDIS_")]
    return list(results.judge(settings, await gather.redis(settings)))


async def _models(settings: Settings, wrong: frozenset[str]) -> list[Finding]:
    if any(name.startswith("AI_") for name in wrong):
        return [_not_asked(Area.MODELS, wrong, "AI_")]
    return [models_finding(inspected) for inspected in await wiring.inspect_models(settings)]


def models_finding(inspected: Inspected) -> Finding:
    """The finding of an inspection of a model server, or of AI_MODEL."""
    if inspected.remedy is None:
        return Finding(Area.MODELS, inspected.found)
    judged = problem if inspected.is_certain else warning
    return judged(Area.MODELS, inspected.found, inspected.remedy)


async def _nothing() -> None:
    return None


def _not_asked(area: Area, wrong: Iterable[str], prefix: str) -> Finding:
    names = sorted(name for name in wrong if name.startswith(prefix))
    return unknown(area, f"not asked: {', '.join(names)} cannot be used")
