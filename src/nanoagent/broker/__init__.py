"""The job queue.

* `base`: the port: receive, and then one of ack, return or dead-letter for each delivery.
* `sqs`: Amazon SQS: long polling, renewed leases, batched deletes.
* `fifo`: keeps the order of FIFO message groups, before any broker.
* `memory`: the queue for tests.
"""
