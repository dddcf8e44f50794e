"""What `check` and `doctor` say of model servers, and what they ask them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.ai import inspection
from nanoagent.ai.inspection import Listing, Server
from nanoagent.ai.refusals import Api
from nanoagent.ai.upstreams import HttpUpstream
from nanoagent.dev.stub_model_server import StubModelServer
from nanoagent.doctor import check
from nanoagent.doctor.examination import models_finding
from nanoagent.doctor.finding import Severity
from nanoagent.wiring import network
from support.doubles.fakes import make_settings

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "llama3:8b"


def server(
    url: str = "https://api.example/v1", patterns: tuple[str, ...] = ("*",), *, key: str | None = "sk-canary"
) -> Server:
    session: Any = None
    return Server(
        upstream=HttpUpstream(session, url, patterns, key=key),
        api=None,
        setting="AI_ENDPOINT",
        key_setting="AI_API_KEY",
        has_key=key is not None,
    )


def judged(listing: Listing, model: str = MODEL, **how: Any) -> tuple[Severity, str, str]:
    (found,) = inspection.judge([(server(**how), listing)], ("*",), model)
    finding = models_finding(found)
    return finding.severity, finding.found, finding.remedy or ""


PATH = "/v1/models"
OK, WARNING, PROBLEM = Severity.OK, Severity.WARNING, Severity.PROBLEM


@pytest.mark.parametrize(
    ("listing", "severity", "found", "remedy"),
    [
        (Listing(PATH, status=200, models=(MODEL, "b")), OK, "answers and lists 2 models", ""),
        (
            Listing(PATH, failure="it cannot be reached"),
            PROBLEM,
            "cannot be reached",
            "start it, or correct AI_E",
        ),
        (Listing(PATH, status=401), PROBLEM, "refuses its key (401)", "set AI_API_KEY"),
        (Listing(PATH, status=403), PROBLEM, "refuses its key (403)", "set AI_API_KEY"),
        (Listing(PATH, status=404), WARNING, "has no list of models at /v1/models (404)", "the base URL"),
        (Listing(PATH, status=405), WARNING, "has no list of models", "the base URL"),
        (Listing(PATH, status=502), WARNING, "answers 502", "see its log"),
        (Listing(PATH, status=200), WARNING, "does not answer like a model server", "the base URL"),
        (
            Listing(PATH, status=200, models=("a", "b", "c", "d", "e", "f")),
            WARNING,
            "does not list AI_MODEL=llama3:8b; it lists a, b, c, d, e, …",
            "ollama pull llama3:8b",
        ),
        (Listing(PATH, status=200, models=()), WARNING, "it lists none", "set AI_MODEL"),
    ],
)
def test_each_fault_of_a_server_has_its_own_words(listing, severity, found, remedy):
    told = judged(listing)
    assert told[0] is severity
    assert told[1].startswith("the model server api.example (AI_ENDPOINT) ")
    assert found in told[1]
    assert remedy in told[2]


def test_a_server_that_wants_a_key_and_has_none_is_told_apart():
    assert "requires a key (401)" in judged(Listing(PATH, status=401), key=None)[1]


@pytest.mark.parametrize(
    ("models", "model", "listed"),
    [
        (("llama3:latest",), "llama3", True),
        (("llama3",), "llama3", True),
        (("llama3:8b",), "llama3", False),
        (("models/gemini-2.0-flash",), "gemini-2.0-flash", True),
        (("a",), "*", False),
        (("a[1]",), "a[1]", True),
    ],
)
def test_a_model_is_listed_under_its_name_or_with_a_suffix_or_prefix_that_may_be_left_out(
    models, model, listed
):
    assert inspection.lists(models, model) is listed


def test_ai_model_is_looked_for_at_the_server_that_serves_it_alone():
    first, second = server(patterns=("gpt-*",)), server("http://ollama:11434")
    both = [
        (first, Listing(PATH, status=200, models=("gpt-4o",))),
        (second, Listing(PATH, status=200, models=(MODEL,))),
    ]
    assert [found.remedy for found in inspection.judge(both, ("*",), MODEL)] == [None, None]
    assert [found.remedy is None for found in inspection.judge(both, ("*",), "gpt-5")] == [False, True]


def test_an_ai_model_that_nobody_may_use_or_nobody_has_is_told():
    alone = [(server(patterns=("gpt-*",)), Listing(PATH, status=200, models=("gpt-4o",)))]
    found = [each.found for each in inspection.judge(alone, ("gpt-*",), MODEL)]
    assert "is not among the models that functions may use (AI_MODELS=gpt-*)" in found[0]
    found = [each.found for each in inspection.judge(alone, ("*",), MODEL)]
    assert found[0] == "no model server has AI_MODEL=llama3:8b"
    (none,) = inspection.judge([], ("*",), MODEL)
    assert (none.remedy, "no model server" in none.found) == (None, True)


@pytest.mark.parametrize(
    ("body", "models"),
    [
        (b'{"object":"list","data":[{"id":"a"},{"id":"b"}]}', ("a", "b")),
        (b'{"models":[{"name":"a:latest","model":"a:latest"}]}', ("a:latest",)),
        (b'{"data":[{"id":"a"}],"models":[{"name":"b"}]}', ("a",)),  # llama.cpp has both
        (b'[{"id":"a"}]', ("a",)),  # Together
        (b'{"data":[]}', ()),
        (b"{}", None),
        (b"<html>", None),
        (b"", None),
        (b'{"data":5}', None),
    ],
)
def test_lists_of_models_are_read_as_servers_write_them(body, models):
    assert inspection.models_of(body) == models


async def inspected(**changes: Any) -> list[str]:
    return [found.found for found in await network.inspect_models(make_settings(**changes))]


async def test_servers_are_asked_with_their_keys_and_each_setting_is_named(tmp_path: Path):
    async with StubModelServer(key="sk-one") as one, StubModelServer(openai_only=True, key="sk-two") as two:
        entries = [{"url": f"{two.url}/v1", "models": ["gpt-*"], "key": "sk-wrong"}]
        entries += [{"url": "http://127.0.0.1:1", "models": ["x"]}]
        found = await inspected(ai_endpoint=one.url, ai_api_key="sk-one", ai_upstreams=json.dumps(entries))
        assert found == [
            "the model server 127.0.0.1 (AI_UPSTREAMS, entry 1) refuses its key (401)",
            found[1],
            "the model server 127.0.0.1 (AI_ENDPOINT) answers and lists 3 models",
        ]
        assert found[1].startswith("the model server 127.0.0.1 (AI_UPSTREAMS, entry 2) cannot be reached: ")
        assert not any("sk-" in text for text in found)
        assert [request.path for request in two.log] == ["/v1/models"]
        assert await inspected(ai_endpoint=one.url, ai_replay=tmp_path) == [
            "AI_REPLAY is set: recordings answer, and no model server is asked"
        ]


@pytest.mark.parametrize(("api", "asked"), [("ollama", "/api/tags"), ("openai", "/v1/models")])
async def test_a_server_is_asked_in_the_api_that_it_has(api, asked):
    async with StubModelServer() as stub_model_server:
        entry = {"url": stub_model_server.url, "api": api}
        (found,) = await inspected(ai_upstreams=json.dumps([entry]))
        assert "lists 3 models" in found
        assert [request.path for request in stub_model_server.log] == [asked]


async def test_a_base_url_that_is_wrong_is_told_with_the_path_that_was_asked():
    async with StubModelServer() as stub_model_server:
        (found,) = await inspected(ai_endpoint=f"{stub_model_server.url}/openai/v2")
    assert found.endswith("has no list of models at /openai/v2/models (404)")


def test_the_order_and_the_settings_of_servers_are_the_workers():
    session: Any = None
    settings = make_settings(
        ai_upstreams='[{"url":"http://a"},{"url":"http://b","api":"ollama"}]', ai_endpoint="http://c"
    )
    servers = network.model_servers(settings, session)
    assert [one.upstream.name for one in servers] == ["a", "b", "c"]
    assert [one.api for one in servers] == [None, Api.OLLAMA, None]
    assert [one.setting for one in servers] == [
        "AI_UPSTREAMS, entry 1",
        "AI_UPSTREAMS, entry 2",
        "AI_ENDPOINT",
    ]


async def test_check_tells_problems_and_warnings_of_model_servers_apart():
    async with StubModelServer(key="sk-one", models=("gpt-4o",)) as stub_model_server:
        entry = {"url": stub_model_server.url, "models": ["gpt-*"], "key": "sk-wrong"}
        settings = make_settings(
            ai_endpoint=stub_model_server.url, ai_api_key="sk-one", ai_upstreams=json.dumps([entry])
        )
        finding = check.models_result(await network.inspect_models(settings))
    assert finding.problem == (
        "the model server 127.0.0.1 (AI_UPSTREAMS, entry 1) refuses its key (401) → "
        "set the key of entry 1 in AI_UPSTREAMS"
    )
    (warning,) = finding.warnings
    assert "(AI_ENDPOINT) does not list AI_MODEL=llama3:8b; it lists gpt-4o → set AI_MODEL" in warning
