"""How a job can end, and what is told about it: the outcome table and the result document.

One table (`OUTCOMES`) decides status, blame, what happens to the message and how it is counted. The
README's table and the tests are made from it. docs/contract.md, sections 3 and 4, describes both.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from nanoagent.model.text import Text


class Status(StrEnum):
    """The three words a consumer switches on."""

    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"


class Blame(StrEnum):
    """Whose fault an outcome is."""

    NOBODY = "-"
    USER = "user"
    PLATFORM = "platform"


class Settle(StrEnum):
    """What happens to the message."""

    ACK = "acked"
    POISON = "left for the queue's redrive policy, else moved to the dead-letter queue, else acked and logged"
    RETRY = "returned with growing delay; after the last attempt published and dead-lettered"
    RELEASE = "returned to the queue, not counted as an attempt"


class ErrorType(StrEnum):
    """Every way a job can end other than well. Wire names: they never change."""

    USER_ERROR = "USER_ERROR"
    SIGNAL = "SIGNAL"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DISK_LIMIT = "DISK_LIMIT"
    PROCESS_LIMIT = "PROCESS_LIMIT"
    BUILD_FAILED = "BUILD_FAILED"
    INVALID_CODE = "INVALID_CODE"
    CODE_NOT_FOUND = "CODE_NOT_FOUND"
    INVALID_JOB = "INVALID_JOB"
    UNREADABLE = "UNREADABLE"
    PLATFORM = "PLATFORM"
    CANCELLED = "CANCELLED"
    INTERRUPTED = "INTERRUPTED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table.

    Attributes:
        error_type: None for success.
        status: None when no result is published.
        blame: Whose fault it is.
        settle: What happens to the message.
        label: The `status` label of `worker_jobs_processed_total`.
        meaning: When it happens, for documentation.
        hint: The advice for the author; None where there is nothing to do.
    """

    error_type: ErrorType | None
    status: Status | None
    blame: Blame
    settle: Settle
    label: str
    meaning: str
    hint: Text | None = None


_E, _S, _B = ErrorType, Status, Blame

SUCCESS: Final = Outcome(
    None, _S.SUCCESS, _B.NOBODY, Settle.ACK, "success", "exit code 0 and no limit was hit"
)

_FAILURES: Final = (
    Outcome(
        _E.USER_ERROR,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "failure",
        "the program ended with a non-zero exit code",
        Text(
            "Read stderr: the program ended itself with this exit code.",
            "stderr를 확인하세요. 프로그램이 이 종료 코드로 스스로 끝났습니다.",
        ),
    ),
    Outcome(
        _E.SIGNAL,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "failure",
        "a signal that the program caused itself ended it",
        Text(
            "The exit code is 128 + the signal's number; 139 is a bad memory access, 134 an abort.",
            "종료 코드는 128 + 시그널 번호입니다. 139는 잘못된 메모리 접근, 134는 abort입니다.",
        ),
    ),
    Outcome(
        _E.TIMEOUT,
        _S.TIMEOUT,
        _B.USER,
        Settle.ACK,
        "timeout",
        "the program ran longer than timeoutMs",
        Text(
            "Raise timeoutMs, or look for a loop or a wait that never ends.",
            "timeoutMs를 늘리거나, 끝나지 않는 반복이나 대기가 있는지 확인하세요.",
        ),
    ),
    Outcome(
        _E.OUT_OF_MEMORY,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "oom",
        "the kernel killed a process of the run because memoryMb was used up",
        Text(
            "Raise memoryMb; files under /tmp, /output and the working directory count as memory too.",
            "memoryMb를 늘리세요. /tmp, /output, 작업 디렉터리의 파일도 메모리로 계산됩니다.",
        ),
    ),
    Outcome(
        _E.DISK_LIMIT,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "failure",
        "a writable directory was full, or a file reached the size limit",
        Text(
            "Write less, or fewer files, to /tmp, /output and the working directory, or have the limit raised"
            " that the message names.",
            "/tmp, /output, 작업 디렉터리에 쓰는 양이나 파일 수를 줄이거나, 메시지에 나온 한도를 올려 달라고"
            " 요청하세요.",
        ),
    ),
    Outcome(
        _E.PROCESS_LIMIT,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "failure",
        "the run reached the limit on processes and threads",
        Text(
            "Start fewer processes and threads at a time, or have MAX_PROCESSES raised.",
            "동시에 만드는 프로세스와 스레드 수를 줄이거나 MAX_PROCESSES를 올려 달라고 요청하세요.",
        ),
    ),
    Outcome(
        _E.BUILD_FAILED,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "failure",
        "the compiler refused the code; its messages are in stderr",
        Text(
            "Read the compiler's message in stderr.",
            "stderr에 있는 컴파일러 메시지를 확인하세요.",
        ),
    ),
    Outcome(
        _E.INVALID_CODE,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "failure",
        "the zip is invalid or hostile, has no entry file, or exceeds a limit",
        Text(
            "Upload a zip with main.py, index.js, main.cpp or main.go at its root.",
            "루트에 main.py, index.js, main.cpp, main.go 중 하나가 있는 zip을 올리세요.",
        ),
    ),
    Outcome(
        _E.CODE_NOT_FOUND,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "failure",
        "no such key or bucket, or no permission to read it",
        Text(
            "Check s3Bucket and s3Key, and that the worker may read them.",
            "s3Bucket과 s3Key, 그리고 워커의 읽기 권한을 확인하세요.",
        ),
    ),
    Outcome(
        _E.INVALID_JOB,
        _S.FAILED,
        _B.USER,
        Settle.ACK,
        "invalid",
        "the message has a requestId but a field is wrong",
        Text(
            "Correct the field that the message names, and send the job again.",
            "메시지에 나온 필드를 고쳐서 작업을 다시 보내세요.",
        ),
    ),
    Outcome(
        _E.UNREADABLE,
        None,
        _B.NOBODY,
        Settle.POISON,
        "invalid",
        "the message has no readable requestId",
    ),
    Outcome(
        _E.PLATFORM,
        _S.FAILED,
        _B.PLATFORM,
        Settle.RETRY,
        "error",
        "Docker, S3, Redis, the disk or an internal error",
        Text(
            "Nothing is wrong with the job: send it again, and tell the operator of the worker.",
            "작업에는 문제가 없습니다. 다시 보내고, 워커 운영자에게 알려 주세요.",
        ),
    ),
    Outcome(
        _E.CANCELLED,
        _S.FAILED,
        _B.NOBODY,
        Settle.ACK,
        "cancelled",
        "the sender cancelled the job",
    ),
    Outcome(
        _E.INTERRUPTED,
        None,
        _B.PLATFORM,
        Settle.RELEASE,
        "interrupted",
        "the worker could not finish the job; `worker_jobs_returned_total` counts the reasons",
    ),
)

