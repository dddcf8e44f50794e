from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanoagent import config
from nanoagent.config import Settings
from nanoagent.model import expectations
from nanoagent.model.errors import ConfigError
from nanoagent.model.job import Runtime
from support.doubles.fakes import make_settings
from support.services.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared

REQUIRED = {
    "SQS_QUEUE_URL": "https://sqs.ap-northeast-2.amazonaws.com/1/jobs",
    "S3_CODE_BUCKET": "code",
    "S3_USER_DATA_BUCKET": "data",
}
# Big enough for the defaults on any machine that runs the tests.
MACHINE = {"WORKER_MEMORY_MB": "16384", "WORKER_CPUS": "4"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the environment hold these settings and no others."""
    for name in list(os.environ):
        if name.lower() in Settings.model_fields:
            monkeypatch.delenv(name)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def load(environment: Callable[..., None]) -> Callable[..., Settings]:
    def loaded(**variables: str) -> Settings:
        environment(**(REQUIRED | MACHINE | variables))
        return config.load(None)

    return loaded


@pytest.fixture
def problems(environment: Callable[..., None]) -> Callable[..., tuple[str, ...]]:
    def found(**variables: str) -> tuple[str, ...]:
        environment(**variables)
        with pytest.raises(ConfigError) as caught:
            config.load(None)
        return caught.value.problems

    return found


# --- defaults


def test_a_setting_that_was_retired_does_no_harm(load: Callable[..., Settings], tmp_path: Path):
    load(CODE_MAX_RATIO="200")
    env = tmp_path / ".env"
    env.write_text(
        "".join(f"{name}={value}\n" for name, value in (REQUIRED | {"CODE_MAX_RATIO": "200"}).items())
    )
    assert not hasattr(config.load(env), "code_max_ratio")


def test_the_contracts_names_have_the_contracts_defaults(load: Callable[..., Settings]):
    settings = load()
    assert settings.model_dump(
        include={
            *("aws_region", "redis_host", "redis_port", "docker_work_dir_root"),
            *("warm_pool_python_size", "warm_pool_nodejs_size", "warm_pool_cpp_size", "warm_pool_go_size"),
            *("result_ttl_seconds", "max_output_bytes", "max_attempts", "metrics_port", "ai_model", "locale"),
            *("sqs_queue_url", "s3_code_bucket", "s3_user_data_bucket", "output_url_style"),
        }
    ) == {
        "aws_region": "ap-northeast-2",
        "sqs_queue_url": REQUIRED["SQS_QUEUE_URL"],
        "s3_code_bucket": "code",
        "s3_user_data_bucket": "data",
        "redis_host": "localhost",
        "redis_port": 6379,
        "docker_work_dir_root": Path("/tmp/tasks"),
        "warm_pool_python_size": 1,
        "warm_pool_nodejs_size": 1,
        "warm_pool_cpp_size": 1,
        "warm_pool_go_size": 1,
        "result_ttl_seconds": 3600,
        "max_output_bytes": 256 * 1024,
        "max_attempts": 5,
        "metrics_port": 8000,
        "ai_model": "llama3:8b",
        "locale": "ko",
        "output_url_style": "plain",
    }


def test_every_setting_says_what_it_is_for():
    assert all(field.description for field in Settings.model_fields.values())


def test_the_settings_cannot_be_changed(load: Callable[..., Settings]):
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.redis_port = 1


def test_this_machines_own_defaults_are_settings_that_work(environment: Callable[..., None]):
    environment(**REQUIRED, BUILD_MEMORY_MB="256", CPU_MIN="0.01")
    settings = config.load(None)
    assert settings.worker_memory_mb >= 256
    assert settings.worker_cpus >= 1
    assert settings.largest_job_mb <= settings.worker_memory_mb


def test_two_workers_have_different_ids(load: Callable[..., Settings]):
    assert load().worker_id != load().worker_id


# --- where values come from


def test_the_environment_wins_over_the_file(tmp_path: Path, environment: Callable[..., None]):
    file = tmp_path / ".env"
    lines = [*(f"{name}={value}" for name, value in (REQUIRED | MACHINE).items())]
    file.write_text("\n".join([*lines, "REDIS_HOST=from-file", "REDIS_PORT=1111", "UNKNOWN=x"]))
    environment(REDIS_HOST="from-environment")
    settings = config.load(file)
    assert (settings.redis_host, settings.redis_port) == ("from-environment", 1111)


def test_an_empty_variable_is_as_good_as_none(load: Callable[..., Settings]):
    settings = load(SQS_DLQ_URL="", REDIS_PORT="", MAX_MEMORY_MB="")
    assert (settings.sqs_dlq_url, settings.redis_port, settings.max_memory_mb) == (None, 6379, None)


def test_a_file_that_is_not_there_is_as_good_as_none(tmp_path: Path, environment: Callable[..., None]):
    environment(**REQUIRED, **MACHINE)
    assert config.load(tmp_path / "absent").s3_code_bucket == "code"


def test_a_file_that_is_no_text_is_named(tmp_path: Path, environment: Callable[..., None]):
    environment(**REQUIRED)
    file = tmp_path / ".env"
    file.write_bytes(b"REDIS_HOST=\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}: cannot be read: ")


# --- what is wrong


def test_everything_that_is_missing_is_listed_at_once(problems: Callable[..., tuple[str, ...]]):
    assert problems() == (
        "SQS_QUEUE_URL: is not set; it should be the queue that jobs are taken from",
        "S3_CODE_BUCKET: is not set; it should be the bucket of the code zips, unless a job names another",
        "S3_USER_DATA_BUCKET: is not set; it should be the bucket that output files go to",
    )


def test_everything_that_is_wrong_is_listed_at_once(problems: Callable[..., tuple[str, ...]]):
    said = problems(
        SQS_QUEUE_URL="jobs",
        S3_CODE_BUCKET="Code",
        REDIS_PORT="99999",
        MAX_ATTEMPTS="0",
        LOCALE="fr",
        WARM_POOL_GO_SIZE="-1",
        REDIS_TLS="perhaps",
    )
    assert {re.split("[: ]", problem)[0] for problem in said} == {
        *("SQS_QUEUE_URL", "S3_CODE_BUCKET", "S3_USER_DATA_BUCKET", "REDIS_PORT", "MAX_ATTEMPTS", "LOCALE"),
        *("WARM_POOL_GO_SIZE", "REDIS_TLS"),
    }


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Certificates, keys and what is none, by name."""
    authority = Authority(tmp_path)
    ours, other = authority.issue("ours"), authority.issue("other")
    locked = authority.issue("locked", password=b"secret")
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "both").write_bytes(ours.certificate.read_bytes() + ours.key.read_bytes())
    return {
        "ca": str(authority.certificate),
        "cert": str(ours.certificate),
        "key": str(ours.key),
        "other key": str(other.key),
        "locked": str(locked.certificate),
        "locked key": str(locked.key),
        **{name: str(tmp_path / name) for name in ("text", "both", "absent")},
    }


