"""A model server without a model: `python -m nanoagent.dev.stub_model_server --port 0`.

Speaks the documented shapes of Ollama's API (github.com/ollama/ollama) and of OpenAI's
(platform.openai.com: chat completions, completions, responses, embeddings, models), with
answers that follow from the question alone: a word is a token, and the answer repeats the question, or counts
(`count to 5`). So every sum of tokens is known beforehand.

Models whose names begin with `fault/` go wrong in the way that follows, see `FAULTS`. What was asked stands
in `StubModelServer.log`, and at `GET /stub_model_server/log`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import re
import secrets
import struct
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import web

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

MODELS: Final = ("llama3:8b", "nomic-embed-text:latest", "gpt-4o-mini")
FAULTS: Final = {
    "401": "refuses the key, and quotes it",
    "404": "has no such model, and quotes the key",
    "429": "wants to be asked later",
    "500": "fails, in the API's own shape, and quotes the key",
    "html": "answers 502 with a page, as a proxy before it would",
    "redirect": "sends the caller elsewhere",
    "garbage": "answers 200 and bytes that are nothing",
    "lines": "streams lines that are no JSON between those that are",
    "gigabytes": "streams one endless line",
    "close": "closes the connection after three pieces",
    "hold": "stops after three pieces and waits until `release`",
    "never": "takes the request and says nothing until `release`",
    "slow": "waits a hundredth of a second before each piece",
    "nousage": "says nothing of tokens",
}
_HELD_PIECES: Final = 3
_VECTOR: Final = 8
_CREATED: Final = 1_700_000_000
_CREATED_AT: Final = "2023-11-14T22:13:20.000000Z"
_GARBAGE: Final = b"\x00\xff\xfe<garbage>" * 100
_BLOCK: Final = b"a" * 65536
_FIXED: Final = {
    "html": (502, {"Content-Type": "text/html"}, b"<html>Bad Gateway</html>"),
    "redirect": (307, {"Location": "/api/version"}, b""),
    "garbage": (200, {"Content-Type": "application/octet-stream"}, _GARBAGE),
}
_MAX_BODY: Final = 64 * MIB
_NUMBER: Final = re.compile(r"count to (\d+)")


def tokens(text: str) -> int:
    """How many tokens a text has here: its words."""
    return len(text.split())


def answer_words(prompt: str, limit: int | None) -> list[str]:
    """The answer to a prompt, a word a token: the numbers to count to, else `echo:` and the prompt."""
    asked = _NUMBER.search(prompt)
    words = [str(number) for number in range(1, int(asked[1]) + 1)] if asked else ["echo:", *prompt.split()]
    return words if limit is None or limit < 0 else words[:limit]


def vector(text: str) -> list[float]:
    """A text's embedding."""
    digest = hashlib.sha256(text.encode()).digest()
    return [byte / 256 for byte in digest[:_VECTOR]]


