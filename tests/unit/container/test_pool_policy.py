from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.container.availability import creation_breaker
from nanoagent.container.charges import LEFTOVER_BYTES
from nanoagent.container.policy import (
    AGE_SPREAD,
    NEXT,
    Binding,
    ContainerState,
    IdleContainers,
    Owner,
    OwnerSource,
    PooledContainer,
    PoolPolicy,
    Sharing,
    age_limit_s,
    choose_idle,
    may_recycle,
    retirement_reason,
)
from nanoagent.container.spec import Limits
from nanoagent.model.job import Runtime
from support.doubles.pooled import pooled

if TYPE_CHECKING:
    from nanoagent.common.circuit_breaker import CircuitBreaker

POLICY = PoolPolicy(
    images={},
    sizes={},
    memory_mb=1024,
    generic_cpus=1,
    idle_s=60,
    max_runs=10,
    max_age_s=1000,
    uid_base=1000,
    limits=Limits(64, 1, 1, 1, 64),
)


ALICE, BOB = Owner(OwnerSource.FIELD, "alice"), Owner(OwnerSource.FIELD, "bob")


def binding(**changes: Any) -> Binding:
    fields: dict[str, Any] = {
        "runtime": Runtime.PYTHON,
        "function_id": "f",
        "digest": "d",
        "memory_mb": 128,
        "cpus": 1.0,
        "most_cpus": 1.0,
        "tree": Path("/code"),
        "tree_bytes": 10,
    }
    return Binding(**(fields | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": Runtime.NODEJS},
        {"function_id": "g"},
        {"digest": "e"},
        {"memory_mb": 256},
        {"purpose": "build"},
        {"purpose": "compile"},
        {"owner": ALICE},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_container_is_never_shared_across(change):
    assert binding().key != binding(**change).key
    for one, other in ((binding(), binding(**change)), (binding(**change), binding())):
        assert not one.key.serves(other.key)
        assert not one.key.is_like(other.key)


def test_where_the_code_lies_does_not_matter_for_sharing():
    assert binding().key == binding(tree=Path("/elsewhere"), cpus=0.5).key


def bound(binding: Binding, **fields: Any) -> PooledContainer:
    return pooled(key=binding.key, **fields)


def test_the_container_of_the_function_that_was_used_last_serves_a_job_best():
    wanted = binding()
    first, last = bound(wanted), bound(wanted)
    idle = [first, pooled(key=None), last, bound(binding(function_id="g"))]
    assert choose_idle(wanted, IdleContainers(idle), Sharing.FUNCTION) is last


@pytest.mark.parametrize("sharing", Sharing)
def test_a_generic_container_is_next_best(sharing):
    longest, later = pooled(key=None), pooled(key=None)
    idle = [bound(binding(function_id="g")), longest, later]
    assert choose_idle(binding(), IdleContainers(idle), sharing) is longest


@pytest.mark.parametrize(
    ("sharing", "purpose", "serves"),
    [
        (Sharing.FUNCTION, "run", False),
        (Sharing.NEVER, "run", False),
        (Sharing.WORKER, "run", True),
        (Sharing.WORKER, "build", False),
    ],
)
def test_a_container_of_another_function_serves_a_run_where_the_worker_shares_them(sharing, purpose, serves):
    longest, later = pooled(), pooled()
    found = choose_idle(binding(purpose=purpose), IdleContainers([longest, later]), sharing)
    assert found is (longest if serves else None)


@pytest.mark.parametrize(
    ("owner", "purpose", "sharing", "serves"),
    [
        (ALICE, "run", Sharing.TENANT, True),
        (ALICE, "build", Sharing.TENANT, False),
        (ALICE, "run", Sharing.FUNCTION, False),
        (BOB, "run", Sharing.TENANT, False),
        (Owner(OwnerSource.KEY, "alice", "bucket"), "run", Sharing.TENANT, False),
        (None, "run", Sharing.TENANT, False),
    ],
)
def test_a_container_of_another_function_serves_a_run_of_the_same_owner(owner, purpose, sharing, serves):
    of_alice, of_nobody = bound(binding(function_id="g", owner=ALICE)), bound(binding(function_id="h"))
    wanted = binding(owner=owner, purpose=purpose)
    found = choose_idle(wanted, IdleContainers([of_nobody, of_alice]), sharing)
    assert found is (of_alice if serves else None)


def test_a_generic_container_is_preferred_to_another_function_of_the_same_owner():
    of_alice, generic = bound(binding(function_id="g", owner=ALICE)), pooled(key=None)
    idle = IdleContainers([of_alice, generic])
    assert choose_idle(binding(owner=ALICE), idle, Sharing.TENANT) is generic


def test_removed_containers_are_found_neither_by_code_nor_by_owner():
    key = binding(owner=ALICE).key
    first, second = pooled(key=key), pooled(key=key)
    idle = IdleContainers([first, second])
    idle.remove(first)
    assert (idle.like(key), [*idle.of_owner(ALICE)], len(idle)) == ([second], [second], 1)
    idle.remove(second)
    assert (idle.like(key), [*idle.of_owner(ALICE)], len(idle)) == ([], [], 0)


def test_a_dead_container_serves_no_job():
    wanted = binding()
    idle = [bound(wanted), bound(wanted, usable=False), pooled(key=None, usable=False)]
    assert choose_idle(wanted, IdleContainers(idle), Sharing.FUNCTION) is idle[0]
    assert choose_idle(binding(function_id="g"), IdleContainers(idle[1:]), Sharing.WORKER) is None


def test_a_job_with_byte_code_gets_a_container_that_has_it():
    wanted = binding(byte_code=Path("/made"))
    with_it, without = bound(wanted), bound(binding())
    idle = [with_it, pooled(key=None), without]
    assert choose_idle(wanted, IdleContainers(idle), Sharing.FUNCTION) is with_it
    assert with_it.serves(wanted.key)
    assert not without.serves(wanted.key)


def test_a_job_with_byte_code_rather_binds_its_functions_container_again_than_a_generic_one():
    without = bound(binding())
    idle = [without, pooled(key=None), bound(binding(function_id="g"))]
    assert choose_idle(binding(byte_code=Path("/made")), IdleContainers(idle), Sharing.FUNCTION) is without


def test_a_job_without_byte_code_is_served_by_a_container_that_has_it():
    with_it = bound(binding(byte_code=Path("/made")))
    assert choose_idle(binding(), IdleContainers([pooled(key=None), with_it]), Sharing.FUNCTION) is with_it
    assert with_it.serves(binding().key)


@pytest.mark.parametrize("sharing", Sharing)
def test_a_compilation_gets_no_container_that_a_job_could_have(sharing):
    idle = [pooled(key=None), bound(binding()), bound(binding(purpose="compile"))]
    assert choose_idle(binding(purpose="compile"), IdleContainers(idle), sharing) is None


@pytest.mark.parametrize(
    ("container", "now", "reason"),
    [
        (pooled(), 59.9, None),
        (pooled(), 60.0, "idle"),
        (pooled(used_at=10), 60.0, None),
        (pooled(key=None), 799.9, None),
        (pooled(key=None), 1000.0, "age"),
        (pooled(used_at=999), 1000.0, "age"),
        (pooled(runs=9), 1.0, None),
        (pooled(runs=10), 1.0, "runs"),
        (pooled(usable=False), 1.0, "died"),
        (pooled(held_bytes=LEFTOVER_BYTES), 1.0, None),
        (pooled(held_bytes=LEFTOVER_BYTES + 1), 1.0, "grown"),
    ],
)
def test_a_container_is_retired_for_its_idle_time_age_runs_growth_or_death(container, now, reason):
    assert retirement_reason(container, POLICY, now) == reason


def test_containers_that_were_created_together_are_not_retired_together():
    """In each tenth of the range of ages, about a tenth of them is retired."""
    ids = [hashlib.sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(1000)]
    ages = [age_limit_s(container_id, 3600) for container_id in ids]
    least_s = 3600 * (1 - AGE_SPREAD)
    tenths = Counter(int((age - least_s) / (3600 - least_s) * 10) for age in ages)
    assert set(tenths) == set(range(10))
    assert min(tenths.values()) > 60
    assert max(tenths.values()) < 140


def test_the_age_at_which_a_container_is_retired_does_not_change():
    container = pooled(key=None)
    limit_s = age_limit_s(container.container.id, POLICY.max_age_s)
    assert 800 <= limit_s <= 1000
    for _ in range(2):
        assert retirement_reason(container, POLICY, limit_s - 0.1) is None
        assert retirement_reason(container, POLICY, limit_s) == "age"


def test_a_container_whose_death_was_told_is_retired():
    container = pooled()
    container.enter(ContainerState.BUSY)
    container.enter(ContainerState.DEAD)
    assert retirement_reason(container, POLICY, 1.0) == "died"


@pytest.mark.parametrize("state", ContainerState)
@pytest.mark.parametrize("following", ContainerState)
def test_a_container_goes_on_as_the_table_says_and_no_other_way(
    state: ContainerState, following: ContainerState
):
    container = pooled(state=state)
    if following in NEXT[state]:
        container.enter(following)
        assert container.state is following
    else:
        with pytest.raises(AssertionError, match=f"from {state} to {following}"):
            container.enter(following)
        assert container.state is state


def test_every_state_of_a_container_can_be_reached_and_all_but_the_last_left():
    assert set(NEXT) == {state for states in NEXT.values() for state in states} == set(ContainerState)
    assert {state for state, states in NEXT.items() if not states} == {ContainerState.RETIRED}


def broken(times: int, now: float = 0.0) -> CircuitBreaker:
    breaker = creation_breaker()
    for _ in range(times):
        breaker.record_failure("no space left", now)
    return breaker


def test_two_failures_do_not_open_the_breaker():
    breaker = broken(2)
    assert not breaker.is_open
    assert breaker.allows(0.0, in_flight=5)


def test_the_third_failure_opens_it_and_it_keeps_the_reason():
    breaker = broken(3)
    assert breaker.is_open
    assert breaker.reason == "no space left"
    assert not breaker.allows(0.5, in_flight=0)


def test_after_the_pause_one_at_a_time_is_tried():
    breaker = broken(3)
    assert breaker.allows(1.0, in_flight=0)
    assert not breaker.allows(1.0, in_flight=1)


def test_a_breaker_is_open_until_it_may_be_tried_again():
    breaker = broken(3)
    assert breaker.is_pausing(0.9)
    assert not breaker.is_pausing(1.0)
    assert breaker.is_open
    assert not broken(2).is_pausing(0.0)


def test_the_pause_doubles_up_to_a_minute():
    pauses = [broken(times, now=1000.0).open_until - 1000.0 for times in (3, 4, 5, 8, 9, 10, 50)]
    assert pauses == [1, 2, 4, 32, 60, 60, 60]


def test_a_breaker_that_failed_for_days_still_counts():
    assert broken(1100).open_until == 60.0


def test_one_success_closes_it():
    breaker = broken(5)
    breaker.record_success()
    assert not breaker.is_open
    assert breaker.allows(0.0, in_flight=5)
    breaker.record_failure("again", 0.0)
    assert not breaker.is_open


# --- recycling


@pytest.mark.parametrize(
    ("fields", "now", "expected"),
    [
        ({}, 10, True),
        ({}, 70, True),  # unused for a long time
        ({"key": None}, 10, False),
        ({"recyclable": False}, 10, False),
        ({"usable": False}, 10, False),
        ({"runs": 10}, 10, False),
        ({"made_at": -1000.0}, 10, False),
        ({"held_bytes": LEFTOVER_BYTES + 1}, 10, False),
    ],
)
def test_a_container_is_recycled_unless_it_would_be_retired_for_another_reason(fields, now, expected):
    container = pooled(**({"recyclable": True} | fields))
    assert may_recycle(container, replace(POLICY, recycles=True), now) is expected
    assert may_recycle(container, POLICY, now) is False


def test_a_recycled_container_keeps_its_age_and_its_number_of_runs():
    container = pooled(runs=7, made_at=1.0, busy_mb=128, bound_ms=5.0)
    container.become_generic(9.0)
    assert (container.is_generic, container.busy_mb, container.bound_ms) == (True, 0, 0.0)
    assert (container.runs, container.made_at, container.used_at) == (7, 1.0, 9.0)
