"""The composition root: builds every part of the worker from the settings. Only this package builds adapters.

* `assembly`: builds the worker. Read this module first: it shows the order of the start.
* `telemetry`: metrics, health, background tasks and CloudWatch.
* `interruption`: waits for EC2's interruption notices, and drains the worker.
* `services`: the queue, the buckets, Redis and the spool. `redis_address`: the address of Redis.
* `runs`: the parts that run code: caches, pool, admission, network, executor.
* `containers`: Docker, the images, the isolation level and the pool.
* `code`: the caches of code and programs, and their folders.
* `network`: the connections of runs, and the gateway to model servers.
* `self_test`: the self-test of the worker, and the command `nanoagent selftest`.
* `closing`: limits on the time that closing the worker takes.

The code that builds a part registers how the part is closed in an `AsyncExitStack`. So parts are closed in
reverse order. In all functions, this stack is the argument `opened`.
"""