@dataclass(slots=True)
class Asked:
    """One request as it came.

    Attributes:
        state: `open`, then `finished`, or `cut` when the caller went away before the end.
        pieces: Pieces of a stream that were sent.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes
    state: str = "open"
    pieces: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


_ASKED: Final = web.RequestKey("asked", Asked)


@dataclass(slots=True)
class _Reply:
    """What a call is answered, before it has a shape.

    Attributes:
        words: The answer's.
        done_reason: `stop`, or `length` when the caller's limit cut it.
    """

    model: str
    prompt_tokens: int
    words: list[str]
    done_reason: str
    usage: bool = True
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pieces = [word if at == 0 else f" {word}" for at, word in enumerate(self.words)]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class StubModelServer:
    """The server; use it as an asynchronous context manager.

    Args:
        host: Address to listen on.
        port: Its port; 0: any free one.
        key: The bearer key it wants, None for none.
        models: What it lists. It answers for every name that does not begin with `no-such`.
        openai_only: Whether it has OpenAI's API only, and answers 404 to all else.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        key: str | None = None,
        models: tuple[str, ...] = MODELS,
        openai_only: bool = False,
    ) -> None:
        self._address = (host, port)
        self._key = key
        self._models = models
        self._openai_only = openai_only
        self.log: list[Asked] = []
        self._changed = asyncio.Condition()
        self._released = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[self._noted])
        app.add_routes(
            [
                web.get("/v1/models", self._model_list),
                web.post("/v1/chat/completions", self._openai_text),
                web.post("/v1/completions", self._openai_text),
                web.post("/v1/responses", self._responses),
                web.post("/v1/embeddings", self._openai_embeddings),
                web.get("/stub_model_server/log", self._show_log),
                web.post("/stub_model_server/release", self._release),
            ]
        )
        if not self._openai_only:
            app.add_routes(
                [
                    web.get("/", _hello),
                    web.get("/api/version", _version),
                    web.get("/api/tags", self._tags),
                    web.get("/api/ps", self._tags),
                    web.post("/api/show", self._show),
                    web.post("/api/generate", self._ollama_text),
                    web.post("/api/chat", self._ollama_text),
                    web.post("/api/embed", self._embed),
                    web.post("/api/embeddings", self._embeddings),
                ]
            )
        # The handler ends when the caller goes, as Ollama's does: that is how a cut stream frees the model.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, *self._address)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        await self._runner.cleanup()

    def release(self) -> None:
        """Let what `hold` and `never` have kept waiting go on."""
        self._released.set()

    async def until(self, seen: Callable[[list[Asked]], bool]) -> None:
        """Wait until the log is as wanted."""
        async with self._changed:
            await self._changed.wait_for(lambda: seen(self.log))

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- what every request passes

    @web.middleware
    async def _noted(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path.startswith("/stub_model_server/"):
            response: web.StreamResponse = await handler(request)
            return response
        raw = await request.read()
        if request.path == "/api/version":  # gateways ask for it to learn which API a server has
            return await self._checked(request, None, handler)
        body = None
        with suppress(ValueError):
            body = json.loads(raw)
        asked = Asked(request.method, request.raw_path, dict(request.headers), body, raw)
        self.log.append(asked)
        request[_ASKED] = asked
        await self._tell()
        try:
            response = await self._checked(request, body, handler)
        except (asyncio.CancelledError, ConnectionError):
            asked.state = "cut"
            raise
        else:
            asked.state = "finished"
            return response
        finally:
            await self._tell()

    async def _checked(self, request: web.Request, body: Any, handler: Any) -> web.StreamResponse:
        if self._key is not None and request.headers.get("Authorization") != f"Bearer {self._key}":
            return _failure(request, 401, "Incorrect API key provided", "invalid_request_error")
        if request.method == "POST":
            if not isinstance(body, dict):
                return _failure(request, 400, "invalid JSON", "invalid_request_error")
            model = body.get("model")
            if not isinstance(model, str) or not model:
                return _failure(request, 400, "model is required", "invalid_request_error")
            if model.startswith("no-such"):
                return _failure(request, 404, f"model '{model}' not found", "not_found_error")
            fault = await self._fault(request, model)
            if fault is not None:
                return fault
        response: web.StreamResponse = await handler(request)
        return response

    async def _fault(self, request: web.Request, model: str) -> web.StreamResponse | None:
        """The answer of a model that fails before it has said anything; None of others."""
        kind = model.removeprefix("fault/") if model.startswith("fault/") else ""
        sent = request.headers.get("Authorization")
        if kind == "401":
            return _failure(request, 401, f"Incorrect API key provided: {sent}", "invalid_request_error")
        if kind in {"404", "429", "500"}:
            response = _failure(
                request, int(kind), f"the stand-in fails on {sent} with {kind}", "server_error"
            )
            if kind == "429":
                response.headers["Retry-After"] = "7"
            return response
        if kind in _FIXED:
            status, headers, fixed = _FIXED[kind]
            return web.Response(status=status, headers=headers, body=fixed)
        if kind == "never":
            await self._released.wait()
        if kind == "gigabytes":
            return await self._endless(request)
        return None

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        asked: Asked = request[_ASKED]
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while not self._released.is_set():
            await response.write(_BLOCK)
            asked.pieces += 1
            await asyncio.sleep(0)
        return response

    async def _paced(self, request: web.Request, reply: _Reply) -> AsyncIterator[str]:
        """The reply's pieces, at the pace and up to the point that its model's name says."""
        asked: Asked = request[_ASKED]
        for at, piece in enumerate(reply.pieces):
            if at == _HELD_PIECES and reply.model == "fault/close":
                assert request.transport is not None  # noqa: S101 - it is being written to
                request.transport.close()
                raise ConnectionResetError
            if at == _HELD_PIECES and reply.model == "fault/hold":
                await self._released.wait()
            if reply.model == "fault/slow":
                await asyncio.sleep(0.01)
            yield piece
            asked.pieces += 1
            asked.completion_tokens += 1
            await self._tell()

    async def _show_log(self, _request: web.Request) -> web.Response:
        shown = [asdict(asked) | {"raw": asked.raw.decode(errors="replace")} for asked in self.log]
        return web.json_response(shown)

    async def _release(self, _request: web.Request) -> web.Response:
        self.release()
        return web.json_response({})

    def _reply(self, request: web.Request, prompt: str, limit: int | None) -> _Reply:
        asked: Asked = request[_ASKED]
        asked.prompt_tokens = tokens(prompt)
        words = answer_words(prompt, limit)
        whole = len(words) == len(answer_words(prompt, None))
        model = str(asked.body["model"])
        return _Reply(
            model, tokens(prompt), words, "stop" if whole else "length", usage=model != "fault/nousage"
        )

    # --- Ollama

    async def _tags(self, _request: web.Request) -> web.Response:
        models = [
            {
                "name": name,
                "model": name,
                "modified_at": _CREATED_AT,
                "size": 1,
                "digest": hashlib.sha256(name.encode()).hexdigest(),
                "details": {"format": "gguf", "family": "stand-in", "parameter_size": "0B"},
            }
            for name in self._models
        ]
        return web.json_response({"models": models})

    async def _show(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"modelfile": "FROM stand-in", "template": "{{ .Prompt }}", "details": {"family": "stand-in"}}
        )

    async def _ollama_text(self, request: web.Request) -> web.StreamResponse:
        body = request[_ASKED].body
        chat = request.path == "/api/chat"
        prompt = _said(body.get("messages")) if chat else f"{body.get('system') or ''} {body.get('prompt')}"
        limit = (body.get("options") or {}).get("num_predict")
        reply = self._reply(request, prompt.strip(), limit)

        def piece(text: str, **more: Any) -> dict[str, Any]:
            said = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
            return {"model": reply.model, "created_at": _CREATED_AT, **said, "done": False, **more}

        end: dict[str, Any] = {"done": True, "done_reason": reply.done_reason, "total_duration": 5}
        if not chat:
            end["context"] = [1, 2, 3]
        if reply.usage:
            end |= {"prompt_eval_count": reply.prompt_tokens, "eval_count": len(reply.words)}
        if body.get("stream") is False:
            return web.json_response(
                piece("".join([text async for text in self._paced(request, reply)]), **end)
            )
        async with _stream(request, "application/x-ndjson") as response:
            async for text in self._paced(request, reply):
                if reply.model == "fault/lines":
                    await response.write(b'{"half": \n')
                await response.write(_line(piece(text)))
            await response.write(_line(piece("", **end)))
        return response

    async def _embed(self, request: web.Request) -> web.Response:
        asked: Asked = request[_ASKED]
        given = asked.body.get("input")
        texts = [given] if isinstance(given, str) else list(given or [])
        asked.prompt_tokens = sum(map(tokens, texts))
        return web.json_response(
            {
                "model": asked.body["model"],
                "embeddings": [vector(text) for text in texts],
                "total_duration": 5,
                "prompt_eval_count": asked.prompt_tokens,
            }
        )

    async def _embeddings(self, request: web.Request) -> web.Response:
        asked: Asked = request[_ASKED]
        prompt = str(asked.body.get("prompt", ""))
        asked.prompt_tokens = tokens(prompt)
        return web.json_response({"embedding": vector(prompt)})

    # --- OpenAI

    async def _model_list(self, _request: web.Request) -> web.Response:
        data = [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "stand-in"}
            for name in self._models
        ]
        return web.json_response({"object": "list", "data": data})

    async def _openai_text(self, request: web.Request) -> web.StreamResponse:
        body = request[_ASKED].body
        chat = request.path == "/v1/chat/completions"
        prompt = _said(body.get("messages")) if chat else str(body.get("prompt"))
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        reply = self._reply(request, prompt, limit)
        kind = "chat.completion" if chat else "text_completion"
        head = {"id": f"stub_model_server-{secrets.token_hex(4)}", "created": _CREATED, "model": reply.model}
        usage = _openai_usage(reply.prompt_tokens, len(reply.words))
        if not body.get("stream"):
            text = "".join([text async for text in self._paced(request, reply)])
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": reply.done_reason}
            told = {"usage": usage} if reply.usage else {}
            return web.json_response({**head, "object": kind, "choices": [choice], **told})

        include = bool((body.get("stream_options") or {}).get("include_usage")) and reply.usage
        head["object"] = "chat.completion.chunk" if chat else kind

        def chunk(said: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
            return {**head, "choices": [choice], **({"usage": None} if include else {})}

        async with _stream(request, "text/event-stream") as response:
            if chat:
                await response.write(_event(chunk({"delta": {"role": "assistant", "content": ""}})))
            async for text in self._paced(request, reply):
                if reply.model == "fault/lines":
                    await response.write(b"data: {\n\n: a comment\n\n")
                await response.write(_event(chunk({"delta": {"content": text}} if chat else {"text": text})))
            await response.write(_event(chunk({"delta": {}} if chat else {"text": ""}, reply.done_reason)))
            if include:
                await response.write(_event({**head, "choices": [], "usage": usage}))
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = request[_ASKED].body
        given = body.get("input")
        reply = self._reply(
            request, given if isinstance(given, str) else _said(given), body.get("max_output_tokens")
        )
        output = {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": reply.text, "annotations": []}],
        }
        whole = {
            "id": f"resp_{secrets.token_hex(4)}",
            "object": "response",
            "created_at": _CREATED,
            "model": reply.model,
            "status": "completed",
            "output": [output],
            "usage": {
                "input_tokens": reply.prompt_tokens,
                "output_tokens": len(reply.words),
                "total_tokens": reply.prompt_tokens + len(reply.words),
            },
        }
        if not body.get("stream"):
            async for _ in self._paced(request, reply):
                pass
            return web.json_response(whole)
        async with _stream(request, "text/event-stream") as response:
            begun = {**whole, "status": "in_progress", "output": [], "usage": None}
            await response.write(_named_event("response.created", {"response": begun}))
            async for text in self._paced(request, reply):
                await response.write(_named_event("response.output_text.delta", {"delta": text}))
            await response.write(_named_event("response.completed", {"response": whole}))
        return response

    async def _openai_embeddings(self, request: web.Request) -> web.Response:
        asked: Asked = request[_ASKED]
        given = asked.body.get("input")
        texts = [given] if isinstance(given, str) else list(given or [])
        asked.prompt_tokens = sum(map(tokens, texts))
        # The official clients ask for base64 without being told to; the one for Node.js takes nothing else.
        packed = asked.body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": at,
                "embedding": _packed(vector(text)) if packed else vector(text),
            }
            for at, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens}
        return web.json_response(
            {"object": "list", "data": data, "model": asked.body["model"], "usage": usage}
        )


