"""The SQS queues of the embedded stack."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Final

from nanoagent.dev.local_services.calls import with_shared_clients

if TYPE_CHECKING:
    from nanoagent.dev.local_services.calls import ServiceCalls

_VISIBILITY_S: Final = 30
_MAX_RECEIVES: Final = 10


class LocalQueues:
    """The queues of SQS. All methods are coroutines and may be called from any event loop.

    Args:
        calls: Runs the calls.

    Attributes:
        url: The URL of the worker's queue. The queue's visibility timeout is 30 s, and messages are
            dead-lettered after 10 receipts.
        dead_letter_url: The URL of the worker's dead-letter queue.
    """

    def __init__(self, calls: ServiceCalls) -> None:
        self.url = ""
        self.dead_letter_url = ""
        self._calls = calls
        self._numbers = itertools.count(1)

    async def create(self) -> None:
        """Create the queue of the worker and its dead-letter queue."""
        self.dead_letter_url = await self._create("nanoagent-dead-letters", {})
        policy = await self.redrive_policy(self.dead_letter_url)
        attributes = {"VisibilityTimeout": str(_VISIBILITY_S), "RedrivePolicy": policy}
        self.url = await self._create("nanoagent-jobs", attributes)

    async def new(self, **attributes: str) -> str:
        """Create an additional queue; return its URL.

        Args:
            **attributes: Attributes of SQS's CreateQueue, such as `VisibilityTimeout="2"` and
                `FifoQueue="true"`.
        """
        suffix = ".fifo" if attributes.get("FifoQueue") == "true" else ""
        return await self._create(f"queue-{next(self._numbers)}{suffix}", attributes)

    @with_shared_clients
    async def redrive_policy(self, dead_letter_url: str, *, max_receives: int = _MAX_RECEIVES) -> str:
        """Return the `RedrivePolicy` attribute of a queue with this dead-letter queue."""
        client = await self._calls.clients.sqs()
        answer = await client.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])
        return json.dumps(
            {"deadLetterTargetArn": answer["Attributes"]["QueueArn"], "maxReceiveCount": max_receives}
        )

    @with_shared_clients
    async def send(self, body: str, *, queue_url: str | None = None) -> str:
        """Send a message, by default to the queue of the worker; return the message ID."""
        client = await self._calls.clients.sqs()
        answer = await client.send_message(QueueUrl=queue_url or self.url, MessageBody=body)
        return str(answer["MessageId"])

    @with_shared_clients
    async def depth(self, *, queue_url: str | None = None) -> tuple[int, int, int]:
        """Return how many messages are visible, in flight and delayed."""
        names = ("", "NotVisible", "Delayed")
        client = await self._calls.clients.sqs()
        answer = await client.get_queue_attributes(QueueUrl=queue_url or self.url, AttributeNames=["All"])
        counts = [int(answer["Attributes"][f"ApproximateNumberOfMessages{name}"]) for name in names]
        return counts[0], counts[1], counts[2]

    @with_shared_clients
    async def dead_letters(self, *, queue_url: str | None = None) -> list[dict[str, Any]]:
        """Read the messages of a dead-letter queue, and leave them there.

        Returns:
            For each message its `message_id`, `body` and `attributes` (name → text), the oldest first.
        """
        url = queue_url or self.dead_letter_url
        messages: list[dict[str, Any]] = []
        client = await self._calls.clients.sqs()
        while batch := (await _receive(client, url)).get("Messages"):
            messages += batch
        for message in messages:
            await client.change_message_visibility(
                QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
            )
        return [_as_dead_letter(message) for message in messages]

    @with_shared_clients
    async def _create(self, name: str, attributes: dict[str, str]) -> str:
        answer = await (await self._calls.clients.sqs()).create_queue(QueueName=name, Attributes=attributes)
        return str(answer["QueueUrl"])


async def _receive(client: Any, queue_url: str) -> Any:
    return await client.receive_message(
        QueueUrl=queue_url,
        MaxNumberOfMessages=10,
        VisibilityTimeout=_VISIBILITY_S,
        WaitTimeSeconds=0,
        MessageAttributeNames=["All"],
    )


def _as_dead_letter(message: dict[str, Any]) -> dict[str, Any]:
    attributes = message.get("MessageAttributes", {})
    return {
        "message_id": message["MessageId"],
        "body": message["Body"],
        "attributes": {name: value.get("StringValue", "") for name, value in attributes.items()},
    }
