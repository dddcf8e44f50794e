"""Any message at all is a job, is refused to its sender, or is nobody's; and is settled as the table says."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nanoagent.broker import sqs_messages
from nanoagent.model import message as message_module
from nanoagent.model.errors import UnreadableMessage
from nanoagent.model.job import Job
from nanoagent.model.message import MAX_MESSAGE_BYTES, InvalidJob
from support.agents.worker_rig import Rig
from support.checks.messages import ending_of, tried
from support.checks.raw_messages import message_of
from support.doubles.fakes import message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

    from nanoagent.broker.base import Delivery

# No deadline, because the machine is shared.
UNHURRIED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

BUILT: Final = st.binary(max_size=300).map(message_of)
"""Mostly objects, often jobs: with wrong values, odd names, white space, damage and other encodings."""

VALUES: Final[SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
FIELDS: Final = tuple(message_module._NAMES)
GOOD: Final = (
    '{"requestId":"r1","s3Key":"k","memoryMb":64,"input":{"a":[1,2,"\\ud83d\\ude00"]},"runtime":"go"}'
)


def objects_of(values: SearchStrategy[Any]) -> SearchStrategy[str]:
    """As Python's writer has them: NaN and lone surrogates included."""
    honest = st.fixed_dictionaries({"requestId": st.just("r1"), "s3Key": st.just("k")})
    fields = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), values, max_size=6)
    written = st.builds(lambda first, more: first | more, honest, fields)
    return st.builds(
        lambda document, ascii_: json.dumps(document, ensure_ascii=ascii_), written, st.booleans()
    )


def damaged(text: str) -> SearchStrategy[str]:
    """The text with a piece of it replaced and another put in."""
    noise = st.text(st.sampled_from('{}[]:,"\\u0d8EN-. \n\0\ufeff\ud800e5/') | st.characters(), max_size=8)
    places = st.integers(0, len(text))

    def changed(at: int, length: int, what: str, other: int, more: str) -> str:
        cut = text[:at] + what + text[at + length :]
        return cut[:other] + more + cut[other:]

    return st.builds(changed, places, st.integers(0, 20), noise, places, noise)


@pytest.mark.parametrize(
    ("bodies", "most"),
    [
        (BUILT, 400),
        (objects_of(VALUES), 120),
        (damaged(GOOD), 500),
        (st.binary(max_size=100), 100),
        (st.text(st.characters(exclude_categories=[]), max_size=100), 100),
    ],
    ids=["built", "objects", "damaged", "bytes", "text"],
)
def test_any_message_ends_as_the_contract_says(
    bodies: SearchStrategy[str | bytes], most: int, record_property: Callable[[str, Any], None]
) -> None:
    endings: Counter[type] = Counter()

    @settings(UNHURRIED, max_examples=most)
    @given(body=bodies)
    def attempt(body: str | bytes) -> None:
        endings[type(tried(body))] += 1

    attempt()
    record_property("tried", ["messages", endings.total()])
    if most > 100:
        assert endings.keys() == {Job, InvalidJob, UnreadableMessage}, "one kind of ending was not tried"


def many(count: int) -> Iterator[str | bytes]:
    """The same ones each time, of any length; most that hypothesis makes are short."""
    source = random.Random(7)  # noqa: S311 - no secret
    for _ in range(count):
        yield message_of(source.randbytes(source.randrange(300)))


def test_any_one_of_many_messages_ends_as_the_contract_says(
    record_property: Callable[[str, Any], None],
) -> None:
    endings = Counter(type(tried(body)) for body in many(4000))
    record_property("tried", ["messages", endings.total()])
    assert min(endings.values()) > 400, "one kind of ending was hardly tried"


