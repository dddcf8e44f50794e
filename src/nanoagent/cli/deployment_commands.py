"""The commands for deployed functions: `deploy`, `invoke` and `functions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanoagent.cli import settings as settings_of
from nanoagent.cli.application import (
    AsJson,
    EnvFile,
    Follow,
    FollowOutsideLinks,
    Payload,
    ResultLocale,
    RuntimeName,
    epilog,
)
from nanoagent.model.errors import InvalidCall

_DEPLOY_EXITS = (
    "0 success, 2 invalid arguments, code or settings (nothing was deployed), 3 S3 failed, "
    "4 no such function, 130 Ctrl-C."
)
_INVOKE_EXITS = (
    "0 success, 1 the function failed, 2 invalid arguments or settings (nothing was sent), 3 S3, SQS or "
    "Redis failed, 4 no such function or no result yet, 124 time limit, 130 Ctrl-C."
)
_FUNCTIONS_EXITS = (
    "0 success, 1 a record cannot be used, 2 invalid arguments or settings, 3 S3 failed, "
    "4 no such function, 130 Ctrl-C."
)

commands = typer.Typer()


@commands.command(
    epilog=epilog(
        "deploy hello --memory 256 --env STAGE=prod",
        "deploy hello --dry-run",
        "deploy --function hello --rollback",
        exits=_DEPLOY_EXITS,
    )
)
def deploy(  # noqa: PLR0913, PLR0917 - options of a command line
    code: Annotated[
        str | None, typer.Argument(help="Folder with the function's code, a source file, or a zip.")
    ] = None,
    version: Annotated[
        str | None,
        typer.Argument(help="For --rollback: number of the version; default: the previous one."),
    ] = None,
    function_id: Annotated[
        str, typer.Option("--function", help="ID of the function; default: the name of the folder.")
    ] = "",
    runtime: RuntimeName = "",
    memory_mb: Annotated[
        int | None, typer.Option("--memory", help="Memory limit, MiB; at first 128.")
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", help="Time limit, seconds; at first 300.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help='none, ai or egress; "" for the setting NETWORK of the worker.')
    ] = None,
    model: Annotated[
        str | None, typer.Option(help='Model of the AI client; "" for the setting AI_MODEL of the worker.')
    ] = None,
    reuse: Annotated[str | None, typer.Option(help="none, or imports: reuse imports of packages.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", help="NAME=VALUE, or NAME to take its value from here: set a variable."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            help="NAME=ssm:/path or NAME=secretsManager:ID: set a variable to a secret, read by the worker.",
        ),
    ] = None,
    unset_env: Annotated[
        list[str] | None, typer.Option("--unset-env", help="NAME: remove a variable; repeatable.")
    ] = None,
    author: Annotated[str, typer.Option(help="Author of the version; default: user@host.")] = "",
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to an earlier version: its code and its settings.")
    ] = False,
    follow_outside_links: FollowOutsideLinks = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes, and make none.")] = False,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Upload a function, with its settings, as a new version.

    Settings that are not named keep their values. Unchanged code and settings make no new version.
    """
    number = _version_number(code, version) if rollback else version
    if number is not None and not number.isdecimal():
        raise InvalidCall([f"{number}: is not the number of a version, such as 3"])
    settings, settings_file = settings_of.of_code_bucket(env_file, quiet=as_json)
    from nanoagent.dev.functions import deploy as command
    from nanoagent.dev.functions.choices import Choices

    call = command.Call(
        code=None if code is None or number == code else Path(code),
        function_id=function_id,
        choices=Choices(
            runtime=runtime,
            memory_mb=memory_mb,
            timeout_s=timeout_s,
            network=network,
            model=model,
            reuse=reuse,
            env=tuple(env or ()),
            secrets=tuple(secret or ()),
            unset_env=tuple(unset_env or ()),
        ),
        author=author,
        rollback=rollback,
        version=None if number is None else int(number),
        follow_outside_links=follow_outside_links,
        dry_run=dry_run,
        as_json=as_json,
        env_file=env_file,
        settings_file=settings_file,
    )
    return command.deploy(settings, call)


def _version_number(code: str | None, version: str | None) -> str | None:
    """Return the version of a rollback: the first argument may be the version, because no code is needed."""
    if version is None and code is not None and code.isdecimal():
        return code
    return version


@commands.command(
    epilog=epilog(
        'invoke hello --input \'{"name": "world"}\'',
        "invoke hello --input @input.json --version 3",
        "invoke hello --follow",
        exits=_INVOKE_EXITS,
    )
)
def invoke(  # noqa: PLR0913, PLR0917 - options of a command line
    function_id: Annotated[str, typer.Argument(metavar="FUNCTION", help="ID of the function.")],
    payload: Payload = "{}",
    version: Annotated[
        int | None, typer.Option(help="Number of the version; default: the current one.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="NAME=VALUE: a variable for this job; repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder into which output files are downloaded; default: no download.")
    ] = None,
    locale: ResultLocale = "",
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the result; 0: do not wait.")
    ] = 60,
    follow: Follow = False,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Run a deployed function once, and print its output.

    The output of the function goes to the same streams. A summary follows on a terminal, and after a failure.
    """
    settings, settings_file = settings_of.of_sender(env_file, quiet=as_json)
    from nanoagent.dev.functions import invoke as command

    call = command.Call(
        function_id=function_id,
        payload=payload,
        version=version,
        env=tuple(env or ()),
        output=output,
        locale=locale,
        wait_s=wait_s,
        is_following=follow,
        as_json=as_json,
        env_file=env_file,
        settings_file=settings_file,
    )
    return command.invoke(settings, call)


@commands.command(epilog=epilog("functions", "functions hello", exits=_FUNCTIONS_EXITS))
def functions(
    function_id: Annotated[
        str, typer.Argument(metavar="[FUNCTION]", help="ID of a function, to show its versions and settings.")
    ] = "",
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """List the deployed functions, or show one of them."""
    settings, settings_file = settings_of.of_code_bucket(env_file, quiet=as_json)
    from nanoagent.dev.functions import listing as command

    call = command.Call(function_id=function_id, as_json=as_json, settings_file=settings_file)
    return command.functions(settings, call)
