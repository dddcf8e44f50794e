"""Sends the peak memory of runs to CloudWatch, in batches, in the background.

The values are grouped by function, runtime and minute. One call per job would cost thousands of times as
much as one call per minute, and would delay jobs. A call that fails is repeated once. If it fails again, its
values are counted as dropped, and discarded. No error of this module reaches a job.

The limits are from the Amazon CloudWatch API Reference. PutMetricData: 1,000 datums per call, 150 values
per datum, 1 MB per call. Dimension: values of 1 to 1,024 ASCII characters, not blank.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from urllib.parse import quote

import structlog

from nanoagent.host.background import Background, TaskName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nanoagent.telemetry.metrics import Metrics

NAMESPACE: Final = "NanoGrid/FunctionRunner"
METRIC: Final = "PeakMemoryBytes"

MAX_DATUMS_PER_CALL: Final = 1000
MAX_VALUES_PER_DATUM: Final = 150
MAX_CALL_BYTES: Final = 900_000  # below 1 MB, because `_estimated_bytes` is not exact
MAX_SERIES: Final = 2000
"""The number of series (function, runtime, minute) that are kept between two flushes."""
MAX_VALUES: Final = 20_000
"""The number of distinct values that all series keep between two flushes: about 2 MB of memory."""

_CLOSE_SECONDS: Final = 3.0  # a stopping worker needs its grace period for jobs
_SEND_SECONDS: Final = 30.0  # botocore retries a dead endpoint for minutes
_MAX_DIMENSION_LENGTH: Final = 1024
_PRINTABLE_ASCII: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
# The query protocol writes `MetricData.member.1000.Values.member.150=1073741824.0&` for a value, and about as
# many bytes for its count. Names, unit, timestamp and dimensions take about 500 bytes. An escaped `%` takes
# three bytes.
_BYTES_PER_VALUE: Final = 110
_BYTES_PER_DATUM: Final = 600
_BYTES_PER_CHARACTER: Final = 3

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Datum:
    """The peak memory of the runs of one function in one minute.

    Attributes:
        function_id: The function ID of the jobs.
        runtime: The runtime of the jobs.
        minute: The start of the minute, Unix epoch seconds.
        values: Distinct peaks, bytes; at most `MAX_VALUES_PER_DATUM`.
        counts: The number of runs with each peak.
    """

    function_id: str
    runtime: str
    minute: int
    values: tuple[int, ...]
    counts: tuple[int, ...]


class Sender(Protocol):
    """Sends datums to a service that stores them."""

    async def send(self, data: Sequence[Datum]) -> None:
        """Send all datums in one call. An exception means that the service stored none of them."""
        ...


class CloudWatchSender:
    """Sends datums with PutMetricData.

    Args:
        client: An aiobotocore client for `cloudwatch`; the caller closes it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(self, data: Sequence[Datum]) -> None:
        """See `Sender`. Exceptions of the client are passed on."""
        await self._client.put_metric_data(
            Namespace=NAMESPACE, MetricData=[_metric_datum(datum) for datum in data]
        )


