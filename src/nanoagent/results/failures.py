"""The kinds of Redis failures, each with a remedy for the operator.

Sources: redis.io, "Redis serialization protocol specification" (the first word of an error is its kind) and
"High availability with Redis Sentinel". The exception classes are redis-py's.
"""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from nanoagent.model.errors import ResultStoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRIMARY: Final = "set REDIS_HOST to a name that follows a failover to the new primary"


@dataclass(frozen=True, slots=True)
class FailureKind:
    """A kind of failure.

    Attributes:
        message: The fault and the remedy, one sentence about the server ("it ...").
        reconnect: Whether to replace all connections, because the server's name may belong to another server
            now.
    """

    message: str
    reconnect: bool = False


# A kind has `reconnect` if it can mean a wrong server. When REDIS_HOST leads to another server later, old
# connections still lead to the wrong one.
CLUSTER: Final = FailureKind(
    "it is a Redis Cluster, which is not supported: set REDIS_HOST and REDIS_PORT to a server with "
    "cluster-enabled no; it may have replicas",
    reconnect=True,
)
SENTINEL: Final = FailureKind(
    "it is a Redis Sentinel, which stores nothing: set REDIS_HOST and REDIS_PORT to the primary that it "
    "watches",
    reconnect=True,
)
NO_SCRIPTS: Final = FailureKind(
    "it does not run scripts (EVAL, EVALSHA): do not rename or disable these commands, or use another server",
    reconnect=True,
)
UNKNOWN_COMMAND: Final = FailureKind(
    "it does not know a command that the worker needs: use Redis 5 or newer, or Valkey, and do not rename "
    "commands",
    reconnect=True,
)
TOO_OLD: Final = FailureKind("it is too old: use Redis 5 or newer, or Valkey", reconnect=True)
NO_PASSWORD_SET: Final = FailureKind(
    "it has no password for this user, but REDIS_PASSWORD is set: unset REDIS_PASSWORD, or set REDIS_HOST "
    "and REDIS_PORT to the server that has it",
    reconnect=True,
)
NO_DATABASE: Final = FailureKind("it has no database of this number: set REDIS_DB")
NO_ANSWER: Final = FailureKind(
    "it did not answer in time: it hangs or is overloaded, or a firewall drops the packets"
)
NOT_REDIS: Final = FailureKind(
    "the server that answers is not Redis, or its reply is garbled: set REDIS_HOST, REDIS_PORT and REDIS_TLS"
)
TLS_EXPECTED: Final = FailureKind("it expects TLS on this port, but REDIS_TLS is false: set REDIS_TLS=true")
TLS_NOT_EXPECTED: Final = FailureKind(
    "it does not use TLS on this port, but REDIS_TLS is true: set REDIS_TLS=false, or REDIS_PORT "
    "to its TLS port"
)
TLS_FAILED: Final = FailureKind("the TLS handshake failed: see the reason")
UNKNOWN_ISSUER: Final = FailureKind(
    "its certificate is from an authority that this machine does not trust: set REDIS_TLS_CA_FILE to the "
    "authority's certificate"
)
OTHER_NAME: Final = FailureKind(
    "its certificate is for another name: set REDIS_HOST to a name or an address in the certificate"
)
EXPIRED: Final = FailureKind("its certificate is not valid today: renew it, or correct this machine's clock")
BAD_CERTIFICATE: Final = FailureKind(
    "its certificate cannot be verified: see the reason, and REDIS_TLS_CA_FILE"
)
CLIENT_CERTIFICATE_REQUIRED: Final = FailureKind(
    "it requires a client certificate: set REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE"
)
CLIENT_CERTIFICATE_REFUSED: Final = FailureKind(
    "it refuses the client certificate: see REDIS_TLS_CERT_FILE, and the server's tls-ca-cert-file"
)
NO_COMMON_TLS: Final = FailureKind(
    "it supports no TLS version or cipher that this machine supports: update it, or allow TLS 1.2 on it"
)

CONFIGURATION_FAILURES: Final = (
    *(CLUSTER, SENTINEL, NO_SCRIPTS, UNKNOWN_COMMAND, TOO_OLD, NO_PASSWORD_SET, NO_DATABASE, TLS_EXPECTED),
    *(TLS_NOT_EXPECTED, TLS_FAILED, UNKNOWN_ISSUER, OTHER_NAME, EXPIRED, BAD_CERTIFICATE, NO_COMMON_TLS),
    *(CLIENT_CERTIFICATE_REQUIRED, CLIENT_CERTIFICATE_REFUSED),
)
"""Failures that last until the operator changes a setting of the worker or of the server.

Their `message` is the fault, a colon, and the remedy.
"""

