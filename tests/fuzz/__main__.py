"""Fuzzing with atheris (libFuzzer), each target in a process of its own, and replaying what was found.

    python -m fuzz [TARGET ...]            all by default; FUZZ_SECONDS (60) for each, FUZZ_RUNS at most
    python -m fuzz replay TARGET FILE ...  the same inputs again, without atheris

Inputs that brought something new are kept in .nanoagent/fuzz/TARGET/corpus, to begin from the next time. The
exit code is 0 when nothing was found.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fuzz.targets import Target

MODULES: Final = {
    "archive": ["nanoagent.code.archive", "zipfile"],
    "job": ["nanoagent.model.message"],
    "protocol": ["nanoagent.supervisor", "nanoagent.container.execution", "nanoagent.container.judgment"],
    "canary": ["fuzz.targets"],
}
"""Whose branches guide the search, by target; to be known before they are imported."""

_TESTS: Final = Path(__file__).parents[1]  # `python -m` finds this package in it
_STATE: Final = _TESTS.parent / ".nanoagent/fuzz"
_MEMORY_DISK: Final = Path("/dev/shm")
_TALLY_EVERY: Final = 200  # inputs; libFuzzer ends the process without a word to Python
_INPUT_TIMEOUT_S: Final = 30  # under load too; an input takes a millisecond
_MEMORY_MB: Final = 1024
_GRACE_S: Final = 120  # to start, to read the corpus, and to end
_STATUS: Final = re.compile(r"^#(\d+)\s.*?\bcov: (\d+) .*?\bcorp: (\d+)", re.MULTILINE)
_LAST_WORDS: Final = 3000


@dataclass(frozen=True)
class Report:
    """What came of fuzzing one target."""

    target: str
    seconds: float
    inputs: int
    edges: int
    kept: int
    outcomes: Mapping[str, int]
    found: Sequence[Path]
    problem: str

    @property
    def is_good(self) -> bool:
        """Whether it ran, and nothing was found."""
        return not self.problem and not self.found and self.inputs > 0

    def __str__(self) -> str:
        effort = (
            f"{self.inputs:,} inputs in {self.seconds:.0f} s ({self.inputs / self.seconds:,.0f} a second)"
        )
        outcomes = ", ".join(f"{what} {count:,}" for what, count in sorted(self.outcomes.items()))
        lines = [
            f"{self.target}: {effort}, {self.edges:,} edges covered, {self.kept:,} inputs kept",
            f"  what became of them: {outcomes or 'nothing'}",
        ]
        for path in self.found:
            lines.append(f"  found: {path}")
            lines.append(f"  again: make fuzz-replay TARGET={self.target} INPUT={path}")
        return "\n".join([*lines, self.problem] if self.problem else lines)


def fuzz(target: str, state: Path, *, seconds: int, runs: int) -> Report:
    """Fuzz one target in a process of its own.

    Args:
        target: Its name.
        state: A folder for the inputs worth keeping, the log, and what is found.
        seconds: How long.
        runs: How many inputs at most; 0 for as many as there is time for.
    """
    (state / "corpus").mkdir(parents=True, exist_ok=True)
    tally = state / "tally.json"
    tally.unlink(missing_ok=True)
    before = set(state.iterdir())
    begun = time.monotonic()
    with (state / "log").open("w") as log, tempfile.TemporaryDirectory(dir=_scratch_root()) as scratch:
        command = [
            sys.executable,
            "-m",
            "fuzz",
            "child",
            target,
            str(state),
            scratch,
            str(seconds),
            str(runs),
        ]
        code = _code_of(command, log, seconds + _GRACE_S)
    took_s = time.monotonic() - begun
    said = (state / "log").read_text(errors="replace")
    inputs, edges, kept = (int(number) for number in (_STATUS.findall(said) or [(0, 0, 0)])[-1])
    return Report(
        target,
        took_s,
        inputs,
        edges,
        kept,
        json.loads(tally.read_text()) if tally.exists() else {},
        sorted(
            path for path in set(state.iterdir()) - before if "-" in path.name
        ),  # crash-…, timeout-…, oom-…
        ""
        if code == 0
        else f"{said[-_LAST_WORDS:]}\n  the process ended with {code}; all that it said: {state / 'log'}",
    )


def _code_of(command: list[str], log: TextIO, timeout_s: float) -> int | str:
    try:
        return subprocess.run(
            command, cwd=_TESTS, stdout=log, stderr=log, timeout=timeout_s, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return f"nothing within {timeout_s:.0f} s"


def _scratch_root() -> Path | None:
    """A place for thousands of small files a second."""
    return _MEMORY_DISK if os.access(_MEMORY_DISK, os.W_OK) else None


def fuzz_here(name: str, state: Path, scratch: Path, seconds: str, runs: str) -> None:
    """Fuzz in this process; libFuzzer ends it."""
    import atheris  # noqa: PLC0415 - replaying needs none, and there is none for every machine

    sys.modules.pop("zipfile", None)  # read anew, so that its branches are seen
    with atheris.instrument_imports(include=MODULES[name]):
        from fuzz import targets  # noqa: PLC0415
    target = targets.TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        (state / f"corpus/seed-{number:03}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-max_len={target.longest}", f"-timeout={_INPUT_TIMEOUT_S}"]
    limits += [f"-rss_limit_mb={_MEMORY_MB}", *([f"-runs={runs}"] if runs != "0" else [])]
    arguments = [name, *limits, f"-artifact_prefix={state}/", str(state / "corpus")]
    atheris.Setup(arguments, _counted(target, scratch / "input", state / "tally.json"))
    atheris.Fuzz()


def _counted(target: Target, folder: Path, tally: Path) -> Callable[[bytes], None]:
    def attempt(data: bytes) -> None:
        target.run(data, folder)
        if target.outcomes.total() % _TALLY_EVERY == 0:
            tally.write_text(json.dumps(target.outcomes))

    return attempt


def replay(name: str, inputs: Sequence[Path]) -> bool:
    """Try inputs that were found, and show what is wrong; whether nothing is."""
    from fuzz import targets  # noqa: PLC0415 - a process that fuzzes must not have it imported before

    is_good = True
    for path in inputs:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                targets.TARGETS[name].run(path.read_bytes(), Path(scratch, "input"))
                print(f"{path}: {dict(targets.TARGETS[name].outcomes)}")
            except Exception:  # noqa: BLE001 - whatever it is, it was looked for
                traceback.print_exc()
                is_good = False
    return is_good


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    match arguments:
        case ["child", name, state, scratch, seconds, runs]:
            fuzz_here(name, Path(state), Path(scratch), seconds, runs)
            return 1
        case ["replay", name, *paths] if name in MODULES:
            return 0 if replay(name, list(map(Path, paths))) else 1
    names = list(arguments) or [name for name in MODULES if name != "canary"]
    if not MODULES.keys() >= set(names):
        print(f"{' '.join(names)}: the targets are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    most_s, most_runs = int(os.environ.get("FUZZ_SECONDS", "60")), int(os.environ.get("FUZZ_RUNS", "0"))
    is_good = True
    for name in names:
        report = fuzz(name, _STATE / name, seconds=most_s, runs=most_runs)
        print(report, flush=True)
        is_good &= report.is_good
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