async def _hello(_request: web.Request) -> web.Response:
    return web.Response(text="Ollama is running")


async def _version(_request: web.Request) -> web.Response:
    return web.json_response({"version": "0.0.0-stub_model_server"})


def _packed(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@asynccontextmanager
async def _stream(request: web.Request, content_type: str) -> AsyncIterator[web.StreamResponse]:
    response = web.StreamResponse(headers={"Content-Type": content_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    yield response
    await response.write_eof()


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _named_event(name: str, document: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + _event({"type": name, **document})


def _openai_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _said(messages: Any) -> str:
    """All that the messages say, text only."""
    return " ".join(_texts(messages))


def _texts(messages: Any) -> Iterator[str]:
    for message in messages or []:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else []:
            if isinstance(part.get("text"), str):
                yield part["text"]


def _failure(request: web.Request, status: int, message: str, kind: str) -> web.Response:
    shape: dict[str, Any] = {"error": message}
    if request.path.startswith("/v1/"):
        shape = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return web.json_response(shape, status=status)


async def _main(host: str, port: int, key: str | None) -> None:
    async with StubModelServer(host, port, key=key) as stub_model_server:
        print(stub_model_server.url, flush=True)  # noqa: T201 - whoever started it reads its address there
        await asyncio.Event().wait()


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; the first line of standard output is the address."""
    parser = argparse.ArgumentParser(prog="python -m nanoagent.dev.stub_model_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--key", help="the bearer key that callers have to send")
    given = parser.parse_args(arguments)
    with suppress(KeyboardInterrupt):
        asyncio.run(_main(given.host, given.port, given.key))
    return 0


if __name__ == "__main__":
    sys.exit(main())
