"""One call to a model server: sends it, passes the answer on or reports the failure, and settles it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from nanoagent.ai import metering, upstreams
from nanoagent.ai.refusals import Refused
from nanoagent.ai.relay import Relay
from nanoagent.ai.responses import HEADERS
from nanoagent.ai.run_state import CallOutcome
from nanoagent.ai.translation import errors as translated_errors
from nanoagent.ai.untrusted_json import UNREADABLE
from nanoagent.ai.upstreams import UpstreamFailed

if TYPE_CHECKING:
    from nanoagent.ai.client import Client
    from nanoagent.ai.outgoing import OutgoingCall
    from nanoagent.ai.run_state import RunState
    from nanoagent.ai.shared import Shared
    from nanoagent.ai.upstreams import Answer

_MAX_ERROR_BYTES: Final = 64 * 1024


class Exchange:
    """One call to a model server.

    Args:
        shared: The objects that all runs share.
        state: The state of the run.
        client: The program that sent the request.
        request: The request.
        outgoing: The call.
    """

    def __init__(
        self,
        shared: Shared,
        state: RunState,
        client: Client,
        request: web.BaseRequest,
        outgoing: OutgoingCall,
    ) -> None:
        self._shared = shared
        self._state = state
        self._client = client
        self._request = request
        self._outgoing = outgoing
        self._relay: Relay | None = None  # set when the model answers
        self._outcome = CallOutcome.CUT  # unless the call ends with another outcome

    async def run(self) -> web.StreamResponse:
        """Send the call, and pass the answer on.

        Raises:
            Refused: The call failed before the answer had begun.
            ConnectionError: The answer broke off after it had begun, or the program has hung up.
        """
        server, call = self._outgoing.server, self._outgoing.upstream_call
        timeout_s = self._shared.limits.timeout_s
        cap = self._outgoing.reservation.cap if server.takes_bounds else None
        body = call.body(cap, uses_max_completion_tokens=server.uses_max_completion_tokens)
        try:
            async with asyncio.timeout(timeout_s) as timeout:
                with self._client.shortened_by_hang_up(timeout):
                    async with server.ask("POST", call.route.path, body) as answer:
                        return await self._pass_on(answer)
        except TimeoutError as exc:
            raise self._end_with(
                Refused(
                    504,
                    f"the model did not answer within AI_TIMEOUT_SECONDS={timeout_s:g}; "
                    "ask for less, or have AI_TIMEOUT_SECONDS raised",
                    "timeout",
                )
            ) from exc
        except UpstreamFailed as exc:
            if self._relay is None:
                self._outcome = CallOutcome.ERROR
                self._shared.server_log.note(server, str(exc.__cause__ or exc))
            raise self._end_with(Refused(502, f"the model server failed: {exc}", "upstream_failed")) from exc
        except Refused as exc:
            raise self._end_with(exc) from exc

    def _end_with(self, refusal: Refused) -> Exception:
        """Return the exception that ends the call.

        This is the refusal, unless the answer has begun or the program has hung up. In these cases no status
        can be sent any more, so the connection is aborted.
        """
        has_begun = self._relay is not None and self._relay.has_begun
        if not has_begun and not self._client.has_hung_up:
            return refusal
        if self._request.transport is not None:
            self._request.transport.abort()
        return ConnectionResetError(str(refusal))

    async def _pass_on(self, answer: Answer) -> web.StreamResponse:
        if answer.status != 200:
            return await self._pass_error_on(answer)
        self._relay = relay = Relay(self._request, self._outgoing, answer, self._state, self._client)
        self._shared.server_log.note(self._outgoing.server, None)
        if self._outgoing.record is not None:
            self._outgoing.record.set_head(answer.status, relay.content_type)
        await relay.run()
        self._outcome = CallOutcome.OK
        if self._client.has_hung_up:
            raise ConnectionResetError
        return await relay.finish()

    async def _pass_error_on(self, answer: Answer) -> web.StreamResponse:
        """Return the error of the model server, without texts that the job must not see.

        Raises:
            Refused: The gateway returns its own error instead.
        """
        self._outcome = CallOutcome.ERROR
        body = b""
        with suppress(UpstreamFailed):  # the status is enough
            body = await upstreams.read_up_to(answer, _MAX_ERROR_BYTES)
        try:
            body = self._error_for_job(answer, body)
        except Refused as refusal:
            self._record_error(refusal.status, refusal.body(self._outgoing.call.route.api))
            raise
        self._record_error(answer.status, body)
        headers = HEADERS | {"Content-Type": "application/json"}
        return web.Response(status=answer.status, body=body, headers=headers)

    def _record_error(self, status: int, body: bytes) -> None:
        """Record the error for the job. That of the model server may contain the key of the worker."""
        if self._outgoing.record is not None:
            self._outgoing.record.set_error(status, body)

    def _error_for_job(self, answer: Answer, body: bytes) -> bytes:
        """Return the body of an error in the API of the job and without secrets.

        Args:
            answer: The answer of the model server.
            body: The body of the answer.

        Raises:
            Refused: The gateway returns its own error instead.
        """
        status, body = answer.status, _unwrapped(body)
        if status in {401, 403}:
            self._shared.server_log.note(self._outgoing.server, f"it refuses the key: {status}")
            raise Refused(
                502,
                f"the model server refuses the worker's key ({status}); have AI_API_KEY or the key in "
                "AI_UPSTREAMS checked",
                "upstream_refused",
            )
        if status == 429:
            header = answer.retry_after or ""
            wait_s = int(header) if re.fullmatch("[0-9]{1,4}", header) else 1
            raise Refused(
                429, "the model server has received too many requests", "upstream_busy", retry_after_s=wait_s
            )
        if not 400 <= status < 600 or not _is_json(body):
            raise Refused(502, f"the model server answered {status}", "upstream_failed")
        try:
            body = _without_secrets(body, self._outgoing.server.secrets)
        except (ValueError, RecursionError) as exc:  # for example integers of more than 4,300 digits
            raise Refused(502, f"the model server answered {status}", "upstream_failed") from exc
        return body if self._outgoing.translation is None else translated_errors.to_ollama(body)

    def settle(self) -> None:
        """Count the tokens of the call. This method does not await, because the run may be ending."""
        route, prompt_tokens = self._outgoing.call.route, self._outgoing.prompt_tokens
        is_complete = self._outcome is CallOutcome.OK
        tokens = parts = (0, 0)
        if route.answers_with != "facts" and self._outcome is not CallOutcome.ERROR:
            tally = metering.Tally() if self._relay is None else self._relay.tally
            tokens = tally.total(prompt_tokens, complete=is_complete, vectors=route.answers_with == "vectors")
            parts = (tally.cached, tally.reasoning)
        self._outgoing.reservation.settle(sum(tokens))
        seconds = time.perf_counter() - self._outgoing.begun_at
        self._count(tokens, parts, seconds)
        if self._outgoing.record is not None:
            self._outgoing.record.close(
                tokens, seconds, complete=is_complete, cached=parts[0], reasoning=parts[1]
            )

    def _count(self, tokens: tuple[int, int], parts: tuple[int, int], seconds: float) -> None:
        """Add the call to the usage of the run and to the metrics.

        Args:
            tokens: The tokens of the prompt and of the completion.
            parts: The cached tokens of the prompt, and the reasoning tokens of the completion.
            seconds: The duration of the call.
        """
        usage, metrics, model = self._state.run.usage, self._shared.metrics, self._outgoing.call.model
        usage.requests += 1
        usage.prompt_tokens += tokens[0]
        usage.completion_tokens += tokens[1]
        usage.cached_tokens += parts[0]
        usage.reasoning_tokens += parts[1]
        # A job may invent names of models. So a name becomes a new label only after a model has answered.
        has_answered = self._relay is not None
        label = model if has_answered or metrics.model_labels.has(model) else None
        metrics.models.request(label, self._outcome, seconds)
        metrics.models.tokens(label, *tokens, cached=parts[0], reasoning=parts[1])


def _unwrapped(body: bytes) -> bytes:
    """Return the body of an error. Gemini puts the error into a list; this function takes it out."""
    with suppress(*UNREADABLE):
        (only,) = msgspec.json.decode(body, type=tuple[msgspec.Raw])
        return bytes(only)
    return body


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except UNREADABLE:
        return False
    return True


def _without_secrets(body: bytes, secrets: tuple[str, ...]) -> bytes:
    """Return JSON in which `***` replaces secrets. JSON without secrets is returned unchanged.

    Raises:
        ValueError: The JSON has escapes and cannot be read, so it may contain a secret.
        RecursionError: As ValueError.
    """
    for secret in secrets:
        body = body.replace(secret.encode(), b"***")
    if not secrets or b"\\" not in body:
        return body
    # Any character may be written as an escape. For example, PHP writes `/` as `\/`.
    plain = masked = json.dumps(json.loads(body), ensure_ascii=False)
    for secret in secrets:
        masked = masked.replace(json.dumps(secret, ensure_ascii=False)[1:-1], "***")
    return body if masked == plain else masked.encode(errors="replace")
