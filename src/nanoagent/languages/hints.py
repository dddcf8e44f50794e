"""Finds the hint of a result, from facts about the run.

The table `_RULES` has the common failures: a pattern in the program's error, and the hint. The messages are
those of CPython 3.13, Node.js 20, Go 1.24 and glibc. The text is hostile input, so only its end is read. Each
pattern begins with a fixed word, and all repetitions are bounded. So the time is linear in the length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from nanoagent.languages.build_hint import NOT_UTF8
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.model.result import OUTCOMES, ErrorType
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

_BOTH: Final = Text("{first} {second}", "{first} {second}")
_NOT_FLUSHED: Final = Text(
    "stdout is empty. If the program printed something, the output was not flushed and is lost. {how}",
    "stdout이 비어 있습니다. 프로그램이 출력을 했다면 flush하지 않아서 사라진 것입니다. {how}",
)
_HOW_TO_FLUSH: Final[dict[Runtime, Text]] = {
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
_HEAP_FULL: Final = "JavaScript heap out of memory"
_V8_HEAP: Final = Text(
    "The heap of V8 was full. Its limit is about half of memoryMb, or 259 MB if memoryMb is 512 or less."
    " Raise memoryMb, or keep large data in Buffers, which are not part of the heap.",
    "V8 힙이 가득 찼습니다. 힙의 한도는 memoryMb의 약 절반이며, 512MB 이하에서는 259MB입니다."
    " memoryMb를 늘리거나, 큰 데이터는 힙에 포함되지 않는 Buffer에 두세요.",
)
# In these cases a signal killed the program, so it could not flush its output.
_KILLED_BY_SIGNAL: Final = frozenset(
    {ErrorType.TIMEOUT, ErrorType.OUT_OF_MEMORY, ErrorType.SIGNAL, ErrorType.CANCELLED}
)

_NOTHING_PRINTED: Final = Text(
    "The program ended by itself with exit code {code} and printed nothing to stderr. Print the reason to"
    " stderr before the program exits.",
    "프로그램이 종료 코드 {code}(으)로 스스로 끝났고 stderr에 아무것도 출력하지 않았습니다."
    " 끝나기 전에 이유를 stderr에 출력하세요.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts about a run from which its hint is chosen.

    Attributes:
        runtime: The program's language.
        error_type: The kind of failure; None if the run succeeded.
        exit_code: The exit code.
        message: The error's first line, in English.
        stdout: The standard output.
        stderr: The standard error.
        network: The network policy of the run.
        open_files: The largest number of files that a process could have open (MAX_OPEN_FILES).
    """

    runtime: Runtime
    error_type: ErrorType | None
    exit_code: int = 1
    message: str = ""
    stdout: str = ""
    stderr: str = ""
    network: NetworkPolicy = NetworkPolicy.AI
    open_files: int = 1024


def for_run(facts: Facts, missing_payload: Text | None = None) -> Text | None:
    """Return the hint for a run; None if it succeeded, or no advice is known.

    Args:
        facts: The facts about the run.
        missing_payload: The hint about the variable PAYLOAD, see `payload.left_out_hint`.
    """
    if facts.error_type is None:
        return None
    hint = _known_failure(facts) or OUTCOMES[facts.error_type].hint
    for more in (missing_payload, _lost_output(facts)):
        if more is not None:
            hint = more if hint is None else _BOTH.format(first=hint, second=more)
    return hint


def _known_failure(facts: Facts) -> Text | None:
    """Return the hint of the first rule that matches, if the program itself failed."""
    if not OUTCOMES[facts.error_type].ended_by_itself:
        return None
    message, end = facts.message[:_READ_CHARACTERS], facts.stderr[-_READ_CHARACTERS:]
    for rule in _RULES:
        if facts.runtime not in rule.runtimes or (rule.stderr_contains and rule.stderr_contains not in end):
            continue
        found = rule.pattern.search(message) or (rule.pattern.search(end) if rule.in_stderr else None)
        if found is not None:
            return rule.hint(found, facts)
    if facts.error_type is ErrorType.USER_ERROR and not facts.stderr.strip():
        return _NOTHING_PRINTED.format(code=facts.exit_code)
    return None


