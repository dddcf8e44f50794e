"""The address and the credentials of a Redis server, and the diagnosis of its failures.

The worker, `nanoagent check` and the sender's commands use this module to connect and to explain failures.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from nanoagent.results import failures, tls_probe

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.results.failures import FailureKind

# Failures that a wrong REDIS_TLS can cause.
_MAYBE_WRONG_TLS: Final = (None, failures.NO_ANSWER, failures.NOT_REDIS, failures.TLS_NOT_EXPECTED)
# A Sentinel's replies to the commands of a worker.
_MAYBE_SENTINEL: Final = (failures.NO_SCRIPTS, failures.UNKNOWN_COMMAND, failures.NO_PASSWORD_SET)
_ROLE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Tls:
    """The settings of TLS connections; by default this machine's authorities and no client certificate.

    Attributes:
        ca_file: A PEM file with further authorities for the server's certificate.
        cert_file: A PEM file with the client certificate and its chain.
        key_file: A PEM file with the client certificate's private key.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for a connection without the Redis client.

        Raises:
            OSError: A file cannot be read, or has invalid content.
        """
        context = ssl.create_default_context()
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the Redis client."""
        return {
            "ssl_ca_certs": None if self.ca_file is None else str(self.ca_file),
            "ssl_certfile": None if self.cert_file is None else str(self.cert_file),
            "ssl_keyfile": None if self.key_file is None else str(self.key_file),
        }


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A Redis or Valkey server.

    Attributes:
        host: The server's name or IP address.
        port: The server's port.
        db: The number of the database.
        username: The user name; None for the default user.
        password: The password; None to connect without one.
        tls: The TLS settings; None for connections without TLS.
    """

    host: str
    port: int
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None

    @property
    def address(self) -> str:
        """The host and the port, for messages."""
        return f"{self.host}:{self.port}"

    @property
    def connection_class(self) -> type[Connection]:
        """The Redis client's class for connections to this server."""
        return Connection if self.tls is None else SSLConnection

    def client_settings(self) -> dict[str, Any]:
        """Return the arguments for a connection of the Redis client, without timeouts."""
        return {
            "host": self.host,
            "port": self.port,
            "db": self.db,
            "username": self.username,
            "password": self.password,
            "protocol": 2,
            **({} if self.tls is None else self.tls.settings()),
        }

    async def diagnose(self, error: BaseException) -> FailureKind | None:
        """Return the kind of a failure; None if it is unknown. This sends further requests to the server."""
        kind = failures.kind_of(error)
        if kind in _MAYBE_SENTINEL and await self._is_sentinel():
            return failures.SENTINEL
        if kind not in _MAYBE_WRONG_TLS or isinstance(error, ResponseError):
            return kind
        if self.tls is None:
            return failures.TLS_EXPECTED if await tls_probe.is_tls(self.host, self.port) else kind
        if kind is None and (refusal := await self._tls_refusal(self.tls)) is not None:
            return refusal
        return failures.TLS_NOT_EXPECTED if await tls_probe.is_plain_redis(self.host, self.port) else kind

    async def _tls_refusal(self, tls: Tls) -> FailureKind | None:
        try:
            context = tls.context()
        except OSError as exc:
            return failures.kind_of(exc)
        refusal = await tls_probe.tls_refusal(self.host, self.port, context)
        return None if refusal is None else failures.kind_of(refusal)

    async def _is_sentinel(self) -> bool:
        """Return whether the server is a Sentinel, by its reply to ROLE.

        No database and no password are sent. A Sentinel has no databases, and its password is usually not the
        password of its primary.
        """
        settings = self.client_settings() | {"db": 0, "username": None, "password": None}
        connection = self.connection_class(**settings, retry=Retry(NoBackoff(), 0))
        try:
            async with asyncio.timeout(_ROLE_TIMEOUT_S):
                await connection.send_command("ROLE", check_health=False)
                role = await connection.read_response()
        except (RedisError, OSError, TimeoutError, ValueError):
            return False
        finally:
            await connection.disconnect(nowait=True)
        return isinstance(role, list) and role[:1] == [b"sentinel"]
