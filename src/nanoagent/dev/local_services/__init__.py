"""The embedded stack: SQS, S3, CloudWatch and Redis on this machine, for `nanoagent dev`, the demo and tests.

moto's server replaces the AWS services; Redis is a real `redis-server` or `valkey-server`. Both are child
processes that listen on free ports of 127.0.0.1 and keep their data only in memory.

    async with EmbeddedStack(folder) as stack:
        environment = os.environ | stack.environment()   # for the process of a worker

* `stack`: starts and stops all services together.
* `servers`: the commands that start Redis and moto, and their readiness.
* `service`: one child process with its log.
* `calls`: runs calls of AWS with shared clients.
* `queues`: the queues of SQS.
* `buckets`: the buckets of S3.
"""

from nanoagent.dev.local_services.service import StackError
from nanoagent.dev.local_services.stack import EmbeddedStack

__all__ = ["EmbeddedStack", "StackError"]
