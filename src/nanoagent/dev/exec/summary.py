"""How a run ended, for a person: one line after success, a few lines after a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.text import Text

from nanoagent.common.units import MIB
from nanoagent.dev.sender import terminal
from nanoagent.model.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nanoagent.model.result import Result


def show(result: Result, memory_mb: int | None, begin_line: Callable[[], None]) -> None:
    """Print the summary to standard error; after success, only on a terminal.

    Args:
        result: The result of the run.
        memory_mb: The memory limit of the run, MiB; None if it is unknown.
        begin_line: Ends an unfinished line of the output.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if result.error_type is None and not console.is_terminal:
        return
    begin_line()
    for line in lines(result, memory_mb):
        console.print(line)


def lines(result: Result, memory_mb: int | None) -> Iterator[Text]:
    """Yield the lines of the summary.

    Args:
        result: The result of the run. For `file:` URLs, the paths are shown.
        memory_mb: The memory limit of the run, MiB; None if it is unknown.
    """
    is_success = result.error_type is None
    status = str(result.status) if is_success else f"{result.status} ({result.error_type})"
    facts = _facts(result, memory_mb)
    yield Text.assemble((status, "bold green" if is_success else "bold red"), f"  {facts}" if facts else "")
    if result.error_message is not None:
        yield Text.assemble(("error  ", "red"), terminal.clean(result.error_message))
    if result.hint is not None:
        yield Text.assemble(("hint   ", "cyan"), terminal.clean(result.hint))
    for refused in result.output_errors:
        shown = terminal.clean(" ".join(filter(None, (refused.path, refused.reason))))
        yield Text.assemble(("output ", "yellow"), shown)
    for link in result.output_files:
        yield Text.assemble(("output ", "cyan"), _place(link))
    for name, whole in (("stdout", result.stdout_url), ("stderr", result.stderr_url)):
        if whole is not None:
            yield Text.assemble((f"{name} ", "cyan"), _place(whole))


def _place(link: str) -> str:
    """Return the path of a `file:` URL, and any other link unchanged."""
    parts = urlsplit(link)
    return one_line(unquote(parts.path) if parts.scheme == "file" else link)


def _facts(result: Result, memory_mb: int | None) -> str:
    """Return the exit code, the durations, the memory and the start, as far as they are known."""
    timings = result.timings
    facts = []
    if result.start is not None:
        facts.append(f"exit code {result.exit_code}")
        facts.append(f"ran {duration(result.duration_ms)}")
    if result.peak_memory_bytes is not None:
        limit = "" if memory_mb is None else f" of {memory_mb}"
        facts.append(f"peak {result.peak_memory_bytes / MIB:.1f}{limit} MiB")
    if timings.build:
        facts.append(f"build {duration(timings.build)}")
    if result.start is not None:
        facts.append(f"{result.start} start {duration(timings.acquire + timings.start)}")
    return ", ".join(facts)


def duration(milliseconds: float) -> str:
    """Return a duration with three digits or fewer: ms below a second, then s."""
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