@pytest.mark.parametrize(
    ("ca", "cert", "key"),
    [("ca", None, None), (None, "cert", "key"), ("ca", "cert", "key"), (None, "both", None)],
)
def test_certificates_for_redis_are_taken(
    load: Callable[..., Settings], files: dict[str, str], ca: str | None, cert: str | None, key: str | None
):
    named = {"CA": ca, "CERT": cert, "KEY": key}
    settings = load(
        REDIS_TLS="true", **{f"REDIS_TLS_{name}_FILE": files[which] for name, which in named.items() if which}
    )
    assert settings.redis_tls_ca_file == (Path(files[ca]) if ca else None)
    assert settings.redis_tls_cert_file == (Path(files[cert]) if cert else None)


@pytest.mark.parametrize(
    ("tls", "named", "wrong", "says"),
    [
        ("false", {"CA": "ca"}, "CA", "REDIS_TLS=true as well; without TLS this file has no effect"),
        ("true", {"CA": "absent"}, "CA", "No such file"),
        ("true", {"CA": "text"}, "CA", "certificates in PEM"),
        ("true", {"KEY": "key"}, "CERT", "that belongs to REDIS_TLS_KEY_FILE"),
        ("true", {"CERT": "cert"}, "CERT", "the certificate for the private key"),
        ("true", {"CERT": "cert", "KEY": "other key"}, "CERT", "the certificate for the private key"),
        ("true", {"CERT": "locked", "KEY": "locked key"}, "CERT", "must not be encrypted"),
        ("true", {"CERT": "text", "KEY": "key"}, "CERT", "a PEM file with the certificate"),
    ],
)
def test_certificates_that_cannot_be_used_are_refused_by_the_settings_name(
    problems: Callable[..., tuple[str, ...]],
    files: dict[str, str],
    tls: str,
    named: dict[str, str],
    wrong: str,
    says: str,
):
    given_files = {f"REDIS_TLS_{name}_FILE": files[which] for name, which in named.items()}
    (problem,) = problems(**REQUIRED, **MACHINE, REDIS_TLS=tls, **given_files)
    assert problem.startswith(f"REDIS_TLS_{wrong}_FILE is ")
    assert says in problem


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SQS_QUEUE_URL", "jobs", "a URL that starts with http:// or https://"),
        ("SQS_DLQ_URL", "ftp://x", "a URL that starts with http:// or https://"),
        ("AI_ENDPOINT", "localhost:11434", "a URL that starts with http:// or https://"),
        ("S3_CODE_BUCKET", "My_Bucket", "a bucket name: 3 to 63 of a-z 0-9 . -"),
        ("REDIS_PORT", "six", "an integer from 1 to 65535"),
        ("REDIS_PORT", "0", "an integer from 1 to 65535"),
        ("WORKER_ID", "a/b", "1 to 40 letters, digits and hyphens (-)"),
        ("WORKER_CPUS", "inf", "a number above 0"),
        ("RETRY_MAX_SECONDS", "nan", "a number above 0 and at most 43200"),
        ("WORKER_CPUS", "0", "a number above 0"),
        ("MAX_MEMORY_MB", "31", "an integer of 32 or more"),
        ("MAX_RESULT_BYTES", "100", "an integer of 4096 or more"),
        ("OUTPUT_URL_STYLE", "fancy", "plain or presigned"),
        ("DOCKER_WORK_DIR_ROOT", "/" + "x" * 60, "Unix sockets are made below it"),
        ("DOCKER_RUNTIME", "/usr/bin/runsc", "the name of a runtime, not its path"),
        ("CLOUDWATCH_ENABLED", "perhaps", "true, false, yes, no, on, off, 1 or 0"),
        ("PYTHON_PRELOAD", "numpy, pandas", "names of Python modules separated by commas, without spaces"),
        ("NETWORK", "all", "none, ai or egress"),
        ("PRICE_PER_REQUEST", "free", "a number of 0 or more"),
        ("CPU_MAX", "0", "a number above 0"),
        ("CPU_BURST", "0.5", "a number from 1 to 100"),
        (
            "EGRESS_DENY",
            "10.0.0.1/8",
            "networks such as 10.0.0.0/8, separated by commas; 10.0.0.1/8 has",
        ),
        (
            "TENANT_PATTERN",
            "users/(",
            "a regular expression; missing ), unterminated subpattern at position 6",
        ),
        (
            "TENANT_PATTERN",
            "users/[^/]+/",
            "a regular expression with one group, which is the owner; it has 0 groups",
        ),
        ("EGRESS_PORTS", "80,http", "numbers from 1 to 65535, separated by commas; 'http' is not one"),
        ("CONTAINER_UID_BASE", "55537", "at most 55536, or at least 65536"),
        ("CONTAINER_UID_BASE", "65535", "at most 55536, or at least 65536"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(
    problems: Callable[..., tuple[str, ...]], name: str, value: str, expected: str
):
    (problem,) = problems(**(REQUIRED | MACHINE | {name: value}))
    assert problem.startswith(f"{name} is {value!r}; expected ")
    assert expected in problem


def test_values_that_do_not_go_together_are_listed_at_once(problems: Callable[..., tuple[str, ...]]):
    said = problems(
        **REQUIRED,
        WORKER_MEMORY_MB="512",
        MAX_MEMORY_MB="1024",
        BUILD_MEMORY_MB="1024",
        WORKER_CPUS="1",
        CPU_MIN="2",
        RETRY_BASE_SECONDS="10",
        RETRY_MAX_SECONDS="5",
    )
    assert [problem.split(" ")[0] for problem in said] == [
        *("MAX_MEMORY_MB", "BUILD_MEMORY_MB", "CPU_MIN", "RETRY_BASE_SECONDS")
    ]


def test_a_build_that_could_outlast_the_longest_lease_with_the_longest_job_is_refused(
    problems: Callable[..., tuple[str, ...]], load: Callable[..., Settings]
):
    assert load(BUILD_TIMEOUT_SECONDS="600").build_timeout_seconds == 600
    (problem,) = problems(**REQUIRED, **MACHINE, BUILD_TIMEOUT_SECONDS="601")
    assert problem.startswith("BUILD_TIMEOUT_SECONDS is '601'; expected at most 600")
    assert "12 hours" in problem


@pytest.mark.parametrize("name", ["DRAIN_SECONDS", "RETRY_MAX_SECONDS", "SQS_VISIBILITY_SECONDS"])
def test_no_time_is_longer_than_sqs_lets_a_message_be_held(
    problems: Callable[..., tuple[str, ...]], name: str
):
    (problem,) = problems(**REQUIRED, **MACHINE, **{name: "43201"})
    assert problem.startswith(f"{name} is '43201'; expected ")
    assert problem.endswith(" 43200")


def test_a_smallest_share_above_the_largest_is_refused(problems: Callable[..., tuple[str, ...]]):
    (problem,) = problems(**REQUIRED, **MACHINE, CPU_MIN="2", CPU_MAX="1")
    assert problem == "CPU_MIN is '2'; expected at most 1, the smaller one of CPU_MAX and WORKER_CPUS"


# --- secrets


def test_a_password_is_shown_nowhere(load: Callable[..., Settings]):
    settings = load(REDIS_PASSWORD="hunter2")
    assert settings.redis_password == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_a_refused_value_that_may_be_secret_is_not_repeated(environment: Callable[..., None]):
    environment(
        **REQUIRED,
        REDIS_PASSWORD="hunter1",
        REDIS_PORT="x",
        AI_API_KEY="hunter2 hunter3",
        AI_ENDPOINT="user:hunter4@host",
        AI_UPSTREAMS='["hunter5"]',
        SQS_DLQ_URL="queue?token=hunter6",
        WORKER_ID="hunter7@host",
    )
    with pytest.raises(ConfigError) as caught:
        config.load(None)
    shown = f"{caught.value} {caught.value.problems} {caught.value.__cause__}"
    assert "hunter" not in shown
    assert [problem.split(";")[0] for problem in caught.value.problems if "is not shown" in problem] == [
        f"{name} has a value that is not shown, because it may hold a secret"
        for name in ("SQS_DLQ_URL", "WORKER_ID", "AI_ENDPOINT", "AI_API_KEY", "AI_UPSTREAMS")
    ]


@pytest.mark.parametrize(
    ("name", "value", "is_hidden"),
    [
        ("REDIS_PORT", "637x", False),
        ("REDIS_PORT", "9" * 5000, False),
        ("REDIS_PORT", "AKIAIOSFODNN7EXAMPLE", True),
        ("REDIS_PORT", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1", True),
        ("S3_CODE_BUCKET", "My_Bucket", False),
        ("AI_ENDPOINT", "model-server:11434", False),
        ("AI_ENDPOINT", "user:hunter2", True),
        ("SQS_QUEUE_URL", "htp://queue/1", False),
        ("SQS_QUEUE_URL", "sqs.eu-west-1.amazonaws.com/1/q", False),
        ("CODE_CACHE_DIR", "relative/cache", False),
    ],
)
def test_a_wrong_value_that_looks_like_a_key_is_not_shown(name: str, value: str, *, is_hidden: bool):
    assert expectations.may_be_secret(name, value) is is_hidden


ANY_TEXT = {  # of which a worker learns at its start whether it is right
    *("aws_region", "redis_host", "redis_username", "redis_password", "code_cache_dir", "ai_model"),
    *("ai_models", "metrics_host", *(f"docker_{runtime}_image" for runtime in Runtime)),
}
WRONG = {
    "docker_work_dir_root": "/" + "x" * 60,
    "docker_runtime": "/runsc",
    "container_apparmor_profile": "a/b",
    "worker_id": "a/b",
    "price_currency": "too long a name",
    "redis_tls_ca_file": "/absent",
    "redis_tls_key_file": "/absent",
    "redis_tls_cert_file": "/absent",
    "egress_allow": "-",
}


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - ANY_TEXT))
def test_every_wrong_setting_is_told_with_its_value_and_with_words(
    problems: Callable[..., tuple[str, ...]], name: str
):
    value = WRONG.get(name, "§ é")
    said = problems(**(REQUIRED | MACHINE | {name.upper(): value}))
    (problem,) = [each for each in said if each.startswith(f"{name.upper()} ")]
    told, _, expected = problem.partition("; expected ")
    is_secret = not Settings.model_fields[name].repr
    assert told == (
        f"{name.upper()} has a value that is not shown, because it may hold a secret"
        if is_secret
        else f"{name.upper()} is {value!r}"
    )
    assert len(expected) > 3
    assert "^" not in expected
    assert not expected.startswith("should")


