"""The settings of a running `make dev`, for the sender's commands."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dotenv import dotenv_values, load_dotenv

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS: Final = "dev.env"
"""The file's name in the state folder of `nanoagent dev`; it is there while the command runs."""

_ADVICE: Final = (
    "or run `make dev` in another terminal: without settings, send uses its worker (.nanoagent/dev.env)"
)
DEFAULT: Final = Path(".env")
"""The default file of settings."""

_QUEUE: Final = "SQS_QUEUE_URL"
_STATE: Final = ".nanoagent"


def with_advice(problems: Sequence[str]) -> list[str]:
    """Problems of settings, with advice for a person who has no settings yet."""
    has_no_queue = any(problem.startswith("SQS_QUEUE_URL: is not set") for problem in problems)
    return [*problems, *([_ADVICE] if has_no_queue else [])]


def settings_file(env_file: Path, *, quiet: bool = False) -> Path:
    """The file of settings to read: `env_file`, or that of `make dev` if no queue is named.

    The latter replaces variables of the environment: a mixture of the settings of two workers reaches
    neither.

    Args:
        env_file: The file that the person named, or the default `.env`.
        quiet: Do not say which file is used.
    """
    if env_file != DEFAULT or os.environ.get(_QUEUE) or names_queue(env_file):
        return env_file
    for found in _searched():
        if found.is_file():
            if not quiet:
                sys.stderr.write(f"Using the worker of `make dev` ({found}).\n")
            load_dotenv(found, override=True)
            return found
    return env_file


def option(settings: Path) -> str:
    """The option by which a command finds the worker of a settings file; empty where it finds it without.

    Args:
        settings: The file that `nanoagent dev` writes, absolute.
    """
    return "" if settings in _searched() else f" --env-file {shlex.quote(str(settings))}"


def may_have_ended(settings: Path) -> str:
    """The likely cause if a service of these settings failed; empty for settings of other workers."""
    if settings.name != SETTINGS:
        return ""
    return f"; the settings are from {settings}: `make dev` may no longer run; if so, start it again"


def _searched() -> tuple[Path, ...]:
    """The settings files that are looked for: those of the default state folders."""
    return tuple(folder / _STATE / SETTINGS for folder in (Path.cwd(), Path(__file__).resolve().parents[4]))


def names_queue(env_file: Path) -> bool:
    """Whether the file has settings of a worker: a function may have a `.env` for other purposes."""
    try:
        return bool(dotenv_values(env_file).get(_QUEUE))
    except (OSError, UnicodeDecodeError):
        return True  # `config.load` reports the error
