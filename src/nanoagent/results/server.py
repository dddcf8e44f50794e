"""A Redis server: how a client connects to it, and why it could not be used.

The worker, `nanoagent check` and the sender's commands connect and explain failures by the same code.
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
_TLS_MISMATCH_SIGNS: Final = (None, failures.SILENT, failures.NONSENSE, failures.PLAIN_WANTED)
# Answers of a Sentinel to the commands of a worker.
_MAY_BE_SENTINEL: Final = (failures.NO_SCRIPTS, failures.UNKNOWN_COMMAND, failures.NO_PASSWORD_THERE)
_ROLE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Tls:
    """The settings of TLS connections; by default this machine's authorities and no client certificate.

    Attributes:
        ca_file: Further authorities for the server's certificate, PEM.
        cert_file: The client certificate, with its chain, PEM.
        key_file: Its private key, PEM.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The context of a connection that the Redis client does not make.

        Raises:
            OSError: A file cannot be read, or does not hold what it should.
        """
        context = ssl.create_default_context()
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def settings(self) -> dict[str, Any]:
        """The arguments for the Redis client."""
        return {
            "ssl_ca_certs": None if self.ca_file is None else str(self.ca_file),
            "ssl_certfile": None if self.cert_file is None else str(self.cert_file),
            "ssl_keyfile": None if self.key_file is None else str(self.key_file),
        }


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A Redis or Valkey server.

    Attributes:
        host: Its name or address.
        port: Its port.
        db: The number of the database.
        username: The user, if it wants one.
        password: The password, if it wants one.
        tls: The TLS settings; None without TLS.
    """

    host: str
    port: int
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return f"{self.host}:{self.port}"

    @property
    def connection_class(self) -> type[Connection]:
        """The client's class of connections to it."""
        return Connection if self.tls is None else SSLConnection

    def client_settings(self) -> dict[str, Any]:
        """The arguments of a connection, without its timeouts."""
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
        """The kind of a failure, narrowed down by further questions to the server; None if unknown."""
        kind = failures.kind_of(error)
        if kind in _MAY_BE_SENTINEL and await self._is_sentinel():
            return failures.SENTINEL
        if kind not in _TLS_MISMATCH_SIGNS or isinstance(error, ResponseError):
            return kind
        if self.tls is None:
            return failures.TLS_WANTED if await tls_probe.is_tls(self.host, self.port) else kind
        if kind is None and (refusal := await self._tls_refusal(self.tls)) is not None:
            return refusal
        return failures.PLAIN_WANTED if await tls_probe.is_plain_redis(self.host, self.port) else kind

    async def _tls_refusal(self, tls: Tls) -> FailureKind | None:
        try:
            context = tls.context()
        except OSError as exc:
            return failures.kind_of(exc)
        refusal = await tls_probe.tls_refusal(self.host, self.port, context)
        return None if refusal is None else failures.kind_of(refusal)

    async def _is_sentinel(self) -> bool:
        """Whether ROLE says so. A Sentinel has no databases, and seldom the password of its primary."""
        settings = self.client_settings() | {"db": 0, "username": None, "password": None}
        connection = self.connection_class(**settings, retry=Retry(NoBackoff(), 0))
        try:
            async with asyncio.timeout(_ROLE_S):
                await connection.send_command("ROLE", check_health=False)
                role = await connection.read_response()
        except (RedisError, OSError, TimeoutError, ValueError):
            return False
        finally:
            await connection.disconnect(nowait=True)
        return isinstance(role, list) and role[:1] == [b"sentinel"]
