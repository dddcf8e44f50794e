from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from nanoagent.jobs.failure_cache import BuildFailureCache, CrashCache, FailureCache
from nanoagent.model.errors import (
    CachedRejection,
    ContainerError,
    ContainerNotMade,
    CrashLoop,
    Rejected,
    ReturnToQueue,
)
from nanoagent.model.result import ErrorType

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from nanoagent.model.errors import PlatformError

MEMORY_S = 64.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def builds(clock: Clock) -> BuildFailureCache:
    return BuildFailureCache(MEMORY_S, clock=clock)


@pytest.fixture
def crashes(clock: Clock) -> CrashCache:
    return CrashCache(MEMORY_S, clock=clock)


def refused_by_compiler() -> Rejected:
    return Rejected(ErrorType.BUILD_FAILED, "the compiler refused the code", stderr="main.cpp:1: no")


def out_of_time() -> Rejected:
    return Rejected(ErrorType.BUILD_FAILED, "the build took too long", certain=False)


def build(
    builds: BuildFailureCache, clock: Clock, rejection: Rejected | None, key: str = "k", took_s: float = 3
) -> Rejected | None:
    """One attempt; what it was rejected for."""
    try:
        with builds.attempt(key):
            clock.now += took_s
            if rejection is not None:
                raise rejection
    except Rejected as exc:
        return exc
    return None


# --- builds


def test_what_a_compiler_refused_is_not_built_again_for_a_while_and_the_result_says_so(
    builds: BuildFailureCache, clock: Clock
):
    assert not isinstance(build(builds, clock, refused_by_compiler()), CachedRejection)
    clock.now += 12
    again = build(builds, clock, None)
    assert isinstance(again, CachedRejection)
    assert str(again.message) == (
        "the compiler refused the code"
        " (remembered: built 12 s ago with the same outcome; next build in 52 s or later)"
    )
    assert (again.error_type, str(again.stderr), again.build_ms) == (
        ErrorType.BUILD_FAILED,
        "main.cpp:1: no",
        3000,
    )
    clock.now += 52
    assert build(builds, clock, None) is None
    assert len(builds) == 0


def test_a_build_that_ran_out_of_something_has_to_do_so_twice(builds: BuildFailureCache, clock: Clock):
    for _ in range(2):
        assert not isinstance(build(builds, clock, out_of_time(), took_s=120), CachedRejection)
    assert isinstance(build(builds, clock, None), CachedRejection)


def test_two_builds_that_ran_out_of_something_long_apart_are_no_sequence(
    builds: BuildFailureCache, clock: Clock
):
    build(builds, clock, out_of_time())
    clock.now += MEMORY_S
    build(builds, clock, out_of_time())
    assert build(builds, clock, None) is None


def test_another_key_is_another_build(builds: BuildFailureCache, clock: Clock):
    build(builds, clock, refused_by_compiler(), "one")
    assert build(builds, clock, None, "another") is None


def test_failures_of_ours_are_no_failures_of_the_build(builds: BuildFailureCache):
    for failure in (ContainerError("gone"), ReturnToQueue("no room")):
        with pytest.raises(type(failure)), builds.attempt("k"):
            raise failure
    assert len(builds) == 0


def test_so_many_builds_are_remembered_and_no_more(clock: Clock):
    builds = BuildFailureCache(MEMORY_S, most=2, clock=clock)
    for key in ("one", "two", "three"):
        build(builds, clock, refused_by_compiler(), key)
    assert len(builds) == 2
    assert build(builds, clock, None, "one") is None
    assert isinstance(build(builds, clock, None, "three"), CachedRejection)


def test_the_words_are_kept_and_nothing_of_the_job_that_they_came_from(
    builds: BuildFailureCache, clock: Clock
):
    class Job:
        pass

    def fail() -> weakref.ref[Job]:
        job = Job()
        build(builds, clock, refused_by_compiler())
        return weakref.ref(job)

    seen = fail()
    gc.collect()
    assert seen() is None
    assert isinstance(build(builds, clock, None), CachedRejection)


# --- crashes


def crash(crashes: CrashCache, clock: Clock, version: str = "v", took_s: float = 1) -> None:
    """One attempt that takes its container down."""

    def attempt() -> None:
        with crashes.attempt(version):
            clock.now += took_s
            raise ContainerError("died")

    with pytest.raises(ContainerError, match="died"):
        attempt()


