"""Compares a run in a fresh sandbox with the bare program, `docker exec` and `docker run`.

    python -m benchmarks.bench                    about seven minutes; `make bench`
    python -m benchmarks.bench --quick            about a minute, at most 90 s; `make bench-quick`
    python -m benchmarks.bench --only go_hello    one key

The benchmark uses real Docker, real Redis and the whole agent. The queue is a list in this process, and a
stub on this machine replaces S3. The last line of standard output is a JSON object. It has every requested
key. The value is null if it could not be measured; `skipped` has the reason. `spread` has the intervals.
The exit code is 1 if a measurement failed, else 0. Missed goals do not change it.

Every measurement takes at least one sample of each arm, also if its time is over, so every key has a value.
Arms that do not use Docker's command take all samples of a round.
Only after the time limit (90 s with `--quick`) are the remaining measurements skipped.

Read in this order: measurements.py (the measurements), schedule.py (the order of the samples), ours.py and
bare.py (the arms), figures.py (keys and goals), stats.py.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import command, figures, picture
from benchmarks.command import positive_seconds, remarks_on_load
from benchmarks.figures import KEYS, Findings
from benchmarks.lab import Lab
from benchmarks.measurements import MEASUREMENTS, CannotMeasureHere
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measurements import Measurement

# The planned times. Then each remaining measurement takes its least number of samples, until the time limit.
_QUICK_S: Final = 35.0
_QUICK_LIMIT_S: Final = 80.0  # of at most 90 s: a measurement that has begun, and the end, take the rest
_FULL_S: Final = 420.0
_FULL_LIMIT_S: Final = 900.0
_PROJECT: Final = Path(__file__).resolve().parent.parent
# Written by `make bench` and `make bench-real`. They do not make a tree dirty.
_RESULTS: Final = ("docs/benchmarks/results.*", "docs/benchmarks/real.*")
_COLOURS: Final = {"met": "green", "missed": "red"}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="about a minute instead of seven minutes")
    parser.add_argument(
        "--only", nargs="+", metavar="KEY", choices=list(KEYS), help="measure only these keys"
    )
    parser.add_argument("--seconds", type=positive_seconds, help="the planned time for all keys")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON to this file")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write results.json, .md and .svg to this folder"
    )
    return parser.parse_args(given)


def plan(keys: Sequence[str]) -> list[Measurement]:
    """Return the measurements that produce these keys."""
    return [measurement for measurement in MEASUREMENTS if set(measurement.keys) & set(keys)]


def share(measurements: Sequence[Measurement], left_s: float) -> float:
    """Return the time for the first measurement: its share of the remaining time by weight, seconds."""
    return max(0.0, left_s) * measurements[0].weight / sum(each.weight for each in measurements)


async def measure(
    keys: Sequence[str], seconds: float, limit_s: float = _FULL_LIMIT_S
) -> tuple[Findings, dict[str, Any]]:
    """Run all measurements in sequence. A failure of one does not end the others.

    Args:
        keys: The keys.
        seconds: The planned time.
        limit_s: After this time, no measurement begins, seconds.
    """
    findings = Findings()
    begun = time.monotonic()
    end, limit = begun + seconds, begun + limit_s
    load = os.getloadavg()[0]
    measurements = plan(keys)
    async with Lab() as lab:
        while measurements:
            begun = time.monotonic()
            if begun > limit:
                findings.skipped |= dict.fromkeys(measurements.pop(0).keys, "no time was left")
                continue
            await _measure_one(lab, measurements[0], begun + share(measurements, end - begun), findings)
            names = ", ".join(measurements.pop(0).keys)
            print(f"  {names}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        machine = await describe_machine(lab) | {"load_before": round(load, 2)}
    findings.notes += remarks_on_load(load)
    return findings, machine


async def _measure_one(lab: Lab, measurement: Measurement, until: float, findings: Findings) -> None:
    try:
        await measurement.measure(lab, measurement.keys[0], until, findings)
    except CannotMeasureHere as lack:
        findings.skipped |= dict.fromkeys(measurement.keys, str(lack))
    except Exception as failure:  # noqa: BLE001 - every failure is reported, and sets the exit code to 1
        reason = f"{type(failure).__name__}: {failure}".strip(": ")
        findings.failed |= dict.fromkeys(measurement.keys, reason)
        print(f"{measurement.keys[0]}: {reason}\n{lab.last_log_lines()}", file=sys.stderr)


async def describe_machine(lab: Lab) -> dict[str, Any]:
    """Describe the machine and the images of the measurement."""
    version = await lab.docker.version()
    images = {}
    for name in ("python", "nodejs", "cpp", "go"):
        image = getattr(lab.settings, f"docker_{name}_image")
        images[name] = str((await lab.docker.images.inspect(image))["Id"])[7:19]
    return {
        "commit": await asyncio.to_thread(commit_id),
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpus": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "architecture": platform.machine(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**2,
        "kernel": platform.release(),
        "cgroup": _cgroup_version(),
        "docker": str(version["Version"]),
        "python": platform.python_version(),
        "images": ", ".join(f"{name} {digest}" for name, digest in images.items()),
        "isolation": ", ".join(sorted(lab.levels)) or "unknown",
    }


def commit_id(folder: Path = _PROJECT) -> str:
    """Return the ID of the checked-out commit, with `-dirty` if other files than the results differ from it.

    Without git or a repository, return `unknown`.
    """
    git = shutil.which("git")
    if git is None:
        return "unknown"

    def answer(*arguments: str) -> str:
        command = [git, "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - git

    try:
        commit = answer("rev-parse", "HEAD")
        results = [f":(top,exclude){pattern}" for pattern in _RESULTS]
        changed = answer("status", "--porcelain", "--", ":/", *results)
    except subprocess.CalledProcessError:
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _cgroup_version() -> int:
    return 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def show(findings: Findings, keys: Sequence[str], machine: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    console.print(escape(" · ".join(f"{name} {value}" for name, value in machine.items())), soft_wrap=True)
    table = Table(*figures.FIGURE_HEADINGS, title="figures (ratios of medians)", title_justify="left")
    for row in figures.figure_rows(findings, keys):
        *cells, verdict = row
        colour = _COLOURS.get(verdict, "yellow" if verdict else "white")
        table.add_row(*map(escape, cells), f"[{colour}]{escape(verdict)}[/]")
    console.print(table)
    arms = Table(*figures.ARM_HEADINGS, title="arms, for information", title_justify="left")
    for arm in figures.arm_rows(findings):
        arms.add_row(*map(escape, arm))
    console.print(arms)
    for note in findings.notes:
        console.print(escape(note))


def short(commit: str) -> str:
    """Return the first 12 digits of a commit's ID, and `-dirty` if it is there."""
    name, dash, dirty = commit.partition("-")
    return f"{name[:12]}{dash}{dirty}"


