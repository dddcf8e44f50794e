"""The limits of calls to models, from the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from nanoagent.common.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The limits of one run; 0 means unlimited.

    Attributes:
        tokens: Prompt and completion tokens of all calls together (AI_MAX_TOKENS).
        requests: Requests (AI_MAX_REQUESTS).
        concurrent: Requests in flight at the same time (AI_MAX_CONCURRENT).
        bytes: Bytes of all requests and answers together (AI_MAX_BYTES).
    """

    tokens: int = 0
    requests: int = 0
    concurrent: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """All limits that the gateway enforces.

    Attributes:
        run: The limits of one run.
        function_tokens_per_minute: The tokens that one function may use in a minute on this worker; 0 means
            unlimited (AI_FUNCTION_TOKENS_PER_MINUTE).
        request_bytes: The largest body of one request (AI_MAX_REQUEST_BYTES).
        timeout_s: The time for one request, in seconds (AI_TIMEOUT_SECONDS).
        drain_s: The time in seconds for which the gateway continues to read an answer after the program has
            hung up, to count the tokens (AI_DRAIN_SECONDS).
        remote_tools: Whether a call may make the model server reach the network (AI_REMOTE_TOOLS).
    """

    run: RunLimits = field(default_factory=RunLimits)
    function_tokens_per_minute: int = 0
    request_bytes: int = 8 * MIB
    timeout_s: float = 300
    drain_s: float = 10
    remote_tools: bool = False
