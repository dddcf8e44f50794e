"""The command `nanoagent exec`: runs a function here as a worker would, without queue, S3 or Redis.

* `local_worker`: the worker's parts that run code, with an object store in local folders.
* `command`: one call of the command.
* `summary`: how the run ended, for a person.
"""
