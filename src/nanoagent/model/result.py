"""The outcome table and the result document. docs/contract.md, sections 3 and 4, describes both.

The table `OUTCOMES` has one row for each way in which a job can end. A row has the status, the possible exit
codes, the blame, the settlement of the message, the metric label and the default hint. A `Result` cannot be
constructed if its status, exit code and error type contradict the table. The README's table is generated from
this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

import msgspec

from nanoagent.model.cause import Cause
from nanoagent.model.job import Reuse
from nanoagent.model.text import Text


class Status(StrEnum):
    """The status of a result; the values are part of the contract."""

    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"


class Blame(StrEnum):
    """The party that is to blame for an outcome."""

    NOBODY = "-"
    USER = "user"
    PLATFORM = "platform"


class Settle(StrEnum):
    """The settlement of the message; the values are texts of the README's table."""

    ACK = "deleted"
    POISON = (
        "left in the queue if it has a redrive policy; otherwise moved to `SQS_DLQ_URL` if that is set; "
        "otherwise deleted and logged"
    )
    RETRY = "returned with growing delay; after the last attempt dead-lettered, and a result is published"
    RELEASE = "returned to the queue, not counted as an attempt"


class ErrorType(StrEnum):
    """Every way in which a job can end without success; the values are part of the contract."""

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


NOT_STARTED: Final = -1
"""The exit code of a job whose program did not start."""

KILLED: Final = 128 + 9
"""The exit code of a program that the platform killed: 128 + SIGKILL."""


class ExitCodes(Enum):
    """The exit codes that an outcome allows."""

    ZERO = range(1)
    NON_ZERO = range(1, 256)
    SIGNAL = range(129, 256)  # 128 + the signal's number
    ANY = range(256)  # also 0: a child process may have reached the limit, or the program ended at that time
    NOT_STARTED = range(-1, 0)
    ANY_OR_NOT_STARTED = range(-1, 256)
    NO_RESULT = range(0)  # no result is published, so no exit code is possible

    def allow(self, exit_code: int) -> bool:
        """Whether the exit code is one of them."""
        return exit_code in self.value


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table.

    Attributes:
        error_type: None for success.
        status: None when no result is published.
        exit_codes: The exit codes that a result of this outcome can have.
        blame: Who is to blame.
        settle: What happens to the message.
        label: The `status` label of `worker_jobs_processed_total`.
        meaning: When the outcome happens, for the documents.
        hint: The default advice for the author of the function; None where none is needed.
    """

    error_type: ErrorType | None
    status: Status | None
    exit_codes: ExitCodes
    blame: Blame
    settle: Settle
    label: str
    meaning: str
    hint: Text | None = None

    @property
    def ended_by_itself(self) -> bool:
        """Whether the program ended by itself: it exited, or caused the signal that killed it."""
        return self.exit_codes in {ExitCodes.ZERO, ExitCodes.NON_ZERO, ExitCodes.SIGNAL}

    def check(self, status: Status, exit_code: int) -> None:
        """Check that a result of this outcome can have that status and exit code.

        Raises:
            ValueError: It cannot.
        """
        name = self.error_type or Status.SUCCESS
        if status is not self.status:
            raise ValueError(f"a result of {name} has the status {self.status}, not {status}")
        if not self.exit_codes.allow(exit_code):
            codes = self.exit_codes.value
            raise ValueError(f"a result of {name} has an exit code in {codes}, not {exit_code}")


_E, _S, _B, _X = ErrorType, Status, Blame, ExitCodes

SUCCESS: Final = Outcome(
    None, _S.SUCCESS, _X.ZERO, _B.NOBODY, Settle.ACK, "success", "exit code 0 and no limit was hit"
)

_FAILURES: Final = (
    Outcome(
        _E.USER_ERROR,
        _S.FAILED,
        _X.NON_ZERO,
        _B.USER,
        Settle.ACK,
        "failure",
        "the program ended with a non-zero exit code",
    ),
    Outcome(
        _E.SIGNAL,
        _S.FAILED,
        _X.SIGNAL,
        _B.USER,
        Settle.ACK,
        "failure",
        "a signal ended the program, and the program had caused the signal itself",
        Text(
            "The exit code is 128 + the signal's number; 139 is a bad memory access, 134 an abort.",
            "종료 코드는 128 + 시그널 번호입니다. 139는 잘못된 메모리 접근, 134는 abort입니다.",
        ),
    ),
    Outcome(
        _E.TIMEOUT,
        _S.TIMEOUT,
        _X.ANY,
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
        _X.ANY,
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
        _X.ANY,
        _B.USER,
        Settle.ACK,
        "failure",
        "a writable directory was full, or a file reached the size limit",
        Text(
            "Write less, or fewer files, to /tmp, /output and the working directory, or ask the operator to"
            " raise the limit that is named in the message.",
            "/tmp, /output, 작업 디렉터리에 쓰는 양이나 파일 수를 줄이거나, 메시지에 나온 한도를 올려 달라고"
            " 요청하세요.",
        ),
    ),
    Outcome(
        _E.PROCESS_LIMIT,
        _S.FAILED,
        _X.ANY,
        _B.USER,
        Settle.ACK,
        "failure",
        "the run reached the limit on processes and threads",
        Text(
            "Start fewer processes and threads at a time, or ask the operator to raise MAX_PROCESSES.",
            "동시에 만드는 프로세스와 스레드 수를 줄이거나 MAX_PROCESSES를 올려 달라고 요청하세요.",
        ),
    ),
    Outcome(
        _E.BUILD_FAILED,
        _S.FAILED,
        _X.NOT_STARTED,
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
        _X.NOT_STARTED,
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
        _X.NOT_STARTED,
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
        _X.NOT_STARTED,
        _B.USER,
        Settle.ACK,
        "invalid",
        "the message has a requestId but a field is wrong, or a secret that it refers to cannot be used",
        Text(
            "Correct the field that the message names, and send the job again.",
            "메시지에 나온 필드를 고쳐서 작업을 다시 보내세요.",
        ),
    ),
    Outcome(
        _E.UNREADABLE,
        None,
        _X.NO_RESULT,
        _B.NOBODY,
        Settle.POISON,
        "invalid",
        "the message has no readable requestId",
    ),
    Outcome(
        _E.PLATFORM,
        _S.FAILED,
        _X.NOT_STARTED,
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
        _X.ANY_OR_NOT_STARTED,
        _B.NOBODY,
        Settle.ACK,
        "cancelled",
        "the sender cancelled the job",
    ),
    Outcome(
        _E.INTERRUPTED,
        None,
        _X.NO_RESULT,
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


def status_of(error_type: ErrorType | None) -> Status:
    """Return the status of a result with that error type.

    Args:
        error_type: How the job has ended; None for success.

    Raises:
        ValueError: No result is published for it.
    """
    status = OUTCOMES[error_type].status
    if status is None:
        raise ValueError(f"no result is published for {error_type}")
    return status


def hint_for(error_type: ErrorType | None, locale: str) -> str | None:
    """Return the default hint of the table in `locale` (`ko` or `en`); None where the table has none."""
    hint = OUTCOMES[error_type].hint
    return None if hint is None else hint.in_(locale)


class Start(StrEnum):
    """The state of the run's container before the run."""

    HOT = "hot"  # it had served this function before
    WARM = "warm"  # it was ready
    COLD = "cold"  # it was made for this job


