"""Compares a recorded result with that of a replay. Pure functions."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from nanoagent.common.units import MIB
from nanoagent.dev.exec.summary import duration
from nanoagent.jobs.capsule_document import end_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nanoagent.model.result import Result

_MOST_LINES: Final = 2000  # of each text; the comparison takes quadratic time at worst
# Addresses and numbers differ from run to run: ports, process IDs, durations.
_VARIES: Final = re.compile(r"0x[0-9a-fA-F]+|\d+")
# The caches of a worker add how long ago they have seen the failure (`jobs.failure_cache`, `code_cache`).
_REMEMBERED: Final = re.compile(r" \((remembered|기억된 결과)[^)]*\)$")


class Outcome(NamedTuple):
    """A conclusion: its name in JSON, its sentence, and the exit code of the command."""

    name: str
    sentence: str
    exit_code: int


class Verdict(Enum):
    """The conclusion of a comparison. Names and exit codes are stable (docs/replay.md)."""

    REPEATS = Outcome("repeats", "The failure repeats.", 0)
    SUCCEEDS_AGAIN = Outcome("succeedsAgain", "The job succeeds again.", 0)
    SUCCEEDS_NOW = Outcome("succeedsNow", "The job succeeds now.", 5)
    FAILS_OTHERWISE = Outcome("failsOtherwise", "The job fails in another way.", 6)
    FAILS_NOW = Outcome("failsNow", "The job fails here; its recorded run succeeded.", 6)


@dataclass(frozen=True, slots=True)
class Field:
    """One compared field.

    Attributes:
        name: Its name for a person.
        recorded: The recorded value.
        here: The new value.
        same: Whether both are equal; None for a value that differs from run to run.
    """

    name: str
    recorded: str
    here: str
    same: bool | None


@dataclass(frozen=True, slots=True)
class Difference:
    """The comparison of two results.

    Attributes:
        verdict: The conclusion.
        fields: The compared fields.
        diffs: `stdout` and `stderr` → the lines of a unified diff; only the streams that differ.
    """

    verdict: Verdict
    fields: tuple[Field, ...]
    diffs: Mapping[str, tuple[str, ...]]


def compare(
    recorded: Result, here: Result, omitted: Mapping[str, int], names: tuple[list[str], list[str]]
) -> Difference:
    """Compare two results.

    Args:
        recorded: The result of the capsule.
        here: The result of the replay, masked in the same way.
        omitted: `omitted` of the capsule.
        names: The paths of the recorded and of the new output files.
    """
    streams = {}
    fields = [
        _field("status", recorded.status, here.status),
        _field("error type", recorded.error_type or "-", here.error_type or "-"),
        _field("exit code", recorded.exit_code, here.exit_code),
        _field("error", recorded.error_message or "-", here.error_message or "-"),
    ]
    for stream in ("stdout", "stderr"):
        old, new = getattr(recorded, stream), getattr(here, stream)
        if omitted.get(stream):  # the capsule has the end only
            new = end_of(new, len(old))
        fields.append(Field(stream, _size(old), _size(new), old == new))
        if old != new:
            streams[stream] = tuple(_diff(stream, old, new))
    old_names, new_names = names
    fields += [
        Field("output files", _listed(old_names), _listed(new_names), sorted(old_names) == sorted(new_names)),
        Field("duration", duration(recorded.duration_ms), duration(here.duration_ms), None),
        Field("peak memory", _memory(recorded), _memory(here), None),
        Field("isolation", recorded.isolation or "-", here.isolation or "-", None),
    ]
    return Difference(verdict_of(recorded, here), tuple(fields), streams)


def verdict_of(recorded: Result, here: Result) -> Verdict:
    """Return the conclusion. It depends on the error type, the exit code and the error message."""
    if here.error_type is None:
        return Verdict.SUCCEEDS_AGAIN if recorded.error_type is None else Verdict.SUCCEEDS_NOW
    if recorded.error_type is None:
        return Verdict.FAILS_NOW
    return Verdict.REPEATS if _kind(recorded) == _kind(here) else Verdict.FAILS_OTHERWISE


def _kind(result: Result) -> tuple[str | None, int, str]:
    """Return the properties of a failure that stay the same when it repeats."""
    message = _REMEMBERED.sub("", result.error_message or "")
    return result.error_type, result.exit_code, _VARIES.sub("#", message)


def _field(name: str, recorded: object, here: object) -> Field:
    return Field(name, str(recorded), str(here), recorded == here)


def _diff(stream: str, recorded: str, here: str) -> Iterator[str]:
    old, new = recorded.splitlines()[-_MOST_LINES:], here.splitlines()[-_MOST_LINES:]
    yield from difflib.unified_diff(old, new, f"{stream}, recorded", f"{stream}, here", lineterm="")


def _size(text: str) -> str:
    lines = len(text.splitlines())
    return "empty" if not text else f"{lines} line{'s' * (lines != 1)}"


def _memory(result: Result) -> str:
    return "-" if result.peak_memory_bytes is None else f"{result.peak_memory_bytes / MIB:.1f} MiB"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
