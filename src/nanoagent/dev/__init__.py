"""Commands for development and for senders. The worker does not import this package.

* `demo`: the command `nanoagent demo`.
* `develop`: the command `nanoagent dev`.
* `environment`: an embedded stack with an agent, for both commands.
* `agent_process`: an agent in a process of its own.
* `local_services`: SQS, S3, CloudWatch and Redis on this machine.
* `stub_model_server`: a model server without a model.
* `sender`: the commands `nanoagent send`, `result` and `cancel`.
"""
