"""The AI gateway: HTTP on a run's connections, towards a model server.

One `_Conversation` per connection; what a run's conversations share (its budget, what is written down of it)
is a `_Runs`. A request goes through `_respond`: known? allowed? room? forwarded, metered, settled.

aiohttp's server parses; a job's headers, its path and its query go no further than here. What follows from a
hostile client is its own run's: connections are bounded by whoever accepts them, requests, bytes and time by
the settings, bodies in memory by `Bodies`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote

import msgspec
import structlog
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError

from nanoagent.ai import calls, metering, translation, upstreams
from nanoagent.ai.budgets import FunctionBudgets, RunBudget, RunLimits
from nanoagent.ai.calls import LISTS, ROUTES, api_of
from nanoagent.ai.recording import Recording
from nanoagent.ai.refusals import Api, Refused
from nanoagent.ai.share import REQUEST_S, LoopShare
from nanoagent.ai.upstreams import UpstreamFailed
from nanoagent.common.token_bucket import TokenBucket
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from nanoagent.ai.budgets import Reservation
    from nanoagent.ai.calls import Call, Route
    from nanoagent.ai.metering import Document, Stream
    from nanoagent.ai.translation import StreamTranslator, Translation, WholeTranslator
    from nanoagent.ai.upstreams import Answer, Upstream, Upstreams
    from nanoagent.network.base import NetworkRun
    from nanoagent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_IDLE_S: Final = 60  # a connection without a whole request's head is closed after that
_BODY_S: Final = 60.0  # a request's body has to come within that
_LINGER_S: Final = 1.0  # so that who is still sending a body gets to reading why it is refused
_NAMED: Final = {"Server": "nanoagent"}  # not which versions of what it is made of
_LINE_BYTES: Final = 8190
_HEADERS: Final = 64
_CHUNK: Final = 64 * 1024
_LARGE: Final = 256 * 1024  # of a request: takes milliseconds to read
_PIECE: Final = 16 * 1024  # of an answer: lines of two bytes take some 10 ms to count
_NEWS_PER_S: Final = 1 / 30  # about model servers, in the log
_NEWS_BURST: Final = 20
_LIST_S: Final = 10.0
_LIST_BYTES: Final = 4 * MIB
_MOST_LISTED: Final = 4096  # models of one upstream
_MOST_IN_LIST: Final = 300_000  # commas of its list: some 70 for each model; takes 30 ms to read
_ERROR_BYTES: Final = 64 * 1024
_ALL_BODIES: Final = 128 * MIB  # each is in memory about twice while it is forwarded
_NANOAGENT_VERSION: Final = b'{"version":"0.0.0"}'  # where no upstream is Ollama
_QUIET: Final = logging.getLogger("nanoagent.ai.http")
_QUIET.disabled = True  # whatever a hostile client provokes is no news of the worker's


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """The settings AI_MAX_…, AI_TIMEOUT_SECONDS and the like.

    Attributes:
        request_bytes: Largest body of one request.
        timeout_s: How long one request may take in all.
        drain_s: How long an answer is read on for its usage when the job has hung up.
        remote_tools: Whether calls may have the upstream reach the network.
    """

    run: RunLimits = field(default_factory=RunLimits)
    function_tokens_per_minute: int = 0
    request_bytes: int = 8 * MIB
    timeout_s: float = 300
    drain_s: float = 10
    remote_tools: bool = False


class Bodies:
    """How many bytes of requests are in memory, of all runs together.

    Args:
        most_bytes: How many may be.
    """

    def __init__(self, most_bytes: int) -> None:
        self.left = most_bytes

    def take(self, size: int, beside: int) -> None:
        """Some of a body has come.

        Args:
            size: So many bytes.
            beside: What its run holds already: no run holds more than it leaves to all others together, so
                that a few that hold as much as they can leave room for small requests.

        Raises:
            Refused: There is no room.
        """
        if beside + size > self.left - size:
            raise Refused(
                503, "the worker's gateway has many large requests at the moment", "busy", retry_after_s=1
            )
        self.left -= size


@dataclass(slots=True)
class _Shared:
    """What the conversations of one run share."""

    budget: RunBudget
    share: LoopShare
    recording: Recording | None
    held_bytes: int = 0


class Gateway:
    """Serves the connections of all runs. Implements `network.base.Gateway`.

    Args:
        servers: The model servers.
        limits: What runs may spend.
        metrics: Counts.
        now: The clock of the budgets of functions, seconds.
    """

    def __init__(
        self,
        servers: Upstreams,
        limits: GatewayLimits,
        metrics: Metrics,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.servers = servers
        self.limits = limits
        self.metrics = metrics
        self.bodies = Bodies(_ALL_BODIES)
        self.one_at_a_time = asyncio.Lock()  # large bodies are read so: between any two, others have the loop
        self._functions = FunctionBudgets(limits.function_tokens_per_minute, now)
        self._failing: dict[str, str] = {}
        self._now = now
        self._news = TokenBucket.full(_NEWS_PER_S, _NEWS_BURST, now())

    async def serve(self, connection: socket.socket, run: NetworkRun) -> None:
        """See `network.base.Gateway`."""
        await _Conversation(self, run).hold(connection)

    def heard(self, server: Upstream, problem: str | None) -> None:
        """Log when a model server begins to fail, and when it does no longer: jobs could make it a flood.

        Args:
            server: Which.
            problem: What is wrong with it, None when nothing is.
        """
        # What is not told now is news as well when the next request shows it.
        if problem == self._failing.get(server.name) or not self._news.take(self._now()):
            return
        if problem is None:
            del self._failing[server.name]
            log.info("a model server answers again", server=server.name)
        else:
            self._failing[server.name] = problem
            log.warning("a model server fails", server=server.name, problem=problem)

    def shared(self, run: NetworkRun) -> _Shared:
        """What the conversations of that run share."""
        if not isinstance(run.kept, _Shared):
            budget = RunBudget(self.limits.run, self._functions.of(run.function_id))
            share = LoopShare(asyncio.get_running_loop().time)
            run.kept = _Shared(budget, share, None if run.record is None else Recording(run.record))
        return run.kept


class _Handler(web.RequestHandler):
    """aiohttp's, which charges what it takes to its run's share of the loop."""

    share: LoopShare

    def data_received(self, data: bytes) -> None:
        """Something has come from the job.

        Whoever reads a body waits for the run's turn before reading on, and requests wait for theirs; then
        aiohttp's buffers are full, and it reads no more.
        """
        begun = time.thread_time()
        super().data_received(data)
        self.share.charge(time.thread_time() - begun)

    def handle_error(self, *given: Any, **named: Any) -> web.StreamResponse:
        """What is answered to what is no HTTP; aiohttp's names its version and Python's."""
        answer = super().handle_error(*given, **named)
        answer.headers.update(_NAMED)
        return answer


class _Server(web.Server):
    """aiohttp's, for one connection; says when it is lost."""

    def __init__(self, conversation: _Conversation) -> None:
        super().__init__(
            conversation.answer,
            access_log=None,
            logger=_QUIET,
            keepalive_timeout=_IDLE_S,
            lingering_time=0,  # aiohttp would read on without waiting for the run's turn: see _linger
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
            max_headers=_HEADERS,
            read_bufsize=_CHUNK,
            auto_decompress=False,
            tcp_keepalive=False,
        )
        self._conversation = conversation

    def __call__(self) -> web.RequestHandler:
        """What speaks HTTP on the connection."""
        handler = _Handler(self, loop=self._loop, **self._kwargs)
        handler.share = self._conversation.share
        return handler

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """The other end has gone, or we have let go of it."""
        super().connection_lost(handler, exc)
        self._conversation.lost()


