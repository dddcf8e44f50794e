"""`ai_client` in each language, as it lies in the images, against answers of every shape; byte by byte.

One program for each language makes all the calls (`ai_clients/`): what it asks of the server, and what it
then makes of the answer, must be the same in all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(300)

DRIVERS: Final = Path(__file__).parent / "ai_clients"
COMMANDS: Final = {
    "python": "exec python3 main.py",
    "nodejs": "exec node index.js",
    "cpp": "/nanosupervisor/build-cpp /tmp/program && exec /tmp/program",
    "go": "/nanosupervisor/build-go /tmp/program && exec /tmp/program",
}
PROMPT: Final = '하늘은 "왜" 파란가?\n\t\\ \x01 🙂'


def image(runtime: str) -> str:
    return os.environ.get(f"NANOAGENT_TEST_{runtime.upper()}_IMAGE", f"nanoagent-{runtime}:latest")


# --- what the server says


def head(status: str = "200 OK", *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode()


def whole(answer: object, status: str = "200 OK") -> list[bytes]:
    body = answer if isinstance(answer, bytes) else json.dumps(answer, ensure_ascii=False).encode()
    return [head(status, f"Content-Length: {len(body)}") + body]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED: Final = head("200 OK", "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
LAST: Final = b"0\r\n\r\n"


def line(piece: str, *, done: bool = False, ending: bytes = b"\n") -> bytes:
    return json.dumps({"response": piece, "done": done}, ensure_ascii=False).encode() + ending


def chat_line(piece: str, *, done: bool = False) -> bytes:
    part = {"message": {"role": "assistant", "content": piece}, "done": done}
    return json.dumps(part, ensure_ascii=False).encode() + b"\n"


PIECES: Final = ["파란", " ", "하늘", "🙂", ""]
STREAM: Final = b"".join([*(line(piece) for piece in PIECES[:-1]), line("", done=True)])
MANY: Final = [f"{number} 조각 " for number in range(20_000)]
LARGE: Final = "가나다 abc 🙂 " * 400_000  # 8 MB


@dataclass
class Case:
    """One call, what the server answers, and what has to come of it.

    Attributes:
        says: What the server sends, a write each.
        then: How it ends: it closes, resets, or waits until the client hangs up.
        pieces: Of the answer; None where an error is due.
        error: How the error's message begins, with `{url}` for the address.
        status: The error's.
        sent: The request's JSON, where that matters.
        hung_up: Set once the client has.
    """

    name: str
    call: str
    says: list[bytes]
    pieces: list[str] | None = None
    error: str = ""
    status: int = 0
    then: str = "close"
    path: str = "/api/generate"
    sent: dict[str, Any] | None = None
    hung_up: threading.Event = field(default_factory=threading.Event)


def refused(name: str, status: str, body: object, words: str) -> Case:
    code = status.split(maxsplit=1)[0]
    return Case(
        f"refused: {name}",
        "generate",
        whole(body, status),
        error=f"the model server at {{url}} answered {code}: {words}",
        status=int(code),
    )


def failing(name: str, call: str, says: list[bytes], error: str, **more: Any) -> Case:
    return Case(name, call, says, error=error, **more)


BROKEN_OFF: Final = "the model server's answer ended before it was complete"
UNREACHABLE: Final = "the model server at {url} cannot be reached: "
LATE: Final = "the model server at {url} did not answer within 0.3 s"
REQUEST: Final = {"model": "llama3:8b", "prompt": PROMPT, "stream": False}
MESSAGES: Final = [{"role": "user", "content": PROMPT}]


def answers() -> list[Case]:
    answer = {"response": "파란 하늘", "done": True}
    said = {"message": {"role": "assistant", "content": "안녕"}, "done": True}
    body = json.dumps(answer).encode()
    tuned = {"system": "Be brief.", "format": "json", "options": {"temperature": 0}, "model": "other"}
    return [
        Case("with a length", "generate", whole(answer), ["파란 하늘"], sent=REQUEST),
        Case("in chunks", "generate", [CHUNKED, *map(chunk, (body[:9], body[9:])), LAST], ["파란 하늘"]),
        Case("until it closes", "generate", [head() + body], ["파란 하늘"]),
        Case("after 100 Continue", "generate", [head("100 Continue"), *whole(answer)], ["파란 하늘"]),
        Case("byte by byte", "generate", [bytes([byte]) for byte in whole(answer)[0]], ["파란 하늘"]),
        Case("of 8 MB", "generate", whole({"response": LARGE}), [LARGE]),
        Case("with options", "generate-tuned", whole(answer), ["파란 하늘"], sent=REQUEST | tuned),
        Case(
            "with escapes",
            "generate",
            whole(
                rb'{"a": [1, -2.5e3, true, null, {}, []], '
                rb'"response": "\ud55c\n\"\\\/\b\t\u0001 \ud83d\ude42"}'
            ),
            ['한\n"\\/\b\t\x01 🙂'],
        ),
        Case(
            "of a chat",
            "chat",
            whole(said),
            ["안녕"],
            path="/api/chat",
            sent={"model": "llama3:8b", "stream": False, "messages": MESSAGES},
        ),
    ]


def streams() -> list[Case]:
    chat = b"".join(map(chat_line, PIECES[:-1])) + chat_line("", done=True)
    odd = b'7;ext="a b"\r\n' + STREAM[:7] + b"\r\n" + chunk(STREAM[7:]) + b"0\r\nTrailer: x\r\n\r\n"
    crlf = b"\r\n".join([line(piece, ending=b"") for piece in PIECES[:-1]]) + b"\r\n\r\n \r\n"
    many = [CHUNKED] + [chunk(line(piece)) for piece in MANY] + [chunk(line("", done=True)), LAST]
    return [
        Case(
            "a chunk for each line",
            "generate-stream",
            [CHUNKED, *(chunk(each) for each in STREAM.splitlines(keepends=True)), LAST],
            PIECES,
            sent=REQUEST | {"stream": True},
        ),
        Case(
            "a chunk for each byte",
            "generate-stream",
            [CHUNKED + b"".join(chunk(bytes([byte])) for byte in STREAM) + LAST],
            PIECES,
        ),
        Case("a write for each byte", "generate-stream", [bytes([b]) for b in CHUNKED + odd], PIECES),
        Case("one chunk", "generate-stream", [CHUNKED + chunk(STREAM) + LAST], PIECES),
        Case("until it closes, as a stream", "generate-stream", [head(), STREAM], PIECES),
        Case("with a length, as a stream", "generate-stream", whole(STREAM), PIECES),
        Case("no newline at the end", "generate-stream", whole(STREAM.rstrip(b"\n")), PIECES),
        Case("other newlines", "generate-stream", whole(crlf + line("", done=True, ending=b"\r\n")), PIECES),
        Case("20,000 pieces", "generate-stream", [b"".join(many)], [*MANY, ""]),
        Case(
            "a chat's",
            "chat-stream",
            [CHUNKED + chunk(chat) + LAST],
            PIECES,
            path="/api/chat",
            sent={"model": "llama3:8b", "stream": True, "messages": MESSAGES},
        ),
        Case("stopped in between", "stop", [CHUNKED, chunk(line("첫"))], ["첫"], then="wait"),
    ]


def embeddings() -> list[Case]:
    one = {"model": "llama3:8b", "input": [PROMPT], "stream": False}
    two = one | {"input": [PROMPT, "다른"]}
    path = "/api/embed"
    short = "the model server's answer has no 'embeddings' for 2 texts"
    return [
        Case(
            "one text",
            "embed",
            whole({"embeddings": [[0.5, -2, 0.25]]}),
            ["0.5,-2,0.25"],
            path=path,
            sent=one,
        ),
        Case("two texts", "embed-both", whole({"embeddings": [[1, 2], [3]]}), ["1,2;3"], path=path, sent=two),
        failing("too few vectors", "embed-both", whole({"embeddings": [[1]]}), short, path=path),
        failing("no vectors", "embed-both", whole({}), short, path=path),
    ]


def errors() -> list[Case]:
    no_text = "the model server's answer has no text in "
    limit = "the run has used its 1000 tokens (AI_MAX_TOKENS); ask whoever runs the worker to raise it. 한도"
    cut = CHUNKED + chunk(line("첫")) + b"40\r\n{"
    ollama = {"error": limit}
    openai = {"error": {"message": limit, "type": "requests", "param": None, "code": None}}
    full_line = chunk(line("첫"))
    promised = head("200 OK", "Content-Length: 9")
    return [
        refused("a limit, as Ollama says it", "429 Too Many Requests", ollama, limit),
        refused("a limit, as OpenAI says it", "429 Too Many Requests", openai, limit),
        refused("no upstream", "503 Service Unavailable", {"error": "set AI_ENDPOINT"}, "set AI_ENDPOINT"),
        refused("no error", "500 Internal Server Error", {"error": None}, '{"error": null}'),
        refused("a page", "404 Not Found", b"<h1>no</h1>\n", "<h1>no</h1>"),
        refused("no words", "500 Internal Server Error", b"", "Internal Server Error"),
        refused("elsewhere", "307 Temporary Redirect", b"", "Temporary Redirect"),
        refused("many words", "502 Bad Gateway", {"error": "x" * 10_000}, "x" * 500),
        refused("many bytes", "502 Bad Gateway", b"y" * 5_000_000, "y" * 500),
        failing("under status 200", "generate", whole({"error": "oh"}), "the model server failed: oh"),
        failing(
            "in a stream",
            "generate-stream",
            [CHUNKED, full_line, chunk(b'{"error": "it fell"}\n'), LAST],
            "the model server failed: it fell",
        ),
        failing("nothing", "generate", [], UNREACHABLE),
        failing("reset at once", "generate", [], UNREACHABLE, then="reset"),
        failing("silence", "generate-briefly", [], LATE, then="wait"),
        failing("silence after the head", "generate-briefly", [promised], LATE, then="wait"),
        failing("silence in a stream", "generate-stream-briefly", [CHUNKED, full_line], LATE, then="wait"),
        failing("silence in a chat", "chat-briefly", [CHUNKED], LATE, path="/api/chat", then="wait"),
        failing("cut short", "generate", [head("200 OK", "Content-Length: 99") + b'{"response"'], BROKEN_OFF),
        failing("cut in a chunk", "generate", [cut], BROKEN_OFF),
        failing("a stream cut in a chunk", "generate-stream", [cut], BROKEN_OFF),
        failing("a stream cut after a chunk", "generate-stream", [CHUNKED + full_line], BROKEN_OFF),
        failing("a stream reset", "generate-stream", [CHUNKED + full_line], BROKEN_OFF, then="reset"),
        failing("a stream without its end", "generate-stream", [CHUNKED + full_line + LAST], BROKEN_OFF),
        failing("no JSON", "generate", whole(b"<html>"), "the model server's answer is not JSON: '<html>'"),
        failing(
            "half of JSON", "generate", whole(b'{"response": "x'), "the model server's answer is not JSON: "
        ),
        failing("no object", "generate", whole([1]), "the model server's answer is not a JSON object: '[1]'"),
        failing("no text", "generate", whole({}), no_text + "'response'"),
        failing("a number", "generate", whole({"response": 5}), no_text + "'response'"),
        failing(
            "a chat without content",
            "chat",
            whole({"message": {}}),
            no_text + "'content'",
            path="/api/chat",
        ),
    ]


def cases() -> list[Case]:
    return [*answers(), *streams(), *embeddings(), *errors()]


# --- the server


class ScriptedServer:
    """Plays each case to the connection that asks below its path; bytes and ends are as the case has them."""

    def __init__(self, cases: list[Case]) -> None:
        self._cases = cases
        self.asked: dict[int, tuple[str, dict[str, Any]]] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._socket.close()
        for thread in self._threads:
            thread.join()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/{number}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as request:
            number, path = request.readline().decode().split()[1].removeprefix("/").split("/", 1)
            case = self._cases[int(number)]
            length = 0
            while (header := request.readline().strip()) != b"":
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            self.asked[int(number)] = f"/{path}", json.loads(request.read(length))
            with contextlib.suppress(ConnectionError):  # a client that has read enough
                for data in case.says:
                    connection.sendall(data)
            if case.then == "wait":
                with contextlib.suppress(ConnectionError):
                    request.read(1)
                case.hung_up.set()
            elif case.then == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# --- the client


async def told(runtime: str, orders: list[str]) -> list[str]:
    """What the program of that language says to each of the orders."""
    script = f"cp -r /driver/. /tmp/driver && cd /tmp/driver && {COMMANDS[runtime]}"
    process = await asyncio.create_subprocess_exec(
        *(
            "docker",
            "run",
            "--rm",
            "-i",
            "--network",
            "host",
            "--entrypoint",
            "sh",
            "-e",
            "LLM_MODEL=llama3:8b",
        ),
        *("--tmpfs", "/tmp:exec", "-v", f"{DRIVERS / runtime}:/driver:ro", image(runtime), "-c", script),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate("".join(f"{order}\n" for order in orders).encode())
    assert process.returncode == 0, errors.decode()
    return output.decode().splitlines()


def mistakes(case: Case, url: str, said: str) -> list[str]:
    """What is wrong with what a client has said."""
    kind, _, rest = said.partition(" ")
    if case.pieces is not None:
        pieces = [bytes.fromhex(piece).decode() for piece in rest.split(",")] if kind == "ok" else said
        return [] if pieces == case.pieces else [f"{case.name}: {str(pieces)[:300]}"]
    status, _, message = rest.partition(" ")
    if kind != "error":
        return [f"{case.name}: no error but {said[:300]}"]
    text = bytes.fromhex(message).decode()
    good = text.startswith(case.error.replace("{url}", url)) and int(status) == case.status
    return [] if good else [f"{case.name}: {status} {text[:600]}"]


@pytest.mark.parametrize("runtime", COMMANDS)
async def test_every_client_makes_the_same_of_every_answer(
    runtime: str, record_property: Callable[[str, Any], None]
):
    scenario = cases()
    with ScriptedServer(scenario) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        orders = [
            f"{server.url(number)} {case.call} {PROMPT.encode().hex()}"
            for number, case in enumerate(scenario)
        ]
        *said, last = await told(runtime, [*orders, f"{nowhere} generate 00"])
        assert len(said) == len(scenario)
        wrong = mistakes(failing("nobody listens", "generate", [], UNREACHABLE), nowhere, last)
        for number, case in enumerate(scenario):
            wrong += mistakes(case, server.url(number), said[number])
            path, body = server.asked[number]
            if path != case.path or case.sent not in (None, body):
                wrong.append(f"{case.name}: asked {path} {body}")
            if case.then == "wait" and not case.hung_up.wait(60):
                wrong.append(f"{case.name}: did not hang up")
    assert wrong == []
    record_property("tried", [f"answers to the AI client of {runtime}", len(scenario) + 1])
