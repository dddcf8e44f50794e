"""The failure cache: remembers which code has just failed, so that the next job with it can fail at once.

The cache has two parts. Both have a limited size, and exist only in the memory of this process:

* **Builds.** The key is a hash of everything that the program is made from. A failure is kept for
  FAILURE_MEMORY_SECONDS. If the compiler refused the code, the same build would fail again. If a build ran
  out of time, memory or disk, the machine may have been busy. So such a build must fail twice.
* **Crashes.** The key is the function version, with the S3 object of its code. A crash is an attempt that
  ended with the death of its container. After three crashes in sequence, the version is refused for a pause.
  After each pause one attempt is allowed. The pause doubles with each crash, up to FAILURE_MEMORY_SECONDS.

Not every crash is the fault of the version. An attempt counts only if it began after the previous crash was
known, so that one event counts once. And a version is refused only if another version has worked since its
first crash, or no other version has crashed since. So if several versions crash together, and none works in
between, none of them is refused. An example is a restart of Docker.

New code has a new digest, so it is tried at once. A success removes the failures of its key.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.common.backoff import pause_s
from nanoagent.common.bounded_map import BoundedMap
from nanoagent.model.errors import CachedRejection, ContainerError, ContainerNotMade, CrashLoop, Rejected
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from nanoagent.model.cause import Cause
    from nanoagent.model.result import ErrorType

_MAX_BUILDS: Final = 32  # each has up to 256 KiB of compiler output
_MAX_VERSIONS: Final = 1024  # about 500 bytes each
_MIN_CRASHES: Final = 3
_MIN_UNCERTAIN_BUILDS: Final = 2
# The first pause as a part of the longest pause. It is short, because the platform may be the cause.
_FIRST_PAUSE: Final = 1 / 8
_BUILD_REMEMBERED: Final = Text(
    "{message} (remembered: built {ago_s} s ago with the same outcome; next build in {left_s} s or later)",
    "{message} (기억된 결과: {ago_s}초 전에 빌드했을 때도 같았으며, {left_s}초 뒤에 다시 빌드할 수 있습니다)",
)
_CRASH_REMEMBERED: Final = Text(
    "remembered: failed {times} times in sequence, last {ago_s} s ago; next run in {left_s} s or later",
    "기억된 결과: 연속으로 {times}번 실패했고 마지막은 {ago_s}초 전이며, {left_s}초 뒤에 다시 실행할 수"
    " 있습니다",
)


@dataclass(frozen=True, slots=True)
class _FailedBuild:
    """The latest failure of a build. The first six attributes are those of `Rejected`.

    Attributes:
        ended_at: When it ended, monotonic seconds.
        took_s: How long it took, seconds.
        times: How many builds have failed in sequence.
    """

    error_type: ErrorType
    message: Text
    hint: Text | None
    cause: Cause | None
    stderr: Text
    certain: bool
    ended_at: float
    took_s: float
    times: int

    @property
    def would_repeat(self) -> bool:
        """Whether the next build would fail in the same way."""
        return self.certain or self.times >= _MIN_UNCERTAIN_BUILDS


class BuildFailureCache:
    """Builds that failed a short time ago.

    Args:
        for_s: How long a failure is kept, seconds; 0: not at all.
        most: The largest number of failures that are kept.
        clock: Monotonic seconds.
    """

    def __init__(
        self, for_s: float, *, most: int = _MAX_BUILDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._for_s = for_s
        self._clock = clock
        self._failed: BoundedMap[str, _FailedBuild] = BoundedMap(most)

    def __len__(self) -> int:
        return len(self._failed)

    @contextmanager
    def attempt(self, key: str) -> Iterator[None]:
        """Build in the block, unless the build would fail again. If the block fails, keep the failure.

        Args:
            key: The hash of everything that the program depends on.

        Raises:
            CachedRejection: The build has just failed, and would fail again.
        """
        begun_at = self._clock()
        known = self._failed.get(key)
        if known is not None and known.would_repeat and begun_at < known.ended_at + self._for_s:
            raise self._rejection_of(known, begun_at)
        try:
            yield
        except Rejected as rejection:
            self._keep(key, rejection, begun_at)
            raise
        self._failed.pop(key, None)

    def _rejection_of(self, known: _FailedBuild, now: float) -> CachedRejection:
        ago_s, left_s = now - known.ended_at, known.ended_at + self._for_s - now
        return CachedRejection(
            known.error_type,
            _BUILD_REMEMBERED.format(message=known.message, ago_s=round(ago_s), left_s=math.ceil(left_s)),
            hint=known.hint,
            cause=known.cause,
            stderr=known.stderr,
            kind="build",
            build_ms=known.took_s * 1000,
        )

    def _keep(self, key: str, rejection: Rejected, begun_at: float) -> None:
        if not self._for_s:
            return
        earlier, now = self._failed.get(key), self._clock()
        in_sequence = earlier is not None and begun_at < earlier.ended_at + self._for_s
        times = 1 + (earlier.times if earlier is not None and in_sequence else 0)
        # The exception itself is not kept: it refers to the job, which would stay in memory.
        failed = _FailedBuild(
            rejection.error_type,
            rejection.message,
            rejection.hint,
            rejection.cause,
            rejection.stderr,
            rejection.certain,
            now,
            now - begun_at,
            times,
        )
        self._failed[key] = failed


@dataclass(slots=True)
class _Crashes:
    """The crashes of a version in sequence.

    Attributes:
        first_at: When the first crash was known, monotonic seconds.
        last_at: When the latest crash was known, monotonic seconds.
        times: How many crashes there were.
        refused_until: When the next attempt is allowed, monotonic seconds.
    """

    first_at: float
    last_at: float = -math.inf
    times: int = 0
    refused_until: float = -math.inf


class CrashCache:
    """Function versions whose containers die.

    Args:
        for_s: The longest pause between two attempts at a version, seconds; 0: no pause.
        most: The largest number of versions that are kept.
        clock: Monotonic seconds.
    """

    def __init__(
        self, for_s: float, *, most: int = _MAX_VERSIONS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._for_s = for_s
        self._clock = clock
        self._crashed: BoundedMap[Hashable, _Crashes] = BoundedMap(most)
        self._worked_at = -math.inf

    def __len__(self) -> int:
        return len(self._crashed)

    def check(self, version: Hashable) -> None:
        """Check whether an attempt at the version is allowed now.

        Raises:
            CrashLoop: No attempt is allowed now. It would only crash another container.
        """
        crashes, now = self._crashed.get(version), self._clock()
        if crashes is None or now >= crashes.refused_until:
            return
        raise CrashLoop(
            _CRASH_REMEMBERED.format(
                times=crashes.times,
                ago_s=round(now - crashes.last_at),
                left_s=math.ceil(crashes.refused_until - now),
            )
        )

    @contextmanager
    def attempt(self, version: Hashable, *, is_broken: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Use a container for the version in the block, and note whether the container dies.

        Args:
            version: The function version whose code runs.
            is_broken: Returns whether no containers can be made at all. If so, a crash does not count.

        Raises:
            CrashLoop: An attempt is not allowed now.
        """
        self.check(version)
        begun_at = self._clock()
        crashes = self._crashed.get(version)
        if crashes is not None and crashes.refused_until > -math.inf:
            crashes.refused_until = begun_at + self._pause_s(crashes.times)  # allow one attempt per pause
        try:
            yield
        except ContainerNotMade:
            raise
        except ContainerError:
            if not is_broken():
                self._note_crash(version, begun_at)
            raise
        except Rejected:
            self._note_success(version)
            raise
        self._note_success(version)

    def _note_success(self, version: Hashable) -> None:
        self._worked_at = self._clock()
        self._crashed.pop(version, None)

    def _note_crash(self, version: Hashable, begun_at: float) -> None:
        now = self._clock()
        crashes = self._crashed.get(version) or _Crashes(now)
        if begun_at < crashes.last_at:
            return
        crashes.times += 1
        crashes.last_at = now
        self._crashed[version] = crashes
        if crashes.times >= _MIN_CRASHES and self._is_to_blame(version, crashes):
            crashes.refused_until = now + self._pause_s(crashes.times)

    def _is_to_blame(self, version: Hashable, crashes: _Crashes) -> bool:
        """Whether the version, and not the platform, seems to be the cause of its crashes.

        Another version has worked since the first crash, or no other version has crashed since. (A success of
        the version itself would have removed its crashes.)
        """
        return self._worked_at >= crashes.first_at or not any(
            others.last_at >= crashes.first_at for other, others in self._crashed.items() if other != version
        )

    def _pause_s(self, times: int) -> float:
        pauses = times - _MIN_CRASHES + 1  # the crashes before number `_MIN_CRASHES` lead to no pause
        return pause_s(pauses, first_s=self._for_s * _FIRST_PAUSE, longest_s=self._for_s)


@dataclass(frozen=True, slots=True)
class FailureCache:
    """Both parts of the cache. By default they keep nothing."""

    builds: BuildFailureCache = field(default_factory=lambda: BuildFailureCache(0))
    crashes: CrashCache = field(default_factory=lambda: CrashCache(0))

    @classmethod
    def for_seconds(cls, seconds: float) -> FailureCache:
        """Return a cache that keeps failures for that many seconds."""
        return cls(BuildFailureCache(seconds), CrashCache(seconds))