class _Conversation:
    """One connection of a run."""

    def __init__(self, gateway: Gateway, run: NetworkRun) -> None:
        self._gateway = gateway
        self._run = run
        self._shared = gateway.shared(run)
        self.share = self._shared.share
        self._tasks: set[asyncio.Task[Any]] = set()
        self._scopes: set[asyncio.Timeout] = set()
        self._is_lost = False
        self._over = asyncio.Event()

    async def hold(self, connection: socket.socket) -> None:
        """Serve it until it is lost and nothing is read on for its usage, or until cancelled."""
        loop = asyncio.get_running_loop()
        server = _Server(self)
        transport, _ = await loop.connect_accepted_socket(server, connection)
        try:
            await self._over.wait()
        finally:
            self._is_lost = True
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            transport.abort()
            await asyncio.gather(*tasks, return_exceptions=True)

    def lost(self) -> None:
        """The job has hung up: what an upstream is still saying is read on for a while, to be counted."""
        self._is_lost = True
        loop = asyncio.get_running_loop()
        for scope in self._scopes:
            until = loop.time() + self._gateway.limits.drain_s
            when = scope.when()
            if not scope.expired() and (when is None or until < when):
                scope.reschedule(until)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._is_lost and not self._tasks:
            self._over.set()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request."""
        if self._is_lost:
            raise ConnectionResetError
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is running
        self._tasks.add(task)
        path = calls.normalised(request.raw_path.partition("?")[0])
        self.share.charge(REQUEST_S)
        try:
            await self.share.turn()
            return await self._respond(request, path)
        except Refused as refusal:
            self._run.usage.refused += 1
            self._gateway.metrics.models.request(None, "refused")
            await self._linger(request)
            return _refusal(refusal, api_of(path))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("the gateway failed", request_id=self._run.request_id, path=path[:100])
            failed = Refused(500, "the worker's gateway failed; its log says more", retry_after_s=None)
            return _refusal(failed, api_of(path))
        finally:
            self._tasks.discard(task)
            self._end_if_idle()

    async def _linger(self, request: web.BaseRequest) -> None:
        """Read some of a body that nobody wants: a connection that is reset takes its answer with it."""
        with suppress(TimeoutError, web.RequestPayloadError, HttpProcessingError):
            async with asyncio.timeout(_LINGER_S):
                while not request.content.at_eof():
                    await request.content.readany()
                    await self.share.turn()

    async def _respond(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.version < HttpVersion10:
            raise Refused(505, "the gateway speaks HTTP/1.1")
        if request.method in {"GET", "HEAD"}:
            if path == "/":  # what clients look for, to see whether Ollama is there
                return web.Response(text="Ollama is running", headers=_NAMED)
            if path in LISTS or path.startswith("/v1/models/"):
                with self._shared.budget.request():
                    return await self._list(path)
        route = ROUTES.get(path)
        if route is None or request.method != "POST":
            raise calls.unknown(request.method, path)
        with self._shared.budget.request(), self._body() as held:
            await self._read(request, held)
            return await self._forward(request, route, bytes(held))

    # --- what comes from the job

    @contextmanager
    def _body(self) -> Iterator[bytearray]:
        """A request's body, to be filled by `_take`; its bytes are free again at the end."""
        held = bytearray()
        try:
            yield held
        finally:
            self._gateway.bodies.left += len(held)
            self._shared.held_bytes -= len(held)

    def _take(self, held: bytearray, data: bytes) -> None:
        self._shared.budget.spend_bytes(len(data))
        self._gateway.bodies.take(len(data), self._shared.held_bytes)
        self._shared.held_bytes += len(data)
        held += data

    async def _read(self, request: web.BaseRequest, held: bytearray) -> None:
        """The request's body into `held`.

        Raises:
            Refused: It is too large, or too slow.
        """
        limit = self._gateway.limits.request_bytes
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(415, "the request's body must not be compressed", "unsupported_encoding")
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version == HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer proper has not begun
        try:
            async with asyncio.timeout(_BODY_S):
                while data := await request.content.readany():
                    await self.share.turn()
                    if len(held) + len(data) > limit:
                        raise _too_large(limit)
                    self._take(held, data)
        except TimeoutError as exc:
            raise Refused(
                408, f"the request's body did not come within {_BODY_S:g} s", "body_timeout"
            ) from exc
        except (web.RequestPayloadError, HttpProcessingError) as exc:
            raise Refused(400, "the request's body is not as its headers say", "invalid_body") from exc

    # --- lists of models, which say only what the run may use

    async def _list(self, path: str) -> web.Response:
        servers = self._gateway.servers
        api = api_of(path)
        if not servers.servers:
            servers.choose(self._run.model, api)  # says what is missing
        asked = [server for server in servers.servers if server.speaks(api)]
        if path == "/api/version":
            told = await upstreams.from_each([(server, path) for server in asked], _LIST_S, _LIST_BYTES)
            found = next((document for document in told if document), _NANOAGENT_VERSION)
            return _json(msgspec.Raw(found))
        listed = await self._listed(path, asked)
        if path.startswith("/v1/models/"):
            name = unquote(path.removeprefix("/v1/models/"))
            if name not in listed:
                raise Refused(404, f"the model {name[:100]!r} is not there", "model_not_found")
            return _json(listed[name])
        entries = list(listed.values())
        return _json({"object": "list", "data": entries} if api is Api.OPENAI else {"models": entries})

    async def _listed(self, path: str, asked: list[Upstream]) -> dict[str, msgspec.Raw]:
        """The models that the run may use, by name, each in the format of the requested list.

        Raises:
            Refused: No server has answered.
        """
        servers = self._gateway.servers
        found = await self._entries((server, path) for server in asked)
        others = [server for server, entries in zip(asked, found, strict=True) if entries is None]
        if path == "/api/tags" and others:  # a server without Ollama's API has OpenAI's list
            told = await self._entries((server, "/v1/models") for server in others)
            translated = dict(zip(others, map(_as_tags, told), strict=True))
            pairs = zip(asked, found, strict=True)
            found = [translated[server] if entries is None else entries for server, entries in pairs]
        if asked and path != "/api/ps" and all(entries is None for entries in found):
            raise Refused(502, "no model server of this worker could be asked", "upstream_failed")
        listed: dict[str, msgspec.Raw] = {}
        for server, entries in zip(asked, found, strict=True):
            with self.share.charged():
                listed |= {name: entry for name, entry in entries or () if servers.serving(name) is server}
            await asyncio.sleep(0)
        return listed

    async def _entries(self, asked: Iterable[tuple[Upstream, str]]) -> list[list[_Named] | None]:
        """Each server's models; None for a server without such a list."""
        questions = [(server, "/v1/models" if path.startswith("/v1") else path) for server, path in asked]
        documents = await upstreams.from_each(questions, _LIST_S, _LIST_BYTES)
        found = []
        for (_, path), document in zip(questions, documents, strict=True):
            with self.share.charged():
                found.append(_entries(document, api_of(path)))
            await asyncio.sleep(0)
        return found

    # --- calls

    async def _forward(self, request: web.BaseRequest, route: Route, sent: bytes) -> web.StreamResponse:
        gateway = self._gateway
        if not gateway.servers.servers:
            gateway.servers.choose(self._run.model, route.api)
        async with self._turn_to_read(sent):
            with self.share.charged():
                call = calls.read(route, sent, self._run.model, remote=gateway.limits.remote_tools)
                prompt_tokens = 0 if route.tells == "facts" else call.prompt_tokens
        server = gateway.servers.choose(call.model, route.api)
        translated, asked = None, call
        if route.api is Api.OLLAMA and await server.lacks_ollama():
            if route.tells == "facts":
                return await self._show(call, server)
            if translation.is_load(call):
                return _json(msgspec.Raw(translation.loaded(call)))
            translated, asked = await self._translated(call, server)
        if self._is_lost:  # nobody was watching for that yet: AI_DRAIN_SECONDS would not end it
            raise ConnectionResetError
        answers = asked.choices if route.tells == "text" else 0
        reservation = self._shared.budget.reserve(prompt_tokens, asked.wanted_in_all, answers=answers)
        with self.share.charged():
            exchange = _Exchange(self, request, call, server, reservation, prompt_tokens)
            exchange.asked, exchange.translated = asked, translated
        try:
            return await exchange.run()
        except Refused as failure:
            return _refusal(failure, route.api)
        finally:
            with self.share.charged():
                exchange.settle()

    async def _translated(self, call: Call, server: Upstream) -> tuple[Translation, Call]:
        """Translate a call of Ollama's API into one of OpenAI's, and check that like any other."""
        gateway = self._gateway
        async with self._turn_to_read(call.sent):
            with self.share.charged():
                translated = translation.of(call, newer=server.newer)
                asked = calls.read(
                    translated.route, translated.request, call.model, remote=gateway.limits.remote_tools
                )
        return translated, asked

    @asynccontextmanager
    async def _turn_to_read(self, sent: bytes) -> AsyncIterator[None]:
        """Wait until a body may be read: a large one alone, and only while its run has a share left.

        The share is looked at under the lock, as requests of the same run may have been read while this one
        waited for it. The lock is not held while the share comes back: other runs need it.
        """
        if len(sent) <= _LARGE:
            yield
            return
        while True:
            await self.share.turn()
            async with self._gateway.one_at_a_time:
                if self.share.delay_s() == 0:
                    yield
                    return

    async def _show(self, call: Call, server: Upstream) -> web.Response:
        """The details of a model on a server with OpenAI's API only, which lists only names."""
        (listed,) = await self._entries([(server, "/v1/models")])
        if listed is not None and call.model not in {name for name, _ in listed}:
            raise Refused(404, f"model {call.model!r} not found", "model_not_found", param="model")
        return _json(translation.shown())

    @contextmanager
    def watched(self, scope: asyncio.Timeout) -> Iterator[None]:
        """While it lasts, the scope ends sooner when the job hangs up."""
        self._scopes.add(scope)
        try:
            yield
        finally:
            self._scopes.discard(scope)

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Count what is held of an answer in memory, until the end of the block.

        Yields:
            A function that sets how many bytes are held now. It raises `Refused` if there is no room.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            more = size - held
            if more > 0:
                self._gateway.bodies.take(more, self._shared.held_bytes)
            else:
                self._gateway.bodies.left -= more
            self._shared.held_bytes += more
            held = size

        try:
            yield hold
        finally:
            hold(0)

    @property
    def gateway(self) -> Gateway:
        """Whose it is."""
        return self._gateway

    @property
    def is_lost(self) -> bool:
        """Whether the job has hung up."""
        return self._is_lost

    def spend_bytes(self, count: int) -> None:
        """See `RunBudget.spend_bytes`."""
        self._shared.budget.spend_bytes(count)

    def count(
        self,
        model: str,
        outcome: str,
        tokens: tuple[int, int],
        parts: tuple[int, int],
        seconds: float,
        *,
        has_answered: bool,
    ) -> None:
        """Count a forwarded call that has ended.

        Args:
            model: The model that was asked.
            outcome: How it ended.
            tokens: Of prompt and completion.
            parts: The cached tokens of the prompt, and the reasoning tokens of the completion.
            seconds: How long it took.
            has_answered: Whether the model has answered. If not, its name may be invented, and gets no new
                label.
        """
        usage, metrics = self._run.usage, self._gateway.metrics
        usage.requests += 1
        usage.prompt_tokens += tokens[0]
        usage.completion_tokens += tokens[1]
        usage.cached_tokens += parts[0]
        usage.reasoning_tokens += parts[1]
        label = model if has_answered or metrics.model_labels.has(model) else None
        metrics.models.request(label, outcome, seconds)
        metrics.models.tokens(label, *tokens, cached=parts[0], reasoning=parts[1])

    @property
    def recording(self) -> Recording | None:
        """What is written down of the run, None where nothing is."""
        return self._shared.recording


