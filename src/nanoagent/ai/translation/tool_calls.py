"""Translates the tool calls of requests to OpenAI's format, and those of answers to Ollama's format."""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.ai.untrusted_json import UNREADABLE
from nanoagent.ai.upstreams import UpstreamFailed
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_CALLS: Final = 1024  # tool calls of one answer
_MAX_BYTES: Final = MIB  # of the names and arguments of all tool calls of one answer


# --- requests


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class ToolCall(msgspec.Struct):
    """A tool call in a message of Ollama's API."""

    function: _Function
    id: str | None = None


def to_openai(call: ToolCall, default_id: str) -> dict[str, Any]:
    """Return a tool call in OpenAI's format, with `default_id` if it has no id."""
    arguments = bytes(call.function.arguments)
    if arguments.startswith(b'"'):
        arguments = msgspec.json.decode(arguments, type=str).encode()
    return {
        "id": call.id or default_id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments.decode()},
    }


class PendingToolCalls:
    """The unanswered tool calls of one message.

    Each call is in two queues, and is removed once from each. So all answers together take linear time.

    Args:
        calls: The id and the name of each call.
    """

    def __init__(self, calls: list[tuple[str, str]]) -> None:
        self._ids = [id_ for id_, _ in calls]
        self._is_answered = [False] * len(calls)
        self._all = deque(range(len(calls)))
        self._by_name: defaultdict[str | None, deque[int]] = defaultdict(deque)
        for at, (_, name) in enumerate(calls):
            self._by_name[name].append(at)

    def take(self, name: str | None) -> str:
        """Return the id of the call that a message answers.

        This is the first pending call with the name; without one, the first pending call.
        """
        for queue in (self._by_name.get(name, deque()), self._all):
            while queue:
                at = queue.popleft()
                if not self._is_answered[at]:
                    self._is_answered[at] = True
                    return self._ids[at]
        return "call_unknown"


# --- answers


class _FunctionDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct):
    """A piece of a tool call in an answer of OpenAI's API."""

    index: int = 0
    id: str | None = None
    function: _FunctionDelta | None = None


class _Object(msgspec.Struct):
    """Any JSON object. The members are checked, but not kept."""


@dataclass(slots=True)
class ToolCallCollector:
    """Collects the tool calls of an answer: each comes in pieces, and Ollama's API needs it whole.

    Attributes:
        size: The bytes of the collected names and arguments.
    """

    size: int = 0
    # Index → name and arguments, as bytearrays: a string would be copied with each piece that is added.
    _calls: dict[int, tuple[bytearray, bytearray]] = field(default_factory=dict)

    def add(self, deltas: Iterable[ToolCallDelta]) -> None:
        """Add pieces.

        Raises:
            UpstreamFailed: The answer has too many tool calls, or they are too large.
        """
        for delta in deltas:
            if delta.index not in self._calls:
                if len(self._calls) == _MOST_CALLS:
                    raise UpstreamFailed(f"its answer has more than {_MOST_CALLS} tool calls")
                self._calls[delta.index] = (bytearray(), bytearray())
            if delta.function is not None:
                name, arguments = self._calls[delta.index]
                self._extend(name, delta.function.name)
                self._extend(arguments, delta.function.arguments)

    def _extend(self, target: bytearray, more: str | None) -> None:
        data = (more or "").encode()
        self.size += len(data)
        if self.size > _MAX_BYTES:
            raise UpstreamFailed(f"the tool calls of its answer are larger than {_MAX_BYTES} bytes")
        target += data

    def take(self) -> list[dict[str, Any]]:
        """Return the collected calls in Ollama's format, and drop them."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        self._calls.clear()
        self.size = 0
        return [
            {"function": {"name": name.decode(), "arguments": _arguments(bytes(text))}}
            for name, text in calls
        ]


def _arguments(text: bytes) -> msgspec.Raw:
    """Return the arguments as a JSON object in one line; `{}` if the model did not write an object."""
    with suppress(*UNREADABLE):
        msgspec.json.decode(text, type=_Object)
        line = msgspec.json.format(text, indent=-1)
        if b"\n" not in line:
            return msgspec.Raw(line)
    return msgspec.Raw(b"{}")
