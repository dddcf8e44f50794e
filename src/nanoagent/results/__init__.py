"""The result store: Redis stores and announces results, and holds the claims on requests.

* `base`: the port. `redis` is the real store, `memory` the one for tests.
* `scripts`: the Lua scripts, which Redis runs in one step each.
* `cancellations`: receives cancellations.
* `spool`: keeps results on disk until Redis takes them.
* `failures`, `tls_probe`: sentences for operators about faults of Redis.
"""
