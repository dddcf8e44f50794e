"""What has just failed, so that it is not tried again for every job that comes.

Two memories, both of this process, bounded, and for a while only (`FAILURE_MEMORY_SECONDS`):

* **Builds** by what the program is made from. What a compiler has refused it refuses again; a build that ran
  out of time, memory or disk may have met a busy machine, and has to do so twice.
* **Crashes** by function version: attempts that took their container down, three in sequence. Each has to
  have begun when the one before was known, so that one event counts once, and something else has to work
  meanwhile, so that an engine that is restarted condemns nobody. Then one attempt at a time is let through,
  after growing pauses, as a breaker does.

A new digest is a new version, and is tried at once; a success forgets.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.common.backoff import pause_s
from nanoagent.common.bounded_map import BoundedMap
from nanoagent.model.errors import ContainerError, ContainerNotMade, KnownToCrash, Rejected, Remembered
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from nanoagent.model.result import ErrorType

_MOST_BUILDS: Final = 32  # each with up to 256 KiB of the compiler's words
_MOST_VERSIONS: Final = 1024  # some 500 bytes each
_CRASHES: Final = 3
_UNCERTAIN_BUILDS: Final = 2
# The first pause is this part of the longest: what was the platform's fault after all is found out early.
_FIRST_PAUSE: Final = 1 / 8
_BUILD_REMEMBERED: Final = Text(
    "{message} (remembered: built {ago_s} s ago with the same outcome; tried again in {left_s} s)",
    "{message} (기억된 결과: {ago_s}초 전에 빌드했을 때도 같았으며, {left_s}초 뒤에 다시 시도합니다)",
)
_CRASH_REMEMBERED: Final = Text(
    "remembered: failed {times} times in sequence, last {ago_s} s ago; tried again in {left_s} s",
    "기억된 결과: 연속으로 {times}번 실패했고 마지막은 {ago_s}초 전이며, {left_s}초 뒤에 다시 시도합니다",
)


@dataclass(frozen=True, slots=True)
class _FailedBuild:
    """How a build ended, when, how long it took, and how often in sequence."""

    error_type: ErrorType
    message: Text
    hint: Text | None
    stderr: Text
    certain: bool
    ended_at: float
    took_s: float
    times: int

    @property
    def holds(self) -> bool:
        """Whether the next one would end the same way."""
        return self.certain or self.times >= _UNCERTAIN_BUILDS


class FailedBuilds:
    """Builds that failed a moment ago.

    Args:
        for_s: How long they are remembered, seconds; 0: not at all.
        most: How many are.
        clock: Monotonic seconds.
    """

    def __init__(
        self, for_s: float, *, most: int = _MOST_BUILDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._for_s = for_s
        self._clock = clock
        self._failed: BoundedMap[str, _FailedBuild] = BoundedMap(most)

    def __len__(self) -> int:
        return len(self._failed)

    @contextmanager
    def attempt(self, key: str) -> Iterator[None]:
        """Build in the block, unless it is known what would come of it; remembers what does.

        Args:
            key: Of all that the program depends on.

        Raises:
            Remembered: It has just failed, and would again.
        """
        begun_at = self._clock()
        known = self._failed.get(key)
        if known is not None and known.holds and begun_at < known.ended_at + self._for_s:
            raise self._again(known, begun_at)
        try:
            yield
        except Rejected as rejection:
            self._remember(key, rejection, begun_at)
            raise
        self._failed.pop(key, None)

    def _again(self, known: _FailedBuild, now: float) -> Remembered:
        ago_s, left_s = now - known.ended_at, known.ended_at + self._for_s - now
        return Remembered(
            known.error_type,
            _BUILD_REMEMBERED.format(message=known.message, ago_s=round(ago_s), left_s=math.ceil(left_s)),
            hint=known.hint,
            stderr=known.stderr,
            reason="build",
            build_ms=known.took_s * 1000,
        )

    def _remember(self, key: str, rejection: Rejected, begun_at: float) -> None:
        if not self._for_s:
            return
        earlier, now = self._failed.get(key), self._clock()
        in_sequence = earlier is not None and begun_at < earlier.ended_at + self._for_s
        times = 1 + (earlier.times if earlier is not None and in_sequence else 0)
        failed = _FailedBuild(  # its words only: an exception would keep the job that it came from
            rejection.error_type,
            rejection.message,
            rejection.hint,
            rejection.stderr,
            rejection.certain,
            now,
            now - begun_at,
            times,
        )
        self._failed[key] = failed


@dataclass(slots=True)
class _Crashes:
    """A version's attempts that took their container down, in sequence.

    Attributes:
        first_at: When the first of them did.
        last_at: When the last did.
        times: How many there were.
        refused_until: None is let through before.
    """

    first_at: float
    last_at: float = -math.inf
    times: int = 0
    refused_until: float = -math.inf


class CrashMemory:
    """Function versions that take their containers down.

    Args:
        for_s: The longest pause between two attempts at one, seconds; 0: none.
        most: How many versions are remembered.
        clock: Monotonic seconds.
    """

    def __init__(
        self, for_s: float, *, most: int = _MOST_VERSIONS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._for_s = for_s
        self._clock = clock
        self._crashed: BoundedMap[Hashable, _Crashes] = BoundedMap(most)
        self._worked_at = -math.inf

    def __len__(self) -> int:
        return len(self._crashed)

    def refuse_known(self, version: Hashable) -> None:
        """See whether it is worth waiting for a slot.

        Raises:
            KnownToCrash: The version would only take another container down.
        """
        record, now = self._crashed.get(version), self._clock()
        if record is None or now >= record.refused_until:
            return
        raise KnownToCrash(
            _CRASH_REMEMBERED.format(
                times=record.times,
                ago_s=round(now - record.last_at),
                left_s=math.ceil(record.refused_until - now),
            )
        )

    @contextmanager
    def attempt(self, version: Hashable, *, is_broken: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Use a container for the version in the block; remembers how that ends.

        Args:
            version: Whose code it is.
            is_broken: Whether no containers can be made, so that nobody is to blame for one that is gone.

        Raises:
            KnownToCrash: The version would only take another one down.
        """
        self.refuse_known(version)
        begun_at = self._clock()
        record = self._crashed.get(version)
        if record is not None and record.refused_until > -math.inf:
            record.refused_until = begun_at + self._pause_s(record.times)  # one at a time
        try:
            yield
        except ContainerNotMade:
            raise
        except ContainerError:
            if not is_broken():
                self._count(version, begun_at)
            raise
        except Rejected:
            self._worked(version)
            raise
        self._worked(version)

    def _worked(self, version: Hashable) -> None:
        self._worked_at = self._clock()
        self._crashed.pop(version, None)

    def _count(self, version: Hashable, begun_at: float) -> None:
        now = self._clock()
        record = self._crashed.get(version) or _Crashes(now)
        if begun_at < record.last_at:
            return
        record.times += 1
        record.last_at = now
        self._crashed[version] = record
        if record.times >= _CRASHES and self._others_work(version, record):
            record.refused_until = now + self._pause_s(record.times)

    def _others_work(self, version: Hashable, record: _Crashes) -> bool:
        """Whether it is this version's doing: others have run meanwhile, or none has crashed as well.

        Its own success would have forgotten the record.
        """
        return self._worked_at >= record.first_at or not any(
            crashes.last_at >= record.first_at for other, crashes in self._crashed.items() if other != version
        )

    def _pause_s(self, times: int) -> float:
        crashes = times - _CRASHES + 1  # that are followed by a pause
        return pause_s(crashes, first_s=self._for_s * _FIRST_PAUSE, longest_s=self._for_s)


@dataclass(frozen=True, slots=True)
class Failures:
    """Both memories; by default they remember nothing."""

    builds: FailedBuilds = field(default_factory=lambda: FailedBuilds(0))
    crashes: CrashMemory = field(default_factory=lambda: CrashMemory(0))

    @classmethod
    def remembered_for(cls, seconds: float) -> Failures:
        """Memories that last so long."""
        return cls(FailedBuilds(seconds), CrashMemory(seconds))
