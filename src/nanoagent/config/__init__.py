"""The settings: one frozen object, read once.

Settings come from environment variables and from a `.env` file in the working directory. The environment
has priority. AWS endpoints and credentials come from the variables of the AWS SDK (`AWS_ENDPOINT_URL`, …),
and the address of Docker comes from `DOCKER_HOST`. Those variables are not settings.

* `settings`: every setting with its default and description, and the values that follow from settings. The
  tables in docs/configuration.md are generated from the descriptions.
* `local`: the settings of `nanoagent exec`, which needs no queue and no buckets, and of commands that need
  only Redis, or only the code bucket.
* `types`: the types of single settings, and their rules.
* `consistency`: the rules between settings.
* `upstreams`: the model servers in `AI_UPSTREAMS`.
* `loading`: reads the settings, and reports all problems at once.
"""

from nanoagent.config.loading import load, load_code_bucket, load_local, load_redis
from nanoagent.config.local import CodeBucketSettings, LocalSettings, RedisSettings
from nanoagent.config.settings import Settings
from nanoagent.config.upstreams import UpstreamSetting

__all__ = [
    "CodeBucketSettings",
    "LocalSettings",
    "RedisSettings",
    "Settings",
    "UpstreamSetting",
    "load",
    "load_code_bucket",
    "load_local",
    "load_redis",
]
