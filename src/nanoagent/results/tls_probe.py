"""Finds out whether a port expects TLS or plain Redis.

These functions are called after a connection has failed, to name the setting that is wrong. A server that
receives the wrong protocol gives no useful reply: a plain server waits for the end of a line, and a TLS
server closes the connection.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

_ANSWER_MAX_S: Final = 2.0
_ANSWER_BYTES: Final = 64


async def is_plain_redis(host: str, port: int) -> bool:
    """Ask whether a Redis server without TLS listens on the port. No password is sent."""
    try:
        async with asyncio.timeout(_ANSWER_MAX_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"PING\r\n")
                answer = await reader.read(_ANSWER_BYTES)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return answer.startswith((b"+PONG", b"-NOAUTH ", b"-DENIED ", b"-LOADING ", b"-ERR "))


async def is_tls(host: str, port: int) -> bool:
    """Ask whether the port expects TLS. The certificate is not checked, and only a handshake is sent."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_ANSWER_MAX_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.close()
    except ssl.SSLError as exc:
        return "ALERT" in (exc.reason or "")  # only a TLS server sends an alert; it refuses this client
    except (OSError, TimeoutError):
        return False
    return True


async def tls_refusal(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLError | None:
    """Connect without sending data, and return the TLS error; None without one.

    In TLS 1.3, a server that misses a client certificate, or refuses it, sends an alert after the client has
    finished its handshake. A client that sends data at the same time may see a broken connection instead of
    the alert.
    """
    try:
        async with asyncio.timeout(_ANSWER_MAX_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                await reader.read(1)
            finally:
                writer.close()
    except ssl.SSLError as exc:
        return exc
    except (OSError, TimeoutError):
        return None
    return None
