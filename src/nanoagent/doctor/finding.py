"""A finding of the doctor: one thing that was examined, how severe it is, and its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """The severity of a finding, the best first."""

    OK = "ok"
    NOTE = "note"  # works; the operator may want to know
    UNKNOWN = "unknown"  # could not be examined
    WARNING = "warning"  # works with a disadvantage, or may fail later
    PROBLEM = "problem"  # the worker does not start, or jobs fail


class Area(StrEnum):
    """The subject of a finding: the settings, a part of the host, or a service; in the report's order."""

    SETTINGS = "settings"
    KERNEL = "kernel"
    CGROUPS = "control groups"
    NAMESPACES = "namespaces"
    SECURITY = "seccomp and LSM"
    LIMITS = "limits"
    DISK = "disk"
    CLOCK = "clock"
    DOCKER = "Docker"
    IMAGES = "images"
    ISOLATION = "isolation"
    SQS = "SQS"
    S3 = "S3"
    CLOUDWATCH = "CloudWatch"
    REDIS = "Redis"
    MODELS = "models"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined.

    Attributes:
        area: The settings, the part of the host, or the service.
        found: A sentence: the state that was found.
        severity: How severe that state is.
        remedy: A command, or a setting to change. None if nothing needs to be done.
    """

    area: Area
    found: str
    severity: Severity = Severity.OK
    remedy: str | None = None


def note(area: Area, found: str, remedy: str | None = None) -> Finding:
    """Return a note: the state is fine, but the operator may want to know it."""
    return Finding(area, found, Severity.NOTE, remedy)


def unknown(area: Area, found: str, remedy: str | None = None) -> Finding:
    """Return a finding about a state that could not be examined."""
    return Finding(area, found, Severity.UNKNOWN, remedy)


def warning(area: Area, found: str, remedy: str) -> Finding:
    """Return a warning: jobs work with a disadvantage, or may fail later."""
    return Finding(area, found, Severity.WARNING, remedy)


def problem(area: Area, found: str, remedy: str) -> Finding:
    """Return a problem: the worker does not start, or jobs fail."""
    return Finding(area, found, Severity.PROBLEM, remedy)
