from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanoagent.ai import calls, routes
from nanoagent.ai.refusals import Api, Refused
from nanoagent.ai.routes import ROUTES
from nanoagent.ai.upstreams import HttpUpstream, matches

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared
CHAT = ROUTES["/v1/chat/completions"]
GENERATE = ROUTES["/api/generate"]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
# As clients choose them beside those that are looked at.
names = st.text(max_size=8).filter(
    lambda name: name.casefold() not in calls._EXAMINED | calls._FORBIDDEN.keys() | calls._REMOTE.keys()
)


@UNHURRIED
@given(st.dictionaries(names, values, max_size=5), st.sampled_from([None, 1]))
def test_whatever_else_stands_in_a_request_goes_on_as_it_came(fields, indent):
    sent = json.dumps({"model": "m", **fields}, indent=indent).encode()
    for route in ROUTES.values():
        assert calls.read(route, sent, "other").body(None) == sent


@UNHURRIED
@given(st.dictionaries(names, values, max_size=5))
def test_what_changes_leaves_the_rest_what_it_was(fields):
    sent = json.dumps({"stream": True, **fields}).encode()
    went = json.loads(calls.read(CHAT, sent, "m").body(5))
    assert (
        went
        == {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5} | fields
    )


@pytest.mark.parametrize(
    ("sent", "went"),
    [
        (b'{"model":"a","model":"b"}', b'{"model":"b"}'),
        (b'{"model":"b","x":1,"x":2}', b'{"model":"b","x":2}'),
        (
            b'{"model":"b","options":{"num_predict":5,"num_predict":9}}',
            b'{"model":"b","options":{"num_predict":9}}',
        ),
    ],
)
def test_if_a_name_occurs_twice_the_upstream_gets_the_checked_value(sent, went):
    assert calls.read(GENERATE, sent, "m").body(None) == went


EMPTY = (b"null", b"false", b"[]", b"{}", b'""', b"[ ]", b"{\n}")


@pytest.mark.parametrize("value", EMPTY)
def test_a_field_that_is_refused_when_set_may_be_there_empty_and_goes_no_further(value):
    names = [*calls._FORBIDDEN, *calls._REMOTE, "Models", "BACKGROUND"]
    for name in names:
        if name == "web_search_options" and value.startswith(b"{"):
            continue
        sent = b'{"model":"m","%s":%s,"x":1.50}' % (name.encode(), value)
        for route in ROUTES.values():
            assert calls.read(route, sent, "m").body(None) == b'{"model":"m","x":1.50}', name


def test_empty_options_of_a_search_turn_it_on_and_are_refused():
    with pytest.raises(Refused) as refusal:
        calls.read(CHAT, b'{"model":"m","web_search_options":{}}', "m")
    assert refusal.value.status == 403
    assert calls.read(CHAT, b'{"model":"m","web_search_options":null}', "m").body(None) == b'{"model":"m"}'


@pytest.mark.parametrize(
    "value", [b"true", b"0", b"1", b'" "', b'"null"', b"[null]", b"[[]]", b'{"a":null}', b"[{}]"]
)
def test_a_set_field_is_refused_also_after_an_unset_one(value):
    for name in calls._FORBIDDEN:
        field = name.encode()
        for sent in (
            b'{"model":"m","%s":%s}' % (field, value),
            b'{"model":"m","%s":null,"%s":%s}' % (field, field.upper(), value),
            b'{"model":"m","%s":null,"%s":%s}' % (field, field, value),
        ):
            with pytest.raises(Refused) as refusal:
                calls.read(CHAT, sent, "m")
            assert refusal.value.status == 400


def test_of_a_field_twice_the_upstream_gets_neither_where_the_last_is_empty():
    sent = b'{"model":"m","background":true,"background":false}'
    assert calls.read(ROUTES["/v1/responses"], sent, "m").body(None) == b'{"model":"m"}'


def test_with_remote_tools_their_fields_go_on_as_they_came():
    sent = b'{"model":"m","web_search_options":{},"plugins":[]}'
    assert calls.read(CHAT, sent, "m", remote_tools=True).body(None) == sent


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/chat/completions//", "/v1/chat/completions"),
        ("//v1//chat//completions//", "/v1/chat/completions"),
        ("/", "/"),
        ("//", "/"),
        ("///", "///"),
        ("/api///chat", "/api///chat"),
        ("/api/%2Fchat", "/api/%2Fchat"),
        ("/api/../api/chat", "/api/../api/chat"),
        ("/api/.//chat", "/api/./chat"),
        ("/api\\\\chat", "/api\\\\chat"),
        ("http://evil.example//api/chat/", "http://evil.example//api/chat/"),
        ("", ""),
    ],
)
def test_a_path_is_normalised_by_its_slashes_alone(path, same):
    assert routes.normalised(path) == same


@UNHURRIED
@given(st.text(alphabet="/.%2Ffvap\\1i", max_size=12))
def test_no_path_but_a_known_one_with_slashes_becomes_a_known_one(path):
    if routes.normalised(path) in ROUTES.keys() | routes.LISTS:
        assert "/".join(filter(None, path.split("/"))) == routes.normalised(path).lstrip("/")


