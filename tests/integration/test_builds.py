"""Builds of C++ and Go in real containers: what is built, what is said, and that caches can only be read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.languages.explain import explain_build
from nanoagent.languages.recipes import BUILT_PROGRAM
from nanoagent.model.job import Runtime
from support.checks.matrix import only_in_test_all
from support.programs.languages import documented_version
from support.sandboxes.workshop import program_of, workshop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from nanoagent.container.execution import Execution
    from support.sandboxes.workshop import Workshop

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

PCH = "/nanosupervisor/pch"
STOCK = ("/usr/bin/g++", "-std=c++20", "-O2", "-pthread", "-iquote.", "-idirafter.", "-o", BUILT_PROGRAM)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop() -> AsyncIterator[Workshop]:
    async with workshop() as made:
        yield made


def program(text: str) -> dict[str, str]:
    return {"main.cpp": text}


# --- C++: what is built


async def test_sources_and_headers_in_folders_with_odd_names_are_built(shop):
    files = {
        "main.cpp": '#include "parts/one two.hpp"\n#include <iostream>\n'
        "int dashed();\n"
        "int main() { std::cout << one() + dashed() << '\\n'; }",
        "parts/one two.hpp": "#pragma once\nint one();\n",
        "parts/one two.cpp": '#include <parts/one two.hpp>\n#include "one two.hpp"\nint one() { return 1; }',
        "-o.cpp": "int dashed() { return 2; }",
        "parts/notes.txt": "not a source",
    }
    leftovers = dict.fromkeys(
        ("._main.cpp", "__MACOSX/._main.cpp", "parts/._a.cpp", ".more/b.cpp"), "\x00\x05\x16\x07"
    )
    assert await shop.output(Runtime.CPP, files | leftovers) == "3\n"


async def test_the_same_code_gives_the_same_program(shop):
    files = {
        "main.cpp": "#include <iostream>\nint f();\nint main() { return f(); }",
        "f.cpp": "int f() { return 0; }",
    }
    digests = set()
    for _ in range(2):
        built = await shop.build(Runtime.CPP, files)
        digests.add(hashlib.sha256(built.collected.files[0].staged.read_bytes()).hexdigest())
    assert len(digests) == 1


EVERYTHING = r"""
#include <chrono>
#include <clocale>
#include <cstring>
#include <filesystem>
#include <format>
#include <fstream>
#include <future>
#include <iostream>
#include <locale>
#include <ranges>
#include <regex>
#include <stdexcept>
#include <thread>
#include <vector>
#include <dlfcn.h>
#include <iconv.h>
#include <netdb.h>
#include <pthread.h>
#include <pwd.h>