def _lost_output(facts: Facts) -> Text | None:
    """Return the advice to flush, for a killed program without output."""
    if facts.error_type not in _KILLED_BY_SIGNAL or facts.stdout:
        return None
    return _NOT_FLUSHED.format(how=_HOW_TO_FLUSH[facts.runtime])


# --- common failures

_READ_CHARACTERS: Final = 16 * 1024
_CODE_FOLDER: Final = "/work"


class _Rule(NamedTuple):
    """A pattern in the error's first line, and its hint.

    Attributes:
        pattern: The pattern. It begins with a fixed word, and all repetitions are bounded.
        hint: Returns the hint for a match and the facts.
        runtimes: The languages to which the rule applies.
        in_stderr: Whether to search also the end of standard error, because the first line may not contain
            the cause.
        stderr_contains: The rule applies only if the end of standard error contains this text.
    """

    pattern: re.Pattern[str]
    hint: Callable[[re.Match[str], Facts], Text]
    runtimes: frozenset[Runtime] = frozenset(Runtime)
    in_stderr: bool = False
    stderr_contains: str = ""


_PYTHON: Final = frozenset({Runtime.PYTHON})
_NODEJS: Final = frozenset({Runtime.NODEJS})
_PYTHON_MODULE: Final = Text(
    "Python did not find the module {name}. If it is a library, install it into the code's folder before you"
    " make the zip: pip install --target . {package}. If it is your own file, put it into the zip.",
    "Python이 {name} 모듈을 찾지 못했습니다. 라이브러리라면 zip을 만들기 전에 코드 폴더에 설치하세요:"
    " pip install --target . {package}. 직접 만든 파일이라면 zip에 넣으세요.",
)
# Module → package, for packages whose module has another name.
_PACKAGES: Final = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "jwt": "PyJWT",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
_NODE_PACKAGE: Final = Text(
    "Node.js did not find the package {name}. Run npm install {name} in the code's folder, and put"
    " node_modules into the zip.",
    "Node.js가 {name} 패키지를 찾지 못했습니다. 코드 폴더에서 npm install {name}을(를) 실행하고"
    " node_modules를 zip에 넣으세요.",
)
_NODE_FILE: Final = Text(
    "The file {name} is not in the zip, or it has another name there. Compare the path, upper and lower case,"
    " and the file name extension. An import in an ES module needs the extension (./utils.js).",
    "{name} 파일이 zip에 없거나 이름이 다릅니다. 경로와 대소문자, 확장자를 확인하세요."
    " ES 모듈의 import에는 확장자가 필요합니다(./utils.js).",
)
_NO_INTERNET: Final = Text(
    "The run cannot reach the internet: its network is {network}. To allow it, the worker needs"
    " NETWORK=egress, and the job's field network must be egress or left out. Models are reached at the"
    " address in the environment variable AI_ENDPOINT.",
    "실행의 network가 {network}이어서 인터넷에 접속할 수 없습니다. 허용하려면 워커에 NETWORK=egress를"
    " 설정하고 작업의 network 필드를 egress로 하거나 생략하세요."
    " 모델은 환경 변수 AI_ENDPOINT의 주소로 접속합니다.",
)
_NO_SUCH_HOST: Final = Text(
    "The host's name could not be resolved. Check the name. The worker must also allow the host "
    "(EGRESS_ALLOW).",
    "호스트 이름을 찾지 못했습니다. 이름을 확인하세요. 워커의 EGRESS_ALLOW에서도 허용해야 합니다.",
)
_OPEN_FILES: Final = Text(
    "A process may have {most} files and connections open at the same time (MAX_OPEN_FILES={most}). Close"
    " them after use, or ask the operator to raise MAX_OPEN_FILES.",
    "한 프로세스는 파일과 연결을 동시에 {most}개까지 열 수 있습니다(MAX_OPEN_FILES={most})."
    " 다 쓴 것은 닫거나 MAX_OPEN_FILES를 올려 달라고 요청하세요.",
)


def _python_module(found: re.Match[str], _: Facts) -> Text:
    top = found["name"].partition(".")[0]
    return _PYTHON_MODULE.format(name=found["name"], package=_PACKAGES.get(top, top))


