"""Runs that a limit ended, and output that was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.job import Runtime
from nanoagent.model.result import OUTCOMES, ErrorType
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

_SERVER: Final = Text(
    "The program listens for connections, as a server does, but nothing can connect to a run. A function"
    " reads its"
    " input from PAYLOAD or standard input, prints its result, and ends. Call the handler directly instead of"
    " starting the server.",
    "프로그램이 서버처럼 연결을 기다리지만 실행에는 아무도 접속할 수 없습니다. 함수는 PAYLOAD나 표준 입력에서"
    " 입력을 읽고 결과를 출력한 뒤 끝나야 합니다. 서버를 시작하지 말고 처리 함수를 직접 호출하세요.",
)
_WAITING: Final = Text(
    "The program was waiting when its time was over: it was not computing. Look for a lock, a sleep, a"
    " queue, a reply"
    " that does not come, or {keeps}.",
    "시간이 끝났을 때 프로그램은 계산하지 않고 기다리고 있었습니다. 잠금, sleep, 큐, 오지 않는 응답, 또는"
    " {keeps}이(가) 있는지 확인하세요.",
)
_KEEPS: Final = {
    Runtime.PYTHON: Text("a thread that does not end", "끝나지 않는 스레드"),
    Runtime.NODEJS: Text(
        "a timer or connection that stays open and keeps Node.js running",
        "열려 있어서 Node.js가 끝나지 못하게 하는 타이머나 연결",
    ),
    Runtime.CPP: Text("a thread that is joined and does not end", "join했지만 끝나지 않는 스레드"),
    Runtime.GO: Text("a goroutine that does not end", "끝나지 않는 고루틴"),
}
_COMPUTING: Final = Text(
    "The program was computing when its time was over. Look for a loop that does not end. If the work is"
    " really this"
    " large, raise timeoutMs, or memoryMb, which also raises the CPU share.",
    "시간이 끝났을 때 프로그램은 계산하고 있었습니다. 끝나지 않는 반복문이 있는지 확인하세요. 정말 큰"
    " 작업이라면"
    " timeoutMs를 늘리거나, CPU도 함께 늘어나는 memoryMb를 늘리세요.",
)
_FILES: Final = Text(
    "The files of the run took {files_mb} MiB of memoryMb={memory_mb}: files in /tmp, /output and the working"
    " directory are in memory. Delete them when they are not needed, process the data in parts, or raise"
    " memoryMb.",
    "실행의 파일이 memoryMb={memory_mb} 중 {files_mb} MiB를 차지했습니다. /tmp, /output, 작업 디렉터리의"
    " 파일은"
    " 메모리에 있습니다. 필요 없는 파일은 지우고, 데이터를 나누어 처리하거나 memoryMb를 늘리세요.",
)
_FILES_PART: Final = 0.5

_NOT_FLUSHED: Final = Text(
    "stdout is empty. If the program printed something, the output was not flushed and is lost. {how}",
    "stdout이 비어 있습니다. 프로그램이 출력을 했다면 flush하지 않아서 사라진 것입니다. {how}",
)
HOW_TO_FLUSH: Final[dict[Runtime, Text]] = {
    Runtime.PYTHON: Text(
        "Use print(..., flush=True), or call sys.stdout.reconfigure(line_buffering=True) at the start to"
        " flush each line, as python -u does.",
        "print(..., flush=True)를 쓰거나, 시작할 때 sys.stdout.reconfigure(line_buffering=True)를 호출하세요."
        " python -u처럼 줄마다 flush합니다.",
    ),
    Runtime.NODEJS: Text(
        "console.log writes a large text only when the event loop is free. fs.writeSync(1, text) writes at "
        "once.",
        "console.log는 큰 텍스트를 이벤트 루프가 비어 있을 때만 씁니다. fs.writeSync(1, text)는 바로 씁니다.",
    ),
    Runtime.CPP: Text(
        "Write std::endl or std::flush to std::cout, or call fflush(stdout) after printf.",
        "std::cout에 std::endl이나 std::flush를 쓰거나, printf 뒤에 fflush(stdout)를 호출하세요.",
    ),
    Runtime.GO: Text(
        "fmt and os.Stdout do not buffer. A bufio.Writer needs Flush.",
        "fmt와 os.Stdout은 버퍼를 쓰지 않습니다. bufio.Writer는 Flush를 호출해야 합니다.",
    ),
}
# In these cases a signal killed the program, so it could not flush its output.
_KILLED_BY_SIGNAL: Final = frozenset(
    {ErrorType.TIMEOUT, ErrorType.OUT_OF_MEMORY, ErrorType.SIGNAL, ErrorType.CANCELLED}
)


def lost_output(facts: Facts) -> Text | None:
    """Return the advice to flush, for a killed program without output."""
    if facts.error_type not in _KILLED_BY_SIGNAL or not facts.stdout_is_empty:
        return None
    return _NOT_FLUSHED.format(how=HOW_TO_FLUSH[facts.runtime])


def _server(facts: Facts) -> Hint | None:
    """A program that computes may listen for other reasons, for example for its worker processes."""
    return Hint(Cause.SERVER, _SERVER) if facts.is_listening and not facts.was_computing else None


def _waiting_or_computing(facts: Facts) -> Hint | None:
    if facts.was_waiting:
        return Hint(Cause.WAITING, _WAITING.format(keeps=_KEEPS[facts.runtime]))
    return Hint(Cause.COMPUTING, _COMPUTING) if facts.was_computing else None


def _files_in_memory(facts: Facts) -> Hint | None:
    if facts.files_bytes is None or facts.files_bytes < _FILES_PART * facts.memory_mb * MIB:
        return None
    text = _FILES.format(files_mb=facts.files_bytes // MIB, memory_mb=facts.memory_mb)
    return Hint(Cause.OUT_OF_MEMORY_FILES, text)


def _always(cause: Cause, error_type: ErrorType) -> Rule:
    """Return a rule for an outcome whose default hint is complete."""
    text = OUTCOMES[error_type].hint
    return lambda _: None if text is None else Hint(cause, text)


def _disk(facts: Facts) -> Hint | None:
    text = OUTCOMES[ErrorType.DISK_LIMIT].hint
    cause = Cause.FILE_TOO_LARGE if "MAX_FILE_MB" in facts.line else Cause.DISK_FULL
    return None if text is None else Hint(cause, text)


RULES: Final[dict[ErrorType, tuple[Rule, ...]]] = {
    ErrorType.TIMEOUT: (_server, _waiting_or_computing),
    ErrorType.OUT_OF_MEMORY: (_files_in_memory, _always(Cause.OUT_OF_MEMORY, ErrorType.OUT_OF_MEMORY)),
    ErrorType.DISK_LIMIT: (_disk,),
    ErrorType.PROCESS_LIMIT: (_always(Cause.PROCESSES, ErrorType.PROCESS_LIMIT),),
}
