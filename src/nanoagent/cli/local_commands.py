"""The commands for local services: `images`, `demo` and `dev`; and `version`."""

from __future__ import annotations

from pathlib import Path

import typer

from nanoagent import __version__
from nanoagent.cli.application import AsJson, State, epilog, run_async

commands = typer.Typer()


@commands.command(epilog=epilog("images"))
def images() -> None:
    """Build or update the images in which functions run."""
    from nanoagent.dev import images as building

    run_async(building.build())


@commands.command(epilog=epilog("demo", "demo --json"))
def demo(
    as_json: AsJson = False,
    state: State = Path(".nanoagent"),
) -> int:
    """Run the examples twice, with local services.

    The services take the place of AWS and Redis.
    """
    from nanoagent.dev import demo as demonstration

    return run_async(demonstration.run(state.absolute(), as_json=as_json))


@commands.command(epilog=epilog("dev"))
def dev(
    state: State = Path(".nanoagent"),
) -> int:
    """Run a worker with local services, until Ctrl-C.

    The services take the place of AWS and Redis.
    """
    from nanoagent.dev import develop

    return run_async(develop.run(state.absolute()))


@commands.command(epilog=epilog("version"))
def version() -> None:
    """Print the version."""
    print(__version__)
