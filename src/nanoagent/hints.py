"""The hint of a result, from the facts of the run. Pure functions."""

from __future__ import annotations

from typing import Final

from nanoagent.job import Runtime
from nanoagent.result import OUTCOMES, ErrorType
from nanoagent.text import Text

_BOTH: Final = Text("{first} {second}", "{first} {second}")
_NOT_FLUSHED: Final = Text(
    "stdout is empty: output that the program had not flushed is lost. {how}",
    "stdout이 비어 있습니다. 프로그램이 flush하지 않은 출력은 사라집니다. {how}",
)
_HOW_TO_FLUSH: Final[dict[Runtime, Text]] = {
    Runtime.PYTHON: Text(
        "Use print(..., flush=True), or call sys.stdout.reconfigure(line_buffering=True) at the start, which"
        " flushes each line as python -u does.",
        "print(..., flush=True)를 쓰거나, 시작할 때 sys.stdout.reconfigure(line_buffering=True)를 호출하세요."
        " python -u처럼 줄마다 flush합니다.",
    ),
    Runtime.NODEJS: Text(
        "console.log writes a large text when the event loop is free; fs.writeSync(1, text) writes at once.",
        "console.log는 큰 텍스트를 이벤트 루프가 비어 있을 때만 씁니다. fs.writeSync(1, text)는 바로 씁니다.",
    ),
    Runtime.CPP: Text(
        "Write std::endl or std::flush to std::cout, or call fflush(stdout) after printf.",
        "std::cout에 std::endl이나 std::flush를 쓰거나, printf 뒤에 fflush(stdout)를 호출하세요.",
    ),
    Runtime.GO: Text(
        "fmt and os.Stdout do not buffer; a bufio.Writer needs Flush.",
        "fmt와 os.Stdout은 버퍼를 쓰지 않습니다. bufio.Writer는 Flush를 호출해야 합니다.",
    ),
}
_HEAP_FULL: Final = "JavaScript heap out of memory"
_V8_HEAP: Final = Text(
    "The heap of V8 was full. Its limit is about half of memoryMb, and 259 MB up to 512 MB: raise memoryMb,"
    " or keep large data in Buffers, which are not part of the heap.",
    "V8 힙이 가득 찼습니다. 힙의 한도는 memoryMb의 약 절반이며, 512MB 이하에서는 259MB입니다."
    " memoryMb를 늘리거나, 큰 데이터는 힙에 포함되지 않는 Buffer에 두세요.",
)
# The program was killed, or killed itself: no code that flushes its output has run.
_ENDED_FROM_OUTSIDE: Final = frozenset(
    {ErrorType.TIMEOUT, ErrorType.OUT_OF_MEMORY, ErrorType.SIGNAL, ErrorType.CANCELLED}
)


def for_run(
    runtime: Runtime,
    error_type: ErrorType | None,
    stdout: str,
    missing_payload: Text | None = None,
    message: str = "",
) -> Text | None:
    """The advice for a program that ran.

    Args:
        runtime: Its language.
        error_type: How it ended.
        stdout: Its standard output.
        missing_payload: The hint about PAYLOAD, see `payload.left_out_hint`.
        message: The error's first line, in English.
    """
    if error_type is None:
        return None
    hint = OUTCOMES[error_type].hint
    if runtime is Runtime.NODEJS and error_type is ErrorType.SIGNAL and _HEAP_FULL in message:
        hint = _V8_HEAP
    for more in (missing_payload, _lost_output(runtime, error_type, stdout)):
        if more is not None:
            hint = more if hint is None else _BOTH.format(first=hint, second=more)
    return hint


def _lost_output(runtime: Runtime, error_type: ErrorType, stdout: str) -> Text | None:
    """Advice to flush, for a killed program without output."""
    if error_type not in _ENDED_FROM_OUTSIDE or stdout:
        return None
    return _NOT_FLUSHED.format(how=_HOW_TO_FLUSH[runtime])
