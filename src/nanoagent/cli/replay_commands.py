"""The commands for capsules of jobs: `replay` and `retry`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanoagent.cli import settings as settings_of
from nanoagent.cli.application import AsJson, EnvFile, epilog
from nanoagent.model.errors import ConfigError

if TYPE_CHECKING:
    from nanoagent.dev.replay.source import Services

# The values of `difference.Verdict` and of `replay.command.Exit`, so that `--help` need not import them.
_REPLAY_EXITS = (
    "0 the recorded outcome repeats, 5 the job succeeds now, 6 it fails in another way, 2 invalid arguments, "
    "settings or capsule, 3 S3, Docker or this machine failed, 4 no capsule, 130 Ctrl-C."
)
_RETRY_EXITS = (
    "0 sent, or success, 1 the job ended without success, 2 invalid arguments, settings or capsule (nothing "
    "was sent), 3 Redis, S3 or SQS failed, 4 no capsule, or no result yet, 130 Ctrl-C."
)

Env = Annotated[
    list[str] | None,
    typer.Option("--env", help="NAME=VALUE, or NAME to take its value from here; repeatable."),
]

commands = typer.Typer()


@commands.command(
    epilog=epilog(
        "replay send-1234567890ab",
        "replay send-1234567890ab --code ./corrected",
        "replay send-1234567890ab --save failure.zip",
        "replay failure.zip",
        exits=_REPLAY_EXITS,
    )
)
def replay(  # noqa: PLR0913, PLR0917 - options of a command line
    capsule: Annotated[str, typer.Argument(help="Request ID, file, or URL s3://BUCKET/KEY.")],
    code: Annotated[
        Path | None, typer.Option(help="Folder, source file or zip to run instead, to try a correction.")
    ] = None,
    env: Env = None,
    network: Annotated[str, typer.Option(help="none, ai or egress, not wider than on the worker.")] = "",
    output: Annotated[Path | None, typer.Option(help="Folder for output files; default: not kept.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Save the capsule and its code to this zip, and run nothing.")
    ] = None,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Run a failed job again on this machine, and compare.

    A failed job leaves a capsule in S3. The run has the same code, input, limits and network, and recorded
    answers of models. It needs Docker, and S3 unless the capsule is a saved zip.
    """
    settings = settings_of.of_function(env_file)
    from nanoagent.dev.replay import command
    from nanoagent.telemetry import logs

    logs.configure("auto", "ERROR")
    call = command.Call(
        capsule=capsule,
        code=code,
        env=tuple(env or ()),
        network=network,
        output=output,
        save=save,
        as_json=as_json,
    )
    return command.replay(settings, call, lambda: _services(call.capsule, env_file, quiet=as_json))


def _services(capsule: str, env_file: Path, *, quiet: bool) -> Services:
    """Return the settings of S3. As for `send`, the default is the file of a running `make dev`.

    Raises:
        ConfigError: A setting is wrong, or a request ID was given and the bucket of capsules is not set.
    """
    from nanoagent import config
    from nanoagent.dev.replay.source import Services, needs_bucket
    from nanoagent.dev.sender import dev

    file = dev.settings_file(env_file, quiet=quiet)
    settings_of.load_environment(file)
    settings = config.load_local(file)
    if needs_bucket(capsule) and "s3_user_data_bucket" not in settings.model_fields_set:
        raise ConfigError(
            [
                "S3_USER_DATA_BUCKET: is not set; it should be the bucket of the worker that ran the job",
                "or give the capsule as a file or as s3://BUCKET/KEY, or run `make dev` in another terminal",
            ]
        )
    return Services.of(settings)


@commands.command(
    epilog=epilog(
        "retry send-1234567890ab --wait 60",
        "retry send-1234567890ab --env STAGE=test",
        exits=_RETRY_EXITS,
    )
)
def retry(
    request_id: Annotated[str, typer.Argument(help="Request ID of a job that has left a capsule.")],
    env: Env = None,
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the result; 0: do not wait.")
    ] = 0,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Send a failed job again, with a new request ID.

    The job gets the same message. Values of environment variables are not in its capsule; give them with
    --env. References to secrets are sent as they were.
    """
    settings, settings_file = settings_of.of_sender(env_file, quiet=as_json)
    from nanoagent.dev.replay import retry as sending

    call = sending.Call(
        request_id=request_id,
        env=tuple(env or ()),
        wait_s=wait_s,
        as_json=as_json,
        settings_file=settings_file,
        env_file=env_file,
    )
    return sending.retry(settings, call)
