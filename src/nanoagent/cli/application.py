"""The application of the command line, the options that several commands have, and the exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from nanoagent import __version__

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")

# docs/exit-codes.md has all exit codes.
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_REACHED = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the convention of shells
_EXITS = "0 success, 1 failure, 2 invalid arguments or settings, 3 a service failed, 130 Ctrl-C."

app = typer.Typer(
    help="A worker for functions as a service: jobs from SQS, runs in sandboxes, results to Redis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def epilog(*examples: str, exits: str = _EXITS) -> str:
    """Return the end of the help of a command: examples, and the exit codes.

    Args:
        examples: Commands without `nanoagent`.
        exits: The exit codes.
    """
    lines = "\n".join(f"  nanoagent {example}" for example in examples)
    return f"\b\nExamples:\n{lines}\n\nExit codes: {exits}"


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Define the options that belong to no command."""


EnvFile = Annotated[Path, typer.Option("--env-file", help="File of settings; the environment has priority.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
State = Annotated[Path, typer.Option(help="Folder for logs and caches.")]
RequestId = Annotated[str, typer.Argument(help="Request ID, as printed by `nanoagent send`.")]
Code = Annotated[Path, typer.Argument(help="Folder with the function's code, a source file, or a zip.")]
RuntimeName = Annotated[
    str, typer.Option("--runtime", help="python, nodejs, cpp or go; default: from the entry file.")
]
ResultLocale = Annotated[
    str,
    typer.Option("--locale", help="Language of hints and errors, ko or en; default: that of the shell."),
]
Payload = Annotated[
    str, typer.Option("--input", help="Input of the job: JSON, @FILE, or - for standard input.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Print the output while the function runs.")]
FollowOutsideLinks = Annotated[
    bool,
    typer.Option(
        "--follow-outside-links",
        help="Replace links to targets outside the folder with the targets; default: leave them out.",
    ),
]


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """Run the work of a command. The import of asyncio would take a third of the time of `--help`."""
    import asyncio

    return asyncio.run(work)
