"""The AI gateway on local sockets, with real clients, in front of a stub model server with both APIs."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from nanoagent.ai import calls, connection, relay, responder
from nanoagent.ai.bodies import BodyMemory
from nanoagent.ai.gateway import Gateway
from nanoagent.ai.limits import GatewayLimits, RunLimits
from nanoagent.ai.refusals import Api
from nanoagent.ai.replay import Replay
from nanoagent.ai.upstreams import HttpUpstream, Upstreams
from nanoagent.dev.stub_model_server import StubModelServer
from nanoagent.network.base import AiUsage
from support.services import gateways
from support.services.gateways import GatewayClient, new_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.gateways import Rig

WORDS = [{"role": "user", "content": "one two three"}]
COUNT = [{"role": "user", "content": "count to 9"}]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with gateways.rig() as rig:
        yield rig


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[GatewayClient]:
    """A run without limits worth mentioning."""
    async with GatewayClient(rig.gateway(), new_run()) as client:
        yield client


def used(client: GatewayClient) -> tuple[int, int]:
    return client.run.usage.prompt_tokens, client.run.usage.completion_tokens


def asked(rig: Rig) -> tuple[int, int]:
    """The token counts of the stub model server."""
    return (
        sum(request.prompt_tokens for request in rig.stub_model_server.log),
        sum(request.completion_tokens for request in rig.stub_model_server.log),
    )


async def settled(client: GatewayClient) -> None:
    """Wait until every connection that the job has closed is over."""
    await client.http.close()
    async with asyncio.timeout(gateways.DEADLINE_S):
        while client.served:
            await asyncio.wait(client.served)


# --- what goes through, and how

CALLS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "generate": ("/api/generate", {"prompt": "a b", "stream": False}, (2, 3)),
    "generate streamed": ("/api/generate", {"prompt": "a b"}, (2, 3)),
    "chat": ("/api/chat", {"messages": WORDS, "stream": False}, (3, 4)),
    "chat streamed": ("/api/chat", {"messages": COUNT}, (3, 9)),
    "embed": ("/api/embed", {"input": ["a b", "c"]}, (3, 0)),
    "openai chat": ("/v1/chat/completions", {"messages": WORDS}, (3, 4)),
    "openai chat streamed": ("/v1/chat/completions", {"messages": COUNT, "stream": True}, (3, 9)),
    "openai chat streamed with usage": (
        "/v1/chat/completions",
        {"messages": COUNT, "stream": True, "stream_options": {"include_usage": True}},
        (3, 9),
    ),
    "completions": ("/v1/completions", {"prompt": "a b c d", "max_tokens": 2}, (4, 2)),
    "completions streamed": ("/v1/completions", {"prompt": "count to 3", "stream": True}, (3, 3)),
    "responses": ("/v1/responses", {"input": "a b"}, (2, 3)),
    "responses streamed": ("/v1/responses", {"input": "count to 4", "stream": True}, (3, 4)),
    "openai embeddings": ("/v1/embeddings", {"input": ["a", "b c"]}, (3, 0)),
}


@pytest.mark.parametrize(("path", "body", "tokens"), CALLS.values(), ids=CALLS.keys())
async def test_an_answer_is_the_upstreams_byte_for_byte_and_its_tokens_are_the_upstreams_own(
    rig, client, path, body, tokens
):
    body = {"model": "llama3:8b", **body}
    through = await client.stream(path, body)
    async with client.http.post(rig.stub_model_server.url + path, json=body) as response:
        direct = await response.read()
    # Ids are new each time; a stream whose usage is asked for says so in each chunk, of OpenAI's as well.
    through, direct = (_without_ids(answer) for answer in (through, direct))
    if "usage" not in json.dumps(body):
        through = through.replace(b', "usage": null', b"")
    assert _without_null_usage(through) == _without_null_usage(direct)
    assert used(client) == tokens
    assert rig.value("worker_llm_tokens_total", model="llama3:8b", kind="prompt") == tokens[0]
    assert rig.value("worker_llm_tokens_total", model="llama3:8b", kind="completion") == tokens[1]
    assert rig.value("worker_llm_requests_total", model="llama3:8b", outcome="ok") == 1


def _without_ids(answer: bytes) -> bytes:
    return b"\n".join(
        line if (at := line.find(b'"id": "')) < 0 else line[:at] + line[line.find(b'", ', at) :]
        for line in answer.split(b"\n")
    )


def _without_null_usage(answer: bytes) -> bytes:
    return answer.replace(b', "usage": null', b"")


async def test_the_request_reaches_the_upstream_byte_for_byte_where_nothing_has_to_change(rig, client):
    sent = b' {"model" : "m",\n "messages": [ {"role":"user", "content":"\\u00e9"} ], "x": 1.50 }\n'
    async with client.http.post("/v1/chat/completions", data=sent) as response:
        assert response.status == 200
    assert rig.stub_model_server.log[0].raw == sent


async def test_only_the_fields_that_have_to_change_do(rig, client):
    sent = b'{"stream":true, "messages":[ {"content":"\\u00e9"} ],"temperature":1.50,"keep_alive":0}'
    async with client.http.post("/v1/chat/completions", data=sent) as response:
        await response.read()
    assert rig.stub_model_server.log[0].raw == (
        b'{"model":"llama3:8b","stream":true,"messages":[ {"content":"\\u00e9"} ],"temperature":1.50,'
        b'"stream_options":{"include_usage":true}}'
    )


async def test_nothing_of_a_jobs_headers_reaches_the_upstream(rig):
    server = HttpUpstream(rig.session, rig.stub_model_server.url, key="sk-real")
    async with GatewayClient(rig.gateway(None, server), new_run()) as client:
        headers = {
            "Authorization": "Bearer sk-of-the-job",
            "Cookie": "a=b",
            "X-Forwarded-For": "10.0.0.1",
            "Host": "evil.example",
            "OpenAI-Organization": "org-other",
            "X-Anything": "canary",
        }
        async with client.http.post("/v1/chat/completions", json={"messages": WORDS}, headers=headers) as got:
            assert got.status == 200
            assert "sk-real" not in str(got.headers)
    seen = rig.stub_model_server.log[0].headers
    assert seen.pop("Authorization") == "Bearer sk-real"
    assert seen.pop("Host") == rig.stub_model_server.url.removeprefix("http://")
    assert not {"cookie", "x-forwarded-for", "openai-organization", "x-anything"} & {
        name.lower() for name in seen
    }
    assert not any("canary" in value or "of-the-job" in value for value in seen.values())


async def test_the_first_piece_of_a_stream_is_there_while_the_upstream_waits(rig, client):
    for path, body in (
        ("/api/generate", {"model": "fault/hold", "prompt": "count to 9"}),
        ("/v1/chat/completions", {"model": "fault/hold", "messages": COUNT, "stream": True}),
    ):
        async with client.http.post(path, json=body) as response:
            async with asyncio.timeout(gateways.DEADLINE_S):
                received = b""
                while b'"3"' not in received and b'" 3"' not in received:
                    received += await response.content.readany()
            assert rig.stub_model_server.log[-1].state == "open"


@pytest.mark.parametrize(
    "path",
    [
        *("//v1/chat/completions", "/v1/chat/completions/", "/v1//chat/completions", "/v1/chat//completions"),
        *("//v1//chat/completions//", "/v1/chat/completions/?a=b"),
    ],
)
async def test_a_slash_too_many_is_taken_for_none(rig, client, path):
    sent = json.dumps({"messages": WORDS}).encode()
    answer = await client.raw(post(path, sent))
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
    assert [request.path for request in rig.stub_model_server.log] == ["/v1/chat/completions"]


async def test_lists_and_the_first_question_of_a_client_may_have_a_slash_too_many_as_well(client):
    for path in ("//v1/models", "/v1/models/", "/api/tags/", "//api//version", "//"):
        answer = await client.raw(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200 "), (path, answer[:300])


async def test_the_job_s_model_is_asked_when_none_is_named(rig):
    async with GatewayClient(rig.gateway(), new_run(model="mistral")) as client:
        assert (await client.post("/api/generate", {"prompt": "a", "stream": False}))[1]["model"] == "mistral"
        assert (await client.post("/v1/completions", {"prompt": "a", "model": ""}))[1]["model"] == "mistral"


async def test_models_go_to_the_server_that_has_them(rig):
    async with StubModelServer(models=("gpt-4o",), key="sk-two") as other:
        servers = (
            HttpUpstream(rig.session, other.url + "/v1", ("gpt-*",), api=Api.OPENAI, key="sk-two"),
            HttpUpstream(rig.session, rig.stub_model_server.url, ("llama*", "nomic*")),
        )
        async with GatewayClient(
            rig.gateway(None, *servers, allowed=("gpt-4o", "llama3:8b")), new_run()
        ) as client:
            assert (await client.post("/v1/chat/completions", {"model": "gpt-4o", "messages": WORDS}))[
                0
            ] == 200
            assert (await client.post("/v1/chat/completions", {"messages": WORDS}))[0] == 200
            status, said = await client.post(
                "/api/chat", {"model": "gpt-4o", "messages": WORDS, "stream": False}
            )
            assert (status, said["message"]["content"]) == (200, "echo: one two three")
            assert [request.path for request in other.log] == ["/v1/chat/completions"] * 2
            assert len(rig.stub_model_server.log) == 1
            async with client.http.get("/v1/models") as response:
                listed = [entry["id"] for entry in (await response.json())["data"]]
            assert listed == ["gpt-4o", "llama3:8b"]
            async with client.http.get("/api/tags") as response:
                names = [entry["name"] for entry in (await response.json())["models"]]
            assert names == ["gpt-4o", "llama3:8b"]
            async with client.http.get("/v1/models/gpt-4o") as response:
                assert (await response.json())["id"] == "gpt-4o"
            async with client.http.get("/v1/models/gpt-4o-mini") as response:
                assert response.status == 404


async def test_a_model_that_is_not_allowed_is_refused_in_the_format_of_each_api(rig):
    async with GatewayClient(rig.gateway(allowed=("llama3*",)), new_run()) as client:
        status, said = await client.post("/api/generate", {"model": "gpt-4o", "prompt": "x"})
        assert status == 404
        assert "AI_MODELS=llama3*" in said["error"]
        status, said = await client.post("/v1/chat/completions", {"model": "gpt-4o", "messages": WORDS})
        assert status == 404
        assert said["error"]["code"] == "model_not_found"
        assert set(said["error"]) == {"message", "type", "param", "code"}
    assert rig.stub_model_server.log == []
    assert client.run.usage.refused == 2


@pytest.mark.parametrize(("path", "of_openai"), [("/api/chat", False), ("/v1/chat/completions", True)])
async def test_without_a_server_each_call_says_which_setting_is_missing(rig, path, of_openai):
    gateway = rig.gateway()
    gateway.shared.servers = type(gateway.shared.servers)(())
    async with GatewayClient(gateway, new_run()) as client:
        status, said = await client.post(path, {"messages": WORDS})
        assert status == 503
        assert "AI_ENDPOINT" in (said["error"]["message"] if of_openai else said["error"])
        async with client.http.get("/v1/models") as response:
            assert response.status == 503


async def test_what_clients_ask_before_they_begin_is_answered(rig, client):
    async with client.http.head("/") as response:
        assert response.status == 200
    async with client.http.get("/") as response:
        assert await response.text() == "Ollama is running"
    async with client.http.get("/api/version") as response:
        assert (await response.json())["version"] == "0.0.0-stub_model_server"
    assert (await client.post("/api/show", {"model": "llama3:8b"}))[1]["details"] == {"family": "stub"}
    assert (await client.post("/api/show", {"name": "llama3:8b"}))[0] == 200
    assert rig.stub_model_server.log[-1].body == {"model": "llama3:8b"}
    assert used(client) == (0, 0)


def noted_losses(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """An event that is set once the gateway knows that a job has hung up."""
    lost = asyncio.Event()
    was_lost = connection.Connection.record_loss

    def noted(self: connection.Connection) -> None:
        was_lost(self)
        lost.set()

    monkeypatch.setattr(connection.Connection, "record_loss", noted)
    return lost


# --- servers with OpenAI's API only


@pytest.fixture
async def openai_rig(rig: Rig) -> AsyncIterator[Rig]:
    """Before a server that has OpenAI's API only; its address tells nothing of that."""
    async with StubModelServer(openai_only=True) as stub_model_server:
        other = gateways.Rig(stub_model_server, rig.session)
        other.metrics = rig.metrics
        yield other


