"""Builds with the objects of an earlier build, in real containers: which files are compiled again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from nanoagent.common.units import MIB
from nanoagent.languages.recipes import BUILT_OBJECTS, BUILT_PROGRAM, RECIPES
from nanoagent.model.job import Runtime
from support.checks.matrix import only_in_test_all
from support.sandboxes.workshop import program_of, workshop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from nanoagent.container.execution import Execution
    from support.sandboxes.workshop import Workshop

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

MOST: Final = str(8 * MIB)
# Bash passes these functions to build-cpp. They name each source that is compiled, in a file in /tmp.
COUNTED_CPP: Final = """
g++() { note "$@"; command g++ "$@"; }
gcc() { note "$@"; command gcc "$@"; }
note() { [[ " $* " != *" -c "* ]] || echo "${@: -1}" >>/tmp/compiled; }
export -f g++ gcc note
touch /tmp/compiled
/nanosupervisor/build-cpp "$@"; status=$?
cat /tmp/compiled; exit $status
"""
# `go build -x` names each package that is compiled.
COUNTED_GO: Final = """
sed 's/^go build /go build -x /' /nanosupervisor/build-go >/tmp/build-go
sh /tmp/build-go "$@" 2>/tmp/said; status=$?
grep -o '/compile .* -p [^ ]*' /tmp/said | grep -o '[^ ]*$'
[ $status = 0 ] || cat /tmp/said >&2; exit $status
"""
COUNTED: Final = {
    Runtime.CPP: ("/bin/bash", "-c", COUNTED_CPP, "build"),
    Runtime.GO: ("/bin/sh", "-c", COUNTED_GO, "build"),
}


@dataclass(frozen=True, slots=True)
class Built:
    """A build that has ended.

    Attributes:
        compiled: The files or packages that were compiled, sorted.
        objects: The objects for the next build; those of the build before if there are no new ones.
        execution: How it ended.
    """

    compiled: list[str]
    objects: Path | None
    execution: Execution

    @property
    def messages(self) -> str:
        return self.execution.collected.stderr.text


class Series:
    """Builds of one function, each with the objects of the build before."""

    def __init__(self, shop: Workshop, runtime: Runtime = Runtime.CPP) -> None:
        self._shop = shop
        self._runtime = runtime
        self.objects: Path | None = None

    async def build(self, files: Mapping[str, str], *, fails: bool = False) -> Built:
        command = (*COUNTED[self._runtime], BUILT_PROGRAM, BUILT_OBJECTS, MOST)
        execution = await self._shop.build(self._runtime, files, command, self.objects)
        assert (execution.error_type is not None) == fails, execution.collected.stderr.text
        for file in execution.collected.files:
            if file.path == "objects":
                self.objects = file.staged.with_name("kept-objects")
                shutil.move(file.staged, self.objects)
                self.objects.chmod(0o444)
        return Built(sorted(execution.collected.stdout.text.split()), self.objects, execution)

    async def output(self, built: Built) -> str:
        ran = await self._shop.run(self._runtime, program_of(built.execution))
        assert ran.error_type is None, ran.collected.stderr.text
        return ran.collected.stdout.text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop() -> AsyncIterator[Workshop]:
    async with workshop() as made:
        yield made


MAIN: Final = (
    '#include "one.hpp"\n#include <cstdio>\nint two();\nint main() { std::printf("%d\\n", one() + two()); }\n'
)
THREE: Final = {
    "main.cpp": MAIN,
    "one.cpp": '#include "one.hpp"\nint one() { return ONE; }\n',
    "one.hpp": "#pragma once\n#define ONE 1\nint one();\n",
    "two.c": "int two_c(void) { return 2; }\n",
    "two.cpp": 'extern "C" int two_c(void);\nint two() { return two_c(); }\n',
}
ALL: Final = ["main.cpp", "one.cpp", "two.c", "two.cpp"]


async def test_only_changed_units_and_those_that_include_a_changed_header_are_compiled(shop):
    series = Series(shop)
    first = await series.build(THREE)
    assert first.compiled == ALL
    assert await series.output(first) == "3\n"

    edited = THREE | {"two.c": "int two_c(void) { return 20; }\n"}
    built = await series.build(edited)
    assert built.compiled == ["two.c"]
    assert await series.output(built) == "21\n"

    built = await series.build(edited | {"one.hpp": THREE["one.hpp"].replace("ONE 1", "ONE 10")})
    assert built.compiled == ["main.cpp", "one.cpp"]
    assert await series.output(built) == "30\n"


async def test_files_that_are_added_or_removed_elsewhere_compile_nothing_else(shop):
    series = Series(shop)
    await series.build(THREE)
    more = THREE | {"three.cpp": "int three() { return 3; }\n", "data.json": "{}", "README.md": "text"}
    assert (await series.build(more)).compiled == ["three.cpp"]
    assert (await series.build(THREE)).compiled == []
    without = {name: text for name, text in THREE.items() if not name.startswith("two")}
    built = await series.build(without | {"main.cpp": MAIN.replace("int two();", "int two() { return 5; }")})
    assert built.compiled == ["main.cpp"]
    assert await series.output(built) == "6\n"


# What may change the meaning of a unit whose own text is the same: the first code, the second, and the units
# that must be compiled again.
USES: Final = 'int used();\n#include <cstdio>\nint main() { std::printf("%d\\n", used()); }\n'
CHANGES: Final[dict[str, tuple[dict[str, str], dict[str, str], str]]] = {
    "a header in front of another one": (
        {"used.cpp": '#include "x.hpp"\nint used() { return X; }\n', "include/x.hpp": "#define X 1\n"},
        {"x.hpp": "#define X 2\n"},
        "2\n",
    ),
    "a file that __has_include looks for": (
        {
            "used.cpp": '#if __has_include("extra.txt")\n#define X 2\n#else\n#define X 1\n#endif\n'
            "int used() { return X; }\n"
        },
        {"extra.txt": "text"},
        "2\n",
    ),
    "a source that is included by a computed name": (
        {
            "used.cpp": "#define NAME <x.cpp>\n#include NAME\nint used() { return X; }\n",
            "include/x.cpp": "#define X 1\n",
        },
        {"x.cpp": "#define X 2\n"},
        "2\n",
    ),
    "a file that the assembler reads": (
        {
            "used.cpp": 'asm(".globl value\\nvalue: .inc" "bin \\"value.bin\\"\\n.byte 0\\n");\n'
            'extern "C" const char value[];\nint used() { return value[0] - 48; }\n',
            "value.bin": "1",
        },
        {"value.bin": "2"},
        "2\n",
    ),
    "a macro from another header": (
        {
            "used.cpp": '#include "a.hpp"\n#include "b.hpp"\nint used() { return X; }\n',
            "a.hpp": "#define A 1\n",
            "b.hpp": "#ifdef A\n#define X A\n#else\n#define X 2\n#endif\n",
        },
        {"a.hpp": "\n"},
        "2\n",
    ),
    "a flag": (
        {"used.cpp": "int used() { return X; }\n", "compile_flags.txt": "-DX=1\n"},
        {"compile_flags.txt": "-DX=2\n"},
        "2\n",
    ),
    "a standard": (
        {"used.cpp": "int used() { return __cplusplus > 201703L; }\n", "compile_flags.txt": "-std=c++20\n"},
        {"compile_flags.txt": "-std=c++17\n"},
        "0\n",
    ),
    "a folder of headers": (
        {"used.cpp": "#include <y.h>\nint used() { return Y; }\n", "src/y.h": "#define Y 1\n"},
        {"include/y.h": "#define Y 2\n"},
        "2\n",
    ),
}


@pytest.mark.parametrize(
    "name",
    only_in_test_all(
        CHANGES,
        {
            "a header in front of another one",
            "a file that the assembler reads",
            "a macro from another header",
        },
    ),
)
async def test_a_unit_is_compiled_again_if_its_meaning_has_changed(shop, name):
    first, changes, printed = CHANGES[name]
    series = Series(shop)
    before = await series.build({"main.cpp": USES, **first})
    assert await series.output(before) == "1\n"
    built = await series.build({"main.cpp": USES, **first, **changes})
    assert "used.cpp" in built.compiled
    assert await series.output(built) == printed


NOT_KEPT: Final = {
    "a warning": '#warning "still here"\nint used() { return 1; }\n',
    "the time": "int used() { return __TIME__[0] != 0; }\n",
    "a file outside the code": 'asm(".data\\n.incbin \\"/proc/sys/kernel/ostype\\"\\n");\n'
    "int used() { return 1; }\n",
}


@pytest.mark.parametrize("name", NOT_KEPT)
async def test_a_unit_is_not_kept_if_it_has_messages_or_depends_on_more_than_the_code(shop, name):
    series = Series(shop)
    files = {"main.cpp": USES, "used.cpp": NOT_KEPT[name]}
    first = await series.build(files)
    second = await series.build(files)
    assert second.compiled == ["used.cpp"]
    assert second.messages == first.messages
    assert ("still here" in second.messages) == (name == "a warning")


async def test_the_plain_compiler_decides_about_a_mistake_in_an_edit(shop):
    series = Series(shop)
    await series.build(THREE)
    wrong = THREE | {"two.cpp": THREE["two.cpp"] + "int x = y;\n"}
    failed = await series.build(wrong, fails=True)
    plain = await shop.build(Runtime.CPP, wrong)
    assert failed.messages == plain.collected.stderr.text
    assert "was not declared" in failed.messages
    assert (await series.build(THREE)).compiled == []


async def test_a_program_of_several_programs_keeps_its_objects(shop):
    series = Series(shop)
    files = {"main.cpp": "int main() {}\n", "tool.cpp": "int main() { return 1; }\n"}
    assert (await series.build(files)).compiled == ["main.cpp", "tool.cpp"]
    assert (await series.build(files | {"main.cpp": "int main() { }\n"})).compiled == ["main.cpp"]


DAMAGE: Final = {
    "nothing": b"",
    "another format": b"objects 0\n" + b"x" * 100,
    "sizes without end": b"objects 1\n" + b"\xff" * 16 + b"x" * 100,
    "sizes that overflow together": b"objects 1\n" + b"\x10" + b"\0" * 7 + b"\xf8" + b"\xff" * 7 + b"x" * 100,
    "no words": b"objects 1\n" + (b"\x08" + b"\0" * 7) * 2 + b"x" * 16,
    "gigabytes of zeros": b"objects 1\n" + b"\0" * MIB,
    "go objects without end": b"go objects 1\n" + b"\xff" * 200,
    "go objects of a negative size": b"go objects 1\n" + b"\0" * 72 + b"\xff" * 8,
}


@pytest.mark.parametrize("name", only_in_test_all(DAMAGE, {"sizes that overflow together"}))
@pytest.mark.parametrize("runtime", [Runtime.CPP, Runtime.GO])
async def test_damaged_objects_are_as_none(shop, tmp_path, runtime, name):
    series = Series(shop, runtime)
    series.objects = tmp_path / "objects"
    series.objects.write_bytes(DAMAGE[name])
    series.objects.chmod(0o444)
    files = {
        Runtime.CPP: {"main.cpp": "int main() {}\n"},
        Runtime.GO: {"main.go": "package main\n\nfunc main() {}\n"},
    }
    built = await series.build(files[runtime])
    assert built.compiled == [{Runtime.CPP: "main.cpp", Runtime.GO: "main"}[runtime]]


async def test_an_object_that_cannot_be_linked_is_replaced_by_a_plain_build(shop, tmp_path):
    """Forged or damaged objects: the linker refuses them, and the plain compiler decides."""
    series = Series(shop)
    first = await series.build(THREE)
    assert first.objects is not None
    damaged = tmp_path / "objects"
    damaged.write_bytes(first.objects.read_bytes().replace(b"\x7fELF", b"\x7fFLE"))
    damaged.chmod(0o444)
    series.objects = damaged
    built = await series.build(THREE)
    assert await series.output(built) == "3\n"


async def test_objects_over_the_limit_are_left_out(shop):
    files = {"main.cpp": USES, "used.cpp": "char all[100000] = {1};\nint used() { return all[0]; }\n"}
    command = (*COUNTED[Runtime.CPP], BUILT_PROGRAM, BUILT_OBJECTS, "50000")
    built = await shop.build(Runtime.CPP, files, command)
    sizes = {file.path: file.size for file in built.collected.files}
    assert sizes["program"] > 0
    assert 0 < sizes["objects"] <= 50_000


async def test_without_the_arguments_nothing_is_kept(shop):
    for runtime, files in (
        (Runtime.CPP, THREE),
        (Runtime.GO, {"main.go": "package main\n\nfunc main() {}\n"}),
    ):
        built = await shop.build(runtime, files, RECIPES[runtime].build)
        assert [file.path for file in built.collected.files] == ["program"]


REGEX: Final = """
#include <regex>
#include <iostream>
int main()
{
    std::string text = "a1 b22";
    std::regex word("[a-z]([0-9]+)");
    for (std::sregex_iterator i(text.begin(), text.end(), word), end; i != end; ++i)
        std::cout << (*i)[1];
    std::cout << std::regex_replace(text, word, "x$1") << std::regex_match("a-", std::regex(".-"));
}
"""
FORMAT: Final = """
#include <format>
#include <iostream>
int main() { std::cout << std::format("{:>3}{:.1f}{}{}", 1, 0.5, "x", true); }
"""
INSTANCES: Final = {"regex": (REGEX, "122x1 x221"), "format": (FORMAT, "  10.5xtrue")}


# The functions of both headers come into the image in the same way.
@pytest.mark.parametrize("header", only_in_test_all(INSTANCES, {"format"}))
async def test_the_functions_that_all_programs_with_a_header_need_come_from_the_image(shop, header):
    text, printed = INSTANCES[header]
    series = Series(shop)
    built = await series.build({"main.cpp": text})
    assert await series.output(built) == printed
    own_series = Series(shop)
    own = await own_series.build({"main.cpp": f"#define MINE\n{text}"})  # without a precompiled header
    assert await own_series.output(own) == printed
    assert built.objects is not None
    assert own.objects is not None
    assert own.objects.stat().st_size > 2 * built.objects.stat().st_size


# --- Go

GO: Final = {
    "go.mod": "module function\n\ngo 1.24\n\nrequire example.com/dep v1.0.0\n",
    "vendor/modules.txt": "# example.com/dep v1.0.0\n## explicit; go 1.24\nexample.com/dep\n",
    "vendor/example.com/dep/dep.go": "package dep\n\nfunc Two() int { return 2 }\n",
    "own/own.go": "package own\n\nfunc One() int { return 1 }\n",
    "main.go": 'package main\n\nimport (\n\t"fmt"\n\n\t"example.com/dep"\n\t"function/own"\n)\n\n'
    "func main() { fmt.Println(own.One() + dep.Two()) }\n",
}


async def test_only_changed_go_packages_are_compiled(shop):
    series = Series(shop, Runtime.GO)
    first = await series.build(GO)
    assert first.compiled == ["example.com/dep", "function/own", "main"]
    assert await series.output(first) == "3\n"
    built = await series.build(GO | {"main.go": GO["main.go"].replace("One() +", "One() + 10 +")})
    assert built.compiled == ["main"]
    assert await series.output(built) == "13\n"
    built = await series.build(GO | {"own/own.go": GO["own/own.go"].replace("return 1", "return 100")})
    assert built.compiled == ["function/own", "main"]
    assert await series.output(built) == "102\n"
