"""The interface between the network of a run and the AI gateway, and the description of one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from nanoagent.model.job import NetworkPolicy, Runtime


@dataclass(slots=True)
class AiUsage:
    """The use of models by one run. Only the gateway counts, so programs cannot change the numbers.

    Attributes:
        requests: Requests that were forwarded to a model server.
        refused: Requests that the gateway answered with an error and did not forward.
        prompt_tokens: Tokens of all prompts, as the model servers report them; estimated if they do not.
        completion_tokens: Tokens of all completions, as the model servers report them; estimated if they do
            not. If a stream is cut, the tokens until then count.
        cached_tokens: Tokens of the prompts that model servers took from their caches.
        reasoning_tokens: Reasoning tokens of the completions.
    """

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def tokens(self) -> int:
        """The result's `llmTokenCount`."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True, kw_only=True)
class NetworkRun:
    """One run, with the facts that its network needs.

    Attributes:
        request_id: The job's request ID.
        function_id: The job's function ID. Token budgets of a function are counted under it.
        runtime: The job's runtime.
        model: The job's `modelId`. It is used for requests that name no model.
        policy: The policy of the run: that of the worker, or a narrower one.
        deadline: The latest end of the run, by the loop's clock, in seconds.
        record: The file for the recorded model calls; None without AI_RECORD. The first call creates the file
            and its folder.
        usage: The use of models so far. It is final when the block of `listeners.Network.opened` has ended.
        gateway_state: The state that the gateway keeps between connections; None before the first one.
    """

    request_id: str
    function_id: str
    runtime: Runtime
    model: str
    policy: NetworkPolicy
    deadline: float
    record: Path | None = None
    usage: AiUsage = field(default_factory=AiUsage)
    gateway_state: object | None = field(default=None, repr=False)


class Gateway(Protocol):
    """Serves the connections of runs to `gateway_address`."""

    async def serve(self, connection: socket.socket, run: NetworkRun) -> None:
        """Speak HTTP on an accepted connection until either end closes it.

        A cancellation means that the run has ended. Then the gateway ends all calls at once, releases the
        model servers, counts the tokens until then, and returns. The caller limits the number of connections
        of a run, and always closes the connection afterwards.

        Args:
            connection: A connected TCP socket, non-blocking. It belongs to the gateway until this returns.
            run: The run that has connected.
        """
        ...
