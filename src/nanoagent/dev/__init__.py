"""Commands for development and for senders. The worker does not import this package.

* `demo`: the command `nanoagent demo`.
* `develop`: the command `nanoagent dev`.
* `environment`: local services and a worker that uses them, for both commands.
* `agent_process`: a worker in a separate process. This package calls it the agent.
* `local_services`: the embedded stack: SQS, S3, CloudWatch and Redis on this machine.
* `stub_model_server`: a model server without a model.
* `sender`: the commands `nanoagent send`, `result` and `cancel`.
"""
