"""The settings of commands that do not use every service.

`LocalSettings` is for commands that run functions on this machine, without a queue, S3 or Redis.
`RedisSettings` is for commands that need only Redis, and perhaps S3.
`CodeBucketSettings` is for commands that need only the code bucket.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic import Field

from nanoagent.config.settings import Settings
from nanoagent.config.types import Bucket, SocketFolder  # noqa: TC001 - pydantic reads the annotations


def _work_folder() -> Path:
    """Return the default of workers for root, else a private folder. Sockets need a short path."""
    if os.geteuid() == 0:
        return Path(Settings.model_fields["docker_work_dir_root"].default)
    return Path(tempfile.gettempdir()) / f"nanoagent-{os.geteuid()}"


def _cache_folder() -> Path:
    """Return the worker's default for root, and a folder in the user's cache for other users."""
    if os.geteuid() == 0:
        return Path(Settings.model_fields["code_cache_dir"].default)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "nanoagent"


class LocalSettings(Settings):
    """The settings of a worker, but the queue and the buckets need no value."""

    sqs_queue_url: str = ""  # not checked, because it is not used
    s3_code_bucket: Bucket = "code"
    s3_user_data_bucket: Bucket = "outputs"
    docker_work_dir_root: SocketFolder = Field(default_factory=_work_folder)
    code_cache_dir: Path = Field(default_factory=_cache_folder)


class RedisSettings(Settings):
    """The settings of a worker, but the queue and the buckets need no value: only Redis is always used."""

    sqs_queue_url: str = ""  # not checked, because it is not used
    s3_code_bucket: str = ""
    s3_user_data_bucket: str = ""


class CodeBucketSettings(Settings):
    """The settings of a worker, but of the queue and the buckets, only the code bucket needs a value."""

    sqs_queue_url: str = ""  # not checked, because it is not used
    s3_user_data_bucket: str = ""