def died(attempt: AbstractContextManager[None]) -> None:
    """The container of an attempt that is under way has gone."""
    failure = ContainerError("died")
    assert not attempt.__exit__(ContainerError, failure, None)


def work(crashes: CrashCache, version: str) -> None:
    with crashes.attempt(version):
        pass


def is_refused(crashes: CrashCache, version: str = "v") -> bool:
    try:
        crashes.check(version)
    except CrashLoop:
        return True
    return False


def test_code_that_takes_three_containers_down_in_sequence_is_given_no_other_for_a_while(
    crashes: CrashCache, clock: Clock
):
    for _ in range(3):
        assert not is_refused(crashes)
        crash(crashes, clock)
    with pytest.raises(CrashLoop) as refusal, crashes.attempt("v"):
        raise AssertionError("was let through")
    assert str(refusal.value.sender_message) == (
        "the job's container could not be made, or failed"
        " (remembered: failed 3 times in sequence, last 0 s ago; next run in 8 s or later)"
    )
    assert not is_refused(crashes, "another version")


def test_the_pause_grows_to_the_longest_and_lets_one_attempt_at_a_time_through(
    crashes: CrashCache, clock: Clock
):
    for _ in range(3):
        crash(crashes, clock, took_s=0)
    for pause_s in (8, 16, 32, 64, 64):
        clock.now += pause_s - 1
        assert is_refused(crashes)
        clock.now += 1
        attempt = crashes.attempt("v")
        attempt.__enter__()
        assert is_refused(crashes)  # the others, meanwhile
        died(attempt)


def test_a_success_forgets(crashes: CrashCache, clock: Clock):
    for _ in range(2):
        crash(crashes, clock)
    work(crashes, "v")
    assert len(crashes) == 0
    for _ in range(2):
        crash(crashes, clock)
    assert not is_refused(crashes)


def test_an_attempt_that_is_let_through_and_succeeds_lets_all_others_through(
    crashes: CrashCache, clock: Clock
):
    for _ in range(3):
        crash(crashes, clock)
    clock.now += MEMORY_S
    work(crashes, "v")
    assert not is_refused(crashes)


def test_a_build_that_is_refused_has_not_taken_its_container_down(crashes: CrashCache, clock: Clock):
    for _ in range(2):
        crash(crashes, clock)
    with pytest.raises(Rejected), crashes.attempt("v"):
        raise refused_by_compiler()
    assert len(crashes) == 0


def test_attempts_that_crashed_together_are_one_event(crashes: CrashCache, clock: Clock):
    attempts = [crashes.attempt("v") for _ in range(5)]
    for attempt in attempts:
        attempt.__enter__()
    clock.now += 1
    for attempt in attempts:
        died(attempt)
    assert not is_refused(crashes)
    for _ in range(2):
        clock.now += 1
        crash(crashes, clock)
    assert is_refused(crashes)


@pytest.mark.parametrize("failure", [ContainerNotMade("no space"), ReturnToQueue("no room")])
def test_what_never_had_a_container_is_not_blamed(crashes: CrashCache, clock: Clock, failure: PlatformError):
    for _ in range(9):
        clock.now += 1
        with pytest.raises(type(failure)), crashes.attempt("v"):
            raise failure
    assert len(crashes) == 0


def test_nobody_is_blamed_while_no_containers_can_be_made(crashes: CrashCache, clock: Clock):
    for _ in range(9):
        clock.now += 1
        with pytest.raises(ContainerError), crashes.attempt("v", is_broken=lambda: True):
            raise ContainerError("died")
    assert len(crashes) == 0


def test_when_everything_crashes_nobody_is_blamed_until_something_works(crashes: CrashCache, clock: Clock):
    for _ in range(5):
        for version in ("v", "w"):
            crash(crashes, clock, version)
    assert not is_refused(crashes, "v")
    assert not is_refused(crashes, "w")
    work(crashes, "a third")
    crash(crashes, clock, "v")
    assert is_refused(crashes, "v")
    assert not is_refused(crashes, "w")


def test_so_many_versions_are_remembered_and_no_more(clock: Clock):
    crashes = CrashCache(MEMORY_S, most=3, clock=clock)
    for number in range(10):
        crash(crashes, clock, f"v{number}")
    assert len(crashes) == 3


def test_without_memory_everything_is_tried(clock: Clock):
    failures = FailureCache.for_seconds(0)
    for _ in range(5):
        assert not isinstance(build(failures.builds, clock, refused_by_compiler()), CachedRejection)
        crash(failures.crashes, clock)
        assert not is_refused(failures.crashes)
