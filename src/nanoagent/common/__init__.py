"""Small mechanisms that know nothing of jobs. Each exists once.

* `backoff`: pauses that grow with failures.
* `circuit_breaker`: opens after failures in a row, and lets one trial through after a pause.
* `token_bucket`: limits how fast something may be used.
* `bounded_map`: a map that forgets its oldest entries.
* `units`: the mebibyte. `gateway_address`: where programs reach the AI gateway.
"""