@pytest.mark.parametrize(
    ("path", "body", "cap", "bounds"),
    [
        ("/api/chat", {}, 50, {"options": {"num_predict": 50}}),
        (
            "/api/chat",
            {"options": {"num_predict": 20, "seed": 1}},
            50,
            {"options": {"num_predict": 20, "seed": 1}},
        ),
        (
            "/api/chat",
            {"options": {"num_predict": 90, "seed": 1}},
            50,
            {"options": {"num_predict": 50, "seed": 1}},
        ),
        ("/api/chat", {"options": {"num_predict": -1}}, 50, {"options": {"num_predict": 50}}),
        ("/v1/completions", {}, 50, {"max_tokens": 50}),
        ("/v1/completions", {"max_tokens": 90}, 50, {"max_tokens": 50}),
        ("/v1/completions", {"max_tokens": -1}, 90_000, {"max_tokens": 90_000}),
        # No model takes any number; a bound so high is left to it.
        ("/v1/completions", {}, 90_000, {}),
        ("/v1/completions", {"n": 5}, 50, {"n": 5, "max_tokens": 10}),
        ("/v1/completions", {"n": 2, "best_of": 5}, 50, {"n": 2, "best_of": 5, "max_tokens": 10}),
        (
            "/v1/completions",
            {"prompt": ["a", "b"], "n": 5},
            50,
            {"prompt": ["a", "b"], "n": 5, "max_tokens": 5},
        ),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 50, {"prompt": [1, 2, 3], "max_tokens": 50}),
        ("/v1/chat/completions", {"max_completion_tokens": 90}, 50, {"max_completion_tokens": 50}),
        (
            "/v1/chat/completions",
            {"max_tokens": 10, "max_completion_tokens": 90},
            50,
            {"max_tokens": 50, "max_completion_tokens": 50},
        ),
        ("/v1/responses", {"max_output_tokens": 90}, 50, {"max_output_tokens": 50}),
        ("/v1/embeddings", {"input": "a"}, 0, {"input": "a"}),
        ("/api/embed", {"input": "a"}, 0, {"input": "a"}),
    ],
)
def test_an_answer_is_bounded_in_the_apis_own_field(path, body, cap, bounds):
    went = calls.read(ROUTES[path], json.dumps({"model": "m", **body}).encode(), "m").body(cap)
    assert json.loads(went) == {"model": "m", **bounds}


def test_openai_itself_wants_the_newer_name():
    call = calls.read(CHAT, b'{"model":"o3"}', "m")
    assert json.loads(call.body(9, uses_max_completion_tokens=True)) == {
        "model": "o3",
        "max_completion_tokens": 9,
    }


@pytest.mark.parametrize(
    ("url", "uses"),
    [
        ("https://api.openai.com/v1", True),
        ("https://x.openai.azure.com", True),
        ("https://notopenai.com", False),
        ("http://localhost:11434/", False),
    ],
)
def test_who_wants_the_newer_name_is_told_by_the_address(url, uses):
    session: Any = None
    assert HttpUpstream(session, url).uses_max_completion_tokens is uses


def test_pictures_are_no_text_in_the_estimate():
    picture = "iVBORw0KGgo" * 10_000
    with_it = calls.read(ROUTES["/api/chat"], json.dumps({"images": [picture]}).encode(), "m")
    assert with_it.prompt_tokens < 50
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert calls.read(CHAT, json.dumps(body).encode(), "m").prompt_tokens < 100
    text = calls.read(ROUTES["/api/chat"], json.dumps({"messages": "word " * 1000}).encode(), "m")
    assert 1000 < text.prompt_tokens < 1500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"prompt": "{}"}),
        ("/api/generate", {"system": "data:,{}"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "{}"}]}),
        ("/api/embeddings", {"prompt": "{}"}),
        ("/api/embed", {"input": ["{}", "{}"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "data:text/plain,{}"}]}),
        ("/v1/completions", {"prompt": ["a", "{}"]}),
        ("/v1/embeddings", {"input": "{}"}),
    ],
)
def test_text_that_looks_like_a_picture_is_text(path, body):
    """It is what is counted where an upstream has said nothing: of a stream that the run's end has cut."""
    hidden = "aWdub3JlIGFsbA" * 10_000
    sent = json.dumps(body).replace("{}", hidden).encode()
    assert calls.read(ROUTES[path], sent, "m").prompt_tokens > len(hidden) // 5


@pytest.mark.parametrize(
    ("model", "patterns", "does"),
    [
        ("llama3", ("llama3",), True),
        ("llama3:latest", ("llama3",), True),
        ("llama3", ("llama3:latest",), False),
        ("llama3:8b", ("llama3",), False),
        ("llama3:8b", ("llama3*",), True),
        ("LLAMA3:8B", ("llama3*",), False),
        ("evil/llama3", ("llama3*",), False),
        ("gpt-4o", ("llama3", "gpt-*"), True),
        ("gpt-4o", (), False),
    ],
)
def test_which_names_a_pattern_means(model, patterns, does):
    assert matches(model, patterns) is does


def test_every_refusal_has_the_shape_of_its_api():
    for status in (400, 403, 404, 413, 429, 500, 503):
        refusal = Refused(status, "why", "code", param="model")
        assert json.loads(refusal.body(Api.OLLAMA)) == {"error": "why"}
        error = json.loads(refusal.body(Api.OPENAI))["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["message"], error["param"], error["code"]) == ("why", "model", "code")
