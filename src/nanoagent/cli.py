"""The command line: `nanoagent run`, `check`, `send` and the other commands.

Exit codes: 0 success, 1 failure, 2 invalid arguments or settings; `send`, `result` and `cancel` have more.
Modules that are slow to import are imported in the command that needs them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar, cast

import typer

from nanoagent import __version__
from nanoagent.model.errors import ConfigError, InvalidCall, NanoAgentError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from rich.table import Table

    from nanoagent.config import LocalSettings, Settings
    from nanoagent.doctor.check import ProbeResult

_T = TypeVar("_T")

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_REACHED = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the convention of shells
# These are the values of `sender.command.Exit`. They are written here again, so that `nanoagent --help` need
# not import that module.
_SEND_EXITS = (
    "Exit codes: 0 success, 1 the job ended without success, 2 invalid arguments, code or settings "
    "(nothing was sent), 3 Redis, S3 or SQS failed, 4 no result yet, 130 Ctrl-C."
)

# The values of `exec.command.Exit`, for the same reason.
_EXEC_EXITS = (
    "Exit codes: that of the function, and 124 time limit, 125 Docker or this machine failed, 126 invalid "
    "code or failed build, 2 invalid arguments or settings, 130 Ctrl-C."
)

app = typer.Typer(
    help="A worker for functions as a service: jobs from SQS, runs in sandboxes, results to Redis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
FollowOutsideLinks = Annotated[
    bool,
    typer.Option(
        "--follow-outside-links",
        help="Replace links to targets outside the folder with the targets; default: leave them out.",
    ),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code. Tracebacks are printed without secrets."""
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)
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
        lines, code = [error.format_message(), "See --help of the command."], EXIT_USAGE
    elif isinstance(error, ConfigError):
        problems = (f"  {_without_secrets(problem)}" for problem in error.problems)
        lines, code = ["The settings cannot be used:", *problems], EXIT_USAGE
    elif isinstance(error, InvalidCall):
        lines, code = [f"nanoagent: {problem}" for problem in error.problems], EXIT_USAGE
    elif isinstance(error, NanoAgentError):
        lines = [f"nanoagent: {_without_secrets(str(error))}"]
    else:
        lines = [_without_secrets("".join(traceback.format_exception(error)))]
    print("\n".join(lines), file=sys.stderr)
    return code


def _is_interruption(exc: BaseException) -> bool:
    """Return whether Ctrl-C ended a command. The import of asyncio would take a third of `--help`'s time."""
    asyncio = sys.modules.get("asyncio")
    return isinstance(exc, KeyboardInterrupt) or (
        asyncio is not None and isinstance(exc, asyncio.CancelledError)
    )


def _run_async(work: Coroutine[Any, Any, _T]) -> _T:
    import asyncio

    return asyncio.run(work)


class _PipeTolerantStream:
    """A text stream that discards its output after the reader has closed the pipe.

    A closed pipe is not a failure of the command: the command continues, and ends with its own exit code. For
    example, `nanoagent send X` in `nanoagent send X | head -1` still ends with the exit code for the job.

    Args:
        stream: Standard output or standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or discard it."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Write the buffered text, or discard it."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        """Point the descriptor to /dev/null. Otherwise each flush of the buffered text would fail again."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _tolerant(stream: TextIO | None) -> TextIO:
    """Wrap a stream once. The stream is None if its descriptor was closed before the start."""
    if stream is None:
        stream = Path(os.devnull).open("w")  # noqa: SIM115 - stays open until the process ends
    return stream if isinstance(stream, _PipeTolerantStream) else cast("TextIO", _PipeTolerantStream(stream))


def _without_secrets(text: str) -> str:
    from nanoagent.telemetry import logs

    return logs.without_secrets(text)


def _load_environment(env_file: Path) -> None:
    """Load the file into the environment, because it may have variables of the AWS SDK and of Docker."""
    from dotenv import load_dotenv

    # `config.load` reports a file that cannot be read.
    with suppress(OSError, UnicodeDecodeError):
        load_dotenv(env_file)


