"""Small mechanisms that are independent of jobs.

* `backoff`: pauses that grow with the number of failures.
* `circuit_breaker`: stops calls to a service that keeps failing, and tries the service again after a pause.
* `token_bucket`: limits how fast something is used.
* `bounded_map`: a dictionary of limited size.
* `units`: the number of bytes in a mebibyte.
* `gateway_address`: the address of the AI gateway in the network of a run.
"""
