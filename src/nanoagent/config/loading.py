"""Reads the settings, and reports all their problems at once."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from nanoagent.config import consistency
from nanoagent.config.local import CodeBucketSettings, LocalSettings, RedisSettings
from nanoagent.config.settings import Settings
from nanoagent.model import expectations
from nanoagent.model.errors import ConfigError

_Kind = TypeVar("_Kind", bound=Settings)


def load(env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings of a worker from the environment and from `env_file`.

    Raises:
        ConfigError: Settings are missing or wrong. The error lists all of them.
    """
    return _load(Settings, env_file)


def load_local(env_file: Path | None = Path(".env")) -> LocalSettings:
    """Read the settings of a command that needs no queue and no buckets, as `load` does.

    Raises:
        ConfigError: Settings are missing or wrong. The error lists all of them.
    """
    return _load(LocalSettings, env_file)


def load_redis(env_file: Path | None = Path(".env")) -> RedisSettings:
    """Read the settings of a command that needs Redis, but no queue and no buckets, as `load` does.

    Raises:
        ConfigError: Settings are wrong. The error lists all of them.
    """
    return _load(RedisSettings, env_file)


def load_code_bucket(env_file: Path | None = Path(".env")) -> CodeBucketSettings:
    """Read the settings of a command that needs only the code bucket, as `load` does.

    Raises:
        ConfigError: Settings are missing or wrong. The error lists all of them.
    """
    return _load(CodeBucketSettings, env_file)


def _load(kind: type[_Kind], env_file: Path | None) -> _Kind:
    try:
        # mypy cannot know that the environment has the required settings.
        return kind(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as exc:
        problems = [line for error in exc.errors() for line in _problem(error).splitlines()]
        raise ConfigError(problems) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError([f"{env_file}: cannot be read: {exc}"]) from exc


def _problem(error: object) -> str:
    """Turn an error of pydantic into sentences, one per line, that start with the name of the variable."""
    assert isinstance(error, dict)  # noqa: S101 - a TypedDict of pydantic, narrowed for mypy
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:  # from `Settings._check_consistency`, which writes whole sentences
        return message
    name = str(error["loc"][0])
    if error["type"] == "missing":
        description = Settings.model_fields[name].description
        return f"{name.upper()}: is not set; it should be the {description}"
    is_from_types = error["type"] == "value_error"  # a rule in `types`: its message is the expected value
    expected = message if is_from_types else expectations.allowed_values(name, Settings.model_json_schema())
    return consistency.sentence(Settings.model_fields[name], name, error["input"], expected)
