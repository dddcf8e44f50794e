"""The address of Redis. It is not in `services`, because that imports the AWS SDK, which takes a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.results.server import RedisServer, Tls

if TYPE_CHECKING:
    from nanoagent.config import Settings


def redis_server(settings: Settings) -> RedisServer:
    """Return the address of Redis, and the credentials for it."""
    tls = Tls(settings.redis_tls_ca_file, settings.redis_tls_cert_file, settings.redis_tls_key_file)
    return RedisServer(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        username=settings.redis_username,
        password=settings.redis_password,
        tls=tls if settings.redis_tls else None,
    )
