"""Compares our builds with plain calls of the compilers, for several kinds of programs.

    python -m benchmarks.builds --rounds 7

Both builds take turns in the same container, each in a fresh copy of the code. The plain call for C++ is
`g++ -std=c++20 -O2 -pthread -I.` with all sources. For Go it is `go build` with an empty cache. That takes so
long that it runs in one round of seven.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks import lab as labs
from benchmarks.lab import Function, Lab
from benchmarks.stats import Ratio, ratio_of_medians

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bare import BareRun

_COLD_EVERY: Final = 7  # rounds; a cold Go build takes seconds
_STOCK: Final = "/tmp/stock"  # noqa: S108 - in the container
_COLD_GO: Final = (
    'cache=$(mktemp -d) && trap \'chmod -R u+w "$cache" && rm -rf "$cache"\' EXIT && '
    "export GOCACHE=$cache GOPATH=$cache/path GOTMPDIR=$cache GOTOOLCHAIN=local GOFLAGS=-mod=mod && "
    f"go mod init function >/dev/null 2>&1 && go build -o {_STOCK} ."
)


def _cpp(name: str, text: str, **more: str) -> Function:
    files = {"main.cpp": text} | {f"{stem}.cpp": content for stem, content in more.items()}
    return Function(f"cpp-{name}", Runtime.CPP, files)


_COMMON: Final = (
    "#include <algorithm>\n#include <iostream>\n#include <map>\n#include <string>\n#include <vector>\n"
)
FUNCTIONS: Final = (
    labs.CPP,
    _cpp("smallest", '#include <iostream>\nint main() { std::cout << "hello\\n"; }\n'),
    _cpp(
        "everything",
        "#include <bits/stdc++.h>\nusing namespace std;\n"
        "int main() { vector<int> v{3, 1, 2}; sort(v.begin(), v.end()); cout << v[0]; }\n",
    ),
    _cpp(
        "time",
        "#include <chrono>\n#include <iostream>\n#include <thread>\n"
        "int main() { std::thread([] {}).join(); "
        "std::cout << std::chrono::steady_clock::now().time_since_epoch().count(); }\n",
    ),
    _cpp(
        "regex",
        "#include <iostream>\n#include <regex>\n#include <string>\n"
        'int main() { std::cout << std::regex_match(std::string("a1"), std::regex("[a-z][0-9]")); }\n',
    ),
    _cpp(
        "format",
        "#include <iostream>\n#include <format>\n#include <ranges>\n#include <vector>\n"
        'int main() { for (int i : std::views::iota(1, 4)) std::cout << std::format("{:>3}", i); }\n',
    ),
    _cpp(
        "three-files",
        f"{_COMMON}int one(std::vector<int> v);\nint two(std::map<std::string, int> m);\n"
        "int main() { std::cout << one({3, 1}) + two({}); }\n",
        one=f"{_COMMON}int one(std::vector<int> v) {{ std::sort(v.begin(), v.end()); return v[0]; }}\n",
        two=f'{_COMMON}int two(std::map<std::string, int> m) {{ return m["x"] + m["y"]; }}\n',
    ),
    labs.GO,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of our build, relative to the plain call.

    Attributes:
        wall: The ratio of the elapsed times.
        cpu: The ratio of the CPU times of all processes. It is more accurate on a busy machine.
    """

    wall: Ratio
    cpu: Ratio


async def measure(
    rounds: int, lab: Lab | None = None, functions: Sequence[Function] = FUNCTIONS
) -> dict[str, Cost]:
    """Measure the cost of our build for each program.

    Args:
        rounds: The number of our builds. One more runs first, and is not counted.
        lab: The lab; None for a new one.
        functions: The programs.
    """
    if lab is None:
        async with Lab() as own:
            return await measure(rounds, own, functions)
    return {function.name: await _measure(lab, function, rounds) for function in functions}


async def _measure(lab: Lab, function: Function, rounds: int) -> Cost:
    container = await lab.baselines.builder(function.runtime)
    ours: list[BareRun] = []
    stock: list[BareRun] = []
    every = 1 if function.runtime is Runtime.CPP else _COLD_EVERY
    for turn in range(rounds + 1):
        # A new path for each build: `go build` does not rebuild a program that is up to date.
        build = await lab.build_of(function, into=f"/tmp/{function.name}-{turn}")  # noqa: S108
        our_run = await container.run(build)
        if turn == 0:  # this build reads files that are not cached
            continue
        ours.append(our_run)
        if (turn - 1) % every == 0:
            stock.append(await container.run(await lab.in_fresh_copy(function, _stock(function))))
    return Cost(
        wall=ratio_of_medians([run.wall_ms for run in ours], [run.wall_ms for run in stock]),
        cpu=ratio_of_medians([run.cpu_ms for run in ours], [run.cpu_ms for run in stock]),
    )


def _stock(function: Function) -> tuple[str, ...]:
    if function.runtime is Runtime.GO:
        return ("/bin/sh", "-c", _COLD_GO)
    flags = ("-std=c++20", "-O2", "-pthread", "-I.")
    return ("/usr/bin/g++", *flags, "-o", _STOCK, *sorted(function.files))


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of our builds (default 7)")
    parser.add_argument("--only", default="", help="only programs whose names begin with this text")
    options = parser.parse_args()
    functions = [function for function in FUNCTIONS if function.name.startswith(options.only)]
    for name, cost in asyncio.run(measure(max(1, options.rounds), functions=functions)).items():
        time = f"time {cost.wall.value:.3f} ({cost.wall.low:.3f} to {cost.wall.high:.3f})"
        print(f"{name:<16} {time}  CPU {cost.cpu.value:.3f} ({cost.cpu.low:.3f} to {cost.cpu.high:.3f})")


if __name__ == "__main__":
    main()