def test_a_long_wrong_value_is_cut(problems: Callable[..., tuple[str, ...]]):
    (problem,) = problems(**(REQUIRED | MACHINE | {"REDIS_PORT": "9" * 5000}))
    assert problem == f"REDIS_PORT is '{'9' * 100}…'; expected an integer from 1 to 65535"


# --- what follows from them


def test_the_share_of_cpu_grows_with_memory_between_its_bounds():
    settings = make_settings(
        worker_memory_mb=16_384, worker_cpus=4.0, cpu_max=3.0, cpu_min=0.5, cpu_memory_mb=1024
    )
    assert [settings.cpus_for(memory_mb) for memory_mb in (32, 512, 1024, 2048, 3072, 8192)] == [
        *(0.5, 0.5, 1.0, 2.0, 3.0, 3.0)
    ]


@UNHURRIED
@given(
    memory_mb=st.integers(32, 10_240),
    worker_cpus=st.floats(0.5, 128),
    cpu_max=st.none() | st.floats(0.5, 256),
)
def test_no_job_gets_more_than_the_worker_has_nor_less_than_the_least(
    memory_mb: int, worker_cpus: float, cpu_max: float | None
):
    settings = make_settings(worker_cpus=worker_cpus, cpu_max=cpu_max, cpu_min=0.5)
    assert 0.5 <= settings.cpus_for(memory_mb) <= min(worker_cpus, cpu_max or worker_cpus)
    assert settings.cpus_for(memory_mb) <= settings.cpus_for(memory_mb + 1)


