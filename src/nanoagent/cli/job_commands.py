"""The commands for jobs: `send`, `logs`, `jobs`, `result`, `cancel` and `outputs`."""

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
    Follow,
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

_JOBS_EXITS = "0 success, 2 invalid arguments or settings, 3 Redis failed, 130 Ctrl-C."
_CANCEL_EXITS = (
    "0 the job was stopped or will not run, 1 it had ended before, 2 invalid arguments or settings, "
    "3 Redis failed, 4 its worker has the cancellation, but there is no result yet, 130 Ctrl-C."
)
_OUTPUTS_EXITS = (
    "0 success, 1 a file could not be downloaded, 2 invalid arguments, folder or settings, 3 Redis or S3 "
    "failed, 4 no result yet, 130 Ctrl-C."
)
_LOGS_EXITS = (
    "0 the job succeeded, or it runs and --follow is missing, 1 the job ended without success, "
    "2 invalid arguments or settings, 3 Redis failed, 4 no output is known, 124 the job exceeded its time "
    "limit, 130 Ctrl-C."
)

commands = typer.Typer()


@commands.command(
    epilog=epilog(
        'send hello --input \'{"name": "world"}\'',
        "send hello --input @input.json --wait 0",
        "send hello --follow",
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
    follow: Follow = False,
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
        is_following=follow,
        as_json=as_json,
        env_file=env_file,
        settings_file=settings_file,
    )
    return command.send(settings, call)


@commands.command(epilog=epilog("logs send-1234567890ab --follow", exits=_LOGS_EXITS))
def logs(  # noqa: PLR0913, PLR0917 - options of a command line
    request_id: RequestId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print further output until the job has ended.")
    ] = False,
    stream: Annotated[str, typer.Option(help="Print only stdout or only stderr.")] = "",
    since: Annotated[str, typer.Option(help="Continue after a position that was printed before.")] = "",
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to follow at most; 0: until the job has ended.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON, one per line.")] = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Print the output of a job, also while it runs.

    Standard output of the function goes to standard output, its standard error to standard error. Ctrl-C ends
    only this command, not the job.
    """
    settings, settings_file = settings_of.of_redis(env_file, quiet=as_json)
    from nanoagent.dev.follower import command

    call = command.Call(
        request_id=request_id,
        is_following=follow,
        stream=stream,
        since=since,
        wait_s=wait_s,
        as_json=as_json,
        settings_file=settings_file,
    )
    return command.logs(settings, call)


@commands.command(
    epilog=epilog("jobs --failed --since 1h", "jobs --function hello --status running", exits=_JOBS_EXITS)
)
def jobs(  # noqa: PLR0913, PLR0917 - options of a command line
    function_id: Annotated[str, typer.Option("--function", help="Only jobs of this function ID.")] = "",
    status: Annotated[
        list[str] | None,
        typer.Option(help="running, waiting, success, failed or timeout; repeatable."),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only jobs that failed or timed out.")] = False,
    since: Annotated[str, typer.Option(help="Only jobs that ended in this time, such as 30m, 1h, 2d.")] = "",
    limit: Annotated[int, typer.Option(help="The largest number of jobs.")] = 20,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """List recent jobs of all workers, the newest first.

    Running jobs and jobs that wait for another attempt come first.
    """
    settings, settings_file = settings_of.of_redis(env_file, quiet=as_json)
    from nanoagent.dev.jobs import command, listing

    query = listing.query_of(function_id, status or [], since, limit, failed=failed)
    return command.jobs(settings, query, as_json=as_json, settings_file=settings_file)


@commands.command(epilog=epilog("result send-1234567890ab --wait 60", exits=_SEND_EXITS))
def result(
    request_id: RequestId,
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the result; 0: do not wait.")
    ] = 0,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Show the output of a job, and how it ended.

    If standard output is not a terminal, the result is printed as JSON.
    """
    settings, settings_file = settings_of.of_redis(env_file, quiet=as_json)
    from nanoagent.dev.jobs import result as showing

    return showing.result(settings, request_id, wait_s=wait_s, as_json=as_json, settings_file=settings_file)


@commands.command(epilog=epilog("cancel send-1234567890ab", exits=_CANCEL_EXITS))
def cancel(
    request_id: RequestId,
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the result of a running job; 0: do not wait.")
    ] = 10,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Cancel a job that waits or runs, and say what happened."""
    settings, settings_file = settings_of.of_redis(env_file, quiet=as_json)
    from nanoagent.dev.jobs import cancel as cancelling

    return cancelling.cancel(
        settings,
        request_id,
        wait_s=wait_s,
        as_json=as_json,
        env_file=env_file,
        settings_file=settings_file,
    )


@commands.command(epilog=epilog("outputs send-1234567890ab --download results", exits=_OUTPUTS_EXITS))
def outputs(
    request_id: RequestId,
    folder: Annotated[
        Path | None, typer.Option("--download", metavar="DIR", help="Download the files into this folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """List the output files of a job, or download them."""
    settings, settings_file = settings_of.of_redis(env_file, quiet=as_json)
    from nanoagent.dev.jobs import outputs as files

    return files.outputs(
        settings,
        files.Call(
            request_id=request_id, folder=folder, force=force, as_json=as_json, settings_file=settings_file
        ),
    )
