from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from nanoagent.config import UpstreamSetting
from nanoagent.telemetry.metrics import MAX_MODELS
from nanoagent.wiring import telemetry
from support.doubles.fakes import make_settings

ENTRY = {"url": "https://api.openai.com/v1", "models": ["gpt-*"], "api": "openai", "key": "sk-canary"}


def test_further_servers_come_before_the_one_that_has_all_models(monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-of-the-environment")
    entries = [ENTRY, {"url": "http://ollama:11434", "key_env": "A_KEY"}]
    settings = make_settings(
        ai_upstreams=json.dumps(entries), ai_endpoint="http://localhost:11434", ai_api_key="sk-third"
    )
    assert settings.upstreams == (
        UpstreamSetting(url="https://api.openai.com/v1", models=("gpt-*",), api="openai", key="sk-canary"),
        UpstreamSetting(url="http://ollama:11434", key="sk-of-the-environment"),
        UpstreamSetting(url="http://localhost:11434", key="sk-third"),
    )
    assert {"sk-canary", "sk-of-the-environment", "sk-third"} <= set(settings.secrets)
    assert "sk-" not in repr(settings)
    assert "sk-" not in repr(settings.upstreams)


def test_models_are_listed_with_commas():
    assert make_settings(ai_models="llama3*, gpt-4o ,").allowed_models == ("llama3*", "gpt-4o")
    assert make_settings().allowed_models == ("*",)


@pytest.mark.parametrize(
    ("upstreams", "problem"),
    [
        ('[{"url": "http://a", "key": "sk-canary"', "but it is not JSON"),
        ('{"url": "http://a", "key": "sk-canary"}', "a JSON array"),
        ('["sk-canary"]', "entry 1 should be an object"),
        ('[{"url": "http://a", "token": "sk-canary"}]', "entry 1 should be an object with the field url"),
        ('[{"url": "sk-canary"}]', "entry 1: url"),
        ('[{"url": "http://a"}, {"url": "http://a", "models": "sk-canary"}]', "entry 2: models"),
        ('[{"url": "http://a", "api": "sk-canary"}]', "entry 1: api"),
        ('[{"url": "http://a", "key": "sk-canary", "key_env": "A"}]', "key or key_env, not both"),
        ('[{"url": "http://a", "key_env": "NO_SUCH_sk-canary"}]', "not set in the environment"),
        ('[{"url": "http://a", "key": "sk-canary\\r\\nX: y"}]', "its key should be"),
        ('[{"url": "http://a", "key": "sk-canary\\""}]', "its key should be"),
        ('[{"url": "http://a", "key": 5}]', "its key should be"),
        ('[{"url": "http://u:sk-canary@a", "key": "k"}]', "a user and a password"),
    ],
)
def test_what_is_wrong_with_a_server_is_told_without_its_key(upstreams, problem):
    with pytest.raises(ValidationError) as failure:
        make_settings(ai_upstreams=upstreams)
    assert problem in str(failure.value)
    assert "sk-canary" not in str(failure.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ai_api_key": "k"}, "AI_ENDPOINT is not set; expected"),
        (
            {"ai_api_key": "k", "ai_endpoint": "http://u:p@a"},
            "no key, because AI_ENDPOINT has a user",
        ),
        ({"ai_api_key": "k k", "ai_endpoint": "http://a"}, "printable ASCII"),
        ({"ai_replay": "/no/such/folder"}, "a folder that exists"),
    ],
)
def test_settings_that_do_not_go_together_are_named(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        make_settings(**changes)


@pytest.mark.parametrize(
    ("url", "call"),
    [
        ("https://api.openai.com/v1/chat/completions", "/chat/completions"),
        ("https://api.openai.com/v1/embeddings/", "/embeddings"),
        (
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=1",
            "/chat/completions",
        ),
        ("http://h:11434/api/generate", "/api/generate"),
        ("http://h:11434/api/chat", "/api/chat"),
        ("https://api.openai.com/v1", None),
        ("https://h/completions-of-mine/v1", None),
        ("https://h/v1?a=/chat/completions-of-mine", None),
    ],
)
def test_the_address_of_one_call_is_no_base_url(url, call):
    entry = json.dumps([{"url": url}])
    if call is None:
        assert make_settings(ai_endpoint=url, ai_upstreams=entry).upstreams[0].url == url
        return
    for changes in ({"ai_endpoint": url}, {"ai_upstreams": entry}):
        with pytest.raises(ValidationError, match=f"without {call}"):
            make_settings(**changes)


def test_the_models_that_are_named_in_full_are_known():
    entries = [{"url": "http://a", "models": ["gpt-4o", "gpt-*"]}, {"url": "http://b"}]
    settings = make_settings(
        ai_model="mistral", ai_models="mistral, phi3, llama*", ai_upstreams=json.dumps(entries)
    )
    assert settings.named_models == ("mistral", "phi3", "gpt-4o")
    metrics = telemetry.new_metrics(settings)
    for number in range(MAX_MODELS):
        metrics.model_labels.label(f"invented-{number}")
    assert [metrics.model_labels.label(name) for name in ("gpt-4o", "phi3", "llama3")] == [
        "gpt-4o",
        "phi3",
        "other",
    ]
    assert make_settings().named_models == ("llama3:8b",)