def test_the_largest_job_is_bounded_by_the_worker():
    assert make_settings(worker_memory_mb=2048).largest_job_mb == 2048
    assert make_settings(worker_memory_mb=65_536).largest_job_mb == 10_240
    assert make_settings(worker_memory_mb=2048, max_memory_mb=64).largest_job_mb == 64


def test_a_job_that_names_no_size_fits_the_largest_one():
    assert make_settings().job_defaults.memory_mb == 128
    assert make_settings(max_memory_mb=64).job_defaults.memory_mb == 64


def test_jobs_get_their_defaults_from_the_settings():
    defaults = make_settings(ai_model="m", max_memory_mb=512).job_defaults
    assert (defaults.s3_bucket, defaults.model_id, defaults.max_memory_mb) == ("code", "m", 512)
    assert defaults.timeout_ms == 300_000


@pytest.mark.parametrize("runtime", Runtime)
def test_every_runtime_has_an_image_and_a_pool_size(runtime: Runtime):
    settings = make_settings(**{f"docker_{runtime}_image": "mine", f"warm_pool_{runtime}_size": 7})
    assert (settings.image(runtime), settings.pool_size(runtime)) == ("mine", 7)


def test_a_relative_work_folder_becomes_absolute(
    load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir("/")
    assert load(DOCKER_WORK_DIR_ROOT="tasks").docker_work_dir_root == Path("/tasks")


def test_prices_are_exact(load: Callable[..., Settings]):
    assert load(PRICE_PER_GB_SECOND="0.1").price_per_gb_second == Decimal("0.1")


def test_the_secrets_are_those_of_the_settings_and_of_the_sdk_and_passwords_in_urls(
    load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key-id",
        "AWS_SECRET_ACCESS_KEY": "secret-key",
        "AWS_SESSION_TOKEN": "session",
        "AWS_ENDPOINT_URL_S3": "http://user:of%20s3@127.0.0.1:9",
        "HTTPS_PROXY": "http://user:of-proxy@127.0.0.1:9",
        "AWS_ENDPOINT_URL": "http://[no-url",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load(REDIS_PASSWORD="of-redis", AI_ENDPOINT="http://user:of-ai@127.0.0.1:9")
    assert {"key-id", "secret-key", "session", "of s3", "of-proxy", "of-redis", "of-ai"} == set(
        settings.secrets
    )
