"""The AI gateway: it forwards calls of runs to model servers, and counts, limits and records them.

Read the modules in the order in which a request passes them:

* `gateway.py` creates the state of a run (`run_state.py`), and one `Connection` for each connection.
* `connection.py` speaks HTTP on a connection. `client.py` knows whether the program has hung up.
* `responder.py` answers one request. It finds the route (`routes.py`), reads the body (`bodies.py`), checks
  it (`calls.py`), selects a model server (`upstreams.py`) and reserves tokens (`budgets.py`). The result is
  an `OutgoingCall` (`outgoing.py`). Requests for lists of models go to `model_lists.py` instead.
* `translation/` translates calls of Ollama's API for model servers that have only OpenAI's API.
* `exchange.py` sends one call to the model server and settles it. `relay.py` passes the answer on to the
  program, and `metering.py` counts the tokens in it.
* `upstreams.py` is the HTTP client of model servers; `addresses.py` knows their paths. With AI_REPLAY,
  `replay.py` answers instead of a server, from files that `recording.py` has written.

The other modules serve several of these. `untrusted_json.py` names the errors of invalid documents.
`refusals.py` and `responses.py` have the errors and the responses of the gateway. `limits.py` has the limits
from the settings, and `cpu_time.py` limits the CPU time of a run. `shared.py` has the objects that all runs
share. `inspection.py` examines the model servers for `check` and `doctor`. `dev.stub_model_server` is a model
server without a model.

Of a program's request, only the JSON body reaches a model server, and only if the call is known. The headers
and the query do not, and the program cannot choose the address.
"""
