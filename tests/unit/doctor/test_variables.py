"""Variables that were meant as settings, told from those of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanoagent.config import Settings
from nanoagent.doctor import variables


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("MAX_PROCESS", "MAX_PROCESSES"),
        ("max_process", "MAX_PROCESSES"),
        ("METRICS_PORTS", "METRICS_PORT"),
        ("REDIS_PASS", "REDIS_PASSWORD"),
        ("REDIS_TLS_CA", "REDIS_TLS_CA_FILE"),
        ("SQS_URL", "SQS_QUEUE_URL"),
        ("S3_BUCKET", "S3_CODE_BUCKET"),
        ("WARM_POOL_NODE_SIZE", "WARM_POOL_NODEJS_SIZE"),
    ],
)
def test_a_name_that_is_nearly_a_settings_is_warned_of_with_that_setting(name: str, near: str):
    (said,) = variables.unknown({name: "x"})
    assert said == f"{name.upper()} is not a setting and has no effect: did you mean {near}?"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PATH",
            "HOME",
            "LANG",
            "LC_ALL",
            "TZ",
            "HTTPS_PROXY",
            "no_proxy",
            "AWS_REGION",
            "AWS_ENDPOINT_URL_S3",
        ),
        *(
            "DOCKER_HOST",
            "DOCKER_CERT_PATH",
            "OPENAI_API_KEY",
            "NODE_ENV",
            "PYTHONPATH",
            "WORKSPACE",
            "DEBUG",
        ),
        *("REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP_ADDR", "NOTIFY_SOCKET", "WATCHDOG_USEC"),
        *("KUBERNETES_PORT", "GITHUB_TOKEN", "SSH_AUTH_SOCK", "COLUMNS", "_"),
        *(name.upper() for name in Settings.model_fields),
        *Settings.model_fields,
    ],
)
def test_settings_and_variables_of_others_are_not_warned_of(name: str):
    assert variables.unknown({name: "x"}) == []


def test_an_address_as_a_url_is_told_what_to_set_instead():
    (said,) = variables.unknown({"REDIS_URL": "redis://cache"})
    assert "set REDIS_HOST, REDIS_PORT" in said


def test_in_a_file_of_settings_every_name_counts_and_in_the_environment_only_what_looks_like_one(
    tmp_path: Path,
):
    file = tmp_path / "env"
    file.write_text("QUEUE=1\nMAX_PROCESSES=9\nAWS_PROFILE=x\nHTTP_PROXY=y\nOPENAI_KEY=z\n# NO=1\n")
    used = '[{"url": "https://x", "key_env": "OPENAI_KEY"}]'
    said = variables.warnings(file, {"QUEUE": "1", "COLOUR": "1"}, used)
    assert [each.split()[0] for each in said] == ["QUEUE"]
    assert variables.warnings(Path("/dev/null"), {"QUEUE": "1"}) == []


def test_a_file_that_was_named_and_is_missing_is_warned_of_and_the_default_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert variables.warnings(variables.DEFAULT_FILE, {}) == []
    (said,) = variables.warnings(tmp_path / "typo.env", {})
    assert f"the file {tmp_path}/typo.env does not exist" in said


def test_a_file_that_is_no_text_is_left_to_the_settings_own_refusal(tmp_path: Path):
    (tmp_path / "env").write_bytes(b"\xff\xfe=1")
    assert variables.warnings(tmp_path / "env", {}) == []
