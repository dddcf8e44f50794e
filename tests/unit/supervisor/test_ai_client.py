"""`ai_client` against a server in Ollama's shapes (github.com/ollama/ollama, docs/api.md).

What it makes of answers byte by byte, as its likes in the other languages, is in
tests/integration/test_ai_clients.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import socketserver
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

SOURCE = Path(__file__).parents[3] / "src" / "nanosupervisor" / "ai_client.py"
GENERATED = {"model": "llama3:8b", "response": "하늘은 파랗다", "done": True, "eval_count": 7}
CHATTED = {"model": "llama3:8b", "message": {"role": "assistant", "content": "Hallo"}, "done": True}


class Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the DNS for this host's name
        self.server_port = int(self.server_address[1])


@dataclass
class ModelServer:
    """Answers every request with what was set, and keeps what it was asked."""

    status: int = 200
    body: bytes = b"{}"
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answering: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        model_server = self
        self.answering.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                model_server.asked.append((self.path, json.loads(body)))
                model_server.answering.wait()
                with contextlib.suppress(BrokenPipeError):  # the client that gave up waiting
                    self.send_response(model_server.status)
                    self.send_header("Content-Length", str(len(model_server.body)))
                    self.end_headers()
                    self.wfile.write(model_server.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.answering.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def answers(self, answer: object, status: int = 200) -> None:
        self.status = status
        self.body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()


@pytest.fixture
def ai_client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ai_client", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with ModelServer() as server:
        monkeypatch.setenv("AI_ENDPOINT", server.url)
        monkeypatch.setenv("LLM_MODEL", "llama3:8b")
        yield server


def test_generate_sends_the_prompt_and_returns_the_whole_answer(ai_client, server):
    server.answers(GENERATED)
    assert ai_client.generate("하늘은?") == "하늘은 파랗다"
    assert server.asked == [("/api/generate", {"model": "llama3:8b", "prompt": "하늘은?", "stream": False})]


def test_chat_sends_the_messages_and_returns_the_answers_content(ai_client, server):
    server.answers(CHATTED)
    messages = [{"role": "system", "content": "Speak German."}, {"role": "user", "content": "Hello"}]
    assert ai_client.chat(messages) == "Hallo"
    assert server.asked == [("/api/chat", {"model": "llama3:8b", "messages": messages, "stream": False})]


def test_a_string_given_to_chat_is_one_message_of_the_user(ai_client, server):
    server.answers(CHATTED)
    ai_client.chat("Hello")
    assert server.asked[0][1]["messages"] == [{"role": "user", "content": "Hello"}]


def test_a_named_model_wins_over_the_jobs(ai_client, server):
    server.answers(GENERATED)
    ai_client.generate("x", model="qwen3")
    assert server.asked[0][1]["model"] == "qwen3"


def test_without_a_model_anywhere_the_default_is_asked(ai_client, server, monkeypatch):
    monkeypatch.delenv("LLM_MODEL")
    server.answers(GENERATED)
    ai_client.generate("x")
    assert server.asked[0][1]["model"] == "llama3:8b"


def test_fields_of_the_request_and_options_of_the_model_go_where_they_belong(ai_client, server):
    server.answers(GENERATED)
    ai_client.generate("x", system="Be brief.", format="json", temperature=0, num_predict=5, timeout=20)
    assert server.asked[0][1] == {
        "model": "llama3:8b",
        "prompt": "x",
        "stream": False,
        "system": "Be brief.",
        "format": "json",
        "options": {"temperature": 0, "num_predict": 5},
    }


@pytest.mark.parametrize("call", ["generate", "chat", "generate_stream", "chat_stream"])
def test_who_asks_for_pieces_by_an_option_is_told_what_to_call(ai_client, server, call):
    with pytest.raises(ai_client.AIError, match="call generate_stream or chat_stream"):
        list(getattr(ai_client, call)("x", stream=True))
    assert server.asked == []


def test_a_stream_is_asked_for_when_its_first_piece_is_wanted(ai_client, server):
    pieces = [{"response": "하늘", "done": False}, {"response": "은", "done": True, "eval_count": 2}]
    server.answers(b"".join(json.dumps(piece).encode() + b"\n" for piece in pieces))
    stream = ai_client.generate_stream("x", temperature=0)
    assert server.asked == []
    assert list(stream) == ["하늘", "은"]
    assert server.asked[0][1]["stream"] is True
    assert server.asked[0][1]["options"] == {"temperature": 0}


def test_one_text_gives_its_vector_and_several_give_theirs_in_order(ai_client, server):
    server.answers({"embeddings": [[1.0, 0.5]]})
    assert ai_client.embed("하늘", dimensions=2) == [1.0, 0.5]
    server.answers({"embeddings": [[1.0], [2.0]]})
    assert ai_client.embed(("a", "b")) == [[1.0], [2.0]]
    assert server.asked == [
        ("/api/embed", {"model": "llama3:8b", "input": ["하늘"], "stream": False, "dimensions": 2}),
        ("/api/embed", {"model": "llama3:8b", "input": ["a", "b"], "stream": False}),
    ]


def test_ollamas_own_variable_serves_where_the_endpoint_is_not_set(ai_client, server, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", server.url.removeprefix("http://"))
    monkeypatch.delenv("AI_ENDPOINT")
    server.answers(GENERATED)
    assert ai_client.generate("x") == "하늘은 파랗다"


def test_a_slash_at_the_endpoints_end_does_no_harm(ai_client, server, monkeypatch):
    monkeypatch.setenv("AI_ENDPOINT", server.url + "/")
    server.answers(GENERATED)
    ai_client.generate("x")
    assert server.asked[0][0] == "/api/generate"


def test_a_proxy_in_the_environment_is_not_used(ai_client, server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server.answers(GENERATED)
    assert ai_client.generate("x") == "하늘은 파랗다"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": "model 'nope' not found"}, "model 'nope' not found"),
        ({"error": {"message": "quota used up"}}, "quota used up"),
        ({"error": None}, '{"error": null}'),
        ({"error": {"message": None, "code": 5}}, '{"message": null, "code": 5}'),
        (b"<h1>no</h1>", "<h1>no</h1>"),
        (b"[1]", "[1]"),
        (b"", "Not Found"),
    ],
)
def test_a_refusal_is_told_with_the_servers_words(ai_client, server, body, words):
    server.answers(body, status=404)
    with pytest.raises(ai_client.AIError) as caught:
        ai_client.generate("x")
    assert str(caught.value) == f"the model server at {server.url} answered 404: {words}"
    assert caught.value.status == 404


def test_an_error_under_status_200_is_told(ai_client, server):
    server.answers({"error": "out of GPU memory"})
    with pytest.raises(ai_client.AIError, match="out of GPU memory"):
        ai_client.generate("x")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xff not json", "is not JSON: "),
        (b"[]", "not a JSON object: "),
        (b"{}", "no text in 'response'"),
        (b'{"response": 5}', "no text in 'response'"),
    ],
)
def test_an_answer_of_another_shape_is_told(ai_client, server, body, words):
    server.answers(body)
    with pytest.raises(ai_client.AIError, match=words):
        ai_client.generate("x")


@pytest.mark.parametrize("body", [{}, {"message": "Hallo"}, {"message": {"role": "assistant"}}])
def test_a_chat_answer_without_content_is_told(ai_client, server, body):
    server.answers(body)
    with pytest.raises(ai_client.AIError, match="no text in 'content'"):
        ai_client.chat("x")


def test_a_server_that_does_not_answer_in_time_is_told(ai_client, server):
    server.answering.clear()
    with pytest.raises(ai_client.AIError, match=r"did not answer within 0\.05 s") as caught:
        ai_client.generate("x", timeout=0.05)
    assert caught.value.status is None


def test_an_endpoint_where_nothing_listens_is_told(ai_client, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("AI_ENDPOINT", endpoint)
        with pytest.raises(ai_client.AIError) as caught:
            ai_client.generate("x")
    assert str(caught.value).startswith(f"the model server at {endpoint} cannot be reached: ")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AI_ENDPOINT", "file:///etc/passwd", "AI_ENDPOINT must start with http"),
        ("OLLAMA_HOST", "ftp://a", "OLLAMA_HOST must start with http"),
        ("AI_ENDPOINT", "http://a:b", "the model server's address 'http://a:b' is invalid"),
    ],
)
def test_an_address_that_is_none_is_refused(ai_client, monkeypatch, variable, value, words):
    for name in ("AI_ENDPOINT", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ai_client.AIError, match=words):
        ai_client.generate("x")


def test_the_client_imports_the_standard_library_only(ai_client):
    imported = {line.split()[1].split(".")[0] for line in SOURCE.read_text().splitlines() if _imports(line)}
    assert imported <= {"__future__", "contextlib", "http", "json", "os", "urllib", "typing"}


def _imports(line: str) -> bool:
    return line.startswith(("import ", "from "))
