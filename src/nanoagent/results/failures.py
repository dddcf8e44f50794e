"""What is wrong with Redis, in a sentence that says what to do.

Sources: redis.io, "Redis serialization protocol specification" (the first word of an error is its kind) and
"High availability with Redis Sentinel"; the classes are redis-py's.
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

_PRIMARY: Final = "REDIS_HOST should lead to the primary; after a failover its name will, in a while"


@dataclass(frozen=True, slots=True)
class FailureKind:
    """A kind of failure.

    Attributes:
        message: What is wrong with the server, and what to do.
        reconnect: Another server may have its name by now: connections are to be made anew.
    """

    message: str
    reconnect: bool = False


# Wrong servers. When REDIS_HOST leads to another server later, old connections would still lead to these.
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
NO_PASSWORD_THERE: Final = FailureKind(
    "it has no password for this user, and REDIS_PASSWORD is set: unset REDIS_PASSWORD, or set REDIS_HOST "
    "and REDIS_PORT to the server that has it",
    reconnect=True,
)
NO_DATABASE: Final = FailureKind("it has no database of this number: set REDIS_DB")
SILENT: Final = FailureKind(
    "it did not answer in time: it hangs, or is overloaded, or a firewall is in between"
)
NONSENSE: Final = FailureKind(
    "the server that answers is not Redis, or its reply is garbled: set REDIS_HOST, REDIS_PORT and REDIS_TLS"
)
TLS_WANTED: Final = FailureKind("it speaks TLS there, and REDIS_TLS is false: set REDIS_TLS=true")
PLAIN_WANTED: Final = FailureKind(
    "it does not speak TLS there, and REDIS_TLS is true: set REDIS_TLS=false, or REDIS_PORT to its TLS port"
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
CLIENT_CERTIFICATE_WANTED: Final = FailureKind(
    "it wants a client certificate: set REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE"
)
CLIENT_CERTIFICATE_REFUSED: Final = FailureKind(
    "it refuses the client certificate: see REDIS_TLS_CERT_FILE, and the server's tls-ca-cert-file"
)
TLS_VERSIONS: Final = FailureKind(
    "it has no version or cipher of TLS in common with this machine: update it, or allow TLS 1.2 there"
)

BY_SETTINGS: Final = (
    *(CLUSTER, SENTINEL, NO_SCRIPTS, UNKNOWN_COMMAND, TOO_OLD, NO_PASSWORD_THERE, NO_DATABASE, TLS_WANTED),
    *(PLAIN_WANTED, TLS_FAILED, UNKNOWN_ISSUER, OTHER_NAME, EXPIRED, BAD_CERTIFICATE, TLS_VERSIONS),
    *(CLIENT_CERTIFICATE_WANTED, CLIENT_CERTIFICATE_REFUSED),
)
"""Failures that last until a setting of the worker or the server is changed. `message` is the fault, a colon,
and the remedy."""

_KINDS: Final = {
    "READONLY": FailureKind(f"it is a read-only replica: {_PRIMARY}", reconnect=True),
    "MASTERDOWN": FailureKind(f"it is a replica that has lost its primary: {_PRIMARY}", reconnect=True),
    "CLUSTERDOWN": CLUSTER,
    "CROSSSLOT": CLUSTER,
    "MOVED": CLUSTER,
    "ASK": CLUSTER,
    "TRYAGAIN": CLUSTER,
    "LOADING": FailureKind("it is loading its data, and serves when that is done", reconnect=True),
    "NOAUTH": FailureKind(
        "it refuses the user or the password: set REDIS_USERNAME and REDIS_PASSWORD", reconnect=True
    ),
    "WRONGPASS": FailureKind(
        "it refuses the user or the password: set REDIS_USERNAME and REDIS_PASSWORD", reconnect=True
    ),
    "NOPERM": FailureKind("it does not allow that to this user: docs/operations.md has the ACL rule"),
    "OOM": FailureKind("its memory is used up: raise its maxmemory, or lower RESULT_TTL_SECONDS"),
    "MISCONF": FailureKind("it takes no writes because it cannot save to its disk: its log says why"),
    "NOREPLICAS": FailureKind("it has fewer replicas than it wants for a write (min-replicas-to-write)"),
    "BUSY": FailureKind("it is busy with a script of somebody's: SCRIPT KILL ends that"),
    "DENIED": FailureKind(
        "it is in protected mode and serves its own machine only: set a password there (requirepass), and "
        "REDIS_PASSWORD here"
    ),
    "clients": FailureKind("it has as many clients as it takes: raise its maxclients"),
    "refused": FailureKind("it refuses connections: start it, or set REDIS_HOST and REDIS_PORT"),
    "name": FailureKind("its name leads nowhere: set REDIS_HOST"),
}
# Texts of the server that no code word tells apart; the first that is found counts.
_TEXTS: Final[tuple[tuple[re.Pattern[str], FailureKind], ...]] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        ("max number of clients", _KINDS["clients"]),
        ("SELECT is not allowed in cluster mode", CLUSTER),
        ("DB index is out of range|invalid DB index", NO_DATABASE),
        ("called without any password configured|but no password is set", NO_PASSWORD_THERE),
        (r"(?i)unknown command ['`](eval|evalsha)\b", NO_SCRIPTS),
        ("(?i)unknown command ", UNKNOWN_COMMAND),
        # From before version 7.2; since then the text ends as NOPERM's does.
        ("The user executing the script can't|ACL failure in script", _KINDS["NOPERM"]),
        # Redis 4 and older: TIME before a write, and HSET of several fields.
        ("non deterministic commands|Wrong number of args calling Redis command", TOO_OLD),
        ("protected mode", _KINDS["DENIED"]),
    )
)
# A server that is busy in a pool of clients is a RedisConnectionError too: the finer classes come first.
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
    (RedisTimeoutError, SILENT),
    (TimeoutError, SILENT),
    (InvalidResponse, NONSENSE),
    (ValueError, NONSENSE),  # a length that is no number
)
# Codes of X509_verify_cert, in `SSLCertVerificationError.verify_code` (OpenSSL, x509_vfy.h).
_VERIFY_CODES: Final = {
    **dict.fromkeys((2, 18, 19, 20, 21), UNKNOWN_ISSUER),
    **dict.fromkeys((9, 10), EXPIRED),
    **dict.fromkeys((62, 64), OTHER_NAME),
}
# OpenSSL's reasons; alerts come from the server. Before TLS 1.3 a missing client certificate is a
# handshake failure, as are ciphers that differ.
_TLS_REASONS: Final = {
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"),
        PLAIN_WANTED,
    ),
    **dict.fromkeys(
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"), CLIENT_CERTIFICATE_WANTED
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
        ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"), TLS_VERSIONS
    ),
}
# Before version 7 what a script meets is quoted in an error of another kind: "... -READONLY You can't write".
_QUOTED: Final = re.compile(
    r"(?:^|[\s-])(READONLY|MASTERDOWN|CLUSTERDOWN|CROSSSLOT|LOADING|NOAUTH|WRONGPASS|NOPERM|OOM|MISCONF"
    r"|NOREPLICAS|BUSY) "
)


class RedisCallError(ResultStoreError):
    """Redis failed; the message says what is wrong, and what to do.

    Args:
        address: Host and port.
        doing: The operation.
        kind: The kind of failure; None if it is not known.
        error: The client's error.
    """

    def __init__(self, address: str, doing: str, kind: FailureKind | None, error: BaseException) -> None:
        super().__init__(f"Redis at {address}: {doing}: {described(kind, error)}")
        self.kind = kind


def kind_of(error: BaseException) -> FailureKind | None:
    """What kind of failure it is; None when it is none of those that can be told apart."""
    causes = list(_causes(error))
    for problem in causes:  # the client wraps errors in classes, some of which show the kind
        # A connection that ends without an alert says no more than any other broken connection.
        if isinstance(problem, ssl.SSLError) and not isinstance(
            problem, (ssl.SSLEOFError, ssl.SSLZeroReturnError)
        ):
            return _of_tls(problem)
    for problem in causes:
        if (kind := _of_words(problem)) is not None:
            return kind
        if not isinstance(problem, (RedisConnectionError, OSError)):
            return None
    return None


def _of_tls(error: ssl.SSLError) -> FailureKind:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CODES.get(error.verify_code, BAD_CERTIFICATE)
    return _TLS_REASONS.get(error.reason or "", TLS_FAILED)


def _of_words(error: BaseException) -> FailureKind | None:
    """By the server's message, else by the class of the client's error, else by a quoted error code."""
    said = str(error)
    for pattern, kind in _TEXTS:
        if pattern.search(said):
            return kind
    for error_class, kind in _CLASSES:
        if isinstance(error, error_class):
            return kind
    quoted = _QUOTED.search(said)
    return None if quoted is None else _KINDS[quoted[1]]


def describe(error: BaseException) -> str:
    """The failure for a person: what it is, what to do, and the server's or the system's own words."""
    return described(kind_of(error), error)


def described(kind: FailureKind | None, error: BaseException) -> str:
    """As `describe`, of a kind that is known."""
    said = str(error) or type(error).__name__
    if kind is None:
        return said
    return f"{kind.message} ({said})" if str(error) else kind.message


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came of: the client wraps the system's own."""
    problem: BaseException | None = error
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__
