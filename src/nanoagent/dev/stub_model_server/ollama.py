"""The API of Ollama, as github.com/ollama/ollama documents it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from nanoagent.dev.stub_model_server.replies import embedding_texts, message_text, reply_to, tokens, vector
from nanoagent.dev.stub_model_server.requests import RECORD
from nanoagent.dev.stub_model_server.streaming import streamed

if TYPE_CHECKING:
    from nanoagent.dev.stub_model_server.faults import Faults
    from nanoagent.dev.stub_model_server.replies import Reply

_CREATED_AT: Final = "2023-11-14T22:13:20.000000Z"


class OllamaApi:
    """The routes of the API.

    Args:
        models: The models that the server lists.
        faults: Makes models fail.
    """

    def __init__(self, models: tuple[str, ...], faults: Faults) -> None:
        self._models = models
        self._faults = faults

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/", _root),
            web.get("/api/version", _version),
            web.get("/api/tags", self._tags),
            web.get("/api/ps", self._tags),
            web.post("/api/show", _show),
            web.post("/api/generate", self._generate),
            web.post("/api/chat", self._chat),
            web.post("/api/embed", _embed),
            web.post("/api/embeddings", _embeddings),
        ]

    async def _tags(self, _request: web.Request) -> web.Response:
        models = [
            {
                "name": name,
                "model": name,
                "modified_at": _CREATED_AT,
                "size": 1,
                "digest": hashlib.sha256(name.encode()).hexdigest(),
                "details": {"format": "gguf", "family": "stub", "parameter_size": "0B"},
            }
            for name in self._models
        ]
        return web.json_response({"models": models})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = request[RECORD].body
        return await self._answer(request, f"{body.get('system') or ''} {body.get('prompt')}")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, message_text(request[RECORD].body.get("messages")))

    async def _answer(self, request: web.Request, prompt: str) -> web.StreamResponse:
        body = request[RECORD].body
        is_chat = request.path == "/api/chat"
        reply = reply_to(request, prompt.strip(), (body.get("options") or {}).get("num_predict"))

        def piece(text: str, **more: Any) -> dict[str, Any]:
            content = {"message": {"role": "assistant", "content": text}} if is_chat else {"response": text}
            return {"model": reply.model, "created_at": _CREATED_AT, **content, "done": False, **more}

        end = _end(reply, is_chat=is_chat)
        if body.get("stream") is False:
            return web.json_response(piece(await self._faults.whole_text(request, reply), **end))
        async with streamed(request, "application/x-ndjson") as response:
            async for text in self._faults.pieces(request, reply):
                if reply.model == "fault/lines":
                    await response.write(b'{"half": \n')
                await response.write(_line(piece(text)))
            await response.write(_line(piece("", **end)))
        return response


def _end(reply: Reply, *, is_chat: bool) -> dict[str, Any]:
    """Return the fields of the last piece."""
    fields: dict[str, Any] = {"done": True, "done_reason": reply.done_reason, "total_duration": 5}
    if not is_chat:
        fields["context"] = [1, 2, 3]
    if reply.has_usage:
        fields |= {"prompt_eval_count": reply.prompt_tokens, "eval_count": len(reply.words)}
    return fields


async def _root(_request: web.Request) -> web.Response:
    return web.Response(text="Ollama is running")


async def _version(_request: web.Request) -> web.Response:
    return web.json_response({"version": "0.0.0-stub_model_server"})


async def _show(_request: web.Request) -> web.Response:
    return web.json_response(
        {"modelfile": "FROM stub", "template": "{{ .Prompt }}", "details": {"family": "stub"}}
    )


async def _embed(request: web.Request) -> web.Response:
    texts = embedding_texts(request)
    record = request[RECORD]
    return web.json_response(
        {
            "model": record.body["model"],
            "embeddings": [vector(text) for text in texts],
            "total_duration": 5,
            "prompt_eval_count": record.prompt_tokens,
        }
    )


async def _embeddings(request: web.Request) -> web.Response:
    record = request[RECORD]
    prompt = str(record.body.get("prompt", ""))
    record.prompt_tokens = tokens(prompt)
    return web.json_response({"embedding": vector(prompt)})


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"
