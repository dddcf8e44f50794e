"""A model server without a model, for tests and the demo.

`python -m nanoagent.dev.stub_model_server` starts it. It speaks Ollama's API (github.com/ollama/ollama)
and OpenAI's (platform.openai.com: chat completions, completions, responses, embeddings, models). An answer
depends on the question only: it repeats the question, or counts (`count to 5`). A word is a token, so that
a test knows every sum of tokens in advance.

A model whose name begins with `fault/` fails in the way that the rest of its name says; see `faults.FAULTS`.
`StubModelServer.log` has the requests, and so has `GET /stub_model_server/log`.

* `server`: the HTTP server: routes, keys, and errors that every API has.
* `ollama`, `openai`: the routes of one API, and its document formats.
* `replies`: prompts, answers and their tokens, without a document format.
* `streaming`: responses that are streams.
* `faults`: models that fail.
* `requests`: the log of requests.
"""

from nanoagent.dev.stub_model_server.replies import answer_words, tokens, vector
from nanoagent.dev.stub_model_server.server import StubModelServer

__all__ = ["StubModelServer", "answer_words", "tokens", "vector"]
