"""The result store: Redis stores and publishes results, and holds the claims on requests.

* `base`: the interfaces `ResultStore` and `Cancellations`.
* `redis`: the result store on Redis. `memory`: a result store in this process, for tests.
* `connections`: sends commands to Redis, with a time limit, retries and reconnects.
* `scripts`: the Lua scripts; Redis runs each of them in one step.
* `job_index`: the entries of the index of jobs, which `nanoagent jobs` reads.
* `cancellations`: receives cancellations from Redis, and the news that somebody follows a job.
* `live_log`: the interfaces of live logs. `redis_live_log` and `memory` have their implementations.
* `spool`: keeps results on disk until Redis takes them.
* `server`: the address and the credentials of a Redis server, and the diagnosis of its failures.
* `failures`: the kinds of failures, each with a remedy for the operator.
* `tls_probe`: finds out whether a port expects TLS.
"""
