"""What every `Broker` promises, on SQS, in memory and in the queue of the benchmarks."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from benchmarks.timed_broker import TimedBroker
from structlog.testing import capture_logs

from nanoagent.broker import sqs_messages
from nanoagent.broker.memory import MemoryBroker
from nanoagent.broker.sqs import SqsBroker
from nanoagent.broker.sqs_redrive import policy_in
from nanoagent.model.errors import BrokerError
from support.services.slow_server import slow_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nanoagent.aws.clients import AwsClients
    from nanoagent.broker.base import Broker, Delivery
    from nanoagent.dev.local_services import EmbeddedStack

VISIBILITY_S = 1
LONG_POLL_S = 2  # longer than VISIBILITY_S: a lease that ran out would show within one poll
DEADLINE_S = 60


class Queue(Protocol):
    """A broker, and the queue seen from outside."""

    @property
    def broker(self) -> Broker: ...
    async def send(self, body: str, group_id: str | None = None) -> str: ...
    async def depth(self) -> tuple[int, int, int]: ...
    async def dead_letters(self) -> list[tuple[str, str]]:
        """Body and reason of each."""
        ...

    async def take_away(self, delivery: Delivery) -> None:
        """Make its receipt worthless."""
        ...


@dataclass
class SqsQueue:
    broker: SqsBroker
    stack: EmbeddedStack
    client: Any
    url: str
    dlq_url: str
    requests: Counter[str] = field(default_factory=Counter)

    async def send(self, body: str, group_id: str | None = None) -> str:
        group = {} if group_id is None else {"MessageGroupId": group_id}
        if self.url.endswith(".fifo"):
            group["MessageDeduplicationId"] = secrets.token_hex(8)
        answer = await self.client.send_message(QueueUrl=self.url, MessageBody=body, **group)
        return str(answer["MessageId"])

    async def depth(self) -> tuple[int, int, int]:
        return await self.stack.queues.depth(queue_url=self.url)

    async def dead_letters(self) -> list[tuple[str, str]]:
        letters = await self.stack.queues.dead_letters(queue_url=self.dlq_url)
        return [(letter["body"], letter["attributes"]["reason"]) for letter in letters]

    async def take_away(self, delivery: Delivery) -> None:
        await self.client.delete_message(QueueUrl=self.url, ReceiptHandle=delivery.receipt)


@dataclass
class MemoryQueue:
    broker: MemoryBroker

    async def send(self, body: str, group_id: str | None = None) -> str:
        return await self.broker.send(body, group_id=group_id)

    async def depth(self) -> tuple[int, int, int]:
        return self.broker.depth()

    async def dead_letters(self) -> list[tuple[str, str]]:
        return [(delivery.body, reason) for delivery, reason, _ in self.broker.dead_lettered]

    async def take_away(self, delivery: Delivery) -> None:
        self.broker.lose(delivery)


@asynccontextmanager
async def sqs_queue(
    stack: EmbeddedStack,
    clients: AwsClients,
    *,
    redrives: bool = True,
    dlq: bool = True,
    fifo: bool = False,
    max_receives: int = 10,
    **options: Any,
) -> AsyncIterator[SqsQueue]:
    """A queue of its own; `redrives`: with a redrive policy, `dlq`: whether the broker is told of one."""
    # By content, so that the queue itself would take a copy.
    kind = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if fifo else {}
    dlq_url = stack.new_queue(**kind)
    policy = {"RedrivePolicy": stack.redrive_policy(dlq_url, max_receives=max_receives)} if redrives else {}
    url = stack.new_queue(VisibilityTimeout="30", **kind, **policy)
    client = await clients.sqs()
    broker = SqsBroker(
        client,
        url,
        dlq_url=dlq_url if dlq else None,
        wait_s=LONG_POLL_S,
        visibility_s=VISIBILITY_S,
        **options,
    )
    queue = SqsQueue(broker, stack, client, url, dlq_url)

    def count(model: Any, **_: Any) -> None:
        queue.requests[model.name] += 1

    client.meta.events.register("before-call.sqs", count)
    yield queue
    await broker.close()


IN_PROCESS: dict[str, type[MemoryBroker]] = {"memory": MemoryBroker, "benchmark": TimedBroker}


@pytest.fixture(params=["sqs", *IN_PROCESS])
async def queue(
    request: pytest.FixtureRequest, stack: EmbeddedStack, clients: AwsClients
) -> AsyncIterator[Queue]:
    if request.param == "sqs":
        async with sqs_queue(stack, clients) as queue:
            yield queue
    else:
        broker = IN_PROCESS[request.param]
        yield MemoryQueue(broker(visibility_s=VISIBILITY_S, wait_s=LONG_POLL_S, max_receives=10))


MAX_RECEIVES = 3


@asynccontextmanager
async def queue_of(
    kind: str, stack: EmbeddedStack, clients: AwsClients, *, fifo: bool = False
) -> AsyncIterator[Queue]:
    """One that moves a message away after `MAX_RECEIVES` receipts."""
    if kind == "sqs":
        async with sqs_queue(stack, clients, max_receives=MAX_RECEIVES, fifo=fifo) as queue:
            yield queue
    else:
        yield MemoryQueue(
            IN_PROCESS[kind](
                visibility_s=VISIBILITY_S, wait_s=LONG_POLL_S, max_receives=MAX_RECEIVES, fifo=fifo
            )
        )


KINDS = pytest.mark.parametrize("kind", ["sqs", *IN_PROCESS])


async def last_receipt(queue: Queue, group_id: str | None = None) -> Delivery:
    """A message that has been received as often as the queue hands one out."""
    await queue.send("mine", group_id)
    for _ in range(MAX_RECEIVES - 1):
        assert await queue.broker.nack(await receive_one(queue.broker), 0)
    return await receive_one(queue.broker)


async def receive_one(broker: Broker) -> Delivery:
    async with asyncio.timeout(DEADLINE_S):
        while not (deliveries := await broker.receive(1)):
            pass
    return deliveries[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the queue tells nobody
            await asyncio.sleep(0.01)


async def test_a_delivery_says_what_was_sent(queue: Queue):
    message_id = await queue.send('{"requestId": "안녕"}')

    delivery = await receive_one(queue.broker)

    assert delivery.message_id == message_id
    assert delivery.body == '{"requestId": "안녕"}'
    assert delivery.receive_count == 1
    assert 0 < delivery.sent_at <= delivery.received_at + 1  # two clocks may differ by their rounding
    assert delivery.group_id is None


async def test_a_poll_brings_no_more_than_its_limit(queue: Queue):
    for number in range(5):
        await queue.send(str(number))

    first = await queue.broker.receive(3)
    rest = [await receive_one(queue.broker) for _ in range(5 - len(first))]

    assert 1 <= len(first) <= 3
    assert {delivery.body for delivery in [*first, *rest]} == set("01234")


async def test_a_poll_ends_when_a_message_comes(queue: Queue):
    poll = asyncio.create_task(queue.broker.receive(10))
    await queue.send("late")

    assert [delivery.body for delivery in await poll] == ["late"]


async def test_a_poll_of_an_empty_queue_brings_nothing(queue: Queue):
    assert await queue.broker.receive(10) == []


async def test_a_held_message_is_not_received_again(queue: Queue):
    await queue.send("held")
    await receive_one(queue.broker)

    assert await queue.broker.receive(10) == []  # LONG_POLL_S > VISIBILITY_S


async def test_an_acknowledged_message_is_gone(queue: Queue):
    await queue.send("done")
    delivery = await receive_one(queue.broker)

    await queue.broker.ack(delivery)
    await queue.broker.close()

    assert await queue.depth() == (0, 0, 0)


async def test_closing_flushes_every_acknowledgement(queue: Queue):
    for number in range(13):
        await queue.send(str(number))
    for _ in range(13):
        await queue.broker.ack(await receive_one(queue.broker))

    await queue.broker.close()

    assert await queue.depth() == (0, 0, 0)


async def test_a_message_given_back_is_received_again_at_once(queue: Queue):
    await queue.send("again")
    first = await receive_one(queue.broker)

    await queue.broker.nack(first, 0)
    second = await receive_one(queue.broker)

    assert second.message_id == first.message_id
    assert second.receive_count == 2
    assert second is not first


async def test_a_message_given_back_with_a_delay_stays_hidden(queue: Queue):
    await queue.send("later")
    delivery = await receive_one(queue.broker)

    await queue.broker.nack(delivery, 1000)

    assert await queue.broker.receive(10) == []
    visible, _, _ = await queue.depth()
    assert visible == 0


async def test_a_message_given_back_with_a_short_delay_comes_back(queue: Queue):
    await queue.send("soon")

    await queue.broker.nack(await receive_one(queue.broker), 0.5)

    assert (await receive_one(queue.broker)).receive_count == 2


async def test_a_delay_beyond_what_the_queue_allows_is_shortened(queue: Queue):
    await queue.send("much later")

    await queue.broker.nack(await receive_one(queue.broker), 10**6)

    assert await queue.broker.receive(10) == []


async def test_a_buried_message_is_moved_with_its_reason(queue: Queue):
    await queue.send("poison")
    delivery = await receive_one(queue.broker)

    assert await queue.broker.dead_letter(delivery, "no requestId")
    await queue.broker.close()

    assert await queue.dead_letters() == [("poison", "no requestId")]
    assert await queue.depth() == (0, 0, 0)


async def test_a_queue_with_a_redrive_policy_says_so(queue: Queue):
    assert await queue.broker.redrives() is True


async def test_what_is_settled_cannot_be_settled_again(queue: Queue):
    await queue.send("once")
    delivery = await receive_one(queue.broker)
    await queue.broker.ack(delivery)

    await queue.broker.ack(delivery)
    await queue.broker.nack(delivery, 0)
    assert await queue.broker.dead_letter(delivery, "too late")
    await queue.broker.close()

    assert await queue.depth() == (0, 0, 0)
    assert await queue.dead_letters() == []


async def test_giving_back_twice_does_not_cut_the_delay_short(queue: Queue):
    await queue.send("later")
    delivery = await receive_one(queue.broker)
    await queue.broker.nack(delivery, 1000)

    await queue.broker.nack(delivery, 0)

    assert await queue.broker.receive(10) == []


async def test_a_lease_is_not_lost_while_it_is_renewed_nor_by_settling(queue: Queue):
    for body in ("held", "done", "again"):
        await queue.send(body)
    held, done, again = [await receive_one(queue.broker) for _ in range(3)]
    await queue.broker.ack(done)
    await queue.broker.nack(again, 1000)

    assert await queue.broker.receive(10) == []  # LONG_POLL_S > VISIBILITY_S
    assert not any(delivery.lost.done() for delivery in (held, done, again))


async def test_a_lease_whose_receipt_is_worthless_is_lost(queue: Queue):
    await queue.send("gone")
    delivery = await receive_one(queue.broker)

    await queue.take_away(delivery)

    async with asyncio.timeout(DEADLINE_S):
        reason = await delivery.lost
    if isinstance(queue, SqsQueue):  # said by the queue, not found out by waiting
        assert "no longer accepts the receipt handle" in reason


async def test_a_delivery_that_was_lost_cannot_be_settled(queue: Queue):
    await queue.send("lost")
    delivery = await receive_one(queue.broker)
    await queue.take_away(delivery)
    async with asyncio.timeout(DEADLINE_S):
        await delivery.lost

    await queue.broker.ack(delivery)
    await queue.broker.nack(delivery, 0)
    assert await queue.broker.dead_letter(delivery, "too late")
    await queue.broker.close()

    assert await queue.dead_letters() == []
    if isinstance(queue, SqsQueue):
        settling = {"DeleteMessageBatch", "ChangeMessageVisibility", "SendMessage"}
        assert settling.isdisjoint(set(queue.requests) - {"SendMessage"})
        assert queue.requests["SendMessage"] == 1  # the test's own
    else:
        assert await queue.depth() == (1, 0, 0)


# --- the last receipt


@KINDS
async def test_a_message_is_handed_out_as_often_as_it_is_given_back(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with queue_of(kind, stack, clients) as queue:
        await queue.send("mine")
        ids = set()
        for _ in range(20):
            delivery = await receive_one(queue.broker)
            assert (delivery.body, delivery.receive_count <= MAX_RECEIVES) == ("mine", True)
            ids.add(delivery.message_id)
            assert await queue.broker.nack(delivery, 0)
        await queue.broker.close()

        assert len(ids) == 20 // MAX_RECEIVES + 1
        assert sum(await queue.depth()) == 1
        assert await queue.dead_letters() == []


@KINDS
async def test_a_receipt_is_the_last_when_the_queue_will_move_the_message_away(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with queue_of(kind, stack, clients) as queue:
        await queue.send("mine")
        said = []
        for _ in range(MAX_RECEIVES):
            delivery = await receive_one(queue.broker)
            await queue.broker.nack(delivery, 0)
            said.append(queue.broker.is_last(delivery))

        assert said == [False] * (MAX_RECEIVES - 1) + [True]


@KINDS
async def test_poison_is_moved_away_after_its_last_receipt_and_not_copied(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with queue_of(kind, stack, clients) as queue:
        await queue.broker.nack(await last_receipt(queue), 0, poison=True)

        assert await queue.broker.receive(1) == []
        assert sum(await queue.depth()) == 0


@KINDS
async def test_a_copy_stays_hidden_for_its_delay_and_says_when_the_message_was_first_sent(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with queue_of(kind, stack, clients) as queue:
        delivery = await last_receipt(queue, "fair")

        assert await queue.broker.nack(delivery, 1)
        copy = await receive_one(queue.broker)

        assert (copy.receive_count, copy.group_id, copy.in_order) == (1, "fair", False)
        assert copy.sent_at == pytest.approx(delivery.sent_at, abs=0.01)
        assert copy.received_at - delivery.received_at > 0.9
        assert copy.message_id != delivery.message_id


@KINDS
async def test_a_queue_that_keeps_order_takes_no_copy_and_the_lease_is_kept(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with queue_of(kind, stack, clients, fifo=True) as queue:
        delivery = await last_receipt(queue, "g")

        assert await queue.broker.nack(delivery, 0) is False
        assert await queue.broker.receive(1) == []  # LONG_POLL_S > VISIBILITY_S
        assert await queue.broker.dead_letter(delivery, "it would not come again")
        await queue.broker.close()

        assert await queue.dead_letters() == [("mine", "it would not come again")]
        assert sum(await queue.depth()) == 0


# --- message groups


@KINDS
async def test_a_group_in_order_is_handed_out_in_order_and_not_past_what_is_held(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with queue_of(kind, stack, clients, fifo=True) as queue:
        for body, group in (("a1", "a"), ("a2", "a"), ("b1", "b")):
            await queue.send(body, group)
        deliveries = await queue.broker.receive(10)
        await queue.send("a3", "a")

        assert [(each.body, each.group_id, each.in_order) for each in deliveries] == [
            ("a1", "a", True),
            ("a2", "a", True),
            ("b1", "b", True),
        ]
        assert await queue.broker.receive(10) == []
        for delivery in deliveries[:2]:
            await queue.broker.ack(delivery)
        assert (await receive_one(queue.broker)).body == "a3"


@KINDS
async def test_the_first_of_a_group_that_goes_back_last_keeps_the_rest_for_its_delay_and_in_order(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with queue_of(kind, stack, clients, fifo=True) as queue:
        for body in ("a1", "a2", "a3"):
            await queue.send(body, "a")
        first, *later = await queue.broker.receive(10)
        for delivery in later:
            await queue.broker.nack(delivery, 0)
        await queue.broker.nack(first, 1)

        again: list[Delivery] = []
        async with asyncio.timeout(DEADLINE_S):
            while not again:
                again = await queue.broker.receive(10)

        assert [(each.body, each.receive_count) for each in again] == [("a1", 2), ("a2", 2), ("a3", 2)]
        assert again[0].received_at - first.received_at > 0.9


@KINDS
async def test_message_groups_of_a_queue_without_order_mean_no_order(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with queue_of(kind, stack, clients) as queue:
        for body in ("a1", "a2"):
            await queue.send(body, "a")
        first = await receive_one(queue.broker)
        second = await receive_one(queue.broker)  # while the first is held

        assert {first.body, second.body} == {"a1", "a2"}
        assert (first.group_id, first.in_order) == ("a", False)


# --- closing


async def test_closing_twice_is_harmless_and_ends_receiving(queue: Queue):
    await queue.broker.close()
    await queue.broker.close()

    with pytest.raises(BrokerError, match="closed"):
        await queue.broker.receive(1)


async def test_a_message_that_was_held_at_closing_comes_back(queue: Queue, clients: AwsClients):
    await queue.send("orphan")
    await receive_one(queue.broker)

    await queue.broker.close()

    async with asyncio.timeout(DEADLINE_S):
        while (await queue.depth())[0] == 0:  # noqa: ASYNC110 - the queue tells nobody
            await asyncio.sleep(0.05)


@KINDS
async def test_without_a_dead_letter_queue_burying_is_refused_and_the_lease_kept(
    stack: EmbeddedStack, clients: AwsClients, kind: str
):
    async with sqs_queue(stack, clients, redrives=False, dlq=False) as sqs:
        broker = IN_PROCESS.get(kind, MemoryBroker)
        memory = MemoryQueue(broker(visibility_s=VISIBILITY_S, wait_s=LONG_POLL_S, dead_letter_queue=False))
        queue: Queue = sqs if kind == "sqs" else memory
        await queue.send("poison")
        delivery = await receive_one(queue.broker)

        assert await queue.broker.redrives() is False
        assert await queue.broker.dead_letter(delivery, "no requestId") is False
        assert await queue.broker.receive(10) == []
        await queue.broker.ack(delivery)
        await queue.broker.close()

        assert await queue.depth() == (0, 0, 0)


# --- SQS alone


async def test_the_dead_letter_queue_is_found_by_the_redrive_policy(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients, dlq=False) as queue:
        for body in ("one", "two"):
            await queue.send(body)
            assert await queue.broker.dead_letter(await receive_one(queue.broker), "tried 5 times")

        assert sorted(await queue.dead_letters()) == [("one", "tried 5 times"), ("two", "tried 5 times")]
        assert queue.requests["GetQueueUrl"] == 1


async def test_a_buried_message_keeps_its_own_attributes_and_says_where_it_came_from(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients, worker="worker-1") as queue:
        await queue.client.send_message(
            QueueUrl=queue.url,
            MessageBody="poison",
            MessageAttributes={"traceparent": {"DataType": "String", "StringValue": "00-1-2-01"}},
        )
        await queue.broker.dead_letter(
            await receive_one(queue.broker), "bad\x00reason " + "안" * 300, attempts=5
        )

        (letter,) = await stack.queues.dead_letters(queue_url=queue.dlq_url)
        attributes = letter["attributes"]
        assert attributes["traceparent"] == "00-1-2-01"
        assert (attributes["receiveCount"], attributes["attempts"], attributes["worker"]) == (
            "1",
            "5",
            "worker-1",
        )
        assert attributes["sourceQueue"] == queue.url.rsplit("/", 1)[-1]
        assert attributes["reason"].startswith("bad reason 안안")
        assert len(attributes["reason"].encode()) <= 256


ODD_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "names of ours": {
        name: {"DataType": "String", "StringValue": "theirs"}
        for name in ("reason", "attempts", "worker", "receiveCount", "sourceQueue", "firstSentAt")
    },
    "as many as may be": {f"a{number}": {"DataType": "String", "StringValue": "x"} for number in range(10)},
    "bytes": {"b": {"DataType": "Binary", "BinaryValue": bytes(range(256))}},
    "numbers and types of their own": {
        "n": {"DataType": "Number.int", "StringValue": "9" * 38},
        "s": {"DataType": "String." + "x" * 200, "StringValue": "\u202e\ud55c<>&\n"},
    },
    "long names and values": {"n" * 256: {"DataType": "String", "StringValue": "v" * 100_000}},
}


@pytest.mark.parametrize("attributes", ODD_ATTRIBUTES.values(), ids=ODD_ATTRIBUTES.keys())
async def test_a_message_with_unusual_attributes_is_received_and_dead_lettered(
    stack: EmbeddedStack, clients: AwsClients, attributes: dict[str, Any]
):
    async with sqs_queue(stack, clients) as queue:
        await queue.client.send_message(
            QueueUrl=queue.url, MessageBody="poison", MessageAttributes=attributes
        )

        assert await queue.broker.dead_letter(await receive_one(queue.broker), "no requestId")

        ((body, reason),) = await queue.dead_letters()
        assert (body, reason) == ("poison", "no requestId")
        await queue.broker.close()
        assert await queue.depth() == (0, 0, 0)


@pytest.mark.parametrize("attributes", ODD_ATTRIBUTES.values(), ids=ODD_ATTRIBUTES.keys())
async def test_a_copy_has_the_attributes_of_its_message(
    stack: EmbeddedStack, clients: AwsClients, attributes: dict[str, Any]
):
    async with sqs_queue(stack, clients, max_receives=1) as queue:
        await queue.client.send_message(QueueUrl=queue.url, MessageBody="mine", MessageAttributes=attributes)

        assert await queue.broker.nack(await receive_one(queue.broker), 0)
        await queue.broker.close()

        async with stack.clients() as others:
            answer = await (await others.sqs()).receive_message(
                QueueUrl=queue.url, MessageAttributeNames=["All"], WaitTimeSeconds=LONG_POLL_S
            )
        (copy,) = answer["Messages"]
        kept = copy["MessageAttributes"]
        if len(attributes) < 10:  # there is room for one of ours
            assert kept.pop("firstSentAt")["StringValue"].isdecimal()
        assert kept == {name: value for name, value in attributes.items() if name != "firstSentAt"}
        assert copy["Body"] == "mine"


async def test_a_message_without_a_copy_is_kept_when_the_queue_takes_none(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients, max_receives=1) as queue:
        await queue.send("mine")
        delivery = await receive_one(queue.broker)

        def refuse(**_: Any) -> None:
            raise ConnectionResetError("cut")

        queue.client.meta.events.register("before-call.sqs.SendMessage", refuse)
        assert await queue.broker.nack(delivery, 0) is False
        queue.client.meta.events.unregister("before-call.sqs.SendMessage", refuse)

        assert await queue.broker.receive(1) == []  # LONG_POLL_S > VISIBILITY_S: it is still held
        assert await queue.broker.nack(delivery, 0) is True
        assert (await receive_one(queue.broker)).receive_count == 1


async def test_a_copy_is_sent_before_its_message_is_deleted(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients, max_receives=1) as queue:
        calls: list[str] = []
        queue.client.meta.events.register("before-call.sqs", lambda model, **_: calls.append(model.name))
        await queue.send("mine")

        await queue.broker.nack(await receive_one(queue.broker), 0)
        await queue.broker.close()

        settling = [name for name in calls if name in {"SendMessage", "DeleteMessageBatch"}]
        assert settling == ["SendMessage", "SendMessage", "DeleteMessageBatch"]  # the first is the test's own
        assert queue.requests["ChangeMessageVisibility"] == 0


async def test_a_redrive_policy_that_cannot_be_read_is_none(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients, max_receives=1) as queue:

        def refuse(**_: Any) -> None:
            raise ConnectionResetError("cut")

        queue.client.meta.events.register("before-call.sqs.GetQueueAttributes", refuse)
        await queue.send("mine")
        delivery = await receive_one(queue.broker)

        assert await queue.broker.nack(delivery, 1000)
        assert not queue.broker.is_last(delivery)
        assert queue.requests["SendMessage"] == 1  # the test's own


@pytest.mark.parametrize("policy", ["{[", "[]", "null", '"x"', "3", "", '{"maxReceiveCount": "x"}'])
async def test_a_redrive_policy_that_says_nothing_is_none(policy: str):
    delivery = sqs_messages.delivery_of({"MessageId": "m", "ReceiptHandle": "r"})
    broker = SqsBroker(None, "http://q/1/q", dlq_url=None, wait_s=0, visibility_s=30)
    broker._redrive._policy = policy_in({"Attributes": {"RedrivePolicy": policy}})

    assert not broker.is_last(delivery)


@pytest.mark.parametrize(("least", "warned"), [(10, False), (11, True)])
async def test_a_queue_that_moves_messages_away_early_is_warned_of_once(
    stack: EmbeddedStack, clients: AwsClients, least: int, *, warned: bool
):
    async with sqs_queue(stack, clients, max_receives=10, min_max_receive_count=least) as queue:
        with capture_logs() as logs:
            for _ in range(2):
                await queue.broker._redrive.read()

    said = [entry for entry in logs if entry["event"] == "maxReceiveCount too small"]
    assert [entry["should_be"] for entry in said] == [least] * warned


async def test_a_poll_of_a_fifo_queue_that_failed_is_the_same_poll_again(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients, fifo=True) as queue:
        polls: list[str] = []

        def note(params: dict[str, Any], **_: Any) -> None:
            polls.append(json.loads(params["body"])["ReceiveRequestAttemptId"])
            if len(polls) == 1:
                raise ConnectionResetError("cut")

        queue.client.meta.events.register("before-call.sqs.ReceiveMessage", note)
        await queue.send("mine", "g")
        with pytest.raises(BrokerError):
            await queue.broker.receive(1)
        await receive_one(queue.broker)
        await queue.broker.receive(1)

        assert polls[0] == polls[1]
        assert len(set(polls)) == 2


async def test_a_message_buried_twice_in_a_fifo_dead_letter_queue_is_there_once(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients, fifo=True) as queue:
        await queue.send("mine", "g")
        delivery = await receive_one(queue.broker)
        lease = queue.broker._leases.find(delivery)
        assert lease is not None
        for _ in range(2):  # as a worker does that died before it could delete it
            await queue.broker._send_dead_letter(queue.dlq_url, lease, "reason", 5)

        assert await queue.dead_letters() == [("mine", "reason")]


async def test_what_an_abandoned_poll_brings_for_the_last_time_is_buried_where_it_cannot_be_copied(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients, fifo=True, max_receives=1) as queue:
        polling = asyncio.Event()
        queue.client.meta.events.register("before-send.sqs.ReceiveMessage", lambda **_: polling.set())
        poll = asyncio.create_task(queue.broker.receive(10))
        async with asyncio.timeout(DEADLINE_S):
            await polling.wait()
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll
        await queue.send("mine", "g")

        await queue.broker.close()

        ((body, reason),) = await queue.dead_letters()
        assert (body, "last receipt" in reason) == ("mine", True)


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # 1 MiB: aiohttp's advice
async def test_a_message_of_the_largest_size_can_be_buried(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        body = "x" * 1024 * 1024
        await queue.send(body)

        assert await queue.broker.dead_letter(await receive_one(queue.broker), "too large to be read")

        (letter,) = await stack.queues.dead_letters(queue_url=queue.dlq_url)
        assert letter["body"] == body
        assert letter["attributes"] == {}  # they count toward the size


async def test_a_fifo_queue_buries_within_the_message_group(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients, fifo=True) as queue:
        await queue.client.send_message(
            QueueUrl=queue.url, MessageBody="poison", MessageGroupId="g1", MessageDeduplicationId="d1"
        )
        delivery = await receive_one(queue.broker)
        assert delivery.group_id == "g1"

        await queue.broker.dead_letter(delivery, "no requestId")

        answer = await queue.client.receive_message(
            QueueUrl=queue.dlq_url, MessageSystemAttributeNames=["All"]
        )
        assert answer["Messages"][0]["Attributes"]["MessageGroupId"] == "g1"


async def test_acknowledgements_travel_in_batches_of_ten(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        for number in range(25):
            await queue.send(str(number))
        deliveries = [await receive_one(queue.broker) for _ in range(25)]

        for delivery in deliveries:
            await queue.broker.ack(delivery)
        await queue.broker.close()

        assert queue.requests["DeleteMessageBatch"] == 3
        assert queue.requests["DeleteMessage"] == 0
        assert await queue.depth() == (0, 0, 0)


async def test_a_few_acknowledgements_do_not_wait_for_a_full_batch(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        await queue.send("one")
        await queue.broker.ack(await receive_one(queue.broker))

        await until(lambda: queue.requests["DeleteMessageBatch"] == 1)


async def test_leases_are_renewed_in_batches_of_ten(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        for number in range(12):
            await queue.send(str(number))
        renewed: list[int] = []

        def note(params: dict[str, Any], **_: Any) -> None:
            renewed.append(len(json.loads(params["body"])["Entries"]))

        queue.client.meta.events.register("before-call.sqs.ChangeMessageVisibilityBatch", note)
        for _ in range(12):
            await receive_one(queue.broker)
        held = len(queue.broker._leases)
        renewed.clear()

        await until(lambda: len(renewed) >= 4)

        assert held == 12
        assert renewed[:2] in ([10, 2], [2, 10])


async def test_a_renewal_under_way_does_not_overtake_a_message_given_back(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients) as queue:
        renewing, go_on = asyncio.Event(), asyncio.Event()

        async def hold(**_: Any) -> None:
            renewing.set()
            await go_on.wait()

        queue.client.meta.events.register("before-call.sqs.ChangeMessageVisibilityBatch", hold)
        await queue.send("again")
        delivery = await receive_one(queue.broker)
        async with asyncio.timeout(DEADLINE_S):
            await renewing.wait()

        giving_back = asyncio.create_task(queue.broker.nack(delivery, 1000))
        await asyncio.sleep(0)
        assert queue.requests["ChangeMessageVisibility"] == 0
        go_on.set()
        await giving_back

        assert queue.requests["ChangeMessageVisibility"] == 1
        assert await queue.broker.receive(10) == []


async def test_a_lease_is_renewed_for_twelve_hours_at_most(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        await queue.send("endless")
        delivery = await receive_one(queue.broker)

        lease = queue.broker._leases.find(delivery)
        assert lease is not None
        lease.held_since -= 12 * 3600

        async with asyncio.timeout(DEADLINE_S):
            assert "12 h" in await delivery.lost
        assert (await receive_one(queue.broker)).receive_count == 2


async def test_a_lease_that_cannot_be_renewed_is_lost_before_anyone_else_can_have_the_message(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients) as queue, stack.clients() as others:

        async def never_arrive(**_: Any) -> None:
            await asyncio.Event().wait()

        queue.client.meta.events.register("before-call.sqs.ChangeMessageVisibilityBatch", never_arrive)
        await queue.send("held")
        delivery = await receive_one(queue.broker)
        other = await others.sqs()
        async with asyncio.timeout(DEADLINE_S):
            while not (await other.receive_message(QueueUrl=queue.url, WaitTimeSeconds=1)).get("Messages"):
                pass
        assert "in time" in delivery.lost.result()


async def test_a_renewal_that_is_throttled_does_not_lose_the_lease(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        refused: list[None] = []

        def throttle(parsed: dict[str, Any], **_: Any) -> None:
            refused.append(None)
            parsed["Failed"] = [{"Id": "0", "SenderFault": True, "Code": "RequestThrottled"}]
            parsed["Successful"] = []

        queue.client.meta.events.register("after-call.sqs.ChangeMessageVisibilityBatch", throttle)
        await queue.send("held")
        delivery = await receive_one(queue.broker)
        await until(lambda: bool(refused))

        assert queue.broker._leases.find(delivery) is not None
        async with asyncio.timeout(DEADLINE_S):
            assert "in time" in await delivery.lost  # it was never granted more


async def test_renewals_go_on_after_one_failed(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        attempts: list[None] = []

        def fail_once(**_: Any) -> None:
            attempts.append(None)
            if len(attempts) == 1:
                raise ConnectionResetError("cut")

        queue.client.meta.events.register("before-call.sqs.ChangeMessageVisibilityBatch", fail_once)
        await queue.send("held")
        await receive_one(queue.broker)

        assert await queue.broker.receive(10) == []
        assert len(attempts) >= 2


async def test_a_delete_that_fails_is_tried_again_for_as_long_as_a_visibility_timeout(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients) as queue:
        queue.broker._deletions._retry_s = 30
        attempts: list[None] = []

        def fail_for_a_while(**_: Any) -> None:
            attempts.append(None)
            if len(attempts) <= 4:
                raise ConnectionResetError("cut")

        queue.client.meta.events.register("before-call.sqs.DeleteMessageBatch", fail_for_a_while)
        await queue.send("done")
        await queue.broker.ack(await receive_one(queue.broker))
        await queue.broker.close()

        assert len(attempts) == 5
        assert await queue.depth() == (0, 0, 0)


async def test_a_delete_that_fails_for_good_lets_the_message_come_again(
    stack: EmbeddedStack, clients: AwsClients
):
    async with sqs_queue(stack, clients) as queue:

        def fail(**_: Any) -> None:
            raise ConnectionResetError("cut")

        queue.client.meta.events.register("before-call.sqs.DeleteMessageBatch", fail)
        await queue.send("done")
        await queue.broker.ack(await receive_one(queue.broker))

        assert (await receive_one(queue.broker)).receive_count == 2


async def test_what_an_abandoned_poll_brings_is_given_back(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        polling = asyncio.Event()
        queue.client.meta.events.register("before-send.sqs.ReceiveMessage", lambda **_: polling.set())
        poll = asyncio.create_task(queue.broker.receive(10))
        async with asyncio.timeout(DEADLINE_S):
            await polling.wait()
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll
        await queue.send("stranded?")

        await queue.broker.close()

        visible, in_flight, _ = await queue.depth()
        assert (visible, in_flight) == (1, 0)
        assert queue.requests["ChangeMessageVisibility"] == 1


async def test_a_queue_that_fails_is_a_broker_error(
    stack: EmbeddedStack, clients: AwsClients, unused_tcp_port: int
):
    clients.endpoint_url = f"http://127.0.0.1:{unused_tcp_port}"
    url = f"{clients.endpoint_url}/123456789012/nothing"
    broker = SqsBroker(await clients.sqs(), url, dlq_url=None, wait_s=0, visibility_s=30)

    with pytest.raises(BrokerError, match=url):
        await broker.receive(1)
    with pytest.raises(BrokerError, match=url):
        await broker.redrives()
    await broker.close()


async def test_a_queue_that_never_completes_an_answer_is_given_up(stack: EmbeddedStack):
    """A worker would take no more jobs, and say that it is ready."""
    async with slow_server("answer's body without end") as url, asyncio.timeout(DEADLINE_S):
        clients = stack.clients()
        clients.endpoint_url = url
        async with clients:
            queue_url = f"{url}/123456789012/nothing"
            broker = SqsBroker(
                await clients.sqs(), queue_url, dlq_url=None, wait_s=0, visibility_s=30, call_timeout_s=0.5
            )
            with pytest.raises(BrokerError, match="not done within"):
                await broker.receive(1)
            with pytest.raises(BrokerError, match="not done within"):
                await broker.redrives()
            await broker.close()


async def test_a_failed_burial_leaves_the_delivery_unsettled(stack: EmbeddedStack, clients: AwsClients):
    async with sqs_queue(stack, clients) as queue:
        await queue.send("poison")
        delivery = await receive_one(queue.broker)
        await queue.client.delete_queue(QueueUrl=queue.dlq_url)

        with pytest.raises(BrokerError):
            await queue.broker.dead_letter(delivery, "no requestId")
        await queue.broker.nack(delivery, 0)

        assert (await receive_one(queue.broker)).receive_count == 2


# --- in memory alone


async def test_a_lapsed_lease_lets_the_message_come_again_after_the_visibility_timeout():
    now = [0.0]
    broker = MemoryBroker(visibility_s=30, wait_s=0, clock=lambda: now[0])
    await broker.send("crash")
    (delivery,) = await broker.receive(1)

    broker.lapse(delivery)
    now[0] = 29.9
    assert await broker.receive(1) == []
    now[0] = 30.0

    (again,) = await broker.receive(1)
    assert again.receive_count == 2


async def test_a_message_received_too_often_is_redriven():
    broker = MemoryBroker(wait_s=0, max_receives=2)
    await broker.send("poison")
    for _ in range(2):
        (delivery,) = await broker.receive(1)
        await broker.nack(delivery, 0, poison=True)

    assert await broker.receive(1) == []
    assert broker.redriven == ["poison"]
