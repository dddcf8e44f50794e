"""What is wrong with Redis, in a sentence that says what to do.

Sources: redis.io, "Redis serialization protocol specification" (the first word of an error is its kind) and
"High availability with Redis Sentinel"; the classes are redis-py's.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRIMARY: Final = "REDIS_HOST should lead to the primary; after a failover its name will, in a while"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A kind of failure.

    Attributes:
        says: What is wrong with the server, and what to do.
        elsewhere: Another server may have its name by now: connections are to be made anew.
    """

    says: str
    elsewhere: bool = False


_TROUBLES: Final = {
    "READONLY": Trouble(f"it is a read-only replica: {_PRIMARY}", elsewhere=True),
    "MASTERDOWN": Trouble(f"it is a replica that has lost its primary: {_PRIMARY}", elsewhere=True),
    "CLUSTERDOWN": Trouble("its cluster is down", elsewhere=True),
    "LOADING": Trouble("it is loading its data, and serves when that is done", elsewhere=True),
    "NOAUTH": Trouble(
        "it refuses the user or the password: set REDIS_USERNAME and REDIS_PASSWORD", elsewhere=True
    ),
    "NOPERM": Trouble("it does not allow that to this user: docs/operations.md has the ACL rule"),
    "OOM": Trouble("its memory is used up: raise its maxmemory, or lower RESULT_TTL_SECONDS"),
    "MISCONF": Trouble("it takes no writes because it cannot save to its disk: its log says why"),
    "NOREPLICAS": Trouble("it has fewer replicas than it wants for a write (min-replicas-to-write)"),
    "BUSY": Trouble("it is busy with a script of somebody's: SCRIPT KILL ends that"),
    "clients": Trouble("it has as many clients as it takes: raise its maxclients"),
    "refused": Trouble("it refuses connections: start it, or set REDIS_HOST and REDIS_PORT"),
    "name": Trouble("its name leads nowhere: set REDIS_HOST"),
    "silent": Trouble("it did not answer in time: it hangs, or is overloaded, or a firewall is in between"),
    "nonsense": Trouble("what answers is no Redis, or garbled: set REDIS_HOST, REDIS_PORT and REDIS_TLS"),
}
# A server that is busy in a pool of clients is a RedisConnectionError too: the finer classes come first.
_CLASSES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ReadOnlyError, "READONLY"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (BusyLoadingError, "LOADING"),
    (AuthenticationError, "NOAUTH"),
    (NoPermissionError, "NOPERM"),
    (OutOfMemoryError, "OOM"),
    (ConnectionRefusedError, "refused"),
    (socket.gaierror, "name"),
    (RedisTimeoutError, "silent"),
    (TimeoutError, "silent"),
    (InvalidResponse, "nonsense"),
    (ValueError, "nonsense"),  # a length that is no number
)
# Before version 7 what a script meets is quoted in an error of another kind: "... -READONLY You can't write".
_QUOTED: Final = re.compile(
    r"(?:^|[\s-])(READONLY|MASTERDOWN|CLUSTERDOWN|LOADING|NOAUTH|NOPERM|OOM|MISCONF|NOREPLICAS|BUSY) "
)


def of(error: BaseException) -> Trouble | None:
    """What kind of failure it is; None when it is none of those that can be told apart."""
    for problem in _causes(error):
        for kind, name in _CLASSES:
            if isinstance(problem, kind):
                return _TROUBLES[name]
        if "max number of clients" in str(problem):
            return _TROUBLES["clients"]
        if quoted := _QUOTED.search(str(problem)):
            return _TROUBLES[quoted[1]]
        if not isinstance(problem, (RedisConnectionError, OSError)):
            return None
    return None


def sentence(error: BaseException) -> str:
    """The failure for a person: what it is, what to do, and the server's or the system's own words."""
    trouble = of(error)
    said = str(error) or type(error).__name__
    if trouble is None:
        return said
    return f"{trouble.says} ({said})" if str(error) else trouble.says


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came of: the client wraps the system's own."""
    problem: BaseException | None = error
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__
