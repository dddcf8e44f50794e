"""A job, as parsed from one message (`message.parse_job`), and its function version."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nanoagent.model.secret import SecretReference
    from nanoagent.model.text import Locale

MIN_MEMORY_MB: Final = 32
DEFAULT_MEMORY_MB: Final = 128
DEFAULT_TIMEOUT_MS: Final = 300_000
MAX_TIMEOUT_MS: Final = 42_000_000  # less than 12 h, the longest time that SQS hides a message


class Runtime(StrEnum):
    """The languages of functions."""

    PYTHON = "python"
    NODEJS = "nodejs"
    CPP = "cpp"
    GO = "go"


class Reuse(StrEnum):
    """What the runs of a container reuse."""

    NONE = "none"
    IMPORTS = "imports"  # the packages of the code, imported once


class NetworkPolicy(StrEnum):
    """The network that a run may use, the narrowest first."""

    NONE = "none"
    AI = "ai"
    EGRESS = "egress"

    def allows(self, other: NetworkPolicy) -> bool:
        """Whether `other` is not wider than this policy."""
        return _WIDTHS[other] <= _WIDTHS[self]


_WIDTHS: Final = {policy: width for width, policy in enumerate(NetworkPolicy)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request to run a function once.

    Attributes:
        request_id: The ID of the request. It is a part of Redis keys, S3 keys and folder names.
        function_id: The ID of the function; any printable text.
        runtime: The language of the function.
        s3_bucket: The bucket of the code.
        s3_key: The object key of the code.
        memory_mb: The memory limit, MiB.
        timeout_ms: The time limit of the program, milliseconds.
        payload: The JSON of the field `input`, unchanged.
        model_id: The default model of the AI client.
        network: The network that the run may use.
        locale: The language of the result's texts.
        tenant_id: The owner of the function; None if the message does not name one.
        reuse: What the run may reuse of earlier runs.
        env: More environment variables of the program: names and values. The values may be secret.
        secrets: The names of more environment variables, and references to the secrets that are their values.
    """

    request_id: str
    function_id: str
    runtime: Runtime
    s3_bucket: str
    s3_key: str
    memory_mb: int
    timeout_ms: int
    payload: bytes
    model_id: str
    network: NetworkPolicy = NetworkPolicy.NONE
    locale: Locale = "en"
    tenant_id: str | None = None
    reuse: Reuse = Reuse.NONE
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[tuple[str, SecretReference], ...] = ()

    def version(self, digest: str) -> FunctionVersion:
        """Return the function version that the job runs.

        Args:
            digest: The SHA-256 of the zip file that the object store has now.
        """
        return FunctionVersion(self.function_id, self.runtime, digest, self.memory_mb)


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """The code of a function, with a memory size.

    Attributes:
        function_id: The function. Two functions with the same code have different versions.
        runtime: The language.
        digest: The SHA-256 of the zip file.
        memory_mb: The memory limit of a run, MiB.
    """

    function_id: str
    runtime: Runtime
    digest: str
    memory_mb: int


@dataclass(frozen=True, slots=True)
class JobDefaults:
    """The values of fields that a message leaves out, and the limits of its fields.

    Attributes:
        s3_bucket: Default of `s3Bucket`.
        model_id: Default of `modelId`.
        max_memory_mb: The largest `memoryMb`.
        memory_mb: Default of `memoryMb`.
        timeout_ms: Default of `timeoutMs`.
        network: Default of `network`, and the widest policy that a job may have.
        locale: Default of `locale`.
    """

    s3_bucket: str
    model_id: str
    max_memory_mb: int
    memory_mb: int = DEFAULT_MEMORY_MB
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    network: NetworkPolicy = NetworkPolicy.AI
    locale: Locale = "ko"
