"""Hints for builds that failed. The words are recorded from the images' compilers."""

# ruff: noqa: E501, ISC004 - the words are as long as they are

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nanoagent.languages.explain import explain_build
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from nanoagent.model.text import Text

CPP, GO = Runtime.CPP, Runtime.GO


def build_hint(runtime: Runtime, said: str, files: list[str]) -> Text | None:
    hint = explain_build(runtime, said, files)
    return None if hint is None else hint.text


def ld(line: str) -> str:
    return f"/usr/bin/ld: {line}\ncollect2: error: ld returned 1 exit status\n"


@pytest.mark.parametrize(
    ("said", "files", "hint"),
    [
        (
            ld(
                "/tmp/ccMij8pZ.o: in function `f()':\nmain.cpp:(.text+0x0): multiple definition of `f()'; "
                "/tmp/ccW7UMVW.o:h.cpp:(.text+0x0): first defined here"
            ),
            ["main.cpp", "deep/h.cpp"],
            "deep/h.cpp and main.cpp both define f().",
        ),
        (
            ld(
                "/tmp/ccI.o: in function `main':\nb.cpp:(.text.startup+0x0): multiple definition of `main'; "
                "/tmp/ccZ.o:a.cpp:(.text.startup+0x0): first defined here"
            ),
            ["main.cpp", "a.cpp", "b.cpp"],
            "a.cpp and b.cpp both define main, and main.cpp does not.",
        ),
        (
            ld(
                "/tmp/cc.o: in function `main':\nmain.cpp:(.text.startup+0x7): undefined reference to `f(int)'"
            ),
            ["main.cpp"],
            "No source of the zip defines f(int).",
        ),
        (
            ld("/tmp/cc.o: in function `main':\nmain.cpp:(.text.startup+0x1): undefined reference to `c1()'"),
            ["main.cpp", "a.c"],
            "No C++ source defines c1(). If a C source (a.c) defines it, declare it",
        ),
        (
            ld(
                "/usr/lib/gcc/x86_64-linux-gnu/14/../../../x86_64-linux-gnu/Scrt1.o: in function `_start':\n"
                "(.text+0x17): undefined reference to `main'"
            ),
            ["main.cpp"],
            "No source of the zip defines main.",
        ),
        (
            'main.cpp:1:10: fatal error: x.hpp: No such file or directory\n    1 | #include "x.hpp"\n',
            ["main.cpp", "a/b/x.hpp"],
            "a/b/x.hpp is in the zip, but the compiler does not search its folder for x.hpp. It searches the "
            "including file's folder, the root, include and src. "
            'Write #include "a/b/x.hpp", or put -Ia/b into compile_flags.txt.',
        ),
        (
            "main.cpp:1:10: fatal error: fmt/core.h: No such file or directory\n",
            ["main.cpp", "third_party/fmt/core.h"],
            "third_party/fmt/core.h is in the zip",
        ),
        (
            "main.cpp:1:10: fatal error: boost/asio.hpp: No such file or directory\n",
            ["main.cpp"],
            "Neither the zip nor the image has boost/asio.hpp.",
        ),
        (
            "main.cpp:2:5: note: 'std::print' is only available from C++23 onwards\n",
            ["main.cpp"],
            "The code needs C++23, but it is compiled as C++20. Put the line -std=c++23 into",
        ),
    ],
)
def test_the_words_of_compiler_and_linker_lead_to_a_hint(said, files, hint):
    assert str(build_hint(CPP, said, files)).startswith(hint)


@pytest.mark.parametrize(
    ("said", "files", "hint"),
    [
        (
            '# function\n./main.go:5:25: undefined: x\nc.go: import "C": cgo is off in this image\n',
            ["main.go", "c.go"],
            'c.go imports "C", but cgo is off',
        ),
        (
            "go: finding module for package github.com/x/y\nmain.go:3:8: cannot find module providing package "
            "github.com/x/y: module lookup disabled by GOPROXY=off\n",
            ["main.go"],
            "Builds have no network. Run `go mod vendor`",
        ),
        (
            "go: inconsistent vendoring in /work:\n\texample.com/other@v1.0.0: is",
            ["main.go"],
            "Builds have no",
        ),
        (
            "go: go.mod requires go >= 1.99 (running go 1.24.4; GOTOOLCHAIN=local)\n",
            ["main.go", "go.mod"],
            "go.mod requires Go 1.99, but the image has Go 1.24.4.",
        ),
        (
            "found packages other (a.go) and main (main.go) in /work\n",
            ["a.go", "main.go"],
            "a.go and main.go are in",
        ),
        (
            "# function\n./main.go:3:6: main redeclared in this block\n\t./a.go:3:6: other declaration of main\n",
            ["a.go", "main.go"],
            "main.go and a.go both define main.",
        ),
        (
            "main.go:3:8: package utils is not in std (/usr/lib/go-1.24/src/utils)\n",
            ["main.go", "utils/u.go"],
            "Import the folder utils of the zip with the path of its module: function/utils.",
        ),
        (
            'main.go:3:8: "./utils" is relative, but relative import paths are not supported in module mode\n',
            ["main.go", "utils/u.go", "go.mod"],
            "Import the folder utils of the zip with the path of its module: <module>/utils.",
        ),
        ("main.go:3:8: package utils is not in std (/usr/lib/go-1.24/src/utils)\n", ["main.go"], "None"),
    ],
)
def test_the_words_of_the_go_command_lead_to_a_hint(said, files, hint):
    assert str(build_hint(GO, said, files)).startswith(hint)


def test_a_hint_exists_in_korean():
    hint = build_hint(GO, 'c.go: import "C": cgo is off in this image\n', ["c.go"])
    assert hint is not None
    assert "cgo가 꺼져" in hint.ko


@pytest.mark.parametrize("runtime", Runtime)
def test_other_words_lead_to_none(runtime):
    assert build_hint(runtime, "main.cpp:1:5: error: expected ';' before '}' token\n", ["main.cpp"]) is None


@pytest.mark.parametrize(
    "part", ["a", "(", "`", "'", ": ", "\n", "ld: ", "x:(", "redeclared in this block\n "]
)
@pytest.mark.parametrize("runtime", [CPP, GO])
def test_hostile_words_are_read_in_bounded_time(runtime, part):
    begun = time.process_time()
    build_hint(runtime, part * (256 * 1024 // len(part)), [])
    assert time.process_time() - begun < 20  # an hour where a pattern goes back over everything


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        (CPP, "main.cpp:1:17: error: stray '\\260' in program\n"),
        (CPP, "main.cpp:1:1: error: stray '\\377' in program\n"),
        (GO, "read /work/main.go: unexpected NUL in input\n"),
        (GO, "./main.go:2:23: illegal UTF-8 encoding\n"),
    ],
)
def test_a_source_of_another_encoding_is_to_be_saved_as_utf8(runtime, said):
    hint = build_hint(runtime, said, ["main.cpp"])
    assert hint is not None
    assert "Save it as UTF-8" in hint.en
    assert "UTF-8로 저장" in hint.ko
