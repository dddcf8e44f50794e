"""Errors of Node.js programs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain.native import path_in_code
from nanoagent.languages.explain.rule import CODE_FOLDER, in_error, in_message
from nanoagent.languages.explain.texts import BYTE_ORDER_MARK, NOT_UTF8, RECURSION, STDIN_CONSUMED
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

HEAP: Final = Text(
    "The heap of V8 was full. Its limit is lower than memoryMb; stderr shows the size that it had reached."
    " If the program keeps data that it no longer needs, release the data. Otherwise raise memoryMb, or keep"
    " large data in Buffers, which are not part of the heap.",
    "V8 힙이 가득 찼습니다. 힙의 한도는 memoryMb보다 작으며, 도달한 크기는 stderr에 있습니다."
    " 필요 없는 데이터를 프로그램이 붙들고 있다면 놓아 주세요. 아니라면 memoryMb를 늘리거나,"
    " 큰 데이터는 힙에 포함되지 않는 Buffer에 두세요.",
)
_PACKAGE: Final = Text(
    "{where}Node.js did not find the package {name}. Run npm install {name} in the function's"
    " folder, so that node_modules is sent with the code.",
    "{where}Node.js가 {name} 패키지를 찾지 못했습니다. 함수 폴더에서 npm install {name}을(를) 실행해"
    " node_modules를 코드와 함께 보내세요.",
)
_NOT_VENDORED: Final = Text(
    "{where}Node.js did not find the package {name}. package.json lists it, but the worker installs"
    " nothing. Run npm install --omit=dev in the function's folder, so that node_modules is sent with the"
    " code.",
    "{where}Node.js가 {name} 패키지를 찾지 못했습니다. package.json에 있지만 워커는 아무것도 설치하지"
    " 않습니다. 함수 폴더에서 npm install --omit=dev를 실행해 node_modules를 코드와 함께 보내세요.",
)
_FILE: Final = Text(
    "{where}The code does not have the file {name}. Compare the path and the file name extension.",
    "{where}{name} 파일이 코드에 없습니다. 경로와 확장자를 확인하세요.",
)
_CASE: Final = Text(
    "{where}The zip has {found}, but the code imports {name}. Linux distinguishes upper and lower case.",
    "{where}zip에는 {found}이(가) 있는데 코드는 {name}을(를) import합니다. Linux는 대소문자를 구별합니다.",
)
_AT: Final = Text("{file}: ", "{file}: ")
_EXTENSION: Final = Text(
    "An import in an ES module needs the whole file name: write {wanted} instead of {name}.",
    "ES 모듈의 import에는 파일 이름 전체가 필요합니다. {name} 대신 {wanted}(으)로 쓰세요.",
)
_FOLDER: Final = Text(
    "An import in an ES module cannot name a folder. Write the file, for example {name}/index.js.",
    "ES 모듈의 import에는 폴더를 쓸 수 없습니다. {name}/index.js처럼 파일을 쓰세요.",
)
_ESM_IN_COMMONJS: Final = Text(
    'The file uses import or export, but Node.js reads it as CommonJS. Put {{"type": "module"}} into'
    " package.json"
    " beside index.js, or use require and module.exports.",
    "파일이 import나 export를 쓰지만 Node.js는 CommonJS로 읽습니다. index.js 옆의 package.json에"
    ' {{"type": "module"}}을 넣거나 require와 module.exports를 쓰세요.',
)
_COMMONJS_IN_ESM: Final = Text(
    "{name} does not exist in an ES module. {reason} {remedy}",
    "ES 모듈에는 {name}이(가) 없습니다. {reason} {remedy}",
)
_TYPE_MODULE: Final = Text(
    'The file is one, because package.json has "type": "module".',
    'package.json에 "type": "module"이 있어서 파일이 ES 모듈입니다.',
)
_BY_SYNTAX: Final = Text(
    "The file is one, because it uses import, export, or await outside of functions.",
    "import, export 또는 함수 밖의 await를 쓰기 때문에 파일이 ES 모듈입니다.",
)
_REMEDIES: Final = {
    "require": Text("Use import instead of require.", "require 대신 import를 쓰세요."),
    "module": Text("Use export instead of module.exports.", "module.exports 대신 export를 쓰세요."),
    "exports": Text("Use export instead of exports.", "exports 대신 export를 쓰세요."),
    "__dirname": Text("Use import.meta.dirname.", "import.meta.dirname을 쓰세요."),
    "__filename": Text("Use import.meta.filename.", "import.meta.filename을 쓰세요."),
}
_REQUIRE_OF_ESM: Final = Text(
    "A module that is loaded here with require is an ES module, and Node.js 20 cannot load it in this way."
    " Use"
    " await import(…) inside an async function, or an older version of the package that is CommonJS.",
    "require로 불러온 모듈이 ES 모듈이어서 Node.js 20에서 이렇게 불러올 수 없습니다. async 함수 안에서"
    " await import(…)를 쓰거나 CommonJS인 이전 버전을 쓰세요.",
)
_TOP_LEVEL_AWAIT: Final = Text(
    "A file that uses require cannot use await outside of functions. Put the code into async function main()"
    " and call it, or use import instead of require.",
    "require를 쓰는 파일은 함수 밖에서 await를 쓸 수 없습니다. 코드를 async function main() 안에 넣어"
    " 호출하거나 require 대신 import를 쓰세요.",
)
_BROWSER: Final = Text(
    "{name} exists only in a browser. A function runs in Node.js instead.",
    "{name}은(는) 브라우저에만 있습니다. 함수는 Node.js에서 실행됩니다.",
)
_STDIN: Final = re.compile(
    r"readFileSync\((?:0|'/dev/stdin'|\"/dev/stdin\"|process\.stdin\.fd)[,)]|process\.stdin\b|stdin\(\)"
)
_IMPORTED_FROM: Final = re.compile(
    r"imported from /work/(?P<esm>[\w@./-]{1,200})|Require stack:\n- /work/(?P<cjs>[\w@./-]{1,200})"
)
_AWAIT: Final = re.compile(r"^(?:(?:const|let|var) [^\n=]{1,100}= ?)?await\b", re.MULTILINE)
_ESM_SYNTAX: Final = re.compile(r"^(?:import|export)\b", re.MULTILINE)
_EXTENSIONS: Final = (".js", ".mjs", ".cjs", ".json", "/index.js")


def _where(facts: Facts) -> Text:
    found = _IMPORTED_FROM.search(facts.block)
    return _AT.format(file=found["esm"] or found["cjs"]) if found else Text("", "")


def _missing(found: re.Match[str], facts: Facts) -> Hint | None:
    name = found["name"]
    if name.startswith((".", "/")):
        return _missing_file(name, facts)
    parts = name.split("/")
    package = "/".join(parts[:2]) if name.startswith("@") else parts[0]
    listed = package.lower() in facts.tree.requirements
    cause, text = (Cause.NOT_VENDORED, _NOT_VENDORED) if listed else (Cause.MODULE_MISSING, _PACKAGE)
    return Hint(cause, text.format(where=_where(facts), name=package))


def _missing_file(name: str, facts: Facts) -> Hint | None:
    """Return the hint for a file of the author. In an ES module the name is an absolute path."""
    path, files = path_in_code(name), facts.tree.files
    while path.startswith("../"):
        path = path[3:]
    for extension in _EXTENSIONS:
        if path + extension in files and name.startswith(CODE_FOLDER):
            text = _EXTENSION.format(name=f"./{path}", wanted=f"./{path}{extension}")
            return Hint(Cause.ESM_EXTENSION, text)
    wanted = {path.lower() + extension for extension in ("", *_EXTENSIONS)}
    alike = [
        file
        for file in files
        if any(file.lower() == one or file.lower().endswith(f"/{one}") for one in wanted)
    ]
    other_case = [
        file for file in alike if not any(file.endswith(path + extension) for extension in ("", *_EXTENSIONS))
    ]
    if other_case:
        return Hint(Cause.FILE_NAME_CASE, _CASE.format(where=_where(facts), found=min(other_case), name=name))
    return Hint(Cause.FILE_NOT_IN_ZIP, _FILE.format(where=_where(facts), name=path_in_code(name)))


def _commonjs_in_esm(found: re.Match[str], facts: Facts) -> Hint:
    """The type in package.json, or else the syntax of the file, has made it an ES module."""
    name, source = found["name"], facts.tree.source
    if not facts.tree.is_module and _AWAIT.search(source) and not _ESM_SYNTAX.search(source):
        return Hint(Cause.TOP_LEVEL_AWAIT, _TOP_LEVEL_AWAIT)
    reason = _TYPE_MODULE if facts.tree.is_module else _BY_SYNTAX
    text = _COMMONJS_IN_ESM.format(name=name, reason=reason, remedy=_REMEDIES[name])
    return Hint(Cause.COMMONJS_IN_ESM, text)


def _reads_stdin_twice(_: re.Match[str], facts: Facts) -> Hint | None:
    if len(_STDIN.findall(facts.tree.source)) < 2:
        return None
    return Hint(Cause.STDIN_CONSUMED, STDIN_CONSUMED)


def _not_utf8(_: re.Match[str], facts: Facts) -> Hint | None:
    return Hint(Cause.SOURCE_ENCODING, NOT_UTF8) if "\N{REPLACEMENT CHARACTER}" in facts.tail else None


RULES: Final[tuple[Rule, ...]] = (
    in_error(r"JavaScript heap out of memory", (Cause.V8_HEAP, HEAP)),
    in_error(
        r"Cannot find (?:module|package) '(?P<name>[\w@./+-]{1,200})'",
        _missing,
        flags=re.ASCII,
    ),
    in_error(
        r"Directory import '/work/(?P<name>[\w@./-]{1,200})' is not supported",
        (Cause.ESM_EXTENSION, _FOLDER),
    ),
    in_error(
        r"SyntaxError: Cannot use import statement outside a module|SyntaxError: Unexpected token 'export'",
        (Cause.ESM_IN_COMMONJS, _ESM_IN_COMMONJS),
    ),
    in_error(
        r"ReferenceError: (?P<name>require|module|exports|__dirname|__filename) is not defined in ES module"
        r" scope",
        _commonjs_in_esm,
    ),
    in_error(
        r"require\(\) of ES Module |require\(\) cannot be used on an ESM graph",
        (Cause.REQUIRE_OF_ESM, _REQUIRE_OF_ESM),
    ),
    in_error(
        r"await is only valid in async functions and the top level bodies of modules",
        (Cause.TOP_LEVEL_AWAIT, _TOP_LEVEL_AWAIT),
    ),
    in_error(
        r"ReferenceError: (?P<name>document|window|localStorage|sessionStorage|alert|XMLHttpRequest) is not"
        r" defined",
        lambda found, _: Hint(Cause.BROWSER_API, _BROWSER.format(name=found["name"])),
    ),
    in_error(r"RangeError: Maximum call stack size exceeded", (Cause.RECURSION, RECURSION)),
    in_error(r"SyntaxError: Unexpected token '?(?:\ufeff|\\ufeff)", (Cause.BYTE_ORDER_MARK, BYTE_ORDER_MARK)),
    in_error(r"SyntaxError: Unexpected end of JSON input", _reads_stdin_twice),
    in_message(r"SyntaxError: Invalid or unexpected token", _not_utf8),
)
