"""What happens to a message: by the ending and the outcome table alone."""

from __future__ import annotations

from typing import Any

import pytest

from nanoagent.model.errors import PlatformError
from nanoagent.model.result import OUTCOMES, ErrorType, Settle
from nanoagent.model.returns import RULES, ReturnReason, Rule
from nanoagent.model.text import Text
from nanoagent.worker import retry
from nanoagent.worker.endings import Answered, Exhausted, Failed, Returned, Spooled, Unpublished, Unreadable
from nanoagent.worker.settlement import DELAYS, Ack, DeadLetter, Facts, GiveUp, IfLast, Nack, decide
from support.doubles.fakes import make_settings

SETTINGS = make_settings(max_attempts=3, retry_base_seconds=2.0, retry_max_seconds=900.0)
FIRST = Facts(receive_count=1)
FAILED = Failed("Redis is unavailable", PlatformError.sender_message)
ENDINGS: list[Any] = [
    Answered(None),
    Spooled(),
    *(Returned(reason, "…") for reason in ReturnReason),
    FAILED,
    Exhausted(Text("…", "…")),
    Unpublished(),
    Unreadable("no requestId"),
]


@pytest.mark.parametrize("error_type", [row for row, outcome in OUTCOMES.items() if outcome.status])
def test_a_message_whose_sender_was_told_is_gone_as_the_outcome_table_says(error_type: ErrorType | None):
    settlement = decide(Answered(error_type, "why", 2), FIRST, SETTINGS)
    expected = {Settle.ACK: Ack(), Settle.RETRY: DeadLetter("why", 2)}
    assert settlement == expected[OUTCOMES[error_type].settle]


@pytest.mark.parametrize("ending", ENDINGS, ids=repr)
def test_only_a_message_whose_sender_was_told_is_deleted(ending: Any):
    for receive_count in (1, 2, 50):
        for redrives in (True, False):
            settlement = decide(ending, Facts(receive_count, redrives=redrives, failures=1), SETTINGS)
            assert isinstance(settlement, Ack) is isinstance(ending, Answered)


@pytest.mark.parametrize("reason", ReturnReason)
def test_a_return_has_the_delay_that_the_ending_brings_or_that_of_its_reason(reason: ReturnReason):
    assert reason in DELAYS
    assert decide(Returned(reason, "…", 7.5), FIRST, SETTINGS) == Nack(7.5, "…", IfLast.CLAIM_AND_GIVE_UP)
    nack = decide(Returned(reason, "…"), FIRST, SETTINGS)
    assert isinstance(nack, Nack)
    assert 0 <= nack.delay_s <= SETTINGS.retry_max_seconds


@pytest.mark.parametrize(
    ("reason", "delay_s"),
    [
        (ReturnReason.STOPPING, 0),
        (ReturnReason.NO_ROOM, 15),
        (ReturnReason.NOT_TOLD, 900),
        (ReturnReason.CLAIM_LOST, SETTINGS.sqs_visibility_seconds),
    ],
)
def test_some_delays(reason: ReturnReason, delay_s: float):
    assert decide(Returned(reason, "…"), FIRST, SETTINGS) == Nack(delay_s, "…", IfLast.CLAIM_AND_GIVE_UP)


def test_what_redis_could_not_be_asked_about_waits_longer_with_each_receipt():
    delays = [
        decide(Returned(ReturnReason.NOT_CLAIMED, "…"), Facts(count), SETTINGS) for count in (1, 2, 3, 20)
    ]
    assert [nack.delay_s for nack in delays if isinstance(nack, Nack)] == [2, 4, 8, 900]


@pytest.mark.parametrize(("failures", "expected"), [(1, 2.0), (2, 4.0)])
def test_a_failed_attempt_is_repeated_after_a_growing_delay(failures: int, expected: float):
    settlement = decide(FAILED, Facts(9, failures=failures), SETTINGS)
    assert settlement == Nack(expected, "Redis is unavailable", IfLast.GIVE_UP)


def test_the_last_failed_attempt_is_given_up():
    assert decide(FAILED, Facts(1, failures=3), SETTINGS) == GiveUp()
    assert decide(Exhausted(Text("…", "…")), FIRST, SETTINGS) == GiveUp()


def test_nothing_is_given_up_while_failures_cannot_be_counted():
    assert decide(FAILED, Facts(50, failures=None), SETTINGS) == Nack(
        900, "Redis is unavailable", IfLast.GIVE_UP
    )


@pytest.mark.parametrize("reason", [reason for reason in ReturnReason if RULES[reason] is Rule.COUNTED])
def test_a_return_that_counts_stays_away_for_a_while(reason: ReturnReason):
    failed = Failed("no containers", PlatformError.sender_message, reason)
    nack = decide(failed, Facts(1, failures=1), SETTINGS)
    assert nack == Nack(retry.counted_delay_s(1, 900), "no containers", IfLast.GIVE_UP)


def test_an_unreadable_message_is_left_to_the_redrive_policy_or_dead_lettered():
    unreadable = Unreadable("no requestId")
    assert decide(unreadable, Facts(3, redrives=True), SETTINGS) == Nack(8, "no requestId", is_poison=True)
    assert decide(unreadable, Facts(3), SETTINGS) == DeadLetter("no requestId")


def test_an_unreadable_message_does_not_hold_its_group_up():
    settlement = decide(Unreadable("…"), Facts(9, in_order=True, redrives=True), SETTINGS)
    assert settlement == Nack(2, "…", is_poison=True)