# The first word of the server's error → the kind. Redis does not send the keys in lower case. They are names
# that only this module uses.
_KINDS: Final = {
    "READONLY": FailureKind(f"it is a read-only replica: {_PRIMARY}", reconnect=True),
    "MASTERDOWN": FailureKind(f"it is a replica that has lost its primary: {_PRIMARY}", reconnect=True),
    "CLUSTERDOWN": CLUSTER,
    "CROSSSLOT": CLUSTER,
    "MOVED": CLUSTER,
    "ASK": CLUSTER,
    "TRYAGAIN": CLUSTER,
    "LOADING": FailureKind("it is loading its data: wait until it has finished", reconnect=True),
    "NOAUTH": FailureKind(
        "it refuses the user or the password: set REDIS_USERNAME and REDIS_PASSWORD", reconnect=True
    ),
    "WRONGPASS": FailureKind(
        "it refuses the user or the password: set REDIS_USERNAME and REDIS_PASSWORD", reconnect=True
    ),
    "NOPERM": FailureKind("this user lacks a permission: use the ACL rule in docs/operations.md"),
    "OOM": FailureKind("its memory is used up: raise its maxmemory, or lower RESULT_TTL_SECONDS"),
    "MISCONF": FailureKind("it refuses writes because it cannot save to its disk: see its log"),
    "NOREPLICAS": FailureKind(
        "it refuses writes because it has too few replicas: see its min-replicas-to-write"
    ),
    "BUSY": FailureKind("it is busy with a script of another client: end the script with SCRIPT KILL"),
    "DENIED": FailureKind(
        "it is in protected mode and serves only its own machine: set a password on it (requirepass), and "
        "REDIS_PASSWORD for the worker"
    ),
    "clients": FailureKind("it has reached its limit of clients: raise its maxclients"),
    "refused": FailureKind("it refuses connections: start it, or set REDIS_HOST and REDIS_PORT"),
    "name": FailureKind("its name cannot be resolved: set REDIS_HOST"),
}
# A pattern for the error text → the kind. These patterns are tried first, in this order.
_TEXTS: Final[tuple[tuple[re.Pattern[str], FailureKind], ...]] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        ("max number of clients", _KINDS["clients"]),
        ("SELECT is not allowed in cluster mode", CLUSTER),
        ("DB index is out of range|invalid DB index", NO_DATABASE),
        ("called without any password configured|but no password is set", NO_PASSWORD_SET),
        (r"(?i)unknown command ['`](eval|evalsha)\b", NO_SCRIPTS),
        ("(?i)unknown command ", UNKNOWN_COMMAND),
        # Before Redis 7.2; later versions have the text of NOPERM.
        ("The user executing the script can't|ACL failure in script", _KINDS["NOPERM"]),
        # Redis 4 and older do not allow TIME before a write, or HSET of several fields.
        ("non deterministic commands|Wrong number of args calling Redis command", TOO_OLD),
        ("protected mode", _KINDS["DENIED"]),
        # Before the login, Redis refuses commands of more than ten words with this text, not with NOAUTH.
        ("unauthenticated (?:multi)?bulk length", _KINDS["NOAUTH"]),
    )
)
# The class of the exception → the kind. Subclasses come before their base classes.
_CLASSES: Final[tuple[tuple[type[BaseException], FailureKind], ...]] = (
    (ReadOnlyError, _KINDS["READONLY"]),
    (MasterDownError, _KINDS["MASTERDOWN"]),
    (ClusterDownError, CLUSTER),
    (ClusterCrossSlotError, CLUSTER),
    (MovedError, CLUSTER),
    (AskError, CLUSTER),
    (TryAgainError, CLUSTER),
    (BusyLoadingError, _KINDS["LOADING"]),
    (AuthenticationError, _KINDS["NOAUTH"]),
    (NoPermissionError, _KINDS["NOPERM"]),
    (OutOfMemoryError, _KINDS["OOM"]),
    (ConnectionRefusedError, _KINDS["refused"]),
    (socket.gaierror, _KINDS["name"]),
    (RedisTimeoutError, NO_ANSWER),
    (TimeoutError, NO_ANSWER),
    (InvalidResponse, NOT_REDIS),
    (ValueError, NOT_REDIS),  # an invalid length in a reply
)
# Codes of X509_verify_cert, in `SSLCertVerificationError.verify_code` (OpenSSL, x509_vfy.h).
_VERIFY_CODES: Final = {
    **dict.fromkeys((2, 18, 19, 20, 21), UNKNOWN_ISSUER),
    **dict.fromkeys((9, 10), EXPIRED),
    **dict.fromkeys((62, 64), OTHER_NAME),
}
# OpenSSL's reasons. Alerts come from the server. Before TLS 1.3, a missing client certificate causes the same
# alert as the lack of a common cipher: handshake failure.
_TLS_REASONS: Final = {
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"),
        TLS_NOT_EXPECTED,
    ),
    **dict.fromkeys(
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"), CLIENT_CERTIFICATE_REQUIRED
    ),
    **dict.fromkeys(
        (
            "TLSV1_ALERT_UNKNOWN_CA",
            "TLSV1_ALERT_DECRYPT_ERROR",
            *(f"SSLV3_ALERT_CERTIFICATE_{kind}" for kind in ("EXPIRED", "REVOKED", "UNKNOWN")),
            *("SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
        ),
        CLIENT_CERTIFICATE_REFUSED,
    ),
    **dict.fromkeys(
        ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"), NO_COMMON_TLS
    ),
}
# If the Redis client has no exception class for a kind, it leaves the first word in the text: "MISCONF Redis
# is ...". Before Redis 7, an error within a script is quoted in an error of another kind: "... -READONLY You
# can't write".
_QUOTED: Final = re.compile(
    r"(?:^|[\s-])(READONLY|MASTERDOWN|CLUSTERDOWN|CROSSSLOT|LOADING|NOAUTH|WRONGPASS|NOPERM|OOM|MISCONF"
    r"|NOREPLICAS|BUSY) "
)


