"""The ports between a run's network, what serves its connections, and the executor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from nanoagent.model.job import NetworkPolicy, Runtime


@dataclass(slots=True)
class AiUsage:
    """What a run has used of models; the gateway counts, and nobody in the container can.

    Attributes:
        requests: How many were forwarded to an upstream.
        refused: How many were answered by the gateway itself with an error: a limit, a model, a path.
        prompt_tokens: Of all requests together, by the upstreams' own usage fields.
        completion_tokens: Likewise; of a stream that was cut, what had come until then.
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
    """One run, as far as what it may reach is concerned.

    Attributes:
        request_id: Of the job.
        function_id: Of the job; budgets of a function are counted under it.
        runtime: Of the job.
        model: The job's `modelId`: the model of requests that name none.
        policy: What it may reach; the worker's policy, or narrower.
        deadline: When its time will be over at the latest, by the loop's clock (seconds).
        record: Where exchanges with models are written when AI_RECORD asks for it, or None. The file and the
            folder around it are made by whoever writes first.
        usage: Filled while it runs; complete when `listeners.Network.opened` has ended.
        kept: The gateway's own, from one of the run's connections to the next.
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
    """Serves what a run connects to: the AI gateway (`gateway_address`)."""

    async def serve(self, connection: socket.socket, run: NetworkRun) -> None:
        """Speak HTTP on an accepted connection until either end closes it, or until cancelled.

        Cancelled means that the run has ended: cut at once, free the upstream, count what has come so far,
        return. The caller bounds how many run at a time for one run, and closes the connection afterwards in
        any case.

        Args:
            connection: A connected TCP socket, non-blocking, that is the callee's until it returns.
            run: Whose it is.
        """
        ...
