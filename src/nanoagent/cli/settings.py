"""Reads the settings for a command."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nanoagent.model.errors import ConfigError

if TYPE_CHECKING:
    from nanoagent.config import CodeBucketSettings, LocalSettings, RedisSettings, Settings


def without_secrets(text: str) -> str:
    """Return a text without the secrets of the settings."""
    from nanoagent.telemetry import logs

    return logs.without_secrets(text)


def load_environment(env_file: Path) -> None:
    """Load the file into the environment, because it may have variables of the AWS SDK and of Docker."""
    from dotenv import load_dotenv

    # `config.load` reports a file that cannot be read.
    with suppress(OSError, UnicodeDecodeError):
        load_dotenv(env_file)


def of_worker(env_file: Path) -> Settings:
    """Read the settings of a worker.

    Raises:
        ConfigError: A setting is missing or wrong. The error has all problems.
    """
    from nanoagent import config
    from nanoagent.doctor import variables
    from nanoagent.telemetry import logs

    load_environment(env_file)
    try:
        settings = config.load(env_file)
    except ConfigError as exc:
        missing = variables.missing_file(env_file)
        raise ConfigError([*([] if missing is None else [missing]), *exc.problems]) from exc
    logs.hide(settings.secrets)
    return settings


def of_function(env_file: Path) -> LocalSettings:
    """Read the settings of a command that needs no queue and no buckets."""
    from nanoagent import config
    from nanoagent.telemetry import logs

    load_environment(env_file)
    settings = config.load_local(env_file)
    logs.hide(settings.secrets)
    return settings


def warnings(env_file: Path, settings: Settings) -> list[str]:
    """Return the warnings about settings that have no effect."""
    from nanoagent.doctor import variables

    return variables.warnings(env_file, os.environ, used=settings.ai_upstreams or "")


def of_sender(env_file: Path, *, quiet: bool) -> tuple[Settings, Path]:
    """Read the settings, and return them with their file. The default is the file of a running `make dev`."""
    from nanoagent.dev.sender import dev

    file = dev.settings_file(env_file, quiet=quiet)
    try:
        settings = of_worker(file)
    except ConfigError as exc:
        raise ConfigError(dev.with_advice(exc.problems)) from exc
    if not quiet:
        # A default .env without SQS_QUEUE_URL is the function's .env. It has no settings to warn about.
        _warn(file, settings, has_settings=env_file != dev.DEFAULT or dev.names_queue(file))
    return settings, file


def of_redis(env_file: Path, *, quiet: bool) -> tuple[RedisSettings, Path]:
    """Read the settings of a command that needs only Redis, and return them with their file.

    As for `of_sender`, the default is the file of a running `make dev`: a result is where `send` expects it.

    Raises:
        ConfigError: A setting is wrong. The error has all problems.
    """
    from nanoagent import config
    from nanoagent.dev.sender import dev
    from nanoagent.telemetry import logs

    file = dev.settings_file(env_file, quiet=quiet)
    load_environment(file)
    settings = config.load_redis(file)
    logs.hide(settings.secrets)
    if not quiet:
        _warn(file, settings, has_settings=env_file != dev.DEFAULT)
    return settings, file


def of_code_bucket(env_file: Path, *, quiet: bool) -> tuple[CodeBucketSettings, Path]:
    """Read the settings of a command that needs only the code bucket, and return them with their file.

    As for `of_sender`, the default is the file of a running `make dev`.

    Raises:
        ConfigError: A setting is missing or wrong. The error has all problems.
    """
    from nanoagent import config
    from nanoagent.dev.sender import dev
    from nanoagent.telemetry import logs

    file = dev.settings_file(env_file, quiet=quiet, needed=dev.CODE_BUCKET)
    load_environment(file)
    try:
        settings = config.load_code_bucket(file)
    except ConfigError as exc:
        raise ConfigError(dev.with_advice(exc.problems)) from exc
    logs.hide(settings.secrets)
    if not quiet:
        _warn(file, settings, has_settings=env_file != dev.DEFAULT)
    return settings, file


def _warn(file: Path, settings: Settings, *, has_settings: bool) -> None:
    """Print the warnings about the environment, and about the file if it has settings."""
    for warning in warnings(file if has_settings else Path(os.devnull), settings):
        print(f"Warning: {without_secrets(warning)}", file=sys.stderr)
