"""The SQS queue that a broker uses: its client, its URL, and the time limit of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nanoagent.aws import failures as aws_failures
from nanoagent.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

BATCH_SIZE: Final = 10
"""The largest number of entries in a batch request (Amazon SQS quotas)."""

_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class SqsQueue:
    """One SQS queue.

    Attributes:
        client: An aiobotocore SQS client.
        url: The queue's URL.
        call_timeout_s: The longest that a call may take, with the client's retries, seconds.
    """

    client: Any
    url: str
    call_timeout_s: float

    @property
    def is_fifo(self) -> bool:
        """Whether the queue is a FIFO queue; the names of all FIFO queues end in `.fifo`."""
        return self.url.endswith(".fifo")

    @property
    def name(self) -> str:
        """The queue's name, the last part of the URL."""
        return self.url.rsplit("/", 1)[-1]

    def call(self, operation: str) -> AbstractAsyncContextManager[None]:
        """Limit the calls in the block to `call_timeout_s`, and raise their failures as `BrokerError`.

        Args:
            operation: The start of the error message, for example `receive from <url>`.
        """
        return aws_failures.deadline(self.call_timeout_s, BrokerError, operation)


def in_batches(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """Split the entries into lists of at most `BATCH_SIZE`."""
    everything = list(entries)
    for start in range(0, len(everything), BATCH_SIZE):
        yield everything[start : start + BATCH_SIZE]


def failed_entries(
    answer: Mapping[str, Any], batch: Sequence[_Entry]
) -> Iterator[tuple[_Entry, Mapping[str, Any]]]:
    """Return the failed entries of a batch request, each with SQS's description of its failure.

    The request must use each entry's position in the batch as the entry's Id.
    """
    for failure in answer.get("Failed", []):
        yield batch[int(failure["Id"])], failure
