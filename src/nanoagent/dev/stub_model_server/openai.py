"""The API of OpenAI, as platform.openai.com documents it."""

from __future__ import annotations

import base64
import json
import secrets
import struct
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from nanoagent.dev.stub_model_server.replies import embedding_texts, message_text, reply_to, vector
from nanoagent.dev.stub_model_server.requests import RECORD
from nanoagent.dev.stub_model_server.streaming import streamed

if TYPE_CHECKING:
    from nanoagent.dev.stub_model_server.faults import Faults
    from nanoagent.dev.stub_model_server.replies import Reply

_CREATED: Final = 1_700_000_000


class OpenAiApi:
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
            web.get("/v1/models", self._list_models),
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._complete),
            web.post("/v1/responses", self._respond),
            web.post("/v1/embeddings", _embed),
        ]

    async def _list_models(self, _request: web.Request) -> web.Response:
        data = [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "stub"} for name in self._models
        ]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, message_text(request[RECORD].body.get("messages")))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, str(request[RECORD].body.get("prompt")))

    async def _answer(self, request: web.Request, prompt: str) -> web.StreamResponse:
        body = request[RECORD].body
        is_chat = request.path == "/v1/chat/completions"
        reply = reply_to(request, prompt, body.get("max_completion_tokens", body.get("max_tokens")))
        head = {"id": f"stub_model_server-{secrets.token_hex(4)}", "created": _CREATED, "model": reply.model}
        if body.get("stream"):
            kind = "chat.completion.chunk" if is_chat else "text_completion"
            return await self._stream(request, reply, {**head, "object": kind}, is_chat=is_chat)
        text = await self._faults.whole_text(request, reply)
        content = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reply.done_reason}
        usage = {"usage": _usage(reply)} if reply.has_usage else {}
        kind = "chat.completion" if is_chat else "text_completion"
        return web.json_response({**head, "object": kind, "choices": [choice], **usage})

    async def _stream(
        self, request: web.Request, reply: Reply, head: dict[str, Any], *, is_chat: bool
    ) -> web.StreamResponse:
        options = request[RECORD].body.get("stream_options") or {}
        has_usage = bool(options.get("include_usage")) and reply.has_usage

        def chunk(content: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
            return _event({**head, "choices": [choice], **({"usage": None} if has_usage else {})})

        async with streamed(request, "text/event-stream") as response:
            if is_chat:
                await response.write(chunk({"delta": {"role": "assistant", "content": ""}}))
            async for text in self._faults.pieces(request, reply):
                if reply.model == "fault/lines":
                    await response.write(b"data: {\n\n: a comment\n\n")
                await response.write(chunk({"delta": {"content": text}} if is_chat else {"text": text}))
            await response.write(chunk({"delta": {}} if is_chat else {"text": ""}, reply.done_reason))
            if has_usage:
                await response.write(_event({**head, "choices": [], "usage": _usage(reply)}))
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        body = request[RECORD].body
        given = body.get("input")
        prompt = given if isinstance(given, str) else message_text(given)
        reply = reply_to(request, prompt, body.get("max_output_tokens"))
        whole = _response_document(reply)
        if not body.get("stream"):
            await self._faults.whole_text(request, reply)
            return web.json_response(whole)
        async with streamed(request, "text/event-stream") as response:
            begun = {**whole, "status": "in_progress", "output": [], "usage": None}
            await response.write(_named_event("response.created", {"response": begun}))
            async for text in self._faults.pieces(request, reply):
                await response.write(_named_event("response.output_text.delta", {"delta": text}))
            await response.write(_named_event("response.completed", {"response": whole}))
        return response


def _response_document(reply: Reply) -> dict[str, Any]:
    """Return the document of the responses API for a complete answer."""
    output = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": reply.text, "annotations": []}],
    }
    return {
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


async def _embed(request: web.Request) -> web.Response:
    texts = embedding_texts(request)
    record = request[RECORD]
    # The official clients ask for base64 by default. The client for Node.js accepts nothing else.
    is_base64 = record.body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": at,
            "embedding": _base64(vector(text)) if is_base64 else vector(text),
        }
        for at, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": record.prompt_tokens, "total_tokens": record.prompt_tokens}
    return web.json_response({"object": "list", "data": data, "model": record.body["model"], "usage": usage})


def _base64(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _named_event(name: str, document: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + _event({"type": name, **document})


def _usage(reply: Reply) -> dict[str, int]:
    completion_tokens = len(reply.words)
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": reply.prompt_tokens + completion_tokens,
    }