def _node_module(found: re.Match[str], _: Facts) -> Text:
    name = found["name"]
    if name.startswith((".", "/")):
        return _NODE_FILE.format(name=name.removeprefix(f"{_CODE_FOLDER}/"))
    parts = name.split("/")
    package = "/".join(parts[:2]) if name.startswith("@") else parts[0]
    return _NODE_PACKAGE.format(name=package)


def _name_resolution(_: re.Match[str], facts: Facts) -> Text:
    if facts.network.allows(NetworkPolicy.EGRESS):
        return _NO_SUCH_HOST
    return _NO_INTERNET.format(network=facts.network)


_RULES: Final = (
    _Rule(
        re.compile(re.escape(_HEAP_FULL)),
        lambda _, __: _V8_HEAP,
        _NODEJS,
    ),
    _Rule(
        re.compile(r"ModuleNotFoundError: No module named '(?P<name>[A-Za-z0-9_.]{1,100})'"),
        _python_module,
        _PYTHON,
    ),
    _Rule(
        re.compile(r"Cannot find (?:module|package) '(?P<name>[\w@./+-]{1,200})'", re.ASCII),
        _node_module,
        _NODEJS,
    ),
    _Rule(
        re.compile(
            r"Temporary failure in name resolution|Name or service not known|Failed to resolve '"
            r"|getaddrinfo E(?:AI_AGAIN|NOTFOUND)"  # Node.js
            r"|dial tcp: lookup "  # Go
            r"|Network is unreachable|connect ENETUNREACH|connect: network is unreachable"
        ),
        _name_resolution,
        in_stderr=True,
    ),
    _Rule(
        re.compile(r"EMFILE: too many open files|[Tt]oo many open files"),
        lambda _, facts: _OPEN_FILES.format(most=facts.open_files),
        in_stderr=True,
    ),
    _Rule(
        re.compile(
            r"SyntaxError: Non-UTF-8 code starting with|SyntaxError: \(unicode error\) 'utf-8' codec"
            r"|SyntaxError: source code (?:string )?cannot contain null bytes"
        ),
        lambda _, __: NOT_UTF8,
        _PYTHON,
    ),
    _Rule(
        re.compile(r"SyntaxError: Invalid or unexpected token"),
        lambda _, __: NOT_UTF8,
        _NODEJS,
        stderr_contains="\N{REPLACEMENT CHARACTER}",
    ),
)

# --- code without output

_NEVER_CALLED: Final = Text(
    "The program printed nothing. {entry} defines {name}, but nothing calls it: {entry} runs as a program,"
    " from top to bottom. Read the input from the environment variable PAYLOAD (JSON) or from standard"
    " input, call {name} with it, and print its result.",
    "프로그램이 아무것도 출력하지 않았습니다. {entry}에 {name}이(가) 정의되어 있지만 호출하는 곳이 없습니다."
    " {entry}는 프로그램으로 처음부터 끝까지 실행됩니다. 입력은 환경 변수 PAYLOAD(JSON)나 표준 입력에서 읽어"
    " {name}에 넘기고, 결과를 출력하세요.",
)
_HANDLERS: Final = {
    Runtime.PYTHON: re.compile(r"^(?:async )?def (?P<name>lambda_handler|handler)\(", re.MULTILINE),
    Runtime.NODEJS: re.compile(
        r"^(?:module\.)?exports\.(?P<name>handler) ?=|^module\.exports ?= ?\{ ?(?=handler\b)"
        r"|^export (?:const handler ?=|(?:async )?function handler\()",
        re.MULTILINE,
    ),
}
_CALL: Final = re.compile(r"(?<!def )(?<!function )\b(?:lambda_)?handler\(")


def for_silent_success(runtime: Runtime, source: str) -> Text | None:
    """Return the hint for a program that succeeded, printed nothing and wrote no output file.

    Args:
        runtime: The program's language.
        source: The text of the entry file.

    Returns:
        The hint if the program only defines a handler that nothing calls; else None.
    """
    pattern = _HANDLERS.get(runtime)
    found = pattern.search(source) if pattern is not None else None
    if found is None or _CALL.search(source) is not None:
        return None
    return _NEVER_CALLED.format(entry=RECIPES[runtime].entry, name=found["name"] or "handler")
