"""Makes answers to prompts and counts tokens, without the document format of an API."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nanoagent.dev.stub_model_server.requests import RECORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

_VECTOR_LENGTH: Final = 8
_NUMBER: Final = re.compile(r"count to (\d+)")


def tokens(text: str) -> int:
    """Return the number of tokens of a text: its words."""
    return len(text.split())


def answer_words(prompt: str, limit: int | None) -> list[str]:
    """Return the answer to a prompt, one word for each token.

    For `count to N` the answer is the numbers from 1 to N; otherwise it is `echo:` and the prompt. None or a
    negative limit means no limit.
    """
    counting = _NUMBER.search(prompt)
    if counting:
        words = [str(number) for number in range(1, int(counting[1]) + 1)]
    else:
        words = ["echo:", *prompt.split()]
    return words if limit is None or limit < 0 else words[:limit]


def vector(text: str) -> list[float]:
    """Return the embedding of a text: eight numbers from 0 to 1."""
    digest = hashlib.sha256(text.encode()).digest()
    return [byte / 256 for byte in digest[:_VECTOR_LENGTH]]


def message_text(messages: Any) -> str:
    """Return the texts of all messages of a conversation, separated by spaces."""
    return " ".join(_texts(messages))


def _texts(messages: Any) -> Iterator[str]:
    for message in messages or []:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else []:
            if isinstance(part.get("text"), str):
                yield part["text"]


@dataclass(slots=True)
class Reply:
    """The answer to one request.

    Attributes:
        model: The model that the request names.
        prompt_tokens: The number of tokens of the prompt.
        words: The words of the answer.
        done_reason: `stop`, or `length` if the limit of the request cut the answer.
        has_usage: Whether the answer reports its numbers of tokens.
        pieces: The words, with the spaces between them.
    """

    model: str
    prompt_tokens: int
    words: list[str]
    done_reason: str
    has_usage: bool = True
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pieces = [word if at == 0 else f" {word}" for at, word in enumerate(self.words)]

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)


def reply_to(request: web.Request, prompt: str, limit: int | None) -> Reply:
    """Make the answer to a prompt, and record the number of tokens of the prompt.

    Args:
        request: The request.
        prompt: The prompt of the request.
        limit: The largest number of tokens in the answer, None for no limit.
    """
    record = request[RECORD]
    record.prompt_tokens = tokens(prompt)
    words = answer_words(prompt, limit)
    is_whole = len(words) == len(answer_words(prompt, None))
    model = str(record.body["model"])
    return Reply(
        model,
        record.prompt_tokens,
        words,
        "stop" if is_whole else "length",
        has_usage=model != "fault/nousage",
    )


def embedding_texts(request: web.Request) -> list[str]:
    """Return the texts to embed, and record the number of their tokens."""
    record = request[RECORD]
    given = record.body.get("input")
    texts = [given] if isinstance(given, str) else list(given or [])
    record.prompt_tokens = sum(map(tokens, texts))
    return texts
