"""Watches for the announced end of this EC2 instance, in the instance metadata.

Every few seconds the watcher reads three items. It uses version 2 of the metadata service, which requires a
token.

* the interruption notice of a spot instance, two minutes before its end;
* the target state of the instance in its Auto Scaling group;
* the rebalance recommendation: a higher risk of an interruption. It is only logged.

Paths and answers are those of "Spot Instance interruption notices", "Retrieve the target lifecycle state
through instance metadata" and "EC2 instance rebalance recommendations" in the AWS documentation. Failures and
invalid answers of the service are logged, and have no other effect on the worker.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

import aiohttp
import structlog

from nanoagent.common.backoff import pause_s
from nanoagent.model.errors import ConfigError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType


POLL_S: Final = 5.0
"""The time between two polls, seconds. AWS recommends this value for interruption notices."""

_ENDPOINTS: Final = {"ipv4": "http://169.254.169.254", "ipv6": "http://[fd00:ec2::254]"}
_TOKENS: Final = "/latest/api/token"
_SPOT: Final = "/latest/meta-data/spot/instance-action"
_REBALANCE: Final = "/latest/meta-data/events/recommendations/rebalance"
_LIFECYCLE: Final = "/latest/meta-data/autoscaling/target-lifecycle-state"
_TOKEN_TTL_S: Final = 21_600  # the maximum
_ANSWER_MAX_S: Final = 2.0  # the service is link-local, and usually answers within milliseconds
_ANSWER_MAX_BYTES: Final = 4096  # a token has 56 bytes, the longest answer about 100
_LONGEST_PAUSE_S: Final = 30.0  # a spot notice comes two minutes before the end

_SPOT_ACTIONS: Final = frozenset({"terminate", "stop", "hibernate"})
# Target states of Auto Scaling in which the instance continues to run, and those in which it does not.
_RUNNING_STATES: Final = frozenset({"InService", "Standby", "Detached", "Warmed:Running"})
_ENDING_STATES: Final = frozenset({"Terminated", "Warmed:Terminated", "Warmed:Stopped", "Warmed:Hibernated"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class InterruptionNotice:
    """The announcement that the instance will be stopped or terminated.

    Attributes:
        reason: The reason, one sentence.
        ends_at: The end of the instance, Unix epoch seconds; None if the notice has no time.
    """

    reason: str
    ends_at: float | None = None

    def grace_s(self, now: float, reserve_s: float) -> float | None:
        """Return how long jobs may still run, seconds; None if the notice sets no limit.

        Args:
            now: The time, Unix epoch seconds.
            reserve_s: The time to return the remaining jobs to the queue afterwards, seconds.
        """
        return None if self.ends_at is None else max(0.0, self.ends_at - now - reserve_s)


class MetadataError(Exception):
    """The metadata service did not answer, or gave an invalid answer."""


def endpoint_of(environment: Mapping[str, str]) -> str | None:
    """Return the URL of the metadata service.

    The variables of the AWS SDK decide; None if they disable the service.

    Raises:
        ConfigError: A variable is invalid.
    """
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    mode = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() or "ipv4"
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "") or _ENDPOINTS.get(mode)
    if endpoint is None:
        raise ConfigError([f"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE: is {mode!r}; it should be IPv4 or IPv6"])
    if not _is_url(endpoint):
        problem = "should be a URL that starts with http:// or https://, or not be set"
        raise ConfigError([f"AWS_EC2_METADATA_SERVICE_ENDPOINT: {problem}"])
    return endpoint.rstrip("/")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class InterruptionWatcher:
    """Polls the instance metadata service of EC2.

    Args:
        endpoint: The service's URL, without a slash at the end.
        poll_s: The time between two polls, seconds.
    """

    def __init__(self, endpoint: str, *, poll_s: float = POLL_S) -> None:
        self._endpoint = endpoint
        self._poll_s = poll_s
        self._token = ""
        self._failed_polls = 0  # in a row
        self._rebalance_recommended = False

    async def __aenter__(self) -> Self:
        # By default, aiohttp ignores the proxy variables, so no proxy is used. A proxy would read the
        # metadata of its own machine.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_ANSWER_MAX_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def watch(self, notify: Callable[[InterruptionNotice], object]) -> None:
        """Poll forever; call `notify` for each new notice, and again if the time of a notice changes."""
        last: InterruptionNotice | None = None
        while True:
            notice = await self.poll()
            if notice is not None and notice != last:
                notify(notice)
            last = notice or last
            await self.pause()

    async def pause(self) -> None:
        """Wait until the next poll is due. The pause grows while polls fail."""
        longest_s = max(self._poll_s, _LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s(self._failed_polls + 1, first_s=self._poll_s, longest_s=longest_s))

    async def poll(self) -> InterruptionNotice | None:
        """Read the metadata once; returns the notice, None without one.

        If several polls in a row fail, only the first failure is logged. The next success is logged, too.
        """
        try:
            notice = spot_notice(await self._get(_SPOT)) or lifecycle_notice(await self._get(_LIFECYCLE))
            recommended = await self._get(_REBALANCE) is not None
        except MetadataError as exc:
            if not self._failed_polls:
                log.warning("interruption notices not received", reason=str(exc))
            self._failed_polls += 1
            return None
        if self._failed_polls:
            log.info("interruption notices received again")
            self._failed_polls = 0
        if recommended and not self._rebalance_recommended:
            log.warning("rebalance recommendation", effect="the instance is at a higher risk of interruption")
        self._rebalance_recommended = recommended
        return notice

    # --- the service

    async def _get(self, path: str) -> str | None:
        """Return an item of the metadata; None if it does not exist.

        Raises:
            MetadataError: The item could not be read.
        """
        status, text = await self._ask_with_token(path)
        if status == 401:  # the token has expired, or the service was restarted
            self._token = ""
            status, text = await self._ask_with_token(path)
        if status == 404:
            return None
        if status != 200:
            raise MetadataError(f"{self._endpoint}{path} answered {status}")
        return text

    async def _ask_with_token(self, path: str) -> tuple[int, str]:
        if not self._token:
            self._token = await self._new_token()
        return await self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})

    async def _new_token(self) -> str:
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
        status, token = await self._ask("PUT", _TOKENS, ttl)
        # A header can contain only one line of printable text.
        if status != 200 or not token or not (token.isascii() and token.isprintable()):
            raise MetadataError(f"{self._endpoint}{_TOKENS} answered {status} and gave no token")
        return token

    async def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Send a request; returns the status and the text of the answer.

        Raises:
            MetadataError: The service did not answer in time, or the answer was too long.
        """
        url = f"{self._endpoint}{path}"
        body = b""
        try:
            async with self._session.request(method, url, headers=headers, allow_redirects=False) as response:
                async for chunk in response.content.iter_chunked(_ANSWER_MAX_BYTES):
                    body += chunk
                    if len(body) > _ANSWER_MAX_BYTES:
                        raise MetadataError(f"{url} answered with more than {_ANSWER_MAX_BYTES} bytes")
                return response.status, body.decode(errors="replace").strip()
        except TimeoutError as exc:
            hint = "; in a container, the instance's hop limit for metadata must be 2 or more"
            raise MetadataError(f"{url} did not answer within {_ANSWER_MAX_S:g} s{hint}") from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise MetadataError(f"{url}: {one_line(str(exc)) or type(exc).__name__}") from exc