class Isolation(StrEnum):
    """The isolation level: the boundary between one run and the next."""

    SANDBOX = "sandbox"  # L2: a sandbox for each run
    SHARED = "shared"  # L1: runs of one function share a container, which is wiped in between
    CONTAINER = "container"  # L0: a container for each run


class OutputError(msgspec.Struct, frozen=True, rename="camel"):
    """A file below /output that was not uploaded, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An output file that is not uploaded, and the reason in every language.

    Attributes:
        path: The path as the result shows it; empty if the reason is for several files.
        reason: The reason as a sentence.
    """

    path: str
    reason: Text

    def in_(self, locale: str) -> OutputError:
        """Return the entry of the result, in `locale` (`ko` or `en`)."""
        return OutputError(self.path, self.reason.in_(locale))


class Tuning(msgspec.Struct, frozen=True, rename="camel"):
    """The advice of the AutoTuner, in numbers.

    Attributes:
        recommended_memory_mb: The recommended value of memoryMb, MiB.
        confidence: From 0 to 1.
        samples: The number of runs that the advice is based on.
        savings_percent: The savings in percent of the run's price; negative if a run would cost more.
    """

    recommended_memory_mb: int
    confidence: float
    samples: int
    savings_percent: float


class Timings(msgspec.Struct, rename="camel"):
    """The duration of each phase in milliseconds; 0 for a phase that did not happen."""

    queue: float = 0
    fetch: float = 0
    build: float = 0
    acquire: float = 0
    start: float = 0
    run: float = 0
    upload: float = 0
    total: float = 0


class Result(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The document that is stored at `job:{requestId}` and published on `result:{requestId}`.

    docs/contract.md, section 3, describes the fields. `stdout_url` and `stderr_url` are set when stdout
    and stderr were too large for the document (MAX_RESULT_BYTES). Their full texts are then in S3.

    Raises:
        ValueError: Status and exit code contradict the error type's row (`Outcome.check`). `decode` raises
            `msgspec.ValidationError` instead.
    """

    request_id: str
    function_id: str
    runtime: str
    status: Status
    exit_code: int = NOT_STARTED
    stdout: str = ""
    stderr: str = ""
    stdout_truncated_bytes: int = 0
    stderr_truncated_bytes: int = 0
    stdout_url: str | None = None
    stderr_url: str | None = None
    duration_ms: int = 0
    peak_memory_bytes: int | None = None
    memory_mb: int | None = None
    optimization_tip: str | None = None
    estimated_savings: str | None = None
    tuning: Tuning | None = None
    output_files: list[str] = msgspec.field(default_factory=list)
    output_errors: list[OutputError] = msgspec.field(default_factory=list)
    llm_token_count: int = 0
    error_type: ErrorType | None = None
    error_message: str | None = None
    hint: str | None = None
    cause: Cause | None = None
    timings: Timings = msgspec.field(default_factory=Timings)
    start: Start | None = None
    isolation: Isolation | None = None
    reuse: Reuse | None = None
    worker_id: str = ""
    attempt: int = 1
    capsule: str | None = None

    def __post_init__(self) -> None:
        self.outcome.check(self.status, self.exit_code)

    @property
    def outcome(self) -> Outcome:
        """The row of the outcome table for this result."""
        return OUTCOMES[self.error_type]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Result)


def encode(result: Result) -> bytes:
    """Return the result as JSON, as it is published."""
    return _encoder.encode(result)


def decode(document: bytes | str) -> Result:
    """Return the result of a JSON document that `encode` has made.

    Raises:
        msgspec.DecodeError: The document is not JSON.
        msgspec.ValidationError: The document is not a result, or its status and exit code contradict the row
            of its error type.
    """
    return _decoder.decode(document)