class RedisCallError(ResultStoreError):
    """A call to Redis failed. The message has the fault and the remedy.

    Args:
        address: The server's host and port.
        operation: The operation that failed.
        kind: The kind of failure; None if it is not known.
        error: The Redis client's exception.
    """

    def __init__(self, address: str, operation: str, kind: FailureKind | None, error: BaseException) -> None:
        super().__init__(f"Redis at {address}: {operation}: {_describe_kind(kind, error)}")
        self.kind = kind

    @property
    def is_denied(self) -> bool:
        """Whether the user lacks a permission."""
        return self.kind is _KINDS["NOPERM"]


def kind_of(error: BaseException) -> FailureKind | None:
    """Return the kind of a failure; None if it is not known."""
    causes = list(_causes(error))
    for cause in causes:  # a TLS error is more specific than the exceptions around it
        # If the connection ended without a TLS alert, the cause may be something else than TLS.
        if isinstance(cause, ssl.SSLError) and not isinstance(
            cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)
        ):
            return _kind_of_tls(cause)
    for cause in causes:
        if (kind := _kind_by_text(cause)) is not None:
            return kind
        if not isinstance(cause, (RedisConnectionError, OSError)):
            return None
    return None


def _kind_of_tls(error: ssl.SSLError) -> FailureKind:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CODES.get(error.verify_code, BAD_CERTIFICATE)
    return _TLS_REASONS.get(error.reason or "", TLS_FAILED)


def _kind_by_text(error: BaseException) -> FailureKind | None:
    """Return the kind by the error text, else by the exception's class, else by `_QUOTED`."""
    text = str(error)
    for pattern, kind in _TEXTS:
        if pattern.search(text):
            return kind
    for error_class, kind in _CLASSES:
        if isinstance(error, error_class):
            return kind
    quoted = _QUOTED.search(text)
    return None if quoted is None else _KINDS[quoted[1]]


def describe(error: BaseException) -> str:
    """Return the fault, the remedy, and the error text of the server or the system."""
    return _describe_kind(kind_of(error), error)


def _describe_kind(kind: FailureKind | None, error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if kind is None:
        return text
    return f"{kind.message} ({text})" if str(error) else kind.message


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return the error and its causes: the Redis client wraps the exceptions of the system."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
