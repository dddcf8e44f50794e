"""Prints a list of jobs: a table that fits a terminal, or plain columns for a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from nanoagent.common.units import MIB
from nanoagent.dev.exec.summary import duration
from nanoagent.dev.jobs.listing import State, timestamp
from nanoagent.model.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nanoagent.dev.jobs.listing import Job

_GAP: Final = "  "
_LONGEST_REQUEST: Final = 36  # a UUID; a longer request ID gets a separate line
_LEAST_FUNCTION: Final = 8
_STYLES: Final = {
    State.RUNNING: "cyan",
    State.WAITING: "yellow",
    State.SUCCESS: "green",
    State.FAILED: "bold red",
    State.TIMEOUT: "bold red",
}
_HEADINGS: Final = ("STATUS", "START", "AGE", "TIME", "PEAK MiB")


def show(jobs: Sequence[Job], now_ms: int, console: Console | None = None) -> None:
    """Print jobs.

    Args:
        jobs: The jobs.
        now_ms: The time of the server, ms since the Unix epoch.
        console: The console; None for standard output.
    """
    console = console or Console(highlight=False)
    if console.is_terminal:
        for line in _lines(jobs, now_ms, console.width):
            console.print(line, soft_wrap=True)
    else:
        for text in _plain(jobs):
            console.file.write(f"{text}\n")


# --- a terminal


def _lines(jobs: Sequence[Job], now_ms: int, width: int) -> Iterator[Text]:
    """Yield the lines of the table. A second line of a job has the reason of its failure."""
    cells = [_cells(job, now_ms) for job in jobs]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    request_width = max(
        [len("REQUEST"), *(len(job.request_id) for job in jobs if len(job.request_id) <= _LONGEST_REQUEST)]
    )
    left = width - request_width - sum(widths) - len(_GAP) * (len(widths) + 1)
    longest = max([len("FUNCTION"), *(cell_len(one_line(job.function_id)) for job in jobs)])
    function_width = min(left, longest) if left >= _LEAST_FUNCTION else 0
    has_functions = [("FUNCTION", function_width)] if function_width else []
    heading = _row([("REQUEST", request_width), *has_functions, *zip(_HEADINGS, widths, strict=True)])
    yield Text(heading, style="bold")
    for job, row in zip(jobs, cells, strict=True):
        request_id = job.request_id
        if len(request_id) > request_width:
            yield Text(request_id)
            request_id = ""
        function = [(_cut(one_line(job.function_id) or "-", function_width), function_width)]
        first = _row([(request_id, request_width), *(function if function_width else [])])
        status = set_cell_size(row[0], widths[0])
        rest = _row(list(zip(row[1:], widths[1:], strict=True)))
        yield Text.assemble(f"{first}{_GAP}", (status, _STYLES[job.state]), f"{_GAP}{rest.rstrip()}")
        details = [] if function_width else [_cut(one_line(job.function_id), width // 3)]
        if details := [*filter(None, details), *_why(job)]:
            yield Text(_cut(f"    {': '.join(details)}", width), style="dim" if not _why(job) else "")


def _row(cells: Sequence[tuple[str, int]]) -> str:
    return _GAP.join(set_cell_size(text, width) for text, width in cells)


def _cells(job: Job, now_ms: int) -> tuple[str, ...]:
    return (
        job.state,
        job.start or "-",
        age(now_ms - job.at_ms),
        "-" if job.duration_ms is None else duration(job.duration_ms),
        _memory(job),
    )


def _memory(job: Job) -> str:
    """Return the peak and the limit, MiB."""
    peak = "-" if job.peak_memory_bytes is None else f"{job.peak_memory_bytes / MIB:.1f}"
    return peak if job.memory_mb is None else f"{peak}/{job.memory_mb}"


def _why(job: Job) -> list[str]:
    """Return why a job has failed or waits."""
    if job.state is State.SUCCESS:
        return []
    return [one_line(part) for part in (job.error_type, job.message) if part]


def age(ms: int) -> str:
    """Return an age with one unit, such as 12s, 5m, 3h or 2d."""
    seconds = max(0, ms) // 1000
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit}{name}"
    return f"{seconds // 86_400}d"


def _cut(text: str, width: int) -> str:
    """Return a text that fits the width, in cells of a terminal."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(0, width - 1))}…"


# --- a pipe


def _plain(jobs: Sequence[Job]) -> Iterator[str]:
    """Yield the lines: columns without spaces in them, and the reason last. No text is cut."""
    rows = [("REQUEST", "FUNCTION", "STATUS", "START", "WHEN", "MS", "PEAK/LIMIT", "WHY")]
    rows += [
        (
            job.request_id,
            one_line(job.function_id).replace(" ", "_") or "-",
            job.state,
            job.start or "-",
            timestamp(job.at_ms),
            "-" if job.duration_ms is None else str(job.duration_ms),
            _memory(job),
            ": ".join(_why(job)) or "-",
        )
        for job in jobs
    ]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield _GAP.join(map(set_cell_size, row, widths)).rstrip()
