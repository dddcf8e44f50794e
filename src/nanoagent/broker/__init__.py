"""The job queue.

* `base`: the interface `Broker`: receive messages, and settle each delivery by ack, nack or dead-letter.
* `sqs`: the broker on Amazon SQS. Its parts:

  * `sqs_queue`: the queue's client and URL; limits the time of each call.
  * `sqs_messages`: converts messages to deliveries, and builds requests.
  * `sqs_leases`: renews the leases on messages, and ends leases that cannot be renewed.
  * `sqs_deletions`: deletes acknowledged messages in batches.
  * `sqs_redrive`: reads the queue's redrive policy.

* `fifo`: keeps the order of message groups, with any broker.
* `memory`: a broker in this process, for tests.
"""
