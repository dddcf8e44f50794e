"""What the doctor says: one finding for each thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is, the best first."""

    OK = "ok"
    NOTE = "note"  # works; worth knowing
    UNKNOWN = "could not be told"
    WARNING = "warning"  # works less well, or not for long
    PROBLEM = "problem"  # the worker does not start, or jobs fail


class Area(StrEnum):
    """What a finding is about, in the order of the report."""

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
    """One thing that was looked at.

    Attributes:
        area: What it belongs to.
        found: What there is, in words.
        verdict: How bad that is.
        remedy: What to do: a command or a setting. None when there is nothing to do.
    """

    area: Area
    found: str
    verdict: Verdict = Verdict.OK
    remedy: str | None = None


def note(area: Area, found: str, remedy: str | None = None) -> Finding:
    """Something worth knowing."""
    return Finding(area, found, Verdict.NOTE, remedy)


def unknown(area: Area, found: str, remedy: str | None = None) -> Finding:
    """Something that could not be told."""
    return Finding(area, found, Verdict.UNKNOWN, remedy)


def warning(area: Area, found: str, remedy: str) -> Finding:
    """Something that works less well than it could, or not for long."""
    return Finding(area, found, Verdict.WARNING, remedy)


def problem(area: Area, found: str, remedy: str) -> Finding:
    """Something for which the worker does not start, or jobs fail."""
    return Finding(area, found, Verdict.PROBLEM, remedy)
