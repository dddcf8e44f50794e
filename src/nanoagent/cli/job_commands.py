"""The commands for jobs: `send`, `result` and `cancel`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nanoagent.cli import settings as settings_of
from nanoagent.cli.application import (
    AsJson,
    Code,
    EnvFile,
    FollowOutsideLinks,
    Payload,
    RequestId,
    ResultLocale,
    RuntimeName,
    epilog,
)

# These are the values of `sender.command.Exit`. They are written here again, so that `nanoagent --help` need
# not import that module.
_SEND_EXITS = (
    "0 success, 1 the job ended without success, 2 invalid arguments, code or settings "
    "(nothing was sent), 3 Redis, S3 or SQS failed, 4 no result yet, 130 Ctrl-C."
)

commands = typer.Typer()


@commands.command(
    epilog=epilog(
        'send hello --input \'{"name": "world"}\'',
        "send hello --input @input.json --wait 0",
        exits=_SEND_EXITS,
    )
)
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
        settings, settings_file = settings_of.of_sender(env_file, quiet=as_json)
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


@commands.command(epilog=epilog("result send-1234567890ab --wait 60", exits=_SEND_EXITS))
def result(
    request_id: RequestId,
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the result; 0: do not wait.")
    ] = 0,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Print the result of a job as JSON."""
    settings, settings_file = settings_of.of_redis(env_file, quiet=as_json)
    from nanoagent.dev.sender import command

    return command.result(settings, request_id, wait_s=wait_s, as_json=as_json, settings_file=settings_file)


@commands.command(epilog=epilog("cancel send-1234567890ab", exits=_SEND_EXITS))
def cancel(
    request_id: RequestId,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Cancel a job that is waiting or running."""
    settings, settings_file = settings_of.of_redis(env_file, quiet=as_json)
    from nanoagent.dev.sender import command

    return command.cancel(
        settings, request_id, as_json=as_json, env_file=env_file, settings_file=settings_file
    )
