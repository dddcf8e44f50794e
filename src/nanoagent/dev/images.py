"""Builds the images in which functions run, with the script that `make images` also runs."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.dev import sources
from nanoagent.model.errors import ConfigError, PlatformError
from nanoagent.wiring import containers

if TYPE_CHECKING:
    from nanoagent.config import Settings
    from nanoagent.container.docker_client import DockerClient

_SCRIPT: Final = "scripts/images"


async def build() -> None:
    """Build or update the images. The progress goes to standard error.

    Raises:
        ConfigError: The installation lacks the sources.
        PlatformError: A build failed.
    """
    process = await asyncio.create_subprocess_exec(
        "bash", str(sources.folder(_SCRIPT)), stdout=sys.stderr.fileno(), env=os.environ | _state()
    )
    if await process.wait() != 0:
        raise PlatformError("the images could not be built; the lines above say why")


def _state() -> dict[str, str]:
    """Return the variable with the folder for logs. A checkout has its own; a wheel may be read-only."""
    if "NANOAGENT_STATE" in os.environ or (sources.folder(_SCRIPT).parents[1] / ".git").exists():
        return {}
    cache = os.environ.get("XDG_CACHE_HOME")
    return {"NANOAGENT_STATE": str((Path(cache) if cache else Path.home() / ".cache") / "nanoagent")}


async def build_missing(settings: Settings, docker: DockerClient) -> None:
    """Build the images, if an image of the settings is missing and all of them have their default names.

    Raises:
        ConfigError: Images of other names are missing, or the installation lacks the sources.
        PlatformError: Docker cannot be asked, or a build failed.
    """
    try:
        await containers.find_images(settings, docker)
    except ConfigError:
        fields = type(settings).model_fields
        names = [name for name in fields if name.startswith("docker_") and name.endswith("_image")]
        if any(getattr(settings, name) != fields[name].default for name in names):
            raise
        print("The images of the runtimes are missing and are built now.", file=sys.stderr)  # noqa: T201
        await build()
