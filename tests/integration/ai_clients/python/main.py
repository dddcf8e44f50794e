"""Makes the calls of standard input with ai_client and tells what came of each; see test_ai_clients.py."""

from __future__ import annotations

import os
import sys
from typing import Any

import ai_client  # type: ignore[import-not-found] # it is the image that has it

TIMEOUT_S = 0.3  # of calls whose name says so


def call(name: str, text: str) -> list[str]:  # noqa: PLR0911 - a table of calls
    """The answer's pieces."""
    options: dict[str, Any] = {"timeout": TIMEOUT_S} if name.endswith("-briefly") else {}
    match name.removesuffix("-briefly"):
        case "generate":
            return [ai_client.generate(text, **options)]
        case "generate-tuned":
            return [ai_client.generate(text, "other", system="Be brief.", format="json", temperature=0)]
        case "generate-stream":
            return list(ai_client.generate_stream(text, **options))
        case "chat":
            return [ai_client.chat([{"role": "user", "content": text}], **options)]
        case "chat-stream":
            return list(ai_client.chat_stream([{"role": "user", "content": text}], **options))
        case "stop":
            return [next(ai_client.generate_stream(text))]
        case "embed":
            return [",".join(f"{number:g}" for number in ai_client.embed(text))]
        case "embed-both":
            vectors = ai_client.embed([text, "다른"])
            return [";".join(",".join(f"{number:g}" for number in vector) for vector in vectors)]
    raise ValueError(name)


for line in sys.stdin:
    os.environ["AI_ENDPOINT"], what, hexadecimal = line.rstrip("\n").split(" ")
    try:
        pieces = call(what, bytes.fromhex(hexadecimal).decode())
        print("ok", ",".join(piece.encode().hex() for piece in pieces), flush=True)
    except ai_client.AIError as exc:
        print("error", exc.status or 0, str(exc).encode().hex(), flush=True)
