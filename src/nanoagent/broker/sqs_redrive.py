"""The redrive policy of an SQS queue: after how many receipts SQS moves a message, and to which queue."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.broker.sqs_messages import MAX_RECEIVE_COUNT, bounded_int
from nanoagent.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanoagent.broker.sqs_queue import SqsQueue

_REFRESH_S: Final = 300.0  # a change of maxReceiveCount is noticed within this time
_RETRY_S: Final = 30.0
_FIRST_READ_MAX_S: Final = 5.0

_log = structlog.get_logger(__name__)


class RedrivePolicy:
    """The redrive policy as of the last read.

    Args:
        queue: The queue.
        dlq_url: The dead-letter queue's URL; None to use the target of the policy.
        min_max_receive_count: Log a warning if maxReceiveCount is smaller.
    """

    def __init__(self, queue: SqsQueue, *, dlq_url: str | None, min_max_receive_count: int) -> None:
        self._queue = queue
        self._dlq_url = dlq_url
        self._min_max_receive_count = min_max_receive_count
        self._policy: dict[str, Any] | None = None
        self._read_once = asyncio.Event()

    @property
    def max_receives(self) -> int | None:
        """The policy's maxReceiveCount; None if the queue has no policy or it was not read yet."""
        return bounded_int(1, (self._policy or {}).get("maxReceiveCount"), MAX_RECEIVE_COUNT)

    async def exists(self) -> bool:
        """Whether the queue has a redrive policy; read from SQS only if no earlier read has succeeded.

        Raises:
            BrokerError: The policy could not be read.
        """
        return bool(await self._cached())

    async def dead_letter_url(self) -> str | None:
        """Return the URL of the dead-letter queue; None if there is no such queue.

        Raises:
            BrokerError: The policy could not be read, or its target was not found.
        """
        if self._dlq_url is None:
            arn = (await self._cached()).get("deadLetterTargetArn")
            if arn is None:
                return None
            account, name = str(arn).split(":")[-2:]  # arn:aws:sqs:region:account:name
            async with self._queue.call(f"find the dead-letter queue {arn}"):
                answer = await self._queue.client.get_queue_url(
                    QueueName=name, QueueOwnerAWSAccountId=account
                )
            self._dlq_url = str(answer["QueueUrl"])
        return self._dlq_url

    async def read(self) -> dict[str, Any]:
        """Read the policy from SQS; returns it, empty if the queue has none.

        Raises:
            BrokerError: The policy could not be read.
        """
        async with self._queue.call(f"read the attributes of {self._queue.url}"):
            answer = await self._queue.client.get_queue_attributes(
                QueueUrl=self._queue.url, AttributeNames=["RedrivePolicy"]
            )
        before, self._policy = self._policy, policy_in(answer)
        most = self.max_receives
        if self._policy != before and most is not None and most < self._min_max_receive_count:
            _log.warning(
                "maxReceiveCount too small",
                queue=self._queue.url,
                max_receive_count=most,
                should_be=self._min_max_receive_count,
            )
        return self._policy

    async def watch_forever(self) -> None:
        """Keep the policy up to date, so that a drain does not have to wait for SQS's answer."""
        while True:
            pause_s = _REFRESH_S
            try:
                await self.read()
            except BrokerError as exc:
                _log.warning("redrive policy not read", reason=str(exc))
                pause_s = _RETRY_S
            self._read_once.set()
            await asyncio.sleep(pause_s)

    async def wait_for_first_read(self) -> None:
        """Wait, for at most 5 seconds, until `watch_forever` has tried once to read the policy."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_READ_MAX_S):
                await self._read_once.wait()

    async def _cached(self) -> dict[str, Any]:
        return await self.read() if self._policy is None else self._policy


def policy_in(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the redrive policy in an answer to GetQueueAttributes; empty if it is missing or invalid."""
    try:
        policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy") or "{}")
    except ValueError:
        return {}
    return policy if isinstance(policy, dict) else {}
