"""Finds the settings of a running `make dev`."""

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
"""The name of the file in the state folder of `nanoagent dev`. The file exists while the command runs."""

_ADVICE: Final = (
    "or run `make dev` in another terminal: a command without settings uses the worker of `make dev` "
    "(.nanoagent/dev.env)"
)
DEFAULT: Final = Path(".env")
"""The default file of settings."""

_QUEUE: Final = "SQS_QUEUE_URL"
CODE_BUCKET: Final = "S3_CODE_BUCKET"
"""The setting that the commands for deployed functions need."""

_STATE: Final = ".nanoagent"


def with_advice(problems: Sequence[str]) -> list[str]:
    """Return problems of settings, with advice if the queue or the code bucket is not set."""
    unset = tuple(f"{name}: is not set" for name in (_QUEUE, CODE_BUCKET))
    is_unset = any(problem.startswith(unset) for problem in problems)
    return [*problems, *([_ADVICE] if is_unset else [])]


def settings_file(env_file: Path, *, quiet: bool = False, needed: str = _QUEUE) -> Path:
    """Return the file of settings to read: `env_file`, or the file of `make dev` if no queue is set.

    The settings of `make dev` are loaded into the environment, and replace variables with the same names.
    Otherwise the command could mix the settings of two workers, and would find neither of them.

    Args:
        env_file: The value of the option `--env-file`, or the default `.env`.
        quiet: Do not print which file is used.
        needed: The setting that the command needs, if it does not need the queue.
    """
    if env_file != DEFAULT or any(os.environ.get(name) or has(env_file, name) for name in {_QUEUE, needed}):
        return env_file
    for found in _searched():
        if found.is_file():
            if not quiet:
                sys.stderr.write(f"Using the worker of `make dev` ({found}).\n")
            load_dotenv(found, override=True)
            return found
    return env_file


def option(settings: Path) -> str:
    """Return the option by which a command finds the worker of a settings file; empty if it needs none.

    Args:
        settings: The file that `nanoagent dev` writes, absolute.
    """
    return "" if settings in _searched() else f" --env-file {shlex.quote(str(settings))}"


def may_have_ended(settings: Path) -> str:
    """Return the likely cause of a failed service; empty if the settings are not those of `make dev`."""
    if settings.name != SETTINGS:
        return ""
    return f"; the settings are from {settings}: `make dev` may no longer run; if so, start it again"


def _searched() -> tuple[Path, ...]:
    """Return the paths where the settings of `make dev` may be: in the default state folders."""
    return tuple(folder / _STATE / SETTINGS for folder in (Path.cwd(), Path(__file__).resolve().parents[4]))


def names_queue(env_file: Path) -> bool:
    """Return whether a file has settings of a worker. The `.env` of a function has other variables."""
    return has(env_file, _QUEUE)


def has(env_file: Path, name: str) -> bool:
    """Return whether a file has a value for a setting."""
    try:
        return bool(dotenv_values(env_file).get(name))
    except (OSError, UnicodeDecodeError):
        return True  # `config.load` reports the error
