"""The rules between settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from nanoagent.common.units import MIB
from nanoagent.model import expectations
from nanoagent.model.job import MAX_TIMEOUT_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from nanoagent.config.settings import Settings

MAX_VISIBILITY_S: Final = 43_200
"""The longest time for which SQS hides a received message, even with renewals of the lease, seconds.

The source is "Amazon SQS visibility timeout" in the SQS Developer Guide.
"""

# The time that a job may need in addition to its program and its build: two waits for admission
# (acquisition._ADMISSION_TIMEOUT_S), fetching, uploading, publishing. In measurements, these took seconds.
_OVERHEAD_S: Final = 600
_MAX_BUILD_S: Final = MAX_VISIBILITY_S - MAX_TIMEOUT_MS // 1000 - _OVERHEAD_S


class Conflict(NamedTuple):
    """A setting that does not fit another setting.

    Attributes:
        name: The setting to change.
        expected: The values that fit.
    """

    name: str
    expected: str


def problems(settings: Settings) -> list[str]:
    """Return one sentence for each conflict between settings."""
    fields = type(settings).model_fields
    return [
        sentence(fields[name], name, getattr(settings, name), expected)
        for name, expected in (*_resource_conflicts(settings), *_other_conflicts(settings))
    ]


def sentence(field: FieldInfo, name: str, value: object, expected: str) -> str:
    """Return the sentence about a wrong setting. It contains the value, unless the value may be a secret."""
    variable = name.upper()
    is_secret = not field.repr or expectations.may_be_secret(variable, str(value))
    return expectations.problem(variable, value, expected, is_secret=is_secret)


def _resource_conflicts(settings: Settings) -> Iterator[Conflict]:
    worker_mb = f"WORKER_MEMORY_MB={settings.worker_memory_mb}"
    if settings.largest_job_mb > settings.worker_memory_mb:
        yield Conflict("max_memory_mb", f"at most {worker_mb}; a larger job could never run")
    if settings.build_memory_mb > settings.worker_memory_mb:
        yield Conflict("build_memory_mb", f"at most {worker_mb}; a larger build could never run")
    most_cpus = min(settings.cpu_max or settings.worker_cpus, settings.worker_cpus)
    if settings.cpu_min > most_cpus:
        yield Conflict("cpu_min", f"at most {most_cpus:g}, the smaller one of CPU_MAX and WORKER_CPUS")
    if settings.result_spool_mb * MIB < settings.max_result_bytes:
        yield Conflict(
            "result_spool_mb", f"space for one result of MAX_RESULT_BYTES={settings.max_result_bytes}"
        )


def _other_conflicts(settings: Settings) -> Iterator[Conflict]:
    if settings.build_timeout_seconds > _MAX_BUILD_S:
        yield Conflict(
            "build_timeout_seconds",
            f"at most {_MAX_BUILD_S}; a build and the longest job must end within 12 hours, the longest "
            "time for which SQS hides a message",
        )
    if settings.ai_api_key is not None and settings.ai_endpoint is None:
        yield Conflict("ai_endpoint", "the model server of AI_API_KEY")
    if settings.ai_api_key is not None and "@" in (settings.ai_endpoint or ""):
        yield Conflict("ai_api_key", "no key, because AI_ENDPOINT has a user and a password")
    if settings.retry_base_seconds > settings.retry_max_seconds:
        yield Conflict("retry_base_seconds", f"at most RETRY_MAX_SECONDS={settings.retry_max_seconds:g}")