def _settings(env_file: Path) -> Settings:
    from nanoagent import config
    from nanoagent.doctor import variables
    from nanoagent.telemetry import logs

    _load_environment(env_file)
    try:
        settings = config.load(env_file)
    except ConfigError as exc:
        missing = variables.missing_file(env_file)
        raise ConfigError([*([] if missing is None else [missing]), *exc.problems]) from exc
    logs.hide(settings.secrets)
    return settings


def _local_settings(env_file: Path) -> LocalSettings:
    """Read the settings of a command that needs no queue and no buckets."""
    from nanoagent import config
    from nanoagent.telemetry import logs

    _load_environment(env_file)
    settings = config.load_local(env_file)
    logs.hide(settings.secrets)
    return settings


@app.command()
def run(env_file: EnvFile = Path(".env")) -> None:
    """Take jobs until SIGTERM or Ctrl-C."""
    settings = _settings(env_file)
    import structlog

    from nanoagent import app as process
    from nanoagent.host import event_loop
    from nanoagent.telemetry import logs

    logs.configure(settings.log_format, settings.log_level)
    for warning in _warnings(env_file, settings):
        structlog.get_logger(__name__).warning("setting without effect", reason=warning)
    event_loop.run(process.serve(settings))


@app.command()
def check(env_file: EnvFile = Path(".env"), as_json: AsJson = False) -> int:
    """Show the settings, and check whether a worker can start."""
    settings = _settings(env_file)
    from nanoagent.doctor import check as checks

    results = _run_async(checks.check(settings))
    warnings = {result.part: result.warnings for result in results}
    warnings["settings"] = tuple(_warnings(env_file, settings))
    shown, defaults = _shown_settings(settings), checks.changed(settings)
    if as_json:
        document = {
            "settings": shown,
            "changed": sorted(defaults),
            "warnings": {part: texts for part, texts in warnings.items() if texts},
            "problems": {result.part: result.problem for result in results},
            "verdict": checks.verdict(results),
        }
        print(_without_secrets(json.dumps(document, indent=2, ensure_ascii=False)))
    else:
        _print_check(shown, defaults, warnings, results)
    return EXIT_FAILED if any(result.problem for result in results) else 0


def _warnings(env_file: Path, settings: Settings) -> list[str]:
    from nanoagent.doctor import variables

    return variables.warnings(env_file, os.environ, used=settings.ai_upstreams or "")


def _shown_settings(settings: Settings) -> dict[str, Any]:
    """Return every setting as JSON, with secrets hidden."""
    shown = settings.model_dump(mode="json")
    for name in shown:
        if ("password" in name or name.endswith("_api_key")) and shown[name]:
            shown[name] = "***"
    return shown