def write_report(findings: Findings, keys: Sequence[str], machine: dict[str, Any], folder: Path) -> None:
    """Write the result as JSON, as a page and as a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    document = figures.as_document(findings, keys, machine)
    (folder / "results.json").write_text(figures.encode(document, indent=2) + "\n")
    (folder / "results.md").write_text(figures.as_markdown(findings, keys, machine))
    title = "A fresh sandbox for every run: each figure against its goal"
    subtitle = (
        f"shorter is better; black lines: 95 % intervals; {machine['cpus']} CPUs, {machine['architecture']}, "
        f"{machine['date']}, commit {short(machine['commit'])}"
    )
    (folder / "results.svg").write_text(picture.draw(findings, keys, title, subtitle))


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write the results; return the exit code."""
    options = arguments(given)
    keys = [key for key in KEYS if options.only is None or key in options.only]
    seconds = options.seconds or (_QUICK_S if options.quick else _FULL_S)
    limit_s = _QUICK_LIMIT_S if options.quick else max(_FULL_LIMIT_S, 2 * seconds)
    findings, machine = command.run(measure(keys, seconds, limit_s))
    wide = None if sys.stdout.isatty() else 140
    show(findings, keys, machine, Console(width=wide))
    if options.report is not None:
        write_report(findings, keys, machine, options.report)
    text = figures.encode(figures.as_document(findings, keys, machine))
    if options.json is not None:
        options.json.write_text(text + "\n")
    print(text)
    return 1 if findings.failed else 0


if __name__ == "__main__":
    sys.exit(main())