class _Exchange:
    """One call from the time it goes to an upstream until it is settled.

    Attributes:
        asked: The call that is sent to the upstream, in an API that it has.
        translated: The translation of the job's call to it; None if they are the same.
    """

    def __init__(
        self,
        conversation: _Conversation,
        request: web.BaseRequest,
        call: Call,
        server: Upstream,
        reservation: Reservation,
        prompt_tokens: int,
    ) -> None:
        self._conversation = conversation
        self._request = request
        self._call = call
        self.asked = call
        self.translated: Translation | None = None
        self._translator: StreamTranslator | WholeTranslator | None = None
        self._server = server
        self._reservation = reservation
        self._prompt_tokens = prompt_tokens
        self._meter: Document | Stream | None = None
        self._response: web.StreamResponse | None = None
        self._outcome = "cut"  # until it is known to be anything else
        self._begun = time.perf_counter()
        recording = conversation.recording
        self._record = None if recording is None else recording.exchange(call)

    async def run(self) -> web.StreamResponse:
        """Ask, and pass the answer on.

        Raises:
            Refused: There is none, and nothing has been passed on yet.
            ConnectionError: There is no more of it, or nobody to pass it to.
        """
        limits = self._conversation.gateway.limits
        cap = self._reservation.cap if self._server.takes_bounds else None
        body = self.asked.body(cap, newer=self._server.newer)
        try:
            async with asyncio.timeout(limits.timeout_s) as scope:
                with self._conversation.watched(scope):
                    async with self._server.ask("POST", self.asked.route.path, body) as answer:
                        return await self._relay(answer)
        except TimeoutError as exc:
            raise self._cut(
                Refused(
                    504,
                    f"the model did not answer within AI_TIMEOUT_SECONDS={limits.timeout_s:g}; "
                    "ask for less, or have AI_TIMEOUT_SECONDS raised",
                    "timeout",
                )
            ) from exc
        except UpstreamFailed as exc:
            if self._meter is None:
                self._outcome = "error"
                self._conversation.gateway.heard(self._server, str(exc.__cause__ or exc))
            raise self._cut(Refused(502, f"the model server failed: {exc}", "upstream_failed")) from exc
        except Refused as exc:
            raise self._cut(exc) from exc

    def _cut(self, refusal: Refused) -> Exception:
        """What ends the exchange: an error that says why, or, once it has begun, a broken connection."""
        if self._response is None and not self._conversation.is_lost:
            return refusal
        if self._request.transport is not None:
            self._request.transport.abort()
        return ConnectionResetError(str(refusal))

    async def _relay(self, answer: Answer) -> web.StreamResponse:
        if answer.status != 200:
            return await self._relay_failure(answer)
        self._meter = metering.meter_for(self.asked, answer.content_type)
        content_type = answer.content_type
        if self.translated is not None:
            self._translator = self.translated.translator(self._meter.tally, content_type, self._begun)
            content_type = self._translator.content_type
        self._conversation.gateway.heard(self._server, None)
        response = web.StreamResponse(headers=_NAMED | {"Content-Type": _plain(content_type)})
        if answer.size is not None and not self.asked.strips_usage and self._translator is None:
            response.content_length = answer.size
        if self._record is not None:
            self._record.answered(answer.status, content_type)
        with self._conversation.holding() as hold:
            await self._pass_all(response, answer, hold)
        self._outcome = "ok"
        if self._conversation.is_lost:
            raise ConnectionResetError
        await self._begin(response)
        await response.write_eof()
        return response

    async def _pass_all(
        self, response: web.StreamResponse, answer: Answer, hold: Callable[[int], None]
    ) -> None:
        """Pass the answer on in pieces; what is held of it counts in the memory of all runs."""
        assert self._meter is not None  # noqa: S101 - an answer is being read
        async for data in answer.chunks:
            self._conversation.spend_bytes(len(data))
            for at in range(0, len(data), _PIECE):
                await self._meter_and_pass_on(response, data[at : at + _PIECE])
                hold(self._held_bytes())
            self._stop_if_spent()
        with self._conversation.share.charged():
            rest = self._meter.finish()
            if self._translator is not None:
                rest = self._translator.finish()
        await self._note_and_pass_on(response, rest)

    def _held_bytes(self) -> int:
        """What is held of the answer; small lines are left out, so that full memory cuts no stream."""
        assert self._meter is not None  # noqa: S101 - an answer is being read
        whole, lines = 0, self._meter.held_bytes
        if self._translator is not None and self._translator.holds_whole:
            whole = self._translator.held_bytes
        elif self._translator is not None:
            lines += self._translator.held_bytes
        return whole + max(0, lines - _CHUNK)

    async def _meter_and_pass_on(self, response: web.StreamResponse, data: bytes) -> None:
        """Then leave the loop to others, for as long as what it took is more than the run's share."""
        assert self._meter is not None  # noqa: S101 - an answer is being read
        share = self._conversation.share
        with share.charged():
            kept = self._meter.feed(data)
            if self._translator is not None:
                kept = self._translator.feed(data)
        if self._record is not None and self._translator is None:
            self._record.add(data)
            await self._pass_on(response, kept)
        else:
            await self._note_and_pass_on(response, kept)
        if len(data) == _PIECE:  # more is there already, most likely, and nothing is waited for
            await asyncio.sleep(0)
        await share.turn()

    async def _note_and_pass_on(self, response: web.StreamResponse, data: bytes) -> None:
        if self._record is not None and self._translator is not None:
            self._record.add(data)
        await self._pass_on(response, data)

    async def _begin(self, response: web.StreamResponse) -> None:
        if self._response is None:
            self._response = response
            await response.prepare(self._request)

    async def _pass_on(self, response: web.StreamResponse, data: bytes) -> None:
        """To the job, if it is still there; if not, the rest of the answer is only counted."""
        if not data or self._conversation.is_lost:
            return
        with suppress(ConnectionError):
            await self._begin(response)
            await response.write(data)

    def _stop_if_spent(self) -> None:
        """End a stream that has passed the run's budget, whatever bound the upstream was given.

        Raises:
            Refused: It has.
        """
        assert self._meter is not None  # noqa: S101 - an answer is being read
        so_far = sum(self._meter.tally.total(self._prompt_tokens, complete=False))
        if self._reservation.is_passed(so_far):
            raise Refused(429, "this run has used its tokens (AI_MAX_TOKENS)", "token_limit")

    async def _relay_failure(self, answer: Answer) -> web.StreamResponse:
        """What the upstream says of a call that it does not answer, as far as it is the job's to know."""
        self._outcome = "error"
        body = b""
        with suppress(UpstreamFailed):  # its status is enough
            body = await upstreams.read_up_to(answer, _ERROR_BYTES)
        if self._record is not None:
            self._record.answered(answer.status, answer.content_type)
            self._record.add(body)
        status, body = answer.status, _unwrapped(body)
        if status in {401, 403}:
            self._conversation.gateway.heard(self._server, f"it refuses the key: {status}")
            raise Refused(
                502,
                f"the model server refuses the worker's key ({status}); have AI_API_KEY or the key in "
                "AI_UPSTREAMS checked",
                "upstream_refused",
            )
        if status == 429:
            told = answer.retry_after or ""
            wait_s = int(told) if re.fullmatch("[0-9]{1,4}", told) else 1
            raise Refused(429, "the model server is asked too often", "upstream_busy", retry_after_s=wait_s)
        if not 400 <= status < 600 or not _is_json(body):
            raise Refused(502, f"the model server answered {status}", "upstream_failed")
        if self.translated is not None:
            body = translation.refusal(body)
        for secret in self._server.secrets:
            body = body.replace(secret.encode(), b"***")
        return web.Response(status=status, body=body, headers=_NAMED | {"Content-Type": "application/json"})

    def settle(self) -> None:
        """Count what it has cost. Never waits: the run may be at its end."""
        tokens = parts = (0, 0)
        if self._call.route.tells != "facts" and self._outcome != "error":
            tally = metering.Tally() if self._meter is None else self._meter.tally
            tokens = tally.total(
                self._prompt_tokens,
                complete=self._outcome == "ok",
                vectors=self._call.route.tells == "vectors",
            )
            parts = (tally.cached, tally.reasoning)
        self._reservation.settle(sum(tokens))
        seconds = time.perf_counter() - self._begun
        has_answered = self._meter is not None
        self._conversation.count(
            self._call.model, self._outcome, tokens, parts, seconds, has_answered=has_answered
        )
        if self._record is not None:
            self._record.close(
                tokens, seconds, complete=self._outcome == "ok", cached=parts[0], reasoning=parts[1]
            )


