"""A model server without a model, for tests and the demo.

`python -m nanoagent.dev.stub_model_server` starts it. It speaks Ollama's API (github.com/ollama/ollama) and
OpenAI's (platform.openai.com: chat completions, completions, responses, embeddings, models). An answer
depends only on the question: it repeats the question, or counts (`count to 5`). Each word is one token, so
that a test can compute all numbers of tokens.

A model whose name begins with `fault/` fails; the rest of the name selects the failure, see `faults.FAULTS`.
`StubModelServer.log` and `GET /stub_model_server/log` show the requests.

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
