"""Which returns may repeat: a decision by the reason alone, and the stop of the intake."""

from __future__ import annotations

import pytest

from nanoagent.model.errors import PlatformError, ResultStoreError, ReturnToQueue, Superseded
from nanoagent.model.returns import RULES, ReturnReason, ReturnStreaks, Rule, counts
from nanoagent.worker import endings
from nanoagent.worker.endings import Failed
from nanoagent.worker.retry import counted_delay_s

BY_DESIGN = {
    *(
        ReturnReason.STOPPING,
        ReturnReason.OVER_SHARE,
        ReturnReason.NO_ROOM,
        ReturnReason.CLAIMED_ELSEWHERE,
        ReturnReason.DUPLICATE,
    ),
    *(ReturnReason.LEASE_LOST, ReturnReason.CLAIM_LOST, ReturnReason.EARLIER_IN_GROUP),
}


def is_failed_attempt(exc: BaseException) -> bool:
    return isinstance(exc, Exception) and isinstance(endings.of_error(exc), Failed)


def test_every_reason_has_a_rule():
    assert set(RULES) == set(ReturnReason)


def test_what_is_no_attempt_by_design_buries_nothing_however_often():
    assert {why for why, rule in RULES.items() if rule is Rule.FREE} == BY_DESIGN
    assert not any(map(counts, BY_DESIGN))


def test_what_a_readiness_check_stops_is_no_attempt_either():
    checked = {why for why, rule in RULES.items() if rule is Rule.CHECKED}
    assert checked == {
        ReturnReason.STORE_UNAVAILABLE,
        ReturnReason.ENGINE_UNAVAILABLE,
        ReturnReason.NO_CONTAINERS,
        ReturnReason.NO_RUNTIME,
    }
    assert not any(map(counts, checked))


def test_what_nothing_else_ends_counts():
    assert {why for why in ReturnReason if counts(why)} == {
        ReturnReason.NO_CONTAINERS_OF_RUNTIME,
        ReturnReason.RUNTIME_BLOCKED,
    }


@pytest.mark.parametrize("why", ReturnReason)
def test_an_interruption_is_an_attempt_by_its_reason_alone(why):
    assert is_failed_attempt(ReturnToQueue("…", reason=why)) is (RULES[why] is Rule.COUNTED)
    assert is_failed_attempt(ReturnToQueue("…", 0, reason=why)) is (RULES[why] is Rule.COUNTED)


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (ReturnToQueue("no room"), False),
        (Superseded("…"), False),
        (ResultStoreError("…"), True),
        (PlatformError("…"), True),
        (ZeroDivisionError(), True),
        (KeyboardInterrupt(), False),
    ],
)
def test_other_ends_count_as_before(exc, expected):
    assert is_failed_attempt(exc) is expected


@pytest.mark.parametrize(
    ("failures", "longest_s", "expected"),
    [(1, 900, 15), (2, 900, 60), (3, 900, 240), (4, 900, 900), (40, 900, 900), (5, 1, 15)],
)
def test_counted_returns_lie_far_apart(failures, longest_s, expected):
    assert counted_delay_s(failures, longest_s) == expected


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_returns_in_a_row_stop_the_intake_for_longer_and_longer():
    clock = Clock()
    streaks = ReturnStreaks(3, clock=clock)
    for _ in range(2):
        streaks.returned(ReturnReason.NOT_CLAIMED, "CROSSSLOT")
    assert (streaks.not_ready_reason(), streaks.is_on_trial) == (None, False)

    streaks.returned(ReturnReason.NOT_CLAIMED, "CROSSSLOT")
    assert streaks.not_ready_reason() == "3 messages in a row were returned (not_claimed): CROSSSLOT"
    streaks.returned(ReturnReason.NOT_CLAIMED, "one that was under way")  # does not lengthen it
    for pause_s in (1, 2, 4, 8, 16, 32, 60, 60):
        clock.now += pause_s - 0.5
        assert streaks.not_ready_reason() is not None
        clock.now += 0.5
        assert (streaks.not_ready_reason(), streaks.is_on_trial) == (None, True)
        streaks.returned(ReturnReason.NOT_CLAIMED, "still")


async def test_one_success_ends_it():
    clock = Clock()
    streaks = ReturnStreaks(2, clock=clock)
    for _ in range(2):
        streaks.returned(ReturnReason.NOT_CLAIMED, "…")
        streaks.returned(ReturnReason.NOT_TOLD, "…")
    streaks.succeeded(ReturnReason.NOT_CLAIMED)
    assert "not_told" in (streaks.not_ready_reason() or "")
    streaks.succeeded(ReturnReason.NOT_TOLD)
    assert (streaks.not_ready_reason(), streaks.is_on_trial) == (None, False)
    streaks.returned(ReturnReason.NOT_TOLD, "…")
    assert streaks.not_ready_reason() is None