# --- parse answers


def spot_notice(text: str | None) -> InterruptionNotice | None:
    """Return the notice in the metadata item `spot/instance-action`; None if the item does not exist.

    Args:
        text: The item, for example `{"action": "stop", "time": "2017-09-18T08:22:00Z"}`.

    Raises:
        MetadataError: The item is invalid.
    """
    if text is None:
        return None
    try:
        answer = json.loads(text)
        action, time = str(answer["action"]), datetime.fromisoformat(str(answer["time"]))
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise MetadataError(f"spot/instance-action is invalid: {one_line(text[:80])}") from exc
    if action not in _SPOT_ACTIONS:
        raise MetadataError(f"spot/instance-action is invalid: {one_line(text[:80])}")
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    reason = f"EC2 is about to {action} this spot instance, at {time.isoformat()}"
    return InterruptionNotice(reason, time.timestamp())


def lifecycle_notice(text: str | None) -> InterruptionNotice | None:
    """Return the notice in the metadata item `autoscaling/target-lifecycle-state`.

    Args:
        text: The target state of the instance in its Auto Scaling group; None outside a group.

    Returns:
        None if the instance continues to run in the target state.

    Raises:
        MetadataError: The state is unknown.
    """
    if text is None or text in _RUNNING_STATES:
        return None
    if text not in _ENDING_STATES:
        raise MetadataError(f"autoscaling/target-lifecycle-state is unknown: {one_line(text[:80])}")
    return InterruptionNotice(f"the Auto Scaling group takes this instance out: its target state is {text}")
