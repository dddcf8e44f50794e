"""What a run's calls of models go through: the gateway, and what it counts, allows and writes down.

Read `gateway.py` first: one connection of a run, one request at a time. `calls.py` is the table of what a run
may ask for, and reads and rewrites a request; `budgets.py` says whether there is room for it; `upstreams.py`
carries it to a model server at one of its `addresses.py` (or `recording.py` answers from a file);
`translation.py` translates both for a server that has OpenAI's API only; `metering.py` reads the usage out
of the answer as it passes. `dev.stub_model_server` is a model server without a model.

Nothing that a job sends reaches an upstream but the JSON of a known call: no header, no path, no address.
"""
