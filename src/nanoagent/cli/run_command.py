"""Runs one command, and turns errors into messages and exit codes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import typer

from nanoagent.cli import (
    deployment_commands,
    function_commands,
    job_commands,
    local_commands,
    replay_commands,
    worker_commands,
)
from nanoagent.cli.application import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NOT_REACHED, EXIT_USAGE, app
from nanoagent.cli.settings import without_secrets
from nanoagent.cli.streams import tolerant
from nanoagent.model.errors import ConfigError, InvalidCall, NanoAgentError, PlatformError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: Final = (
    worker_commands,
    function_commands,
    deployment_commands,
    job_commands,
    replay_commands,
    local_commands,
)
"""The modules with commands, in the order of `--help`."""

for module in COMMANDS:
    app.add_typer(module.commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code. Tracebacks are printed without secrets."""
    sys.stdout, sys.stderr = tolerant(sys.stdout), tolerant(sys.stderr)
    try:
        return _run(argv)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # a closed pipe at the end of the interpreter would change the exit code


def _run(argv: Sequence[str] | None) -> int:
    try:
        code = app(args=argv, prog_name="nanoagent", standalone_mode=False)
    except Exception as exc:  # noqa: BLE001 - an internal error, too; Python would print its secrets
        return _report(exc)
    except BaseException as exc:
        if not _is_interruption(exc):
            raise
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0


def _report(error: Exception) -> int:
    """Print the error of a command, and return the exit code."""
    if isinstance(error, typer.Abort):
        return EXIT_INTERRUPTED
    code = EXIT_FAILED
    if isinstance(error, typer.TyperException):  # wrong arguments; typer has no other public name for it
        command = getattr(getattr(error, "ctx", None), "command_path", "nanoagent")
        lines, code = [f"nanoagent: {error.format_message()}", f"See: {command} --help"], EXIT_USAGE
    elif isinstance(error, ConfigError):
        problems = (f"  {without_secrets(problem)}" for problem in error.problems)
        lines, code = ["The settings cannot be used:", *problems], EXIT_USAGE
    elif isinstance(error, InvalidCall):
        lines, code = [f"nanoagent: {problem}" for problem in error.problems], EXIT_USAGE
    elif isinstance(error, NanoAgentError):
        code = EXIT_NOT_REACHED if isinstance(error, PlatformError) else EXIT_FAILED
        lines = [f"nanoagent: {without_secrets(str(error))}"]
    else:
        import traceback  # slow, and rarely needed

        lines = [without_secrets("".join(traceback.format_exception(error)))]
    print("\n".join(lines), file=sys.stderr)
    return code


def _is_interruption(exc: BaseException) -> bool:
    """Return whether Ctrl-C ended a command. See `run_async` about the import."""
    asyncio = sys.modules.get("asyncio")
    return isinstance(exc, KeyboardInterrupt) or (
        asyncio is not None and isinstance(exc, asyncio.CancelledError)
    )
