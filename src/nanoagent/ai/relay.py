"""Passes a model's answer on to the job, and counts, translates and records it on the way."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiohttp import web

from nanoagent.ai import metering
from nanoagent.ai.refusals import Refused
from nanoagent.ai.responses import HEADERS, content_type_header

if TYPE_CHECKING:
    from nanoagent.ai.client import Client
    from nanoagent.ai.metering import Tally
    from nanoagent.ai.outgoing import OutgoingCall
    from nanoagent.ai.run_state import RunState
    from nanoagent.ai.translation.answers import DocumentTranslator, StreamTranslator
    from nanoagent.ai.upstreams import Answer

_PIECE: Final = 16 * 1024  # counting takes at most about 10 ms (for lines of two bytes each)
_UNCOUNTED_BYTES: Final = 64 * 1024  # held lines up to this size do not count towards the memory for bodies


class Relay:
    """Passes one answer on to the job.

    Args:
        request: The request of the job.
        outgoing: The call.
        answer: The answer of the model server.
        state: The state of the run.
        client: The program that reads the answer.

    Attributes:
        has_begun: Whether the gateway has begun to send the answer to the job.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        outgoing: OutgoingCall,
        answer: Answer,
        state: RunState,
        client: Client,
    ) -> None:
        self._request = request
        self._outgoing = outgoing
        self._answer = answer
        self._state = state
        self._client = client
        self._meter = metering.meter_for(outgoing.upstream_call, answer.content_type)
        self._translator: StreamTranslator | DocumentTranslator | None = None
        self.content_type = answer.content_type
        """The content type of the answer to the job."""
        if outgoing.translation is not None:
            self._translator = outgoing.translation.translator(
                self.tally, answer.content_type, outgoing.begun_at
            )
            self.content_type = self._translator.content_type
        self._response = web.StreamResponse(
            headers=HEADERS | {"Content-Type": content_type_header(self.content_type)}
        )
        if answer.size is not None and not outgoing.upstream_call.strips_usage and self._translator is None:
            self._response.content_length = answer.size
        self.has_begun = False

    @property
    def tally(self) -> Tally:
        """The tokens of the answer so far."""
        return self._meter.tally

    async def run(self) -> None:
        """Pass the answer on in pieces, as they come.

        Raises:
            Refused: A limit of the run is reached.
            UpstreamFailed: The answer broke off, or cannot be translated.
        """
        with self._state.memory.holding() as hold:
            async for data in self._answer.chunks:
                self._state.budget.spend_bytes(len(data))
                for at in range(0, len(data), _PIECE):
                    await self._process(data[at : at + _PIECE])
                    hold(self._held_bytes())
                self._check_tokens()
            with self._state.cpu_time.charged():
                rest = self._meter.finish()
                if self._translator is not None:
                    rest = self._translator.finish()
            if self._translator is not None:
                self._add_to_record(rest)
            await self._send(rest)

    async def finish(self) -> web.StreamResponse:
        """End the response. If the answer was empty, the response begins only now."""
        await self._begin()
        await self._response.write_eof()
        return self._response

    async def _process(self, data: bytes) -> None:
        """Count, translate, record and send a piece. Then wait if the run has no CPU time left."""
        with self._state.cpu_time.charged():
            passed = self._meter.feed(data)
            if self._translator is not None:
                passed = self._translator.feed(data)
        # Without a translation, the record also has the usage that is removed from `passed`.
        self._add_to_record(data if self._translator is None else passed)
        await self._send(passed)
        if len(data) == _PIECE:  # more data is probably ready, and reading it would not let other tasks run
            await asyncio.sleep(0)
        await self._state.cpu_time.wait()

    def _held_bytes(self) -> int:
        """Return the bytes of the answer that are held in memory.

        The first 64 KiB of held lines do not count. So a stream with short lines is not cut when the worker's
        memory for bodies is used up.
        """
        whole, lines = 0, self._meter.held_bytes
        if self._translator is not None and self._translator.holds_whole_answer:
            whole = self._translator.held_bytes
        elif self._translator is not None:
            lines += self._translator.held_bytes
        return whole + max(0, lines - _UNCOUNTED_BYTES)

    def _check_tokens(self) -> None:
        """End a stream that exceeds the run's budget, because the model server may ignore its bound.

        Raises:
            Refused: The stream exceeds the budget.
        """
        so_far = sum(self.tally.total(self._outgoing.prompt_tokens, complete=False))
        if self._outgoing.reservation.is_exceeded_with(so_far):
            raise Refused(429, "this run has used its tokens (AI_MAX_TOKENS)", "token_limit")

    def _add_to_record(self, data: bytes) -> None:
        if self._outgoing.record is not None:
            self._outgoing.record.add(data)

    async def _begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            await self._response.prepare(self._request)

    async def _send(self, data: bytes) -> None:
        """Send data to the job. After a hang-up nothing is sent.

        The rest of the answer is still counted and recorded.
        """
        if not data or self._client.has_hung_up:
            return
        with suppress(ConnectionError):
            await self._begin()
            await self._response.write(data)
