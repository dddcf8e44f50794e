"""The object store, for code and output files.

* `base`: the port. `s3`: Amazon S3 and compatible stores.
* `resilient`: a circuit breaker in front of a store.
"""