class PeakMemoryReporter:
    """Collects peaks and sends them at intervals; `async with` starts and closes it.

    Args:
        sender: Sends the datums.
        interval_s: The time between two flushes, seconds.
        metrics: Counts failed calls and dropped values.
        background: Runs the task that flushes.
    """

    def __init__(
        self, sender: Sender, interval_s: float, metrics: Metrics, background: Background | None = None
    ) -> None:
        self._sender = sender
        self._interval_s = interval_s
        self._metrics = metrics
        self._background = background or Background()
        self._gathered: defaultdict[tuple[str, str, int], dict[int, int]] = defaultdict(dict)
        self._distinct_values = 0
        # The calls of a running flush. The boolean is True if this is the last try of the call.
        self._outgoing: deque[tuple[list[Datum], bool]] = deque()
        self._failed: list[Datum] = []  # sent again by the next flush
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def record(self, function_id: str, runtime: str, peak_bytes: int, at: float) -> None:
        """Record the peak of one run. The call does not wait, and the memory for the values is bounded.

        Args:
            function_id: The function ID of the job.
            runtime: The runtime of the job.
            peak_bytes: The peak memory of the run, bytes.
            at: The end of the run, Unix epoch seconds.
        """
        series = (function_id, runtime, int(at // 60) * 60)
        counts = self._gathered.get(series)
        if counts is not None and peak_bytes in counts:
            counts[peak_bytes] += 1
            return
        series_full = counts is None and len(self._gathered) >= MAX_SERIES
        if series_full or self._distinct_values >= MAX_VALUES:
            self._metrics.worker.cloudwatch_dropped(1)
            return
        self._gathered[series][peak_bytes] = 1
        self._distinct_values += 1

    async def flush(self) -> None:
        """Send all collected values, and repeat the calls that failed in the last flush. Never raises."""
        self._outgoing.extend((call, True) for call in calls(self._failed))
        self._outgoing.extend((call, False) for call in calls(self._take()))
        self._failed = []
        while self._outgoing:
            call, is_last_try = self._outgoing[0]
            sent = await self._sent(call)
            self._outgoing.popleft()
            if not sent and is_last_try:
                self._metrics.worker.cloudwatch_dropped(_count(call))
            elif not sent:
                self._failed += call

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def start(self) -> None:
        """Start flushing in the background."""
        if self._task is None:
            flush = self._flush_forever
            self._task = self._background.keep(TaskName.CLOUDWATCH, flush, until=self._closing)

    async def close(self) -> None:
        """Send the remaining values, within three seconds, and stop. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        self._closing.set()
        await asyncio.wait([task], timeout=_CLOSE_SECONDS)
        if task.cancel():
            _log.warning("peak memory not sent before the end")
            await asyncio.wait([task])
        self._metrics.worker.cloudwatch_dropped(self._count_unsent())

    def _count_unsent(self) -> int:
        gathered = sum(sum(counts.values()) for counts in self._gathered.values())
        return gathered + _count(self._failed) + sum(_count(call) for call, _ in self._outgoing)

    async def _flush_forever(self) -> None:
        while not self._closing.is_set():
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._closing.wait()
            except TimeoutError:
                await self.flush()
        await self.flush()

    async def _sent(self, call: Sequence[Datum]) -> bool:
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._sender.send(call)
        except Exception as exc:  # noqa: BLE001 - the contract: a failure of CloudWatch never fails a job
            self._metrics.worker.cloudwatch_failed()
            _log.warning("peak memory not sent", datums=len(call), error=repr(exc))
            return False
        return True

    def _take(self) -> list[Datum]:
        gathered, self._gathered = self._gathered, defaultdict(dict)
        self._distinct_values = 0
        return [datum for series, counts in gathered.items() for datum in _split(series, counts)]


def calls(data: Iterable[Datum]) -> Iterator[list[Datum]]:
    """Distribute datums over calls that are within the limits of PutMetricData."""
    call: list[Datum] = []
    size = 0
    for datum in data:
        added = _estimated_bytes(datum)
        if call and (len(call) >= MAX_DATUMS_PER_CALL or size + added > MAX_CALL_BYTES):
            yield call
            call, size = [], 0
        call.append(datum)
        size += added
    if call:
        yield call


def dimension_value(text: str) -> str:
    """Return a text as a value that CloudWatch accepts. Different texts have different values.

    The exception is the empty text: its value is `unknown`, as that of the text `unknown`. No job has an
    empty function ID: `model.message` refuses it, and `unknown` is the default.

    Space, `%` and all characters outside printable ASCII are percent-encoded in UTF-8. A value of more than
    1,024 characters is cut. It ends with `%#` and 128 bits of its SHA-256. Percent-encoding never makes `%#`.
    """
    encoded = quote(text, safe=_PRINTABLE_ASCII, errors="surrogatepass")
    if len(encoded) > _MAX_DIMENSION_LENGTH:
        digest = hashlib.sha256(encoded.encode()).hexdigest()[:32]
        encoded = f"{encoded[: _MAX_DIMENSION_LENGTH - 34]}%#{digest}"
    return encoded or "unknown"


def _metric_datum(datum: Datum) -> dict[str, Any]:
    """Return a datum as a MetricDatum of the API."""
    return {
        "MetricName": METRIC,
        "Unit": "Bytes",
        "Timestamp": datetime.fromtimestamp(datum.minute, UTC),
        "Dimensions": [
            {"Name": "FunctionId", "Value": dimension_value(datum.function_id)},
            {"Name": "Runtime", "Value": dimension_value(datum.runtime)},
        ],
        "Values": list(datum.values),
        "Counts": list(datum.counts),
    }


def _split(series: tuple[str, str, int], counts: dict[int, int]) -> Iterator[Datum]:
    function_id, runtime, minute = series
    items = iter(counts.items())
    while part := tuple(islice(items, MAX_VALUES_PER_DATUM)):
        values, seen = zip(*part, strict=True)
        yield Datum(function_id, runtime, minute, values, seen)


def _estimated_bytes(datum: Datum) -> int:
    names = len(dimension_value(datum.function_id)) + len(dimension_value(datum.runtime))
    return _BYTES_PER_DATUM + _BYTES_PER_CHARACTER * names + _BYTES_PER_VALUE * len(datum.values)


def _count(data: Sequence[Datum]) -> int:
    return sum(sum(datum.counts) for datum in data)