OLLAMA_CALLS = {name: case for name, case in CALLS.items() if case[0].startswith("/api/")} | {
    "generate raw": ("/api/generate", {"prompt": "a b", "raw": True, "stream": False}, (2, 3)),
    "generate raw, streamed": ("/api/generate", {"prompt": "count to 4", "raw": True}, (3, 4)),
    "generate limited": (
        "/api/generate",
        {"prompt": "count to 9", "options": {"num_predict": 2}, "stream": False},
        (3, 2),
    ),
    "old embeddings": ("/api/embeddings", {"prompt": "a b c"}, (3, 0)),
}
_NOT_SAID_ALIKE = {"created_at", "total_duration", "load_duration", "context"}


def _told(answer: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in answer.splitlines()]
    return [{name: line[name] for name in line.keys() - _NOT_SAID_ALIKE} for line in lines]


@pytest.mark.parametrize(("path", "body", "tokens"), OLLAMA_CALLS.values(), ids=OLLAMA_CALLS.keys())
async def test_a_call_of_ollamas_api_is_translated_and_answered_as_an_ollama_would(
    rig, openai_rig, path, body, tokens
):
    body = {"model": "llama3:8b", **body}
    async with rig.session.post(rig.stub_model_server.url + path, json=body) as response:
        due, content_type = await response.read(), response.content_type
    async with GatewayClient(openai_rig.gateway(), new_run()) as client:
        async with client.http.post(path, json=body) as response:
            told = await response.read()
            assert (response.status, response.content_type) == (200, content_type)
        assert used(client) == tokens
    assert _told(told) == _told(due)
    (asked,) = openai_rig.stub_model_server.log
    assert asked.path.startswith("/v1/")
    assert (asked.prompt_tokens, asked.completion_tokens) == tokens
    assert rig.value("worker_llm_requests_total", model="llama3:8b", outcome="ok") == 1


async def test_the_api_of_a_server_is_asked_for_once_in_a_while(rig, openai_rig):
    now = [0.0]
    server = HttpUpstream(rig.session, openai_rig.stub_model_server.url, now=lambda: now[0])
    assert await server.must_translate()
    openai_rig.stub_model_server.url = server._base = rig.stub_model_server.url  # an Ollama takes its place
    assert await server.must_translate()
    now[0] = 1000.0
    assert not await server.must_translate()
    server._base = "http://127.0.0.1:1"
    now[0] = 2000.0
    assert not await server.must_translate()  # what was known last, until something answers