def _print_check(
    shown: dict[str, Any],
    defaults: dict[str, Any],
    warnings: dict[str, tuple[str, ...]],
    results: Sequence[ProbeResult],
) -> None:
    from rich.console import Console
    from rich.markup import escape

    from nanoagent.doctor import check as checks

    def cell(value: object) -> str:
        return "" if value is None else _without_secrets(str(value))

    rows = [
        (
            "*" if name in defaults else "",
            name.upper(),
            cell(value),
            cell(defaults[name]) or "none" if name in defaults else "",
        )
        for name, value in shown.items()
    ]
    console = Console(soft_wrap=True)
    if console.is_terminal:
        console.print(_table(rows), soft_wrap=False)
    else:  # a file or a pipe: no text is cut or wrapped
        names = max(len(row[1]) for row in rows)
        for mark, name, value, default in rows:
            suffix = f"  (default: {default})" if default else ""
            print(f"{mark:1} {name:{names}}  {value}{suffix}".rstrip())
    for result in results:
        answer = f"[red]{escape(cell(result.problem))}[/]" if result.problem else "[green]ok[/]"
        console.print(f"{escape(result.part)}: {answer}")
    for part, texts in warnings.items():
        for warning in texts:
            console.print(f"{escape(part)}: [yellow]warning: {escape(cell(warning))}[/]")
    failed = any(result.problem for result in results)
    console.print(f"{escape(cell(checks.verdict(results)))} (exit code {EXIT_FAILED if failed else 0})")


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return the settings as a table that wraps long values to the width of the terminal."""
    from rich.table import Column, Table
    from rich.text import Text

    heads = ("", "setting", "value", "default, where it differs")
    table = Table(*(Column(head, overflow="fold") for head in heads), box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


@app.command()
def selftest(env_file: EnvFile = Path(".env"), as_json: AsJson = False) -> int:
    """Test the isolation of runs in every language."""
    settings = _settings(env_file)
    from nanoagent.selftest import report
    from nanoagent.telemetry import logs
    from nanoagent.wiring import self_test

    logs.configure(settings.log_format, "ERROR" if as_json else "WARNING")
    tested = _run_async(self_test.run_once(settings))
    if as_json:
        print(json.dumps(report.document(tested), indent=2))
    else:
        report.show(tested)
    return 0 if tested.ok else EXIT_FAILED


@app.command()
def doctor(env_file: EnvFile = Path(".env"), as_json: AsJson = False) -> int:
    """Examine the host and every service, and propose remedies."""
    _load_environment(env_file)
    from nanoagent.doctor import examination, report
    from nanoagent.telemetry import logs

    logs.configure("auto", "ERROR")
    examined = _run_async(examination.examine(env_file))
    if as_json:
        print(json.dumps(report.document(examined.findings), indent=2, ensure_ascii=False))
    else:
        report.show(examined.findings)
    if examined.settings_are_wrong:
        return EXIT_USAGE
    return EXIT_FAILED if examined.has_problem else 0


@app.command(epilog="Exit codes: 0 success, 3 no worker answers.")
def pool(
    url: Annotated[
        str, typer.Option(help="URL of the worker's metrics; default: METRICS_HOST and METRICS_PORT.")
    ] = "",
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Show the containers of a running worker: hot, generic, evicted, and their memory."""
    _load_environment(env_file)
    from nanoagent.telemetry import pool_report

    try:
        document = pool_report.fetch(url or pool_report.default_url(os.environ))
    except pool_report.WorkerNotReached as exc:
        print(f"nanoagent: {_without_secrets(str(exc))}", file=sys.stderr)
        return EXIT_NOT_REACHED
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        pool_report.show(document)
    return 0


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the new function.")],
    runtime: Annotated[str, typer.Option(help="python, nodejs, cpp or go.")] = "python",
    calls_model: Annotated[
        bool, typer.Option("--calls-model", help="Write a function that calls a language model.")
    ] = False,
) -> None:
    """Write a small function, with an example input and a test that runs it."""
    from nanoagent.dev import init as templates

    for path in templates.write(folder, runtime, calls_model=calls_model):
        print(f"Wrote {path}")
    print(f"Run it:   nanoagent exec {folder} --input @{folder}/input.json\nTest it:  {folder}/test.sh")


