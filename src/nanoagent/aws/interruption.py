"""What the cloud says of the machine's end: EC2's instance metadata, asked every few seconds.

Three things are asked for, by version 2 of the service (a token first): that a spot instance is about to be
taken back, two minutes ahead; that an Auto Scaling group takes the instance out; and that it is at a higher
risk of the former, which is only logged. Paths and answers are those of "Spot Instance interruption notices",
"Retrieve the target lifecycle state through instance metadata" and "EC2 instance rebalance recommendations"
in the AWS documentation. Whatever the service does, or something in its place, the worker is not disturbed.
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
"""What AWS recommends for interruption notices."""

_ENDPOINTS: Final = {"ipv4": "http://169.254.169.254", "ipv6": "http://[fd00:ec2::254]"}
_TOKENS: Final = "/latest/api/token"
_SPOT: Final = "/latest/meta-data/spot/instance-action"
_REBALANCE: Final = "/latest/meta-data/events/recommendations/rebalance"
_LIFECYCLE: Final = "/latest/meta-data/autoscaling/target-lifecycle-state"
_TOKEN_TTL_S: Final = 21_600  # the longest there is
_ANSWER_MAX_S: Final = 2.0  # it is link-local: milliseconds are usual
_ANSWER_MAX_BYTES: Final = 4096  # a token has 56, the longest answer about 100
_PAUSE_MAX_S: Final = 30.0  # of the two minutes that a notice comes ahead, enough are left

_SPOT_ACTIONS: Final = frozenset({"terminate", "stop", "hibernate"})
_STAYS: Final = frozenset({"InService", "Standby", "Detached", "Warmed:Running"})
_GOES: Final = frozenset({"Terminated", "Warmed:Terminated", "Warmed:Stopped", "Warmed:Hibernated"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class InterruptionNotice:
    """The machine is going to end.

    Attributes:
        reason: One sentence for a person.
        ends_at: When, Unix epoch seconds; None when that is not said.
    """

    reason: str
    ends_at: float | None = None

    def grace_s(self, now: float, reserve_s: float) -> float | None:
        """How long jobs may still run.

        Args:
            now: Unix epoch seconds.
            reserve_s: What has to be left then for giving back what still runs, seconds.

        Returns:
            Seconds; None when the notice does not limit it.
        """
        return None if self.ends_at is None else max(0.0, self.ends_at - now - reserve_s)


class MetadataError(Exception):
    """The service did not answer, or not what it should."""


def endpoint_of(environment: Mapping[str, str]) -> str | None:
    """Where the metadata service is, by the AWS SDK's own variables; None when it is not to be asked.

    Raises:
        ConfigError: They name no URL.
    """
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    mode = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() or "ipv4"
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "") or _ENDPOINTS.get(mode)
    if endpoint is None:
        raise ConfigError([f"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE: is {mode!r}; it should be IPv4 or IPv6"])
    if not _is_url(endpoint):
        problem = "should be a URL that starts with http://, as the AWS SDK wants it, or not be set"
        raise ConfigError([f"AWS_EC2_METADATA_SERVICE_ENDPOINT: {problem}"])
    return endpoint.rstrip("/")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class InterruptionWatcher:
    """Asks the instance metadata service of EC2.

    Args:
        endpoint: Its URL, without a slash at the end.
        poll_s: How often, seconds.
    """

    def __init__(self, endpoint: str, *, poll_s: float = POLL_S) -> None:
        self._endpoint = endpoint
        self._poll_s = poll_s
        self._token = ""
        self._unheard = 0  # times in a row
        self._recommended = False

    async def __aenter__(self) -> Self:
        # By no proxy, whatever the environment says: the answers are the machine's own business.
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

    async def watch(self, heard: Callable[[InterruptionNotice], object]) -> None:
        """Tell of each notice once, for ever; of one whose time changes, again."""
        last: InterruptionNotice | None = None
        while True:
            notice = await self.poll()
            if notice is not None and notice != last:
                heard(notice)
            last = notice or last
            await self.pause()

    async def pause(self) -> None:
        """Wait until it is time to ask again."""
        longest_s = max(self._poll_s, _PAUSE_MAX_S)
        await asyncio.sleep(pause_s(self._unheard + 1, first_s=self._poll_s, longest_s=longest_s))

    async def poll(self) -> InterruptionNotice | None:
        """Ask once. Where that cannot be heard, the log says so when it begins and when it is over."""
        try:
            notice = spot_notice(await self._get(_SPOT)) or lifecycle_notice(await self._get(_LIFECYCLE))
            recommended = await self._get(_REBALANCE) is not None
        except MetadataError as exc:
            if not self._unheard:
                log.warning("interruption notices are not heard", reason=str(exc))
            self._unheard += 1
            return None
        if self._unheard:
            log.info("interruption notices are heard again")
            self._unheard = 0
        if recommended and not self._recommended:
            log.warning("the spot instance is at a higher risk of interruption: a rebalance recommendation")
        self._recommended = recommended
        return notice

    # --- the service

    async def _get(self, path: str) -> str | None:
        """A value; None where there is none.

        Raises:
            MetadataError: It could not be had.
        """
        status, text = await self._ask_with_token(path)
        if status == 401:  # the token's time is over, or the service has been restarted
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
        # What goes into a header has to be one line of text.
        if status != 200 or not token or not (token.isascii() and token.isprintable()):
            raise MetadataError(f"{self._endpoint}{_TOKENS} answered {status} and gave no token")
        return token

    async def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and text of an answer.

        Raises:
            MetadataError: There was none, or not in time, or it was too long.
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
            hint = "; from within a container, the instance's hop limit for metadata has to be 2 or more"
            raise MetadataError(f"{url} did not answer within {_ANSWER_MAX_S:g} s{hint}") from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise MetadataError(f"{url}: {one_line(str(exc)) or type(exc).__name__}") from exc


# --- what answers mean


def spot_notice(text: str | None) -> InterruptionNotice | None:
    """What `spot/instance-action` says: nothing, or `{"action": "stop", "time": "2017-09-18T08:22:00Z"}`.

    Raises:
        MetadataError: It is something else.
    """
    if text is None:
        return None
    try:
        answer = json.loads(text)
        action, time = str(answer["action"]), datetime.fromisoformat(str(answer["time"]))
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise MetadataError(f"spot/instance-action is no interruption notice: {one_line(text[:80])}") from exc
    if action not in _SPOT_ACTIONS:
        raise MetadataError(f"spot/instance-action is no interruption notice: {one_line(text[:80])}")
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return InterruptionNotice(
        f"EC2 is about to {action} this spot instance, at {time.isoformat()}", time.timestamp()
    )


def lifecycle_notice(text: str | None) -> InterruptionNotice | None:
    """What `autoscaling/target-lifecycle-state` says: nothing, or the state that the group wants.

    Raises:
        MetadataError: It is something else.
    """
    if text is None or text in _STAYS:
        return None
    if text not in _GOES:
        raise MetadataError(f"autoscaling/target-lifecycle-state is no such state: {one_line(text[:80])}")
    return InterruptionNotice(f"the Auto Scaling group takes this instance out: its target state is {text}")