OUTCOMES: Final[dict[ErrorType | None, Outcome]] = {
    None: SUCCESS,
    **{outcome.error_type: outcome for outcome in _FAILURES},
}


def hint_for(error_type: ErrorType, locale: str) -> str | None:
    """The table's advice for an ending, in `locale` (`ko` or `en`)."""
    hint = OUTCOMES[error_type].hint
    return None if hint is None else hint.in_(locale)


class Start(StrEnum):
    """Where the run's container came from."""

    HOT = "hot"
    WARM = "warm"
    COLD = "cold"


class Isolation(StrEnum):
    """What stands between one run and the next (levels L2, L1, L0 of the design)."""

    SANDBOX = "sandbox"
    SHARED = "shared"
    CONTAINER = "container"


class OutputError(msgspec.Struct, frozen=True, rename="camel"):
    """A file that was left in /output and not uploaded, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An output file that is not uploaded, and why, in every language.

    Attributes:
        path: As a result shows it; empty for all files, or for several.
        reason: The sentence.
    """

    path: str
    reason: Text

    def in_(self, locale: str) -> OutputError:
        """As the result has it."""
        return OutputError(self.path, self.reason.in_(locale))


class Tuning(msgspec.Struct, frozen=True, rename="camel"):
    """The AutoTuner's advice, for machines.

    Attributes:
        recommended_memory_mb: What memoryMb should be.
        confidence: 0 … 1.
        samples: How many runs the advice rests on.
        savings_percent: Of the run's price, positive when the advice is cheaper.
    """

    recommended_memory_mb: int
    confidence: float
    samples: int
    savings_percent: float


class Timings(msgspec.Struct, rename="camel"):
    """Milliseconds per phase; 0 where a phase did not happen."""

    queue: float = 0
    fetch: float = 0
    build: float = 0
    acquire: float = 0
    start: float = 0
    run: float = 0
    upload: float = 0
    total: float = 0


class Result(msgspec.Struct, rename="camel", kw_only=True):
    """The document that is stored at `job:{requestId}` and published on `result:{requestId}`.

    `stdout_url` and `stderr_url` are set when the whole logs were too large for the document and lie in
    S3 (MAX_RESULT_BYTES); all other fields are the contract's section 3.
    """

    request_id: str
    function_id: str
    runtime: str
    status: Status
    exit_code: int = -1
    stdout: str = ""
    stderr: str = ""
    stdout_truncated_bytes: int = 0
    stderr_truncated_bytes: int = 0
    stdout_url: str | None = None
    stderr_url: str | None = None
    duration_ms: int = 0
    peak_memory_bytes: int | None = None
    optimization_tip: str | None = None
    estimated_savings: str | None = None
    tuning: Tuning | None = None
    output_files: list[str] = msgspec.field(default_factory=list)
    output_errors: list[OutputError] = msgspec.field(default_factory=list)
    llm_token_count: int = 0
    error_type: ErrorType | None = None
    error_message: str | None = None
    hint: str | None = None
    timings: Timings = msgspec.field(default_factory=Timings)
    start: Start | None = None
    isolation: Isolation | None = None
    worker_id: str = ""
    attempt: int = 1

    @property
    def outcome(self) -> Outcome:
        """The row of the table that this result is an instance of."""
        return OUTCOMES[self.error_type]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Result)


def encode(result: Result) -> bytes:
    """The result as the JSON that consumers read."""
    return _encoder.encode(result)


def decode(document: bytes | str) -> Result:
    """The inverse of `encode`.

    Raises:
        msgspec.ValidationError: The document is not one of ours.
    """
    return _decoder.decode(document)
