"""Failed builds of Go programs: the messages of Go 1.24.

tests/integration/test_builds.py compares the patterns with real builds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain.build_rule import BuildRule, always
from nanoagent.languages.explain.texts import NOT_UTF8
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection

_CGO: Final = Text(
    en=(
        '{file} imports "C", but cgo is off: the image builds Go code without a C compiler. Use a package in '
        "pure Go (for SQLite, modernc.org/sqlite)."
    ),
    ko=(
        '{file}에서 "C"를 import하지만 cgo가 꺼져 있습니다. Go 코드는 C 컴파일러 없이 빌드됩니다. '
        "순수 Go 패키지를 쓰세요(SQLite는 modernc.org/sqlite)."
    ),
)
_MODULE: Final = Text(
    en="Builds have no network. Run `go mod vendor`, and put go.mod, go.sum and vendor into the zip.",
    ko=(
        "빌드는 네트워크를 쓸 수 없습니다. `go mod vendor`를 실행하고 "
        "go.mod, go.sum, vendor 폴더를 zip에 넣으세요."
    ),
)
_VERSION: Final = Text(
    en=(
        "go.mod requires Go {wanted}, but the image has Go {present}. Write go {present} or older into "
        "go.mod."
    ),
    ko=(
        "go.mod는 Go {wanted}을(를) 요구하지만 이미지에는 Go {present}이(가) 있습니다. "
        "go.mod에 {present} 이하를 쓰세요."
    ),
)
_PACKAGES: Final = Text(
    en=(
        "{first} and {second} are in one folder, but in two packages. All files at the root must be in "
        "package main. Put other packages into separate folders."
    ),
    ko=(
        "{first}와(과) {second}이(가) 같은 폴더에 있지만 패키지가 다릅니다. "
        "루트의 모든 파일은 package main이어야 하고, 다른 패키지는 별도의 폴더에 넣으세요."
    ),
)
_TWO_DEFINITIONS: Final = Text(
    en="{first} and {second} both define {name}. The files at the root are one program. Keep one definition.",
    ko=(
        "{first}와(과) {second}이(가) 모두 {name}을(를) 정의합니다. "
        "루트의 파일은 하나의 프로그램입니다. 하나만 두세요."
    ),
)
_OWN_PACKAGE: Final = Text(
    en=(
        "Import the folder {name} of the zip with the path of its module: {module}/{name}. Without a go.mod, "
        "the name of the module is function."
    ),
    ko=(
        "zip의 {name} 폴더는 모듈 경로로 import합니다: {module}/{name}. "
        "go.mod가 없으면 모듈 이름은 function입니다."
    ),
)


def _own_package(match: re.Match[str], files: Collection[str]) -> Hint | None:
    name = (match["bare"] or match["relative"]).strip("/")
    if not any(file.startswith(f"{name}/") for file in files):
        return None
    module = "<module>" if "go.mod" in files else "function"
    return Hint(Cause.GO_IMPORT_PATH, _OWN_PACKAGE.format(name=name, module=module))


RULES: Final = (
    BuildRule(
        re.compile(
            r"unexpected NUL in input|(?:illegal|invalid) UTF-8 encoding|(?:illegal|invalid) NUL character"
        ),
        always(Cause.SOURCE_ENCODING, NOT_UTF8),
    ),
    BuildRule(
        re.compile(r'^(?P<file>[^\n:]{1,300}\.go): import "C": cgo is off', re.MULTILINE),
        always(Cause.CGO, _CGO),
    ),
    BuildRule(
        re.compile(
            r"^[^\n:]{1,300}\.go:\d{1,9}:\d{1,9}: "
            r"(?:package (?P<bare>[^\s\"]{1,300}) is not in std"
            r'|"\./(?P<relative>[^\s"]{1,300})" is relative)',
            re.MULTILINE,
        ),
        _own_package,
    ),
    BuildRule(
        re.compile(r"module lookup disabled by GOPROXY=off|inconsistent vendoring"),
        always(Cause.GO_MODULE_MISSING, _MODULE),
    ),
    BuildRule(
        re.compile(
            r"go\.mod requires go >= (?P<wanted>[\w.]{1,40}) \(running go (?P<present>[\w.]{1,40})",
        ),
        always(Cause.GO_VERSION, _VERSION),
    ),
    BuildRule(
        re.compile(
            r"found packages [^\s]{1,300} \((?P<first>[^)\n]{1,300})\) "
            r"and [^\s]{1,300} \((?P<second>[^)\n]{1,300})\)"
        ),
        always(Cause.GO_PACKAGES, _PACKAGES),
    ),
    BuildRule(
        re.compile(
            r"^(?:\./)?(?P<first>[^\n:]{1,300}):\d{1,9}:\d{1,9}: "
            r"(?P<name>\w{1,100}) redeclared in this block\n"
            r"\s{1,8}(?:\./)?(?P<second>[^\n:]{1,300}):\d{1,9}:\d{1,9}: other declaration",
            re.MULTILINE,
        ),
        always(Cause.TWO_DEFINITIONS, _TWO_DEFINITIONS),
    ),
)
