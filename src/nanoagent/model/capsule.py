"""The capsule of a job: all that is needed to run the job again elsewhere. docs/replay.md describes it.

A capsule is one JSON object. It has no values of environment variables: `message.env` has null for each
variable with a value, and a reference to a secret as it was sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.common.units import MIB
from nanoagent.model.errors import NanoAgentError, one_line
from nanoagent.model.job import NetworkPolicy, Reuse, Runtime
from nanoagent.model.result import Result
from nanoagent.model.text import Locale

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA: Final = 1
"""The number of the format. It rises whenever an older `nanoagent replay` would misunderstand a capsule."""

MAX_BYTES: Final = 2 * MIB
"""The largest capsule that a worker stores."""

MASK: Final = "***"
"""What the texts of the result have in place of the value of an environment variable."""

MIN_MASKED: Final = 6
"""The shortest value that is masked. A shorter one, such as `1` or `test`, is also an ordinary word."""

_MAX_SHOWN: Final = 300


class InvalidCapsule(NanoAgentError):  # noqa: N818 - names the thing that is invalid
    """A document is not a capsule that this version can read. The text is one sentence."""


class CapsuleWorker(msgspec.Struct, frozen=True, rename="camel"):
    """The worker that ran the job: its ID, its version, and the architecture of its machine."""

    id: str
    version: str
    architecture: str


class CapsuleJob(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The fields of the job with the defaults that the worker filled in."""

    function_id: str
    runtime: Runtime
    s3_bucket: str
    s3_key: str
    memory_mb: int
    timeout_ms: int
    model_id: str
    network: NetworkPolicy
    locale: Locale
    reuse: Reuse


class CapsuleCode(msgspec.Struct, frozen=True):
    """The code: the SHA-256 of the zip (hex), and its ETag; None while they are not known."""

    digest: str | None
    etag: str | None


class CapsuleImage(msgspec.Struct, frozen=True):
    """The image of the runtime: its name in the settings, and its ID in Docker."""

    reference: str
    id: str


class StoredObject(msgspec.Struct, frozen=True):
    """The place of an object in S3."""

    bucket: str
    key: str


class Capsule(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """All that is needed to run a job again, and to compare the results.

    Attributes:
        schema: `SCHEMA`.
        request_id: The request.
        made_at: When the capsule was made: UTC, ISO 8601.
        worker: The worker that ran the job.
        message: The fields of the message as they were sent, without the input and the values of `env`.
        input: The JSON text of the field `input`, unchanged; None if it is left out or was absent.
        job: The fields with all defaults; None if the message was not a valid job.
        code: The code; None if the message was not a valid job.
        image: The image; None if the message was not a valid job.
        settings: The settings of the worker that matter for a run, by the names of their variables.
        model_calls: The recorded model calls of the run; None if none were recorded.
        omitted: How much of a part is left out: bytes of `input`, characters of `stdout` and `stderr`, and
            entries of `outputFiles`, `outputErrors` and `message`.
        result: The result. Of stdout and stderr it has the ends.
    """

    schema: int
    request_id: str
    made_at: str
    worker: CapsuleWorker
    message: dict[str, Any]
    input: str | None
    job: CapsuleJob | None
    code: CapsuleCode | None
    image: CapsuleImage | None
    settings: dict[str, Any]
    model_calls: StoredObject | None = None
    omitted: dict[str, int] = {}
    result: Result

    @property
    def env(self) -> dict[str, Any]:
        """The environment variables of the message: names, with None or a reference to a secret."""
        env = self.message.get("env")
        return env if isinstance(env, dict) else {}


class _Version(msgspec.Struct):
    schema: int


def key_of(request_id: str) -> str:
    """Return the object key of a request's capsule, in the bucket of S3_USER_DATA_BUCKET."""
    return f"capsules/{request_id}.json"


def encode(capsule: Capsule) -> bytes:
    """Return the capsule as JSON."""
    return msgspec.json.encode(capsule)


def decode(document: bytes) -> Capsule:
    """Return the capsule of a document from anywhere.

    Raises:
        InvalidCapsule: The document is not a capsule of this schema.
    """
    try:
        version = msgspec.json.decode(document, type=_Version).schema
        if version != SCHEMA:
            raise InvalidCapsule(
                f"the capsule has schema {version}, but this nanoagent reads schema {SCHEMA}; install the"
                " version of nanoagent that the worker has"
            )
        capsule = msgspec.json.decode(document, type=Capsule)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidCapsule(f"not a capsule: {one_line(str(exc))[:_MAX_SHOWN]}") from exc
    except RecursionError as exc:
        raise InvalidCapsule("not a capsule: its JSON is nested too deeply") from exc
    ids = (capsule.result.request_id, capsule.message.get("requestId", capsule.request_id))
    if ids != (capsule.request_id, capsule.request_id):
        raise InvalidCapsule("not a capsule: its message and its result have different request IDs")
    return capsule


def masked(text: str, values: Iterable[str]) -> str:
    """Return a text with `MASK` in place of each value of an environment variable."""
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= MIN_MASKED:
            text = text.replace(value, MASK)
    return text
