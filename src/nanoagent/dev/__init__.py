"""Commands and services for development and for senders. Nothing of the worker imports this package.

* `demo`: `nanoagent demo` and `nanoagent dev`.
* `local_services`: SQS, S3, CloudWatch and Redis on this machine.
* `stub_model_server`: a model server without a model.
* `sender`: `nanoagent send`, `result` and `cancel`.
"""