async def test_calls_that_wait_while_a_server_is_asked_do_not_ask_it_again(rig):
    questions = 0

    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal questions
        questions += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(fail, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    upstream = HttpUpstream(rig.session, f"http://{host}:{port}", now=lambda: 0.0)
    assert await asyncio.gather(*(upstream.must_translate() for _ in range(20))) == [False] * 20
    assert questions == 1
    server.close()


async def test_a_job_that_hangs_up_while_its_server_is_asked_for_its_api_costs_nothing(rig, monkeypatch):
    asked, answer, paths = asyncio.Event(), asyncio.Event(), []
    lost = noted_losses(monkeypatch)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            paths.append((await reader.readuntil(b"\r\n\r\n")).split()[1])
            asked.set()
            await answer.wait()
            writer.write(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    gateway = rig.gateway(GatewayLimits(drain_s=3600), HttpUpstream(rig.session, f"http://{host}:{port}"))
    async with GatewayClient(gateway, new_run()) as client, asyncio.timeout(gateways.DEADLINE_S):
        sent = asyncio.create_task(client.post("/api/chat", {"messages": WORDS}))
        await asked.wait()
        sent.cancel()
        await asyncio.wait([sent])
        await lost.wait()
        answer.set()
        await settled(client)
    server.close()
    assert paths == [b"/api/version"]
    assert used(client) == (0, 0)


@pytest.mark.parametrize(("api", "lacks"), [(Api.OPENAI, True), (Api.OLLAMA, False)])
async def test_a_server_whose_setting_names_its_api_is_not_asked(rig, api, lacks):
    server = HttpUpstream(rig.session, "http://127.0.0.1:1", api=api)
    assert await server.must_translate() is lacks


@asynccontextmanager
async def answering(status: int, body: bytes) -> AsyncIterator[str]:
    """Run a server that gives each request this answer and closes the connection; yield its host and port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("status", "body", "lacks"),
    [
        (200, b'{"version":"0.5.1"}', False),
        (200, b'{"error":"Unexpected endpoint or method. (GET /api/version)"}', True),  # LM Studio
        (200, b"<html>", True),
        (200, b'{"version":5}', True),
        (404, b"Not Found", True),
        (405, b"", True),
        (301, b"", True),
        (401, b"{}", False),  # the key is refused, whichever API it has
        (429, b"{}", False),
        (502, b"", False),
    ],
)
async def test_what_a_server_answers_to_the_question_for_ollama_decides(rig, status, body, lacks):
    async with answering(status, body) as address:
        assert await HttpUpstream(rig.session, f"http://{address}").must_translate() is lacks


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b'{"version":"0.5.1","x":1}', "0.5.1"),
        (b"<html>", "0.0.0"),
        (b'{"version":5}', "0.0.0"),
        (b'{"version":"1"', "0.0.0"),
        (b'["0.5.1"]', "0.0.0"),
    ],
)
async def test_only_a_version_of_ollama_is_passed_on_as_one(rig, body, version):
    async with (
        answering(200, body) as address,
        GatewayClient(rig.gateway(None, HttpUpstream(rig.session, f"http://{address}")), new_run()) as client,
        client.http.get("/api/version") as response,
    ):
        assert (await response.json())["version"] == version


async def test_lists_of_models_and_what_is_shown_of_one_come_from_openais_list(openai_rig):
    async with GatewayClient(openai_rig.gateway(allowed=("llama*", "gpt-*", "other")), new_run()) as client:
        async with client.http.get("/api/tags") as response:
            models = (await response.json())["models"]
        assert [model["model"] for model in models] == ["llama3:8b", "gpt-4o-mini"]
        async with client.http.get("/api/ps") as response:
            assert (response.status, await response.json()) == (200, {"models": []})
        async with client.http.get("/api/version") as response:
            assert (await response.json())["version"] == "0.0.0"
        assert (await client.post("/api/show", {"model": "gpt-4o-mini"}))[0] == 200
        status, said = await client.post("/api/show", {"model": "other"})
        assert (status, said) == (404, {"error": "model 'other' not found"})
        assert used(client) == (0, 0)


async def test_a_call_that_only_loads_the_model_asks_nobody(openai_rig):
    async with GatewayClient(openai_rig.gateway(), new_run()) as client:
        status, said = await client.post("/api/generate", {"keep_alive": 60})
        assert (status, said["done_reason"]) == (200, "load")
        assert used(client) == (0, 0)
    assert openai_rig.stub_model_server.log == []


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("fault/404", 404, "the stub fails with status 404; the key is ***"),
        ("fault/500", 500, "the stub fails with status 500; the key is ***"),
        ("no-such", 404, "model 'no-such' not found"),
        ("fault/401", 502, "the model server refuses the worker's key (401)"),
        ("fault/429", 429, "the model server has received too many requests"),
        ("fault/html", 502, "the model server answered 502"),
        (
            "fault/garbage",
            502,
            "the model server failed: its answer does not have the format of OpenAI's API",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/embed"])
async def test_errors_are_told_in_ollamas_shape(rig, openai_rig, model, status, words, path):
    server = HttpUpstream(rig.session, openai_rig.stub_model_server.url, key="sk-real")
    async with GatewayClient(openai_rig.gateway(None, server), new_run()) as client:
        body = {"model": model, "prompt": "a", "messages": WORDS, "input": "a", "stream": False}
        answered, said = await client.post(path, body)
    assert answered == status
    assert said.keys() == {"error"}
    assert said["error"].replace("Bearer ", "").startswith(words)


async def test_a_translated_stream_that_breaks_off_or_is_cut_is_counted(openai_rig):
    async with GatewayClient(openai_rig.gateway(GatewayLimits(drain_s=3600)), new_run()) as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.stream("/api/generate", {"model": "fault/close", "prompt": "count to 9"})
        assert used(client)[1] == 3
        response = await client.http.post("/api/chat", json={"model": "fault/hold", "messages": COUNT})
        async with asyncio.timeout(gateways.DEADLINE_S):
            while b"3" not in (await response.content.readany()):
                pass
            await client.end()
            await openai_rig.stub_model_server.until(lambda log: log[-1].state == "cut")
        response.close()
        assert used(client)[1] == 6


async def test_a_translated_call_keeps_to_the_budget_of_the_run(openai_rig):
    async with GatewayClient(openai_rig.gateway(limits(tokens=30)), new_run()) as client:
        answer = await client.stream("/api/generate", {"prompt": "count to 90"})
        assert json.loads(answer.splitlines()[-1])["done_reason"] == "length"
        assert openai_rig.stub_model_server.log[0].body["max_tokens"] <= 30
        status, said = await client.post("/api/chat", {"messages": COUNT})
        assert (status, "AI_MAX_TOKENS=30" in said["error"]) == (429, True)
        assert sum(used(client)) <= 30


async def test_a_translated_call_passes_the_same_checks_as_a_direct_call(openai_rig):
    async with GatewayClient(openai_rig.gateway(), new_run()) as client:
        for extra in (
            {"tools": [{"type": "web_search"}]},
            {"tools": [{"type": "mcp", "server_url": "https://evil"}]},
            {"messages": [{"role": "user", "content": "a", "images": ["http://169.254.169.254/"]}]},
            {"models": ["other"]},
            {"api_base": "http://evil"},
        ):
            status, said = await client.post("/api/chat", {"messages": WORDS} | extra)
            assert status in {400, 403}, extra
            assert said.keys() == {"error"}
    assert openai_rig.stub_model_server.log == []


async def test_an_answer_that_is_held_until_its_end_counts_as_memory_of_all_runs(openai_rig, monkeypatch):
    gateway = openai_rig.gateway()
    gateway.shared.memory = BodyMemory(2000)
    async with GatewayClient(gateway, new_run()) as client:
        status, said = await client.post("/api/embed", {"input": ["a"] * 40})
        assert (status, "many large requests" in said["error"]) == (503, True)
        assert (await client.post("/api/embed", {"input": "a"}))[0] == 200
    assert gateway.shared.memory.free_bytes == 2000
    assert gateway.state_of(client.run).memory.held_bytes == 0


def tool_call(index: int, arguments: str) -> bytes:
    call = {"index": index, "function": {"name": "f", "arguments": arguments}}
    return b"data: " + json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]}).encode() + b"\n\n"


HELD = {
    "a line": ("/v1/chat/completions", b'data: {"choices":"' + b"a" * 400_000),
    "a translated line": ("/api/chat", b'data: {"choices":"' + b"a" * 400_000),
    "tool calls": ("/api/chat", b"".join(tool_call(index, "a" * 10_000) for index in range(40))),
}


@pytest.mark.parametrize(("path", "sent"), HELD.values(), ids=HELD.keys())
async def test_the_held_part_of_a_stream_counts_as_memory_of_all_runs(rig, path, sent):
    async with Sent(sent) as url:
        gateway = rig.gateway(None, HttpUpstream(rig.session, f"{url}/v1", api=Api.OPENAI))
        for room, status in ((4_000_000, 200), (300_000, 503)):
            gateway.shared.memory = BodyMemory(room)
            async with GatewayClient(gateway, new_run()) as client:
                body = {"messages": WORDS, "stream": True}
                async with client.http.post(path, json=body) as response:
                    assert response.status == status, await response.text()
                    await response.read()
                await settled(client)
                assert gateway.state_of(client.run).memory.held_bytes == 0
            assert gateway.shared.memory.free_bytes == room


async def test_a_translated_call_is_recorded_as_the_job_saw_it_and_replayed(openai_rig, tmp_path):
    file = tmp_path / "ai.jsonl"
    calls = [(path, {"model": "m", **body}) for path, body, _ in OLLAMA_CALLS.values()]
    async with GatewayClient(openai_rig.gateway(), new_run(record=file)) as client:
        first = [await client.stream(path, body) for path, body in calls]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["path"] for line in lines] == [path for path, _ in calls]
    assert {"cachedTokens", "reasoningTokens"} <= lines[0].keys()
    async with GatewayClient(openai_rig.gateway(None, Replay([file])), new_run()) as client:
        assert [await client.stream(path, body) for path, body in calls] == first


# --- exact sums


async def test_cached_and_reasoning_tokens_are_counted_beside_the_others(rig, tmp_path):
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 130,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    answer = json.dumps({"choices": [{"message": {"content": "a"}}], "usage": usage}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(answer) + answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    gateway = rig.gateway(None, HttpUpstream(rig.session, f"http://{host}:{port}/v1beta/openai/"))
    async with GatewayClient(gateway, new_run(record=tmp_path / "ai.jsonl")) as client:
        assert (await client.post("/v1/chat/completions", {"model": "gemini", "messages": WORDS}))[0] == 200
        assert (await client.post("/api/chat", {"model": "gemini", "messages": WORDS, "stream": False}))[
            0
        ] == 200
        spent = client.run.usage
    server.close()
    assert (spent.prompt_tokens, spent.completion_tokens, spent.tokens) == (20, 240, 260)
    assert (spent.cached_tokens, spent.reasoning_tokens) == (16, 200)
    assert rig.value("worker_llm_token_parts_total", model="gemini", part="cached") == 16
    assert rig.value("worker_llm_token_parts_total", model="gemini", part="reasoning") == 200
    line = json.loads((tmp_path / "ai.jsonl").read_text().splitlines()[0])
    assert (line["cachedTokens"], line["reasoningTokens"]) == (8, 100)


async def test_a_model_that_never_answered_keeps_its_name_if_it_is_configured(rig):
    rig.metrics.model_labels.label("configured")
    server = HttpUpstream(rig.session, "http://127.0.0.1:1")
    async with GatewayClient(rig.gateway(None, server), new_run()) as client:
        for model in ("configured", "invented"):
            assert (await client.post("/v1/completions", {"model": model, "prompt": "a"}))[0] == 502
    assert rig.value("worker_llm_requests_total", model="configured", outcome="error") == 1
    assert rig.value("worker_llm_requests_total", model="other", outcome="error") == 1
    assert rig.value("worker_llm_requests_total", model="invented", outcome="error") == 0


async def test_a_stream_that_the_job_hangs_up_on_is_read_to_its_end_and_counted_exactly(rig, client):
    bodies = {
        "/api/generate": {"model": "fault/slow", "prompt": "count to 40"},
        "/api/chat": {"model": "fault/slow", "messages": COUNT},
        "/v1/chat/completions": {"model": "fault/slow", "messages": COUNT, "stream": True},
    }
    for path, body in bodies.items():
        response = await client.http.post(path, json=body)
        await response.content.readany()
        response.close()
    await settled(client)
    assert used(client) == (9, 40 + 9 + 9) == asked(rig)
    assert [request.state for request in rig.stub_model_server.log] == ["finished"] * 3
    assert rig.value("worker_llm_requests_total", model="fault/slow", outcome="ok") == 3


async def test_an_answer_in_one_piece_that_the_job_does_not_wait_for_is_counted(rig, client):
    sent = asyncio.create_task(
        client.post("/api/generate", {"model": "fault/never", "prompt": "count to 7", "stream": False})
    )
    async with asyncio.timeout(gateways.DEADLINE_S):
        await rig.stub_model_server.until(lambda log: len(log) == 1)
        sent.cancel()
        await asyncio.wait([sent])
        rig.stub_model_server.release()
    await settled(client)
    assert used(client) == (3, 7)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"prompt": "count to 9"}),
        ("/v1/chat/completions", {"messages": COUNT, "stream": True}),
    ],
)
async def test_the_end_of_a_run_cuts_its_streams_and_counts_the_tokens_until_then(rig, path, body):
    async with GatewayClient(rig.gateway(GatewayLimits(drain_s=3600)), new_run()) as client:
        response = await client.http.post(path, json={"model": "fault/hold", **body})
        async with asyncio.timeout(gateways.DEADLINE_S):
            while b"3" not in (await response.content.readany()):
                pass
            await client.end()
            # Counted in full the moment the run has ended.
            assert client.run.usage.completion_tokens == 3
            assert client.run.usage.prompt_tokens > 0  # nobody has said yet: estimated
            await rig.stub_model_server.until(lambda log: log[0].state == "cut")
        response.close()
    assert rig.value("worker_llm_requests_total", model="fault/hold", outcome="cut") == 1


async def test_a_request_without_an_answer_yet_ends_with_the_run_and_its_prompt_counts(rig):
    async with GatewayClient(rig.gateway(GatewayLimits(drain_s=3600)), new_run()) as client:
        sent = asyncio.create_task(
            client.post("/api/generate", {"model": "fault/never", "prompt": "a b c d"})
        )
        async with asyncio.timeout(gateways.DEADLINE_S):
            await rig.stub_model_server.until(lambda log: len(log) == 1)
            await client.end()
            assert client.run.usage.prompt_tokens > 0
            assert client.run.usage.completion_tokens == 0
            await rig.stub_model_server.until(lambda log: log[0].state == "cut")
        await asyncio.wait([sent])
        assert sent.exception() is not None


async def test_what_is_read_on_for_its_usage_ends_after_a_while(rig):
    async with GatewayClient(rig.gateway(GatewayLimits(drain_s=0.1)), new_run()) as client:
        response = await client.http.post(
            "/api/generate", json={"model": "fault/hold", "prompt": "count to 9"}
        )
        async with asyncio.timeout(gateways.DEADLINE_S):
            while b"3" not in (await response.content.readany()):
                pass
            response.close()
            await rig.stub_model_server.until(lambda log: log[0].state == "cut")
        await settled(client)
        assert client.run.usage.completion_tokens == 3


async def test_tokens_of_calls_in_parallel_add_up_exactly(rig, client):
    kinds = list(CALLS.values())
    jobs = [
        client.stream(path, {"model": f"m{at % 3}", **body}) for at, (path, body, _) in enumerate(kinds * 10)
    ]
    limit = asyncio.Semaphore(8)

    async def one(job: Any) -> None:
        async with limit:
            await job

    await asyncio.gather(*map(one, jobs))
    assert (
        used(client) == (10 * sum(t[0] for *_, t in kinds), 10 * sum(t[1] for *_, t in kinds)) == asked(rig)
    )
    assert client.run.usage.requests == 10 * len(kinds)


async def test_fifty_concurrent_runs_neither_see_nor_pay_for_each_other(rig, record_property):
    gateway = rig.gateway()

    async def one(number: int) -> None:
        """Each with a model, a question and a number of tokens of its own, streamed, aborted and whole."""
        async with GatewayClient(gateway, new_run(number, model=f"model-{number}")) as client:
            mine = f"secret-of-{number}"
            question = {"messages": [{"role": "user", "content": f"{mine} " + "x " * number}]}
            answers = await asyncio.gather(
                client.stream("/api/chat", question),
                client.stream("/v1/chat/completions", question | {"stream": True}),
                client.stream("/v1/chat/completions", question),
            )
            hung = await client.http.post("/api/generate", json={"prompt": f"count to {number + 1}"})
            await hung.content.readany()
            hung.close()
            for answer in answers:
                assert mine.encode() in answer
                assert answer.count(b"secret-of-") == 1
                assert f'"model": "model-{number}"'.encode() in answer
            await settled(client)
            assert used(client) == (3 * (number + 1) + 3, 3 * (number + 2) + number + 1)

    await asyncio.gather(*map(one, range(50)))
    record_property("tried", ["runs in parallel through the gateway", 50])
    assert len(rig.stub_model_server.log) == 200


# --- limits


def limits(**run: int) -> GatewayLimits:
    return GatewayLimits(run=RunLimits(**{"concurrent": 8, **run}))


async def test_a_run_that_has_used_its_tokens_is_told_so_and_how_to_raise_them(rig):
    async with GatewayClient(rig.gateway(limits(tokens=30)), new_run()) as client:
        assert (await client.post("/api/generate", {"prompt": "count to 28", "stream": False}))[0] == 200
        async with client.http.post("/v1/chat/completions", json={"messages": WORDS}) as response:
            assert response.status == 429
            assert response.headers["x-should-retry"] == "false"
            error = (await response.json())["error"]
        assert error["type"] == "insufficient_quota"
        assert "used 2" in error["message"]
        assert "AI_MAX_TOKENS=30" in error["message"]
        assert sum(used(client)) <= 30
        assert len(rig.stub_model_server.log) == 1


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/generate", {"prompt": "count to 900"}, "options"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "count to 900"}]}, "max_tokens"),
        ("/v1/completions", {"prompt": "count to 900", "max_tokens": 800}, "max_tokens"),
        ("/v1/responses", {"input": "count to 900"}, "max_output_tokens"),
    ],
)
async def test_concurrent_calls_cannot_exceed_the_tokens_of_their_run(rig, path, body, field):
    async with GatewayClient(rig.gateway(limits(tokens=400)), new_run()) as client:

        async def one() -> int:
            async with client.http.post(path, json=body) as response:
                await response.read()
                return response.status

        statuses = [status for _ in range(6) for status in await asyncio.gather(*(one() for _ in range(8)))]
        assert set(statuses) == {200, 429}
        assert 300 < sum(used(client)) <= 400
        assert sum(used(client)) == sum(asked(rig))
    assert all(field in request.body for request in rig.stub_model_server.log)


async def test_a_bound_that_the_job_sets_is_lowered_never_raised(rig):
    async with GatewayClient(rig.gateway(limits(tokens=1000)), new_run()) as client:
        await client.post("/v1/chat/completions", {"messages": WORDS, "max_tokens": 2})
        await client.post("/v1/chat/completions", {"messages": WORDS, "max_tokens": 5000, "n": 2})
        await client.post("/api/chat", {"messages": WORDS, "options": {"num_predict": -1}, "stream": False})
    first, second, third = (request.body for request in rig.stub_model_server.log)
    assert first["max_tokens"] == 2
    assert 400 < second["max_tokens"] < 500  # each of two choices
    assert 0 < third["options"]["num_predict"] < 1000


async def test_a_stream_past_the_budget_is_cut_whatever_bound_the_upstream_was_given(rig, monkeypatch):
    words = ["x" * 10_000] * 4000
    monkeypatch.setattr("nanoagent.dev.stub_model_server.replies.answer_words", lambda _prompt, _limit: words)
    async with GatewayClient(rig.gateway(limits(tokens=500)), new_run()) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.stream("/api/generate", {"prompt": "a"})
        async with asyncio.timeout(gateways.DEADLINE_S):
            await rig.stub_model_server.until(lambda log: log[0].state == "cut")
        await settled(client)
        # One piece more at a model's pace; here, as many as come in one read.
        assert 500 < sum(used(client)) < 540


async def test_a_function_has_its_tokens_a_minute_in_all_its_runs_together(rig):
    clock = [0.0]
    gateway = rig.gateway()
    gateway = type(gateway)(
        gateway.shared.servers, GatewayLimits(function_tokens_per_minute=60), rig.metrics, lambda: clock[0]
    )
    body = {"prompt": "count to 50", "stream": False}
    async with GatewayClient(gateway, new_run(1)) as first, GatewayClient(gateway, new_run(2)) as second:
        assert (await first.post("/api/generate", body))[0] == 200
        async with second.http.post("/v1/chat/completions", json={"messages": WORDS}) as response:
            assert response.status == 429
            assert 1 <= int(response.headers["Retry-After"]) <= 60
            assert "AI_FUNCTION_TOKENS_PER_MINUTE=60" in (await response.json())["error"]["message"]
        async with GatewayClient(gateway, new_run(3, function_id="another")) as third:
            assert (await third.post("/api/generate", body))[0] == 200
        clock[0] = 60.0
        assert (await second.post("/api/generate", body))[0] == 200


async def test_each_limit_refuses_with_its_name_and_value(rig):
    async with GatewayClient(rig.gateway(limits(requests=1)), new_run()) as client:
        await client.post("/api/embed", {"input": "a"})
        status, said = await client.post("/api/embed", {"input": "a"})
        assert (status, "AI_MAX_REQUESTS=1" in said["error"]) == (429, True)
    async with GatewayClient(rig.gateway(limits(bytes=2000)), new_run()) as client:
        status, said = await client.post("/api/embed", {"input": "a" * 3000})
        assert (status, "AI_MAX_BYTES=2000" in said["error"]) == (413, True)
    async with GatewayClient(rig.gateway(GatewayLimits(request_bytes=1000)), new_run()) as client:
        status, said = await client.post("/v1/embeddings", {"input": "a" * 1001})
        assert (status, "AI_MAX_REQUEST_BYTES=1000" in said["error"]["message"]) == (413, True)
    async with GatewayClient(rig.gateway(GatewayLimits(timeout_s=0.1)), new_run()) as client:
        status, said = await client.post("/api/generate", {"model": "fault/never", "prompt": "a"})
        assert (status, "AI_TIMEOUT_SECONDS=0.1" in said["error"]) == (504, True)
    async with GatewayClient(rig.gateway(limits(concurrent=1)), new_run()) as client:
        held = asyncio.create_task(client.post("/api/generate", {"model": "fault/never", "prompt": "a"}))
        async with asyncio.timeout(gateways.DEADLINE_S):
            await rig.stub_model_server.until(lambda log: log[-1].state == "open")
        async with client.http.post("/v1/chat/completions", json={"messages": WORDS}) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            assert "AI_MAX_CONCURRENT=1" in (await response.json())["error"]["message"]
        held.cancel()


# --- what goes wrong behind it


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("fault", "status"),
    [("401", 502), ("404", 404), ("429", 429), ("500", 500), ("html", 502), ("redirect", 502)],
)
async def test_a_refusal_of_the_upstream_is_an_error_in_the_format_of_the_api(rig, path, fault, status):
    server = HttpUpstream(rig.session, rig.stub_model_server.url, key="sk-real")
    async with GatewayClient(rig.gateway(None, server), new_run()) as client:
        async with client.http.post(path, json={"model": f"fault/{fault}", "messages": WORDS}) as response:
            assert response.status == status
            said = await response.json()
            assert isinstance(said["error"], dict if path.startswith("/v1") else str)
            assert "sk-real" not in json.dumps(said)
            assert ("***" in json.dumps(said)) is (fault in {"404", "500"})  # the stub quotes it
            assert rig.stub_model_server.url not in json.dumps(said)
            assert response.headers.get("Retry-After") == ("7" if fault == "429" else None)
        assert used(client) == (0, 0)
        assert client.run.usage.refused == 0
    assert rig.value("worker_llm_requests_total", model="other", outcome="error") == 1


@pytest.mark.parametrize(
    ("key", "user_info", "quoted"),
    [
        ("sk/a+b=", "", rb"sk\/a+b="),
        ("sk-real", "", rb"\u0073k-real"),
        (None, "user:p%40ss", b"p@ss"),
        (None, "user:p%40ss", b"p%40ss"),
        (None, "user:p%40ss", b"dXNlcjpwQHNz"),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("api", list(Api))
async def test_a_key_that_a_server_repeats_in_another_form_is_removed(rig, key, user_info, quoted, path, api):
    if api is Api.OLLAMA and path.startswith("/v1"):
        pytest.skip("such a server does not get the call")
    body = b'{"error": "the key is %s.", "x": 1.50}' % quoted

    async with answering(400, body) as address:
        url = f"http://{user_info}@{address}" if user_info else f"http://{address}"
        server = HttpUpstream(rig.session, url, key=key, api=api)
        async with GatewayClient(rig.gateway(None, server), new_run()) as client:
            _, said = await client.post(path, {"messages": WORDS})
    assert said["error"] == "the key is ***."


async def test_an_upstream_that_is_down_is_a_502_that_names_no_address(rig):
    async with GatewayClient(
        rig.gateway(None, HttpUpstream(rig.session, "http://127.0.0.1:1")), new_run()
    ) as client:
        for path in ("/api/chat", "/v1/chat/completions"):
            status, said = await client.post(path, {"messages": WORDS})
            assert status == 502
            assert "127.0.0.1" not in json.dumps(said)
        async with client.http.get("/api/tags") as response:
            assert response.status == 502
        assert used(client) == (0, 0)


async def test_the_log_says_once_that_a_server_fails_and_when_it_answers_again(rig):
    server = HttpUpstream(rig.session, "http://127.0.0.1:1", key="sk-real")
    with capture_logs() as logged:
        async with GatewayClient(rig.gateway(None, server), new_run()) as client:
            for _ in range(5):
                await client.post("/api/chat", {"messages": WORDS})
            server._base = rig.stub_model_server.url
            for model in ("fault/401", "fault/401", "m", "m"):
                await client.post("/api/chat", {"model": model, "messages": WORDS, "stream": False})
    told = [entry["event"] for entry in logged]
    assert told == ["model server failed", "model server failed", "model server recovered"]
    assert "Cannot connect" in logged[0]["reason"]  # the operator's to know
    assert "sk-real" not in str(logged)


async def test_a_client_of_http_1_0_reads_a_stream_to_the_connections_end(rig, client):
    head, _, body = (await client.raw(post("/api/chat", ASK_COUNT, line="POST {} HTTP/1.0"))).partition(
        b"\r\n\r\n"
    )
    assert b"chunked" not in head.lower()
    assert len([json.loads(line) for line in body.splitlines()]) == 10
    assert used(client) == (3, 9)


async def test_an_upstream_that_closes_mid_stream_is_a_stream_that_breaks_off(rig, client):
    for path, body in (
        ("/api/generate", {"prompt": "count to 9"}),
        ("/v1/chat/completions", {"messages": COUNT, "stream": True}),
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.stream(path, {"model": "fault/close", **body})
    assert client.run.usage.completion_tokens == 6
    assert (await client.post("/api/generate", {"prompt": "a", "stream": False}))[0] == 200


async def test_garbage_reaches_the_job_as_it_is_and_costs_nothing_but_an_estimate(rig, client):
    answer = await client.stream("/api/chat", {"model": "fault/garbage", "messages": WORDS})
    assert answer == b"\x00\xff\xfe<garbage>" * 100
    for path, body in (
        ("/api/chat", {"messages": COUNT}),
        ("/v1/chat/completions", {"messages": COUNT, "stream": True}),
    ):
        before = used(client)
        answer = await client.stream(path, {"model": "fault/lines", **body})
        assert answer.count(b"{") > 9
        assert (used(client)[0] - before[0], used(client)[1] - before[1]) == (3, 9)


async def test_an_upstream_that_says_nothing_of_tokens_is_estimated(rig, client):
    await client.stream("/api/chat", {"model": "fault/nousage", "messages": COUNT})
    assert used(client)[1] == 9
    assert used(client)[0] > 0
    before = used(client)[1]
    await client.post("/v1/chat/completions", {"model": "fault/nousage", "messages": COUNT})
    assert used(client)[1] > before


async def test_gigabytes_end_at_the_runs_limit_and_fill_no_memory(rig):
    received, mib = 0, 1024 * 1024
    gateway = rig.gateway(limits(bytes=128 * mib))
    async with GatewayClient(gateway, new_run(1)) as client, GatewayClient(gateway, new_run(2)) as other:
        response = await client.http.post("/api/generate", json={"model": "fault/gigabytes", "prompt": "a"})
        # A job that does not read holds its own stream up, and nobody else.
        for _ in range(50):
            assert (await other.post("/api/embed", {"input": "a"}))[0] == 200
        # What the kernel holds between four sockets, and no more.
        assert rig.stub_model_server.log[0].pieces * 65536 < 64 * mib
        async with asyncio.timeout(gateways.DEADLINE_S):
            with suppress(aiohttp.ClientPayloadError):
                while data := await response.content.readany():
                    received += len(data)
            await rig.stub_model_server.until(lambda log: log[0].state == "cut")
        assert 64 * mib < received <= 128 * mib


async def test_an_upstream_that_hangs_slows_no_other_job(rig):
    gateway = rig.gateway()
    async with GatewayClient(gateway, new_run(1)) as stuck, GatewayClient(gateway, new_run(2)) as other:
        waiting = [
            asyncio.create_task(stuck.post("/api/generate", {"model": "fault/never", "prompt": "a"}))
            for _ in range(20)
        ]
        async with asyncio.timeout(gateways.DEADLINE_S):
            await rig.stub_model_server.until(lambda log: len(log) == 20)
            assert (await other.post("/api/generate", {"prompt": "a", "stream": False}))[0] == 200
            assert not any(task.done() for task in waiting)
            await stuck.end()
            await asyncio.wait(waiting)


# --- a hostile job as HTTP client


def post(path: str, body: bytes, *headers: str, line: str = "POST {} HTTP/1.1") -> bytes:
    """A request as bytes; the connection is closed after it."""
    head = [line.format(path), "Host: 127.0.0.1:11434", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*head, *headers, "", ""]).encode() + body


ASK = json.dumps({"model": "m", "prompt": "a", "stream": False}).encode()
ASK_COUNT = json.dumps({"messages": COUNT}).encode()

HOSTILE: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "a path above": (post("/v1/../api/delete", ASK), (404,)),
    "a path above, encoded": (post("/v1/%2e%2e/api/delete", ASK), (404,)),
    "three slashes": (post("/api///generate", ASK), (404,)),
    "three slashes before it": (post("///api/generate", ASK), (404,)),
    "three slashes behind it": (post("/api/generate///", ASK), (404,)),
    "an encoded slash": (post("/api%2Fgenerate", ASK), (404,)),
    "an encoded slash too many": (post("/api/%2Fgenerate", ASK), (404,)),
    "an encoded slash behind it": (post("/api/generate%2F", ASK), (404,)),
    "a dot in between": (post("/api/./generate", ASK), (404,)),
    "a path above behind a doubled slash": (post("//v1/..//api/delete", ASK), (404,)),
    "a doubled backslash": (post("/api\\\\generate", ASK), (404,)),
    "a slash and a backslash": (post("/\\api/generate", ASK), (404,)),
    "pull with a doubled slash": (post("//api//pull/", b'{"model":"evil"}'), (403,)),
    "a blob with a doubled slash": (post("/api//blobs/sha256:0", b"x"), (403,)),
    "files of others with a doubled slash": (post("/v1//files/", b"{}"), (404,)),
    "a known path in capitals": (post("/API/generate", ASK), (404,)),
    "a known path, encoded": (post("/api/%67enerate", ASK), (404,)),
    "a backslash": (post("/api\\generate", ASK), (404,)),
    "an address in the path": (post("http://169.254.169.254/latest/meta-data", ASK), (404,)),
    "an address and a known path": (post("http://evil.example/api/generate", ASK), (404,)),
    "an address with a user": (post("//user@evil.example/api/generate", ASK), (404,)),
    "CONNECT": (post("evil.example:443", b"", line="CONNECT {} HTTP/1.1"), (400, 404)),
    "an upgrade": (
        post("/api/generate", b"", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x"),
        (400,),
    ),
    "h2c": (post("/api/tags", b"", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"), (405,)),
    "pull": (post("/api/pull", b'{"model":"evil"}'), (403,)),
    "push": (post("/api/push", b'{"model":"evil"}'), (403,)),
    "create": (post("/api/create", b'{"model":"evil"}'), (403,)),
    "copy": (post("/api/copy", b'{"source":"a","destination":"b"}'), (403,)),
    "delete": (post("/api/delete", b'{"model":"m"}', line="DELETE {} HTTP/1.1"), (403,)),
    "blobs": (post("/api/blobs/sha256:0", b"x"), (403,)),
    "files of others": (post("/v1/files", b"{}"), (404,)),
    "responses of others": (post("/v1/responses/resp_1", b"", line="GET {} HTTP/1.1"), (404,)),
    "two lengths": (post("/api/generate", ASK, "Content-Length: 3"), (400,)),
    "a length and chunks": (post("/api/generate", ASK, "Transfer-Encoding: chunked"), (400,)),
    "a strange encoding": (post("/api/generate", ASK, "Transfer-Encoding: gzip, chunked"), (400,)),
    "chunked twice": (post("/api/generate", ASK, "Transfer-Encoding: chunked, chunked"), (400,)),
    "a length that is none": (post("/api/generate", ASK, "Content-Length: +5"), (400,)),
    "a negative length": (
        b"POST /api/generate HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        (400,),
    ),
    "a folded header": (post("/api/generate", ASK, "X-A: b\r\n c: d"), (400,)),
    "a header without a name": (post("/api/generate", ASK, ": x"), (400,)),
    "a space before the colon": (post("/api/generate", ASK, "Transfer-Encoding : chunked"), (400,)),
    "a NUL in a header": (post("/api/generate", ASK, "X-A: b\0c"), (400,)),
    "a bare CR": (post("/api/generate", ASK, "X-A: b\rX-B: c"), (400,)),
    "a huge header": (post("/api/generate", ASK, "X-A: " + "a" * 100_000), (400,)),
    "a huge line": (post("/" + "a" * 100_000, ASK), (400,)),
    "thousands of headers": (post("/api/generate", ASK, *(f"X-{n}: a" for n in range(5000))), (400,)),
    "a compressed body": (post("/api/generate", ASK, "Content-Encoding: gzip"), (415,)),
    "a body of a terabyte": (
        b"POST /api/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\n" + ASK,
        (413,),
    ),
    "chunks without end": (
        b"POST /api/generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n"
        + (b"a" * 65536 + b"\r\n10000\r\n") * 200,
        (413,),
    ),
    "chunks of a wrong size": (
        b"POST /api/generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        (400,),
    ),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 100 + b"\r\n\r\n", (400,)),
    "HTTP/0.9": (b"GET /api/tags\r\n\r\n", (505,)),
    "no JSON": (post("/api/generate", b"{" * 1000), (400,)),
    "an array": (post("/v1/chat/completions", b"[]"), (400,)),
    "nested without end": (
        post("/v1/chat/completions", b'{"messages":' + b"[" * 40_000 + b"]" * 40_000 + b"}"),
        (400,),
    ),
    "objects without end": (
        post("/v1/chat/completions", b'{"messages":[' + b"{}," * 300_000 + b"{}]}"),
        (413,),
    ),
    "numbers without end": (
        post("/v1/chat/completions", b'{"messages":[' + b"0," * 1_500_000 + b"0]}"),
        (413,),
    ),
    "fields without end": (
        post("/api/chat", b"{" + b",".join(b'"%d":1' % number for number in range(200_000)) + b"}"),
        (413,),
    ),
    "too many fields": (
        post("/api/chat", b"{" + b",".join(b'"%d":1' % number for number in range(300)) + b"}"),
        (400,),
    ),
    "tools without end": (
        post("/v1/responses", b'{"tools":[' + b'{"type":"function"},' * 2000 + b"{}]}"),
        (400,),
    ),
    "a name of megabytes": (post("/api/chat", b'{"' + b"a" * 4_000_000 + b'":1}'), (400,)),
    "escapes without end": (post("/api/chat", b'{"' + b"\\u0041" * 1_200_000 + b'":1}'), (413,)),
    "a number without end": (post("/v1/completions", b'{"max_tokens":' + b"9" * 10_000 + b"}"), (400,)),
    "no UTF-8": (post("/v1/chat/completions", b'{"messages":[{"content":"\xff\xfe"}]}'), (400,)),
    "a model that is no string": (post("/api/chat", b'{"model":{"$ne":null}}'), (400,)),
    "a model with a line in it": (post("/api/chat", b'{"model":"a\\r\\nX-Evil: 1"}'), (400,)),
    "the model in Go's spelling": (post("/api/chat", b'{"model":"m","MODEL":"other"}'), (400,)),
    "the model in Unicode's spelling": (post("/api/chat", '{"\u017ftream":false}'.encode()), (400,)),
    "further models": (post("/v1/chat/completions", b'{"models":["other"]}'), (400,)),
    "another server": (post("/v1/chat/completions", b'{"api_base":"http://evil"}'), (400,)),
    "work that nobody counts": (post("/v1/responses", b'{"background":true,"input":"a"}'), (400,)),
    "what others have stored": (post("/v1/responses", b'{"previous_response_id":"r","input":"a"}'), (403,)),
    "an item of another": (
        post("/v1/responses", b'{"input":[{"type":"item_reference","id":"msg_1"}]}'),
        (403,),
    ),
    "a file of another": (
        post("/v1/responses", b'{"input":[{"content":[{"type":"input_file","file_id":"file-1"}]}]}'),
        (403,),
    ),
    "a URL that the upstream would fetch": (
        post(
            "/v1/chat/completions",
            b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]}',
        ),
        (403,),
    ),
    "such a URL, escaped": (
        post(
            "/v1/chat/completions",
            b'{"messages":[{"content":[{"im\\u0061ge_url":{"u\\u0072l":"http://a/"}}]}]}',
        ),
        (403,),
    ),
    "such a URL behind one that is none": (
        post(
            "/v1/chat/completions",
            b'{"messages":[{"content":[{"image_url":{"url":"http://a","url":"data:,a"}}]}]}',
        ),
        (400,),
    ),
    "a search": (post("/v1/responses", b'{"input":"a","tools":[{"type":"web_search"}]}'), (403,)),
    "a tool server": (
        post("/v1/responses", b'{"input":"a","tools":[{"type":"mcp","server_url":"https://evil"}]}'),
        (403,),
    ),
    "a search behind a function": (
        post("/v1/responses", b'{"input":"a","tools":[{"type":"mcp","type":"function"}]}'),
        (403,),
    ),
    "a search in a chat": (post("/v1/chat/completions", b'{"web_search_options":{}}'), (403,)),
}


@pytest.mark.parametrize(("sent", "statuses"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_requests_are_refused_and_reach_no_upstream(rig, client, sent, statuses):
    answer = await client.raw(sent)
    assert int(answer.split(b" ", 2)[1]) in statuses, answer[:300]
    assert rig.stub_model_server.log == []
    assert used(client) == (0, 0)
    # And the gateway is as it was.
    assert (await client.post("/api/generate", {"prompt": "a", "stream": False}))[0] == 200


async def test_what_was_tried_is_counted(record_property):
    record_property("tried", ["requests that no client should send", len(HOSTILE)])


async def test_requests_behind_one_another_are_answered_in_their_order(rig, client):
    sent = b"".join(
        post("/api/generate", json.dumps({"prompt": f"p{at}", "stream": False}).encode()).replace(
            b"Connection: close\r\n", b"" if at < 4 else b"Connection: close\r\n"
        )
        for at in range(5)
    )
    answer = await client.raw(sent)
    assert [f"p{at}" in part for at, part in enumerate(answer.decode().split("echo: ")[1:])] == [True] * 5
    assert used(client) == (5, 10)


async def test_a_body_that_hides_a_request_is_a_body(rig, client):
    hidden = post("/api/delete", b'{"model":"m"}')
    await client.raw(post("/api/embed", json.dumps({"input": hidden.decode()}).encode()))
    assert [request.path for request in rig.stub_model_server.log] == ["/api/embed"]


async def test_expect_100_continue_is_answered_before_the_body_and_not_for_one_that_is_too_large(rig):
    async with GatewayClient(rig.gateway(GatewayLimits(request_bytes=1000)), new_run()) as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        head, body = post("/api/generate", ASK, "Expect: 100-continue").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        async with asyncio.timeout(gateways.DEADLINE_S):
            assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
            writer.write(body)
            assert b"200 OK" in await reader.read()
            writer.close()
        refused = await client.raw(post("/api/generate", b"a" * 2000, "Expect: 100-continue"))
        assert refused.startswith(b"HTTP/1.1 413 ")


async def test_connections_that_say_nothing_or_drop_by_drop_hold_up_nobody(rig, record_property):
    gateway = rig.gateway()
    async with GatewayClient(gateway, new_run(1)) as hostile, GatewayClient(gateway, new_run(2)) as other:
        held = []
        for at in range(300):
            reader, writer = await asyncio.open_connection(hostile.host, hostile.port)
            if at % 3:
                writer.write(b"POST /api/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n")
            if at % 3 == 2:
                writer.write(b"\r\n{")
            held.append((reader, writer))
        for _ in range(5):
            for _, writer in held:
                writer.write(b"X")
            assert (await other.post("/api/generate", {"prompt": "a", "stream": False}))[0] == 200
        async with asyncio.timeout(gateways.DEADLINE_S):
            await hostile.end()
            assert not hostile.served
            for reader, writer in held:  # cut, each
                with suppress(ConnectionError):
                    await reader.read()
                writer.close()
    record_property("tried", ["connections that say nothing", len(held)])


async def test_a_run_that_has_used_its_share_of_the_loop_waits_and_no_other_run_does(rig):
    gateway = rig.gateway()
    async with GatewayClient(gateway, new_run(1)) as other, GatewayClient(gateway, new_run(2)) as hostile:
        gateway.state_of(hostile.run).cpu_time.charge(1e9)
        waiting = [asyncio.create_task(hostile.post("/api/embed", {"input": "b"})) for _ in range(3)]
        for _ in range(20):
            assert (await other.post("/api/embed", {"input": "a"}))[0] == 200
        assert not any(task.done() for task in waiting)
        await hostile.end()
        await asyncio.wait(waiting)
    assert {request.body["input"] for request in rig.stub_model_server.log} == {"a"}


@pytest.mark.parametrize("path", ["/api/generate", "/api/nothing"])
async def test_chunks_of_one_byte_are_read_no_faster_than_the_runs_share_of_the_loop(rig, monkeypatch, path):
    """Neither the body of a request, nor what is read of one that was refused."""
    monkeypatch.setattr(connection, "_LINGER_S", gateways.DEADLINE_S)
    gateway = rig.gateway()
    memory = gateway.shared.memory = WatchedMemory(10_000_000)
    received = 0
    data_received = connection._RequestHandler.data_received

    def counted(self: connection._RequestHandler, data: bytes) -> None:
        nonlocal received
        received += len(data) * (self.cpu_time is gateway.state_of(hostile.run).cpu_time)
        data_received(self, data)

    monkeypatch.setattr(connection._RequestHandler, "data_received", counted)
    async with GatewayClient(gateway, new_run(1)) as other, GatewayClient(gateway, new_run(2)) as hostile:
        lingering = asyncio.Event()
        monkeypatch.setattr(hostile.run, "usage", Announcing(lingering))
        _, writer = await asyncio.open_connection(hostile.host, hostile.port)
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode() + b"1\r\na\r\n")
        async with asyncio.timeout(gateways.DEADLINE_S):
            if path == "/api/nothing":
                await lingering.wait()
            else:
                await memory.until(lambda left: left < 10_000_000)  # somebody reads on
        gateway.state_of(hostile.run).cpu_time.charge(1e9)
        writer.write(b"1\r\na\r\n" * 4_000_000)
        for _ in range(50):
            assert (await other.post("/api/embed", {"input": "a"}))[0] == 200
        assert 0 < received <= 1024 * 1024  # what some reads bring, of 24 MB
        await hostile.end()
        writer.close()


async def test_a_connection_without_a_request_is_closed_after_a_while(rig, monkeypatch):
    monkeypatch.setattr("nanoagent.ai.connection._IDLE_S", 0.1)
    async with GatewayClient(rig.gateway(), new_run()) as client:
        assert await client.raw(b"POST /api/generate HTTP/1.1\r\nHost: a\r\n") == b""


async def test_a_body_that_does_not_come_is_not_waited_for(rig, monkeypatch):
    monkeypatch.setattr("nanoagent.ai.bodies._READ_TIMEOUT_S", 0.1)
    async with GatewayClient(rig.gateway(), new_run()) as client:
        answer = await client.raw(post("/api/generate", ASK)[:-1])
        assert answer.startswith(b"HTTP/1.1 408 ")


class Announcing(AiUsage):
    """Says when something is counted."""

    def __init__(self, counted: asyncio.Event) -> None:
        super().__init__()
        self.counted = counted

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "refused" and value:
            self.counted.set()


class WatchedMemory(BodyMemory):
    """Says how much room there is whenever that changes."""

    def __init__(self, most_bytes: int) -> None:
        self._changed = asyncio.Event()
        super().__init__(most_bytes)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self._changed.set()

    async def until(self, seen: Callable[[int], bool]) -> None:
        while not seen(self.free_bytes):
            self._changed.clear()
            await self._changed.wait()


async def test_the_memory_for_bodies_of_all_runs_is_limited(rig):
    gateway = rig.gateway()
    gateway.shared.memory = memory = WatchedMemory(150_000)
    async with GatewayClient(gateway, new_run(1)) as hostile, GatewayClient(gateway, new_run(2)) as other:
        _, writer = await asyncio.open_connection(hostile.host, hostile.port)
        writer.write(post("/api/embed", b"a" * 70_000)[:-1])
        async with asyncio.timeout(gateways.DEADLINE_S):
            await memory.until(lambda left: left < 81_000)
            # One run holds half of it at the most.
            status, said = await hostile.post("/v1/embeddings", {"input": "a" * 10_000})
            assert (status, said["error"]["code"]) == (503, "busy")
            status, said = await other.post("/v1/embeddings", {"input": "a" * 50_000})
            assert (status, said["error"]["code"]) == (503, "busy")
            assert (await other.post("/v1/embeddings", {"input": "a" * 30_000}))[0] == 200
            writer.close()
            await memory.until(lambda left: left == 150_000)
        assert (await other.post("/v1/embeddings", {"input": "a" * 50_000}))[0] == 200
        assert (await hostile.post("/v1/embeddings", {"input": "a" * 50_000}))[0] == 200


async def test_a_job_that_has_hung_up_while_its_large_request_waits_asks_nobody(rig, monkeypatch):
    monkeypatch.setattr(responder, "_LARGE_BYTES", 0)
    gateway = rig.gateway()
    lost = noted_losses(monkeypatch)
    async with GatewayClient(gateway, new_run()) as client, asyncio.timeout(gateways.DEADLINE_S):
        async with gateway.shared.large_body_lock:
            _, writer = await asyncio.open_connection(client.host, client.port)
            writer.write(post("/api/generate", ASK))
            while not gateway.shared.large_body_lock._waiters:  # noqa: ASYNC110 - a lock says nothing of those who wait
                await asyncio.sleep(0)
            writer.close()
            await lost.wait()
            served = set(client.served)
        await asyncio.gather(*served)
    assert rig.stub_model_server.log == []


async def test_each_large_request_is_charged_before_the_next_one_of_its_run_is_read(rig, monkeypatch):
    monkeypatch.setattr(responder, "_LARGE_BYTES", 0)
    gateway = rig.gateway()
    async with GatewayClient(gateway, new_run(1)) as other, GatewayClient(gateway, new_run(2)) as hostile:
        read = calls.read

        def dear(route: Any, sent: bytes, *given: Any, **named: Any) -> Any:
            if b"dear" in sent:
                gateway.state_of(hostile.run).cpu_time.charge(1e9)
            return read(route, sent, *given, **named)

        monkeypatch.setattr(calls, "read", dear)
        async with asyncio.timeout(gateways.DEADLINE_S):
            async with gateway.shared.large_body_lock:
                waiting = [
                    asyncio.create_task(hostile.post("/api/embed", {"input": "dear"})) for _ in range(3)
                ]
                while len(gateway.shared.large_body_lock._waiters or ()) < 3:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for _ in range(20):
                assert (await other.post("/api/embed", {"input": "a"}))[0] == 200
        assert sum(task.done() for task in waiting) == 1
        await hostile.end()
        await asyncio.wait(waiting)
    assert [request.body["input"] for request in rig.stub_model_server.log].count("dear") == 1


async def test_no_more_answers_are_requested_than_the_run_has_tokens_for(rig):
    gateway = rig.gateway(GatewayLimits(run=RunLimits(tokens=1000)))
    async with GatewayClient(gateway, new_run()) as client:
        body = {"messages": [], "n": 5000, "max_tokens": 1}
        status, said = await client.post("/v1/chat/completions", body)
    assert (status, said["error"]["code"]) == (429, "token_limit")
    assert rig.stub_model_server.log == []


class Sent:
    """A model server that answers each request with the same stream."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + self._sent)
            await writer.drain()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


class Lines:
    """A model server that answers with one line, and when it is told to with very many."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n{}\n")
            await self.go_on.wait()
            writer.write(b"{}\n" * 1_000_000)
            await writer.drain()
            await reader.read()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


async def test_lines_of_a_stream_are_counted_no_faster_than_the_runs_share_of_the_loop(rig):
    lines = Lines()
    async with lines as url:
        flood = rig.gateway(None, HttpUpstream(rig.session, url))
        async with (
            GatewayClient(flood, new_run(1)) as flooded,
            GatewayClient(rig.gateway(), new_run(2)) as other,
        ):
            received = 0
            more = asyncio.Event()

            async def read() -> None:
                nonlocal received
                async with flooded.http.post("/api/generate", json={"prompt": "a"}) as response:
                    async for data in response.content.iter_any():
                        received += len(data)
                        more.set()

            reading = asyncio.create_task(read())
            async with asyncio.timeout(gateways.DEADLINE_S):
                await more.wait()
                more.clear()
                flood.state_of(flooded.run).cpu_time.charge(1e9)
                lines.go_on.set()
                await more.wait()
            for _ in range(50):
                assert (await other.post("/api/embed", {"input": "a"}))[0] == 200
            assert received <= 3 + relay._PIECE
            await flooded.end()
            await asyncio.wait({reading})
            reading.exception()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_line_with_very_many_choices_does_not_block_the_loop(rig, path):
    """A translated one is the server's failure; one that is passed on is counted without reading it all."""
    choices = b'data: {"choices":[' + b",".join([b"{}"] * 500_000) + b"]}\n\n"
    async with Sent(choices + b"data: [DONE]\n\n") as url:
        gateway = rig.gateway(None, HttpUpstream(rig.session, f"{url}/v1", api=Api.OPENAI))
        async with GatewayClient(gateway, new_run()) as client:
            body = {"messages": WORDS, "stream": True}
            async with client.http.post(path, json=body) as response:
                text = await response.text()
            await settled(client)
        if path == "/api/chat":
            assert (response.status, "too many parts" in text) == (502, True)
        else:
            assert (response.status, used(client)[1]) == (200, 1)


async def test_a_list_of_models_has_an_end_and_garbage_in_it_is_left_out(rig):
    entries = [b"17", b'{"name":5}', b"[1]", b'{"id":"x"}', b'{"name":"first","size":1.50}']
    entries += [b'{"name":"m%d"}' % at for at in range(5000)]

    document = b'{"models":[' + b",".join(entries) + b"]}"
    async with answering(200, document) as address:
        gateway = rig.gateway(None, HttpUpstream(rig.session, f"http://{address}"))
        async with GatewayClient(gateway, new_run()) as client, client.http.get("/api/tags") as response:
            listed = await response.read()
    assert listed.startswith(b'{"models":[{"name":"first","size":1.50},{"name":"m0"}')
    assert len(json.loads(listed)["models"]) <= 4096


async def test_a_server_that_fails_every_other_time_floods_no_log(rig):
    """Some answer 403 to what they do not like to read, so that a job could have it so."""
    now = [0.0]
    gateway = Gateway(Upstreams(()), GatewayLimits(), rig.metrics, lambda: now[0])
    server = HttpUpstream(rig.session, "http://127.0.0.1:1")
    with capture_logs() as logs:
        for _ in range(100):
            gateway.shared.server_log.note(server, "it refuses the key: 403")
            gateway.shared.server_log.note(server, None)
        assert 2 <= len(logs) <= 20
        gateway.shared.server_log.note(server, "it is down")
        now[0] = 60.0
        logs.clear()
        gateway.shared.server_log.note(server, "it is down")
        gateway.shared.server_log.note(server, None)
    assert [entry["event"] for entry in logs] == ["model server failed", "model server recovered"]


async def test_what_is_no_http_is_not_told_what_the_gateway_is_made_of(rig):
    async with GatewayClient(rig.gateway(), new_run()) as client:
        for said in (b"\0\0\0\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"):
            answer = (await client.raw(said)).lower()
            assert answer.startswith(b"http/1.0 400 ")
            assert b"aiohttp" not in answer
            assert b"server: nanoagent\r\n" in answer


async def test_remote_tools_are_open_where_the_worker_says_so(rig):
    async with GatewayClient(rig.gateway(GatewayLimits(remote_tools=True)), new_run()) as client:
        content = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
        body = {"messages": [{"role": "user", "content": content}], "tools": [{"type": "web_search"}]}
        assert (await client.post("/v1/chat/completions", body))[0] == 200


# --- written down, and answered from what was


async def test_what_was_written_down_is_answered_again_without_an_upstream(rig, tmp_path):
    file = tmp_path / "r-1" / "ai.jsonl"
    asked_for = [(path, {"model": "llama3:8b", **body}) for path, body, _ in CALLS.values()]
    server = HttpUpstream(rig.session, rig.stub_model_server.url, key="sk-canary")
    async with GatewayClient(rig.gateway(None, server), new_run(record=file)) as client:
        first = [await client.stream(path, body) for path, body in asked_for]
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.stream("/api/generate", {"model": "fault/close", "prompt": "count to 9"})
        spent = used(client)
    written = file.read_text()
    assert "sk-canary" not in written
    assert written.count("\n") == len(asked_for) + 1
    assert json.loads(written.splitlines()[0]).keys() >= {
        "request",
        "answer",
        "promptTokens",
        "ms",
        "complete",
    }
    before = len(rig.stub_model_server.log)
    async with GatewayClient(rig.gateway(None, Replay([file])), new_run()) as client:
        again = [await client.stream(path, body) for path, body in asked_for]
        # A budget changes what goes to a server, and not what is looked up.
        assert again == first
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.stream("/api/generate", {"model": "fault/close", "prompt": "count to 9"})
        assert used(client) == spent
        for path in ("/api/generate", "/v1/completions"):
            status, said = await client.post(path, {"model": "llama3:8b", "prompt": "never asked"})
            assert status == 404
            assert "AI_REPLAY" in json.dumps(said)
        async with client.http.get("/v1/models") as response:
            assert (await response.json())["data"][0]["id"] == "llama3:8b"
    async with GatewayClient(rig.gateway(limits(tokens=10_000), Replay([file])), new_run()) as client:
        assert [await client.stream(path, body) for path, body in asked_for] == first
    assert len(rig.stub_model_server.log) == before


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("openai_only", [False, True])
async def test_an_error_is_recorded_as_the_job_saw_it_without_the_key_and_replayed(
    rig, openai_rig, tmp_path, path, openai_only
):
    url = (openai_rig if openai_only else rig).stub_model_server.url
    file = tmp_path / "ai.jsonl"
    requests = [
        {"model": f"fault/{fault}", "messages": WORDS} for fault in ("401", "404", "429", "500", "html")
    ]
    server = HttpUpstream(rig.session, url, key="sk-real")
    async with GatewayClient(rig.gateway(None, server), new_run(record=file)) as client:
        first = [await client.post(path, body) for body in requests]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert "sk-real" not in file.read_text()
    assert [(line["status"], json.loads(line["answer"])) for line in lines] == first
    async with GatewayClient(rig.gateway(None, Replay([file])), new_run()) as client:
        assert [await client.post(path, body) for body in requests] == first


async def test_a_file_that_is_no_recording_is_named_with_its_line(tmp_path):
    file = tmp_path / "ai.jsonl"
    file.write_text("{}\n")
    with pytest.raises(ValueError, match=r"ai\.jsonl, line 1 is not a recorded model call"):
        Replay([file])


async def test_a_record_that_can_not_be_written_costs_the_run_nothing(rig, tmp_path):
    (tmp_path / "file").write_text("")
    async with GatewayClient(rig.gateway(), new_run(record=tmp_path / "file" / "ai.jsonl")) as client:
        assert (await client.post("/api/embed", {"input": "a"}))[0] == 200


async def test_a_record_stays_below_its_size(rig, tmp_path, monkeypatch):
    monkeypatch.setattr("nanoagent.ai.recording._MAX_FILE", 20_000)
    monkeypatch.setattr("nanoagent.ai.recording._MAX_CALL", 1000)
    file = tmp_path / "ai.jsonl"
    async with GatewayClient(rig.gateway(), new_run(record=file)) as client:
        for _ in range(40):
            await client.stream("/api/generate", {"prompt": "count to 50"})
    assert 10_000 < file.stat().st_size <= 20_000
    assert not any(json.loads(line)["complete"] for line in file.read_text().splitlines())
