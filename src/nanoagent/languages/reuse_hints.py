"""Advice for the author of a function whose imports cannot be reused (the field `reuse` of the job)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanoagent.model.text import Text
from nanoagent.supervisor.wire import ImportsState

if TYPE_CHECKING:
    from collections.abc import Mapping

_FRAME: Final = Text(
    'reuse: "imports" has no effect: {reason}', 'reuse: "imports"가 적용되지 않았습니다. 이유: {reason}'
)
_LEFT: Final = Text("an imported package has left {what}", "import한 패키지가 {what}을(를) 남겼습니다")

REASONS: Final[Mapping[ImportsState, Text]] = {
    ImportsState.UNAVAILABLE: Text(
        "the worker offers it for Python only, only with sandboxes (isolation: sandbox), and only if "
        "functions share no containers",
        "워커는 샌드박스(isolation: sandbox)에서 실행되는 Python에만, 그리고 함수들이 컨테이너를 공유하지 "
        "않을 때만 제공합니다",
    ),
    ImportsState.NONE: Text(
        "main.py imports no installed package; install packages with pip install --target, so that the zip "
        "has their *.dist-info folders",
        "main.py가 설치된 패키지를 import하지 않습니다. pip install --target으로 설치해서 zip에 *.dist-info "
        "폴더가 있게 하세요",
    ),
    ImportsState.SHADOWED: Text(
        "a file or folder of the code has the name of a standard module",
        "코드의 파일이나 폴더가 표준 모듈과 이름이 같습니다",
    ),
    ImportsState.FAILED: Text(
        "an import raises an exception without the job's environment variables and network",
        "작업의 환경 변수와 네트워크 없이는 import가 예외를 냅니다",
    ),
    ImportsState.SLOW: Text(
        "the imports, or the start of a process after them, take too long",
        "import 또는 그 뒤의 프로세스 시작이 너무 오래 걸립니다",
    ),
    ImportsState.ENDED: Text(
        "the importing process has ended, perhaps because of memoryMb",
        "import하는 프로세스가 종료되었습니다. memoryMb가 원인일 수 있습니다",
    ),
    ImportsState.PRINTED: Text("an imported package prints", "import한 패키지가 출력합니다"),
    ImportsState.FILES: Text("an imported package writes files", "import한 패키지가 파일을 씁니다"),
    ImportsState.THREADS: _LEFT.format(what=Text("threads", "스레드")),
    ImportsState.CHILDREN: _LEFT.format(what=Text("processes", "프로세스")),
    ImportsState.DESCRIPTORS: _LEFT.format(what=Text("open files or sockets", "열린 파일이나 소켓")),
    ImportsState.SIGNALS: _LEFT.format(what=Text("signal handlers or timers", "시그널 처리기나 타이머")),
    ImportsState.PROCESS: _LEFT.format(
        what=Text("another working directory, umask or limit", "바뀐 작업 디렉터리, umask 또는 한도")
    ),
    ImportsState.ENVIRONMENT: _LEFT.format(what=Text("other environment variables", "바뀐 환경 변수")),
    ImportsState.INTERPRETER: _LEFT.format(
        what=Text("another sys.path, other streams or hooks", "바뀐 sys.path, 스트림 또는 훅")
    ),
    ImportsState.MEMORY: _LEFT.format(what=Text("shared memory", "공유 메모리")),
    ImportsState.OWN_CODE: Text(
        "an installed package imports a module of the function's own code",
        "설치된 패키지가 함수 자체 코드의 모듈을 import합니다",
    ),
}
"""State → the reason as a part of a sentence."""


def hint_for(state: ImportsState) -> Text | None:
    """Return the advice for a run that was to reuse imports; None if there is nothing to say."""
    reason = REASONS.get(state)
    return None if reason is None else _FRAME.format(reason=reason)