static void *cancelled(void *)
{
    for (;;)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

int main()
{
    // an exception that comes from a thread of its own
    try {
        std::async(std::launch::async, []() -> int { throw std::runtime_error("thrown"); }).get();
    } catch (const std::exception &error) {
        std::cout << error.what() << '\n';
    }
    // cancelling a thread unwinds it with a library that the C library loads
    pthread_t thread;
    pthread_create(&thread, nullptr, cancelled, nullptr);
    pthread_cancel(thread);
    std::cout << (pthread_join(thread, nullptr) == 0 ? "cancelled" : "lost") << '\n';

    std::locale::global(std::locale("C.UTF-8"));
    std::cout << std::locale().name() << ' ' << std::mbstowcs(nullptr, "한국", 0) << '\n';

    std::filesystem::create_directories("/tmp/a/b");
    std::ofstream("/tmp/a/b/c") << "text";
    std::cout << std::filesystem::file_size("/tmp/a/b/c") << '\n';

    addrinfo *found = nullptr;
    std::cout << getaddrinfo("127.0.0.1", "80", nullptr, &found) << ' ' << getpwnam("root")->pw_dir << '\n';

    char in[] = "\xff", out[8] = {}, *from = in, *to = out;
    size_t in_left = 1, out_left = sizeof out;
    iconv_t converter = iconv_open("UTF-8", "ISO-8859-1");
    auto lost = converter == iconv_t(-1) ? 9 : iconv(converter, &from, &in_left, &to, &out_left);
    std::cout << lost << out << '\n';

    void *library = dlopen("libm.so.6", RTLD_NOW);
    auto cosine = library ? reinterpret_cast<double (*)(double)>(dlsym(library, "cos")) : nullptr;
    std::cout << (cosine ? cosine(0) : -1) << '\n';

    std::cout << std::regex_replace("a1b22", std::regex("[0-9]+"), "-") << '\n';
    auto odd = std::views::iota(1, 8) | std::views::filter([](int i) { return i % 2; });
    for (int i : odd)
        std::cout << std::format("{:>2}", i);
    std::cout << '\n';
}
"""


async def test_what_the_language_and_its_library_offer_works(shop):
    lines = (await shop.output(Runtime.CPP, program(EVERYTHING))).splitlines()
    assert lines == ["thrown", "cancelled", "C.UTF-8 2", "4", "0 /root", "0ÿ", "1", "a-b-", " 1 3 5 7"]


async def test_headers_that_are_never_precompiled_are_found_as_well(shop):
    headers = "#include <iostream>\n#include <numbers>\n#include <sys/utsname.h>\n"
    code = headers + "int main() { std::cout << int(std::numbers::pi); }"
    assert await shop.output(Runtime.CPP, program(code)) == "3"


# --- C++: what a program means does not depend on what is precompiled


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("using namespace std;\nint count = 1, sort = 2;\nint main() { cout << count + sort; }", "3"),
        ("int main() { std::cout <<\n#ifdef __cpp_lib_format\n1\n#else\n0\n#endif\n; }", "0"),
        (
            (
                "template <class T> T gcd(T a, T) { return a; }\n"
                "using namespace std;\nint main() { cout << gcd(4, 6); }"
            ),
            "4",
        ),
    ],
    ids=["names", "macros", "functions"],
)
async def test_a_program_has_no_names_that_it_has_not_asked_for(shop, code, expected):
    assert await shop.output(Runtime.CPP, program(f"#include <iostream>\n{code}")) == expected


async def test_a_macro_before_the_headers_has_its_effect(shop):
    code = (
        "#define _GLIBCXX_ASSERTIONS\n#include <iostream>\n#include <vector>\n"
        "int main(int n, char **) { std::vector<int> v; v.reserve(9); std::cout << v[n]; }"
    )
    built = await shop.build(Runtime.CPP, program(code))
    ran = await shop.run(Runtime.CPP, program_of(built))
    assert ran.exit_code == 134
    assert "__n < this->size()" in ran.collected.stderr.text


SHADOWS = {"map": "inline int mine = 5;\n", "version": "1.2.3\n", "string.h": "#error not the system's\n"}


async def test_names_in_angle_brackets_are_the_systems_first_and_in_quotes_the_codes(shop):
    files = SHADOWS | {
        "main.cpp": '#include "map"\n#include <cstring>\n#include <iostream>\n#include <map>\n'
        "#include <string.h>\n"
        '#include <version>\n#include <lib/a.hpp>\n#include <b.hpp>\n#include "c.hpp"\n'
        'int main() { std::cout << mine + a + b + c << std::map<int, int>().size() << strlen("xy"); }',
        "lib/a.hpp": "inline int a = 10;\n",
        "include/b.hpp": "inline int b = 20;\n",
        "src/c.hpp": "inline int c = 40;\n",
    }
    assert await shop.output(Runtime.CPP, files) == "7502"


async def test_every_kind_of_source_is_built_and_what_is_no_part_of_the_program_is_left_out(shop):
    files = {
        "main.cpp": '#include <iostream>\n#include "impl.cpp"\n#include "list.hpp"\nextern "C" int c();\n'
        "int cc(); int cxx(); int cplus();\n"
        "int main() { std::cout << c() << cc() << cxx() << cplus() << impl() << list() << V\n"
        "<< __cplusplus << __GNUC__; }",
        "c.c": "int c(void) { int class = 1; return class; }\n",
        "cc.cc": "int cc() { return 2; }\n",
        "deep/cxx.cxx": "int cxx() { return 3; }\n",
        "c++.c++": "int cplus() { return 4; }\n",
        "impl.cpp": "int impl() { return 5; }\n",
        "list.hpp": '#pragma once\nint list();\n#include "parts/list.cpp"\n',
        "parts/list.cpp": "int list() { return 6; }\n",
        "tests/test.cpp": "int cc();\nint main() { return cc(); }\n",
        "CMakeLists.txt": "project(x)\nset(CMAKE_CXX_STANDARD 14)\n",
        "CMakeFiles/4.0/CompilerIdCXX/CMakeCXXCompilerId.cpp": "#error a leftover\nint main() {}\n",
        "build/CMakeCache.txt": "",
        "build/generated.cpp": "#error a leftover\n",
        "compile_flags.txt": "-Wall\r\n# said\n  -DV=7 \n-lm\n-std=c++23\n-march=native\n--other\n",
    }
    assert await shop.output(Runtime.CPP, files) == "1234567202302" + documented_version("cpp")


async def test_a_cmake_files_standard_is_followed_and_flags_that_are_not_supported_are_named(shop):
    lists = "# set(CMAKE_CXX_STANDARD 11)\nset(CMAKE_CXX_STANDARD 17)\n"
    code = "#include <iostream>\nint main() { std::cout << __cplusplus; }"
    assert await shop.output(Runtime.CPP, program(code) | {"CMakeLists.txt": lists}) == "201703"
    built = await shop.build(Runtime.CPP, program("int x") | {"compile_flags.txt": "-fplugin=mine.so\n"})
    assert built.collected.stderr.text.endswith(
        "compile_flags.txt: not supported, ignored: -fplugin=mine.so\n"
    )


ALL = "#include <algorithm>\n#include <iostream>\n#include <map>\n#include <string>\n#include <vector>\n"


@pytest.mark.parametrize(
    ("code", "chosen"),
    [
        ("#include <iostream>\nint x;", "iostream.h"),
        (ALL, "common.h"),
        (
            "#include <vector>\n#include <map>\n#include <string>\n#include <iostream>\n#include <algorithm>",
            "common.h",
        ),
        ("// said\n/* and\nsaid */\n#pragma once\n# include<iostream> // again\n", "iostream.h"),
        ("#include <bits/stdc++.h>\n", "stdc++.h"),
        ("#include <cmath>\n#include <stdio.h>\n#include <iostream>\n#include <chrono>\n", "chrono.h"),
        ("#ifndef GUARD_HPP\n#define GUARD_HPP\n#include <iostream>\n#endif\n", "iostream.h"),
        ('#include "own.hpp"\n', "iostream.h"),
        ("#include <ai_client.hpp>\n#include <iostream>\n", "iostream.h"),
        ("#include <own.hpp>\n#include <regex>\n", "regex.h"),
        ("#include <regex>\n", "regex.h"),
        ("#include <map>\n#include <format>\n#include <iostream>\n", "format.h"),
        ("#include <map>\n#include <iostream>\n", "iostream.h"),
        ('#include "map"\n#include <iostream>\n', None),
        ("#include <netdb.h>\n#include <iostream>\n", None),
        ('#include "code.hpp"\n#include <iostream>\n', None),
        ("#include <string>\n", None),
        ("int x;\n#include <iostream>\n", None),
        ("#define X 1\n#include <iostream>\n", None),
        ("#if 0\n#include <iostream>\n#endif\n", None),
        ("#ifndef NDEBUG\n#define NDEBUG\n#include <iostream>\n#endif\n", None),
        ("#ifndef _GLIBCXX_DEBUG\n#define _GLIBCXX_DEBUG\n#include <iostream>\n#endif\n", None),
        ("#ifndef A\n#define B\n#include <iostream>\n#endif\n", None),
        ("#ifdef A\n#include <iostream>\n#endif\n", None),
        ("/* #include <iostream>\n", None),
        ("// said \\\n#include <iostream>\n", None),
        ('const char *s = R"(\n#include <iostream>\n)";', None),
        ("#include NAME\n#include <iostream>\n", None),
        ("#include_next <iostream>\n", None),
        ('#include "endless.hpp"\n#include <iostream>\n', None),
        ("", None),
    ],
)
async def test_headers_are_taken_precompiled_only_where_it_makes_no_difference(shop, code, chosen):
    files = {
        "main.cpp": code,
        "own.hpp": "#pragma once\n#include <iostream>\n",
        "map": "int mine;\n",
        "netdb.h": "#pragma once\n",
        "code.hpp": "#pragma once\n#include <vector>\nusing numbers = std::vector<int>;\n",
        "endless.hpp": '#include "endless.hpp"\n',
    }
    ran = await shop.build(Runtime.CPP, files, ("/nanosupervisor/choose-pch", PCH, "main.cpp", "."))
    assert ran.exit_code == 0
    assert ran.collected.stdout.text == (f"{PCH}/{chosen}\n" if chosen else "")


# --- C++: what is said


WRONG = {
    "name": ALL + "int main() { return undeclared; }",
    "deep in a template": ALL
    + "struct s {}; int main() { std::vector<s> v; std::sort(v.begin(), v.end()); }",
    "syntax": ALL + "int main() { std::map<s, int> m }",
    "forgotten header": "#include <iostream>\nint main() { std::map<int, int> numbers; std::sort(0, 0); }",
    "missing header": '#include <iostream>\n#include "missing.hpp"\nint main() {}',
    "own error": ALL + '#error "no further"\n',
    "empty": "",
}


@pytest.mark.parametrize(
    "mistake", only_in_test_all(WRONG, {"deep in a template", "forgotten header", "missing header", "empty"})
)
async def test_the_compilers_words_are_its_own(shop, mistake):
    code = WRONG[mistake]
    ours = await shop.build(Runtime.CPP, program(code))
    stock = await shop.build(Runtime.CPP, program(code), (*STOCK, "main.cpp"))
    assert stock.exit_code == 1
    # Linkers speak of an object file, which has a name of its own every time.
    assert without_object_names(ours.collected.stderr.text) == without_object_names(
        stock.collected.stderr.text
    )
    assert ours.exit_code == stock.exit_code
    assert not ours.collected.files


def without_object_names(text: str) -> str:
    return " ".join(word for word in text.split(" ") if "/tmp/cc" not in word)


async def test_an_error_in_one_of_several_files_is_said_once(shop):
    files = {"main.cpp": ALL + "int main() {}", "a.cpp": "int a = b;", "b.cpp": "int f() { return 1; }"}
    built = await shop.build(Runtime.CPP, files)
    assert built.exit_code == 1
    assert built.collected.stderr.text.count("error:") == 1
    assert built.collected.stderr.text.startswith("a.cpp:1:9: error: ")


def hint_of(built: Execution, files: Mapping[str, str], runtime: Runtime) -> str:
    assert built.exit_code == 1
    hint = explain_build(runtime, built.collected.stderr.text, files)
    return str(hint and hint.text)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (
            {
                "main.cpp": "int f() { return 1; } int main() { return f(); }",
                "h.cpp": "int f() { return 2; }",
            },
            "h.cpp and main.cpp both define f().",
        ),
        (
            {"main.cpp": "int f();", "a.cpp": "int main() {}", "b/b.cpp": "int main() {}"},
            "a.cpp and b/b.cpp both define main, and main.cpp does not.",
        ),
    ],
    ids=["twice", "two programs"],
)
async def test_the_linkers_and_compilers_words_lead_to_a_hint(shop, files, hint):
    built = await shop.build(Runtime.CPP, files)
    assert hint_of(built, files, Runtime.CPP).startswith(hint)


async def test_warnings_are_passed_on(shop):
    built = await shop.build(Runtime.CPP, program('#warning "take care"\nint main() {}'))
    assert built.error_type is None
    assert "take care" in built.collected.stderr.text


# --- Go

GO_MAIN = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'


@pytest.mark.parametrize(
    ("files", "printed"),
    [
        ({"main.go": GO_MAIN}, "hello\n"),
        ({"main.go": GO_MAIN, "main_test.go": "package main\n\nthis is no Go\n"}, "hello\n"),
        ({"main.go": GO_MAIN, "go.mod": "module example.com/mine\n\ngo 1.21\n"}, "hello\n"),
        (
            {
                "main.go": 'package main\n\nimport "function/deep/er"\n\nfunc main() { more(er.Value) }\n',
                "the rest.go": 'package main\n\nimport "fmt"\n\nfunc more(n int) { fmt.Print("more", n) }\n',
                "deep/er/er.go": "package er\n\nconst Value = 1\n",
            },
            "more1",
        ),
        (
            {
                "go.mod": "module example.com/mine\n\ngo 1.21\n\nrequire example.com/other v1.0.0\n",
                "vendor/modules.txt": "# example.com/other v1.0.0\n## explicit\nexample.com/other\n",
                "vendor/example.com/other/other.go": 'package other\n\nconst Word = "vendored"\n',
                "main.go": 'package main\n\nimport (\n\t"fmt"\n\n\t"example.com/other"\n)\n\n'
                "func main() { fmt.Print(other.Word) }\n",
            },
            "vendored",
        ),
        (
            {
                "main.go": 'package main\n\nimport (\n\t_ "embed"\n\t"fmt"\n\t"net/http"\n\t"regexp"\n)\n\n'
                "//go:embed text.txt\nvar text string\n\n"
                'func main() { fmt.Print(http.StatusOK, regexp.MustCompile("b.d+").FindString(text)) }\n',
                "text.txt": "embedded",
            },
            "200bedd",
        ),
    ],
    ids=[
        "alone",
        "tests that do not compile",
        "go.mod",
        "packages of its own",
        "vendor",
        "large and embedded",
    ],
)
async def test_go_code_is_built(shop, files, printed):
    assert await shop.output(Runtime.GO, files) == printed


async def test_a_go_package_that_is_no_program_is_said_to_be_none(shop):
    built = await shop.build(Runtime.GO, {"main.go": "package tools\n\nfunc F() {}\n"})
    assert built.exit_code == 1
    assert built.collected.stderr.text == (
        "main.go: package tools is not a program; it should say: package main\n"
    )
    assert not built.collected.files


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("package main\n\nfunc main() { missing() }\n", "# function\n./main.go:3:15: undefined: missing\n"),
        (
            'package main\n\nimport "example.com/absent"\n\nfunc main() { absent.F() }\n',
            (
                "go: finding module for package example.com/absent\n"
                "main.go:3:8: cannot find module providing package example.com/absent: "
                "module lookup disabled by GOPROXY=off\n"
            ),
        ),
    ],
    ids=["name", "module"],
)
async def test_the_go_commands_words_are_its_own(shop, code, said):
    built = await shop.build(Runtime.GO, {"main.go": code})
    assert (built.exit_code, built.collected.stderr.text) == (1, said)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (
            {
                "main.go": "package main\n\nfunc main() { f() }\n",
                "c.go": 'package main\n\nimport "C"\n\nfunc f() {}\n',
            },
            'c.go imports "C", but cgo is off',
        ),
        (
            {"main.go": GO_MAIN, "go.mod": "module m\n\ngo 1.99\n"},
            f"go.mod requires Go 1.99, but the image has Go {documented_version('go')}.",
        ),
    ],
    ids=["cgo", "version"],
)
async def test_the_go_commands_words_lead_to_a_hint(shop, files, hint):
    built = await shop.build(Runtime.GO, files)
    assert hint_of(built, files, Runtime.GO).startswith(hint)


async def test_only_the_programs_own_packages_are_compiled(shop):
    """The standard library comes from the image, with the very flags: any other would be compiled anew."""
    script = (
        "sed 's/^go build /go build -x /' /nanosupervisor/build-go >/tmp/build-go; "
        f"sh /tmp/build-go {BUILT_PROGRAM} 2>&1 | grep -o '/compile .* -p [^ ]*' | grep -o '[^ ]*$'"
    )
    command = ("/bin/sh", "-c", script)
    files = {"main.go": 'package main\n\nimport "net/http"\n\nfunc main() { _ = http.DefaultClient }\n'}
    ran = await shop.build(Runtime.GO, files, command)
    assert ran.collected.stdout.text == "main\n"
    assert ran.collected.files


# --- caches are there to be read

ATTACK_CPP = r"""
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

static void tried(const char *what, int result)
{
    std::printf("%s: %s\n", what, result < 0 ? "refused" : "DONE");
}

int main()
{
    for (std::string path : {FILES}) {
        if (access(path.c_str(), F_OK))
            std::printf("%s is not there\n", path.c_str());
        std::string folder = path.substr(0, path.rfind('/')), other = path + ".mine";
        tried("write", open(path.c_str(), O_WRONLY));
        tried("truncate", truncate(path.c_str(), 0));
        tried("remove", unlink(path.c_str()));
        tried("rename", rename(path.c_str(), other.c_str()));
        tried("replace", rename("/tmp/mine", path.c_str()));
        tried("create", open(other.c_str(), O_WRONLY | O_CREAT, 0644));
        tried("mode", chmod(path.c_str(), 0777));
        tried("folder's mode", chmod(folder.c_str(), 0777));
        tried("link", link(path.c_str(), "/tmp/link"));
    }
}
"""
ATTACKED = {
    Runtime.CPP: [
        f"{PCH}/iostream.h.gch",
        f"{PCH}/iostream.h",
        f"{PCH}/chain",
        "/nanosupervisor/build-cpp",
        "/nanosupervisor/cpp-flags",
        "/usr/include/c++/14/vector",
        "/slot/program",
    ],
    Runtime.GO: [
        "/nanosupervisor/read-cache",
        "/nanosupervisor/build-go",
        "/nanosupervisor/go.mod",
        "/slot/program",
    ],
}


def attack(files: list[str]) -> dict[str, str]:
    return program(ATTACK_CPP.replace("FILES", ", ".join(f'"{path}"' for path in files)))


async def test_a_run_cannot_change_what_builds_and_runs_use(shop):
    printed = await shop.output(Runtime.CPP, attack(ATTACKED[Runtime.CPP]))
    lines = printed.splitlines()
    assert len(lines) == 9 * len(ATTACKED[Runtime.CPP]), printed
    assert [line for line in lines if not line.endswith(": refused")] == []


ATTACK_GO = """package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	entries, _ := filepath.Glob("/opt/go-cache/0*/*")
	files := append(entries[:4], FILES)
	for _, path := range files {
		if _, err := os.Stat(path); err != nil {
			fmt.Println(path, "is not there")
		}
		_, writing := os.OpenFile(path, os.O_WRONLY, 0)
		for what, err := range map[string]error{
			"write": writing, "remove": os.Remove(path), "rename": os.Rename(path, path+".mine"),
			"create": os.WriteFile(path+".mine", nil, 0o644), "mode": os.Chmod(path, 0o777),
		} {
			if err == nil {
				fmt.Println(path, what, "DONE")
			}
		}
	}
	fmt.Println(len(files), "attacked")
}
"""


async def test_a_go_run_can_change_nothing_that_builds_and_runs_are_made_from(shop):
    files = ", ".join(f'"{path}"' for path in ATTACKED[Runtime.GO])
    assert await shop.output(Runtime.GO, {"main.go": ATTACK_GO.replace("FILES", files)}) == "8 attacked\n"


async def test_a_build_leaves_nothing_to_the_next(shop):
    """Compilers read hostile code; whatever one was made to do, the next build has the image's own files."""
    command = (
        "/bin/sh",
        "-c",
        "for f in /nanosupervisor /opt /usr; do touch $f/mine && echo $f; done; touch /tmp/mine main.h",
    )
    assert (await shop.build(Runtime.CPP, program("int x;"), command)).collected.stdout.text == ""
    look = ("/bin/sh", "-c", "ls -A /tmp /output .")
    after = await shop.build(Runtime.CPP, program("int x;"), look)
    assert after.collected.stdout.text == ".:\nmain.cpp\n\n/output:\n\n/tmp:\n"
