"""The AI gateway: it forwards calls of runs to model servers, and counts, limits and records them.

One request of a program passes these modules, in this order:

* `gateway.py` creates the `run_state.py` of a run, and a connection for each of its sockets.
* `connection.py` speaks HTTP on one connection. `client.py` knows whether the program has hung up.
* `responder.py` answers one request: it finds the route (`routes.py`), reads the body (`bodies.py`), checks
  it (`calls.py`) and reserves tokens (`budgets.py`). `model_lists.py` answers requests for lists of models.
* `upstreams.py` selects the model server and sends the call to its address (`addresses.py`). With AI_REPLAY,
  `replay.py` answers instead, from files that `recording.py` has written.
* `translation/` translates calls of Ollama's API for servers that have OpenAI's API only.
* `exchange.py` is one call to a model server. `relay.py` passes its answer on, and `metering.py` counts the
  tokens in it.

`refusals.py` has the errors of the gateway, `limits.py` the settings, `cpu_time.py` the limit on the time of
the event loop, and `shared.py` the objects that all runs share. `inspection.py` examines the model servers
for `check` and `doctor`. `dev.stub_model_server` is a model server without a model.

Only the JSON of a known call reaches a model server: no header, path or address from a job.
"""
