"""Collects the facts about the host, Docker and the services. Nothing here judges them.

Every request has a deadline. A failure is recorded as a fact, so no function here raises.

* `host`: files of the kernel, folders, limits and the clock.
* `docker`: the engine, the images, and the isolation that a container could provide.
* `answers`: sends a request to a service, and records the answer.
* `aws`: requests to SQS, S3 and CloudWatch that leave no changes.
* `redis`: the commands of the worker, on keys that expire after a second.
"""
