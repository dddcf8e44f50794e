"""What a run in a fresh sandbox costs against the bare program, `docker exec` and `docker run`.

    python -m benchmarks.bench                    some minutes; what `make bench` runs
    python -m benchmarks.bench --quick            at most 50 s; what `make bench-quick` runs
    python -m benchmarks.bench --only go_hello    one key

Real Docker, real Redis, the whole agent; its queue is a list in this process, its S3 a stand-in on this
machine. Standard output ends with one line, a JSON object: every key that was asked for, null where it could
not be had (`skipped` says why), the intervals under `spread`. The exit code is 1 when something that should
have worked did not, else 0, whether goals are met or not.

Read in this order: measurements.py (what is measured), schedule.py (who fires when), ours.py and bare.py (the
arms), figures.py (keys and goals), stats.py.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import platform
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import figures, picture
from benchmarks.figures import KEYS, Findings
from benchmarks.lab import Lab
from benchmarks.measurements import MEASUREMENTS, CannotMeasureHere
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measurements import Measurement

_QUICK_S: Final = 40.0  # of the 50 that it may take: starting comes before, closing after
_EXIT_MARGIN_S: Final = 3.0  # on a machine that is so slow that the least rounds take longer than their share
_FULL_S: Final = 420.0
_QUIET_LOAD: Final = 0.7  # runnable processes, over the last minute: what is left after an install or a build
_COLOURS: Final = {"met": "green", "missed": "red"}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute rather than seven")
    parser.add_argument(
        "--only", nargs="+", metavar="KEY", choices=list(KEYS), help="measure only these keys"
    )
    parser.add_argument("--seconds", type=float, help="how long it may take, all keys together")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result's JSON there too")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write results.json, .md and .svg there"
    )
    options = parser.parse_args(given)
    if options.seconds is not None and options.seconds <= 0:
        parser.error("--seconds must be positive")
    return options


def plan(keys: Sequence[str]) -> list[Measurement]:
    """What is to be done for these keys."""
    return [measurement for measurement in MEASUREMENTS if set(measurement.keys) & set(keys)]


def share(measurements: Sequence[Measurement], left_s: float) -> float:
    """What of the time that is left, seconds, the first of the measurements gets, by weight."""
    return max(0.0, left_s) * measurements[0].weight / sum(each.weight for each in measurements)


async def measure(keys: Sequence[str], seconds: float) -> tuple[Findings, dict[str, Any]]:
    """Everything, one measurement after the other; one that fails does not end the rest."""
    findings = Findings()
    end = time.monotonic() + seconds
    load = os.getloadavg()[0]
    measurements = plan(keys)
    async with Lab() as lab:
        while measurements:
            begun = time.monotonic()
            if begun > end + _EXIT_MARGIN_S:
                findings.skipped |= dict.fromkeys(measurements.pop(0).keys, "the time was used up before")
                continue
            await _measure_one(lab, measurements[0], begun + share(measurements, end - begun), findings)
            names = ", ".join(measurements.pop(0).keys)
            print(f"  {names}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        machine = await describe_machine(lab) | {"load_before": round(load, 2)}
    if load > _QUIET_LOAD:
        findings.notes.append(
            f"the machine was busy before (load average {load:.1f}): another run may differ"
        )
    return findings, machine


async def _measure_one(lab: Lab, measurement: Measurement, until: float, findings: Findings) -> None:
    try:
        await measurement.measure(lab, measurement.keys[0], until, findings)
    except CannotMeasureHere as lack:
        findings.skipped |= dict.fromkeys(measurement.keys, str(lack))
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is reported and the exit code is 1
        reason = f"{type(failure).__name__}: {failure}".strip(": ")
        findings.failed |= dict.fromkeys(measurement.keys, reason)
        print(f"{measurement.keys[0]}: {reason}\n{lab.last_log_lines()}", file=sys.stderr)


async def describe_machine(lab: Lab) -> dict[str, Any]:
    """What the figures belong to."""
    version = await lab.docker.version()
    images = {}
    for name in ("python", "nodejs", "cpp", "go"):
        image = getattr(lab.settings, f"docker_{name}_image")
        images[name] = str((await lab.docker.images.inspect(image))["Id"])[7:19]
    return {
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
    """The tables, for a person."""
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


def write_report(findings: Findings, keys: Sequence[str], machine: dict[str, Any], folder: Path) -> None:
    """The result as JSON, as a page and as a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    document = figures.as_document(findings, keys, machine)
    (folder / "results.json").write_text(figures.encode(document, indent=2) + "\n")
    (folder / "results.md").write_text(figures.as_markdown(findings, keys, machine))
    title = "A fresh sandbox for every run: each figure against its goal"
    subtitle = (
        f"shorter is better; black lines: 95 % intervals; {machine['cpus']} CPUs, {machine['architecture']}, "
        f"{machine['date']}"
    )
    (folder / "results.svg").write_text(picture.draw(findings, keys, title, subtitle))


async def _interruptible(keys: Sequence[str], seconds: float) -> tuple[Findings, dict[str, Any]]:
    """As `measure`; SIGTERM ends it as Ctrl-C does, with everything removed."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(keys, seconds)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = arguments(given)
    keys = [key for key in KEYS if options.only is None or key in options.only]
    seconds = options.seconds or (_QUICK_S if options.quick else _FULL_S)
    try:
        findings, machine = asyncio.run(_interruptible(keys, seconds))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; what was started has been removed", file=sys.stderr)
        return 130
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
