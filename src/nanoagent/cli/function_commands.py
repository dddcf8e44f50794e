"""The commands for authors of functions: `init` and `exec`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanoagent.cli import settings as settings_of
from nanoagent.cli.application import AsJson, Code, EnvFile, Payload, ResultLocale, RuntimeName, epilog

# The values of `exec.command.Exit`, for the same reason.
_EXEC_EXITS = (
    "that of the function, and 124 time limit, 125 Docker or this machine failed, 126 invalid "
    "code or failed build, 2 invalid arguments or settings, 130 Ctrl-C."
)

commands = typer.Typer()


@commands.command(epilog=epilog("init hello", "init hello --runtime go", "init summary --calls-model"))
def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the new function.")],
    runtime: Annotated[str, typer.Option(help="python, nodejs, cpp or go.")] = "python",
    calls_model: Annotated[
        bool, typer.Option("--calls-model", help="Write a function that calls a language model.")
    ] = False,
) -> None:
    """Write a small function with an example input and a test."""
    from nanoagent.dev import init as templates

    for path in templates.write(folder, runtime, calls_model=calls_model):
        print(f"Wrote {path}")
    print(f"Run it:   nanoagent exec {folder} --input @{folder}/input.json\nTest it:  {folder}/test.sh")


@commands.command(
    name="exec",
    epilog=epilog(
        'exec hello --input \'{"name": "world"}\'',
        "exec hello --input @input.json --memory 256 --timeout 10",
        "exec hello --input @input.json --watch",
        exits=_EXEC_EXITS,
    ),
)
def exec_(  # noqa: PLR0913, PLR0917 - options of a command line
    code: Code,
    payload: Payload = "{}",
    runtime: RuntimeName = "",
    memory_mb: Annotated[int, typer.Option("--memory", help="Memory limit, MiB.")] = 128,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Time limit, seconds.")] = 300,
    network: Annotated[str, typer.Option(help="none, ai or egress; default: the setting NETWORK.")] = "",
    model: Annotated[str, typer.Option(help="Model of the AI client; default: the setting AI_MODEL.")] = "",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", help="NAME=VALUE, or NAME to take its value from here; repeatable."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", help="Refused, because exec has no access to AWS; use --env."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for output files; default: a new temporary folder.")
    ] = None,
    locale: ResultLocale = "",
    watch: Annotated[bool, typer.Option("--watch", help="Run again after each change of the files.")] = False,
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Run a function on this machine, as a worker runs it.

    The sandbox and the limits are the same. Only Docker is needed: no queue, no S3, no Redis. Output appears
    while the function runs.
    """
    settings = settings_of.of_function(env_file)
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
        secrets=tuple(secret or ()),
        output=output,
        watch=watch,
        as_json=as_json,
    )
    return command.run(settings, call)