@app.command(name="exec", epilog=_EXEC_EXITS)
def exec_(  # noqa: PLR0913, PLR0917 - options of a command line
    code: Code,
    payload: Payload = "{}",
    runtime: RuntimeName = "",
    memory_mb: Annotated[int, typer.Option("--memory", help="Memory limit, MiB.")] = 128,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Time limit, seconds.")] = 300,
    network: Annotated[str, typer.Option(help="none, ai or egress; default: the setting NETWORK.")] = "",
    model: Annotated[str, typer.Option(help="Model of the AI client; default: the setting AI_MODEL.")] = "",
    env: Annotated[
        list[str] | None, typer.Option("--env", help="NAME=VALUE: a variable of the function; repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for output files; default: a new temporary folder.")
    ] = None,
    locale: ResultLocale = "",
    watch: Annotated[bool, typer.Option("--watch", help="Run again after each change of the files.")] = False,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Run a function on this machine, in the sandbox and with the limits of a worker.

    Only Docker is needed: no queue, no S3, no Redis. Output appears while the function runs.
    """
    settings = _local_settings(env_file)
    from nanoagent.dev.exec import command
    from nanoagent.telemetry import logs

    logs.configure("auto", "ERROR")
    call = command.Call(
        code=code,
        runtime=runtime,
        payload=payload,
        memory_mb=memory_mb,
        timeout_s=timeout_s,
        network=network,
        model=model,
        locale=locale,
        env=tuple(env or ()),
        output=output,
        watch=watch,
        as_json=as_json,
    )
    return command.run(settings, call)


@app.command(epilog=_SEND_EXITS)
def send(  # noqa: PLR0913, PLR0917 - options of a command line
    code: Code,
    runtime: RuntimeName = "",
    payload: Payload = "{}",
    function_id: Annotated[
        str, typer.Option(help="ID of the function; default: the name of the folder.")
    ] = "",
    memory_mb: Annotated[int, typer.Option(help="Memory limit of the job, MiB.")] = 128,
    timeout_ms: Annotated[int, typer.Option(help="Time limit of the job, ms.")] = 300_000,
    locale: ResultLocale = "",
    reuse: Annotated[str, typer.Option(help="imports: reuse the imports of installed packages.")] = "",
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the result; 0: do not wait.")
    ] = 60,
    follow_outside_links: FollowOutsideLinks = False,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Send one job with its code, and print the result as JSON.

    Secrets, version control, virtual environments and caches are left out. A file .nanoagentignore in the
    folder, in the syntax of .gitignore, changes that. Without settings, the worker of `make dev` is used.
    """
    try:
        settings, settings_file = _sender_settings(env_file, quiet=as_json)
        from nanoagent.dev.sender import command
    except KeyboardInterrupt:
        if not as_json:
            print("\nNothing was sent.", file=sys.stderr)
        raise

    call = command.Call(
        code=code,
        runtime=runtime,
        payload=payload,
        function_id=function_id,
        memory_mb=memory_mb,
        timeout_ms=timeout_ms,
        wait_s=wait_s,
        locale=locale,
        reuse=reuse,
        follow_outside_links=follow_outside_links,
        as_json=as_json,
        env_file=env_file,
        settings_file=settings_file,
    )
    return command.send(settings, call)


@app.command(epilog=_SEND_EXITS)
def result(
    request_id: RequestId,
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the result; 0: do not wait.")
    ] = 0,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Print the result of a job as JSON."""
    settings, settings_file = _sender_settings(env_file, quiet=as_json)
    from nanoagent.dev.sender import command

    return command.result(settings, request_id, wait_s=wait_s, as_json=as_json, settings_file=settings_file)


@app.command(epilog=_SEND_EXITS)
def cancel(
    request_id: RequestId,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Cancel a job that is waiting or running."""
    settings, settings_file = _sender_settings(env_file, quiet=as_json)
    from nanoagent.dev.sender import command

    return command.cancel(
        settings, request_id, as_json=as_json, env_file=env_file, settings_file=settings_file
    )


def _sender_settings(env_file: Path, *, quiet: bool) -> tuple[Settings, Path]:
    """Read the settings, and return them with their file. The default is the file of a running `make dev`."""
    from nanoagent.dev.sender import dev

    file = dev.settings_file(env_file, quiet=quiet)
    try:
        settings = _settings(file)
    except ConfigError as exc:
        raise ConfigError(dev.with_advice(exc.problems)) from exc
    if not quiet:
        # A default .env without SQS_QUEUE_URL is the function's .env. It has no settings to warn about.
        has_settings = env_file != dev.DEFAULT or dev.names_queue(file)
        for warning in _warnings(file if has_settings else Path(os.devnull), settings):
            print(f"Warning: {_without_secrets(warning)}", file=sys.stderr)
    return settings, file


@app.command()
def images() -> None:
    """Build or update the images in which functions run."""
    from nanoagent.dev import images as building

    _run_async(building.build())


@app.command()
def demo(
    as_json: AsJson = False,
    state: State = Path(".nanoagent"),
) -> int:
    """Run the examples twice, with local services in place of AWS and Redis."""
    from nanoagent.dev import demo as demonstration

    return _run_async(demonstration.run(state.absolute(), as_json=as_json))


@app.command()
def dev(
    state: State = Path(".nanoagent"),
) -> int:
    """Run a worker until Ctrl-C, with local services in place of AWS and Redis."""
    from nanoagent.dev import develop

    return _run_async(develop.run(state.absolute()))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
