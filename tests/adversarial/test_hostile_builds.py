"""Code that attacks the compiler: the build ends as the contract says and tells nothing, the next is fine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from support.checks.matrix import EXHAUSTIVE
from support.sandboxes.adversarial import BUILD_LIMITS, yard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.sandboxes.adversarial import Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

GO, CPP = Runtime.GO, Runtime.CPP
BOMB_TIMEOUT_MS = 1_000
TIMEOUT_MS = 60_000  # of what does end; a hang is a failure
# The worker calls all of these BUILD_FAILED (runner.py), and its users' code to blame.
REFUSED = frozenset[ErrorType | None]({ErrorType.USER_ERROR})
BOMB = frozenset[ErrorType | None](
    {ErrorType.USER_ERROR, ErrorType.TIMEOUT, ErrorType.OUT_OF_MEMORY, ErrorType.DISK_LIMIT}
)
FINE = {CPP: "int main() {}\n", GO: "package main\n\nfunc main() {}\n"}


@dataclass(frozen=True, slots=True)
class Attack:
    """Files that are to be built.

    Attributes:
        runtime: Their language.
        files: By name.
        ends: How building them may end.
    """

    runtime: Runtime
    files: dict[str, str]
    ends: frozenset[ErrorType | None] = BOMB


def cpp(text: str, ends: frozenset[ErrorType | None] = BOMB) -> Attack:
    return Attack(CPP, {"main.cpp": text}, ends)


def go(text: str, ends: frozenset[ErrorType | None] = BOMB, **files: str) -> Attack:
    return Attack(GO, {"main.go": f"package main\n\n{text}\nfunc main() {{}}\n", **files}, ends)


def included(path: str) -> Attack:
    return cpp(f'#include "{path}"\nint main() {{}}\n', REFUSED)


def within(path: str) -> Attack:
    return cpp(f'asm(".section .rodata\\n.incbin \\"{path}\\"\\n");\nint main() {{}}\n', REFUSED)


LAUGHS = "#define A0 x,x,x,x,x,x,x,x,x,x\n" + "".join(
    f"#define A{level + 1} {','.join([f'A{level}'] * 10)}\n" for level in range(12)
)
OF_OTHERS = ("/etc/shadow", "/proc/1/environ", "/proc/1/mem", "/proc/1/root/etc/passwd", "/slot/agent.sock")
ATTACKS = {
    **{f"include {path}": included(path) for path in OF_OTHERS},
    **{f"take in {path}": within(path) for path in OF_OTHERS},
    "include itself": cpp('#include "main.cpp"\nint main() {}\n'),
    "include what never ends": cpp('#include "/dev/zero"\nint main() {}\n'),
    "take in what never ends": cpp('asm(".incbin \\"/dev/zero\\"\\n");\nint main() {}\n'),
    "macros of macros": cpp(f"{LAUGHS}int all[] = {{A12}};\nint main() {{}}\n"),
    "templates of templates": cpp(
        "template <int N, int M> struct Two { static const long value ="
        " Two<N - 1, M * 2>::value + Two<N - 1, M * 2 + 1>::value; };\n"
        "template <int M> struct Two<0, M> { static const long value = M; };\n"
        "int main() { return Two<40, 1>::value; }\n"
    ),
    "compute without end": cpp(
        "constexpr long again(long n) { long sum = 0; for (long i = 0; i < n; i++) sum += i; return sum; }\n"
        "template <long N> struct More {"
        " static const long value = again(200000 + N) + More<N - 1>::value; };\n"
        "template <> struct More<0> { static const long value = 0; };\n"
        "int main() { return More<800>::value; }\n"
    ),
    "an object of terabytes": cpp('asm(".data\\n.skip 1 << 42, 1\\n");\nint main() {}\n'),
    "a program of gigabytes": cpp("char all[1ull << 31] = {1};\nint main() { return all[5]; }\n"),
    "nest deeply": cpp(f"int main() {{ return {'(' * 200_000}0{')' * 200_000}; }}\n"),
    "many names": cpp("".join(f"int name{number};\n" for number in range(300_000)) + "int main() {}\n"),
    "a plugin of one's own": Attack(
        CPP, {"main.cpp": "int main() {}\n", "-fplugin=evil.so.cpp": "#error an option\n"}, REFUSED
    ),
    "embed what is outside": go(
        'import _ "embed"\n\n//go:embed ../../etc/passwd\nvar stolen string\n', REFUSED
    ),
    "embed what is linked": go(
        'import _ "embed"\n\n//go:embed /proc/1/environ\nvar stolen string\n', REFUSED
    ),
    "C in Go": go('// #include "/etc/passwd"\nimport "C"\n', REFUSED),
    "an option for the C compiler": go('// #cgo CFLAGS: -fplugin=/tmp/evil.so\nimport "C"\n', REFUSED),
    "a module of somebody": go(
        'import _ "example.com/evil"\n',
        REFUSED,
        **{"go.mod": "module function\n\nrequire example.com/evil v1.0.0\n"},
    ),
    "a module of the system": go(
        'import _ "example.com/evil"\n',
        REFUSED,
        **{
            "go.mod": "module function\n\nrequire example.com/evil v1.0.0\n"
            "replace example.com/evil => /root\n"
        },
    ),
    "another toolchain": go("", REFUSED, **{"go.mod": "module function\n\ngo 1.99\ntoolchain go1.99.0\n"}),
    "a Go program of gigabytes": go("var all = [1 << 31]byte{1: 1, 1<<31 - 1: 1}\nvar _ = all\n"),
    "Go types of types": go(
        "".join(f"type T{level + 1} struct{{ a, b, c, d T{level} }}\n" for level in range(60))
        + "type T0 struct{ x [1 << 20]int }\nvar all T60\nvar _ = all\n"
    ),
    "nest Go deeply": go(f"var deep = {'(' * 200_000}0{')' * 200_000}\nvar _ = deep\n", BOMB | {None}),
}


# A build runs the same program at both levels: `make test` has every third attack at the weaker level, too.
CASES = [
    pytest.param(
        level,
        what,
        id=f"{level}-{what}",
        marks=EXHAUSTIVE if level is Isolation.SHARED and number % 3 else (),
    )
    for level in (Isolation.SANDBOX, Isolation.SHARED)
    for number, what in enumerate(ATTACKS)
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def builders(request: pytest.FixtureRequest) -> AsyncIterator[Yard]:
    async with yard(request.param, (CPP, GO), limits=BUILD_LIMITS, ready=1) as containers:
        yield containers


@pytest.mark.parametrize(("builders", "what"), CASES, indirect=["builders"], scope="module")
async def test_a_hostile_build_ends_and_the_next_is_fine(
    builders: Yard, what: str, record_property: Callable[[str, object], None]
):
    attack = ATTACKS[what]
    hostile = builders.function(attack.runtime, attack.files)
    timeout_ms = BOMB_TIMEOUT_MS if ErrorType.TIMEOUT in attack.ends else TIMEOUT_MS
    ended = await builders.try_to_build(hostile, timeout_ms=timeout_ms)
    record_property("tried", ["attacks", 1])
    said = ended.collected.stderr.text + ended.collected.stdout.text
    assert ended.error_type in attack.ends, said
    assert "root:" not in said
    fine = builders.function(attack.runtime, {RECIPES[attack.runtime].entry: FINE[attack.runtime]})
    built = await builders.try_to_build(fine, timeout_ms=TIMEOUT_MS)
    assert built.error_type is None, built.collected.stderr.text
    assert len(built.collected.files) == 1