_Named: TypeAlias = tuple[str, msgspec.Raw]
"""A model's name, and its entry in a list."""


class _Entry(msgspec.Struct):
    id: str | None = None
    name: str | None = None


class _Listing(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"")
    models: msgspec.Raw = msgspec.Raw(b"")


def _entries(document: bytes | None, api: Api) -> list[_Named] | None:
    """The models of a list, by name, each as the upstream says it; None for any other document."""
    document = document or b""
    if document.count(b",") > _MOST_IN_LIST:
        return None
    try:
        whole = msgspec.json.decode(document, type=_Listing | list[msgspec.Raw])
        if isinstance(whole, list):  # Together's
            entries = whole if api is Api.OPENAI else None
        else:
            listed = whole.data if api is Api.OPENAI else whole.models
            entries = msgspec.json.decode(listed, type=list[msgspec.Raw] | None) or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    found = []
    for entry in (entries or [])[:_MOST_LISTED]:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            said = msgspec.json.decode(entry, type=_Entry)
            if (name := said.id if api is Api.OPENAI else said.name) is not None:
                found.append((name, entry))
    return found


def _as_tags(entries: list[_Named] | None) -> list[_Named] | None:
    """Models of OpenAI's list in Ollama's shape."""
    if entries is None:
        return None
    return [(name, translation.model_entry(entry)) for name, entry in entries]


def _too_large(limit: int) -> Refused:
    return Refused(
        413,
        f"the request is larger than {limit} bytes (AI_MAX_REQUEST_BYTES={limit}); send less, or have "
        "AI_MAX_REQUEST_BYTES raised",
        "request_too_large",
    )


def _refusal(refusal: Refused, api: Api) -> web.Response:
    headers = _NAMED | refusal.headers()
    return web.Response(status=refusal.status, body=refusal.body(api), headers=headers)


def _json(document: Any) -> web.Response:
    headers = _NAMED | {"Content-Type": "application/json"}
    return web.Response(body=msgspec.json.encode(document), headers=headers)


def _unwrapped(body: bytes) -> bytes:
    """The body of an error, without the list that Gemini puts around it."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        (only,) = msgspec.json.decode(body, type=tuple[msgspec.Raw])
        return bytes(only)
    return body


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _plain(content_type: str) -> str:
    """A content type that can stand in a header."""
    return content_type if content_type.isascii() and content_type.isprintable() else "application/json"