LARGE: Final = {
    "a string": '"' + "x" * (MAX_MESSAGE_BYTES - 100) + '"',
    "a number": "9" * (MAX_MESSAGE_BYTES - 100),
    "a list": "[" + "null," * (MAX_MESSAGE_BYTES // 5 - 100) + "0]",
    "escapes": '"' + "\\ud800" * (MAX_MESSAGE_BYTES // 6 - 20) + '"',
    "constants": "[" + "NaN," * (MAX_MESSAGE_BYTES // 4 - 100) + "0]",
    "brackets": "[" * (MAX_MESSAGE_BYTES - 100),
    "objects": '{"":' * (MAX_MESSAGE_BYTES // 4 - 100),
    "white space": "0" + " \n" * (MAX_MESSAGE_BYTES // 2 - 100),
    "one name again and again": "0" + ',"input":0' * (MAX_MESSAGE_BYTES // 10 - 100),
    "names": "0" + "".join(f',"{number:07}":0' for number in range(MAX_MESSAGE_BYTES // 12 - 100)),
}


@pytest.mark.parametrize("field", ["input", "requestId"])
@pytest.mark.parametrize("kind", LARGE)
def test_messages_of_nearly_1_mib_end_as_the_contract_says(
    kind: str, field: str, record_property: Callable[[str, Any], None]
) -> None:
    tried(f'{{"s3Key":"k","requestId":"r1","{field}":{LARGE[kind]}}}')
    record_property("tried", ["messages", 1])


def test_the_read_again_finds_the_same_fields_where_the_first_succeeds(
    record_property: Callable[[str, Any], None],
) -> None:
    compared = 0
    for body in many(2000):
        raw = body if isinstance(body, bytes) else body.encode(errors="replace")
        try:
            raw.decode()
            first = message_module._decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        assert message_module._read_again(raw, "") == (first, [])
        compared += 1
    assert compared > 400
    record_property("tried", ["messages", compared])


# --- from receipt until it is settled


QUEUES: Final[dict[str, dict[str, Any]]] = {
    "redrives": {"max_receives": 2},
    "has a dead-letter queue": {},
    "has neither": {"dead_letter_queue": False},
}
HONEST: Final = "the-honest-one"


class Settled:
    """What a broker saw of each delivery: a delivery is settled once."""

    def __init__(self, rig: Rig) -> None:
        broker = rig.broker
        self.acked = [delivery.body for delivery in broker.acked]
        self.buried = [delivery.body for delivery, *_ in broker.dead_lettered]
        self.given_back = [delivery.body for delivery, _ in broker.returned]
        deliveries: list[Delivery] = [
            *broker.acked,
            *(delivery for delivery, *_ in broker.dead_lettered),
            *(delivery for delivery, _ in broker.returned),
        ]
        assert len(set(deliveries)) == len(deliveries), "settled twice"
        for step, settled in (("ack?", self.acked), ("nack?", self.given_back)):
            assert rig.journal.count(step) == len(settled), "settled again, which the broker ignored"
        self.redriven = list(broker.redriven)


async def work_off(rig: Rig, bodies: list[str]) -> None:
    """Have the worker settle all of them, and behind them an honest job."""
    for body in bodies:
        await rig.broker.send(body)
    await rig.broker.send(message(HONEST))

    def none_is_left() -> bool:
        gone = len(rig.broker.acked) + len(rig.broker.dead_lettered) + len(rig.broker.redriven)
        return gone == len(bodies) + 1

    async with rig.running():
        await rig.journal.until(none_is_left)


def check_settled(rig: Rig, bodies: list[str], queue: str) -> None:
    """Each by its row of the table, and nobody told anything else."""
    settled = Settled(rig)
    expected: dict[str, list[str]] = {"acked": [message(HONEST)], "buried": [], "redriven": [], "dropped": []}
    where = {"redrives": "redriven", "has a dead-letter queue": "buried", "has neither": "dropped"}[queue]
    by_request: dict[str, Job | InvalidJob] = {}
    for body in bodies:
        ending = ending_of(body)
        if isinstance(ending, UnreadableMessage):
            expected[where].append(body)
        else:
            expected["acked"].append(body)
            by_request.setdefault(ending.request_id, ending)
    assert sorted(settled.acked) == sorted(expected["acked"] + expected["dropped"])
    assert sorted(settled.buried) == sorted(expected["buried"])
    assert sorted(settled.redriven) == sorted(expected["redriven"])
    assert sorted(settled.given_back) == sorted(expected["redriven"] * 2), "given back, but not by the table"
    told = {result.request_id: result for result in rig.documents()}
    assert told.keys() == by_request.keys() | {HONEST}
    assert len(rig.result_store.published) == len(expected["acked"])
    assert told[HONEST].error_type is None


def rig_for(folder: Any, queue: str) -> Rig:
    return Rig(folder, broker=QUEUES[queue], retry_base_seconds=0.001, retry_max_seconds=0.001)


@pytest.mark.parametrize("queue", QUEUES)
def test_a_worker_settles_every_message_once_by_the_table_and_continues(
    queue: str, tmp_path_factory: pytest.TempPathFactory, record_property: Callable[[str, Any], None]
) -> None:
    counts: Counter[str] = Counter()

    @settings(UNHURRIED, max_examples=40)
    @given(bodies=st.lists(BUILT.filter(lambda body: isinstance(body, str)), max_size=12))
    @example(bodies=[GOOD, GOOD.replace("64", "1"), GOOD])
    @example(bodies=["\ud800", "\0", "", "[" * 100_000, '{"requestId":"\\ud800"}'])
    def attempt(bodies: list[str]) -> None:
        # Each a request of its own: what becomes of many deliveries of one is in test_worker.py.
        bodies = [body.replace('"r1"', f'"r{number}"') for number, body in enumerate(bodies)]
        rig = rig_for(tmp_path_factory.mktemp("rig"), queue)
        with capture_logs() as logged:
            asyncio.run(work_off(rig, bodies))
        check_settled(rig, bodies, queue)
        assert not [line for line in logged if "exception" in line or "exc_info" in line], "a bug of ours"
        assert all(line["problem"].isprintable() for line in logged if "problem" in line)
        counts["messages"] += len(bodies)

    attempt()
    record_property("tried", ["messages", counts["messages"]])


async def test_an_invalid_message_does_not_replace_the_result_of_an_earlier_job(tmp_path: Any) -> None:
    rig = rig_for(tmp_path, "has neither")
    async with rig.running():
        for body in (message(HONEST), message(HONEST, runtime="cobol")):
            await rig.broker.send(body)
            await rig.until_settled(1 + len(rig.result_store.published))
    (_, first), (_, second) = rig.result_store.published
    assert first == second


# --- what SQS says of a message


COUNT: Final = "ApproximateReceiveCount"
SENT_AT: Final = "SentTimestamp"
ODD: Final = [
    "",
    "x",
    "-1",
    "0",
    "1",
    "2.5",
    "1e9",
    "9" * 19,
    "9" * 5000,
    "-" + "9" * 5000,
    "\u0661",
    " 3",
    "3\n",
    None,
]


@pytest.mark.parametrize("count", ODD)
async def test_a_message_with_an_unusual_receive_count_is_an_ordinary_delivery(count: Any) -> None:
    delivery = sqs_messages.delivery_of(
        {"MessageId": "m", "ReceiptHandle": "r", "Attributes": {COUNT: count}}
    )
    assert delivery.receive_count == {"9" * 19: 2**31 - 1}.get(count, 1)


@pytest.mark.parametrize("sent_at", ODD)
async def test_a_message_that_is_dated_oddly_is_a_delivery_like_others(sent_at: Any) -> None:
    delivery = sqs_messages.delivery_of(
        {"MessageId": "m", "ReceiptHandle": "r", "Attributes": {SENT_AT: sent_at}}
    )
    assert 0 < delivery.sent_at <= delivery.received_at


@pytest.mark.parametrize("first_sent", ODD)
async def test_a_copy_that_is_dated_oddly_is_a_delivery_like_others(first_sent: Any) -> None:
    own = {"firstSentAt": {"DataType": "String", "StringValue": first_sent}}
    delivery = sqs_messages.delivery_of({"MessageId": "m", "ReceiptHandle": "r", "MessageAttributes": own})
    assert 0 < delivery.sent_at <= delivery.received_at


async def test_a_copy_has_been_sent_when_the_first_was_and_no_message_after_it_was() -> None:
    for first_sent, sent_at in (("1600000000500", 1_600_000_000.5), ("1800000000500", 1_700_000_000.5)):
        own = {"firstSentAt": {"DataType": "String", "StringValue": first_sent}}
        message_ = {"MessageId": "m", "ReceiptHandle": "r", "MessageAttributes": own}
        assert (
            sqs_messages.delivery_of(message_ | {"Attributes": {SENT_AT: "1700000000500"}}).sent_at == sent_at
        )


async def test_a_message_that_is_counted_and_dated_is_a_delivery_of_then() -> None:
    attributes = {COUNT: "3", SENT_AT: "1700000000500"}
    delivery = sqs_messages.delivery_of({"MessageId": "m", "ReceiptHandle": "r", "Attributes": attributes})
    assert (delivery.receive_count, delivery.sent_at) == (3, 1_700_000_000.5)


@pytest.mark.parametrize("message_", [{}, {"Attributes": {}}, {"Attributes": {}, "MessageAttributes": {}}])
async def test_a_message_of_which_nothing_is_said_is_a_delivery_like_others(message_: dict[str, Any]) -> None:
    delivery = sqs_messages.delivery_of({"MessageId": "m", "ReceiptHandle": "r", **message_})
    assert (delivery.body, delivery.receive_count, delivery.group_id) == ("", 1, None)
    assert delivery.sent_at == pytest.approx(delivery.received_at)
