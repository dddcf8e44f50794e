"""NanoAgent: a worker for functions as a service.

One process, one asyncio loop. The path of a job, and the package that owns each step::

    SQS ─► broker ─► worker ─► jobs ─► code ─► container ─► supervisor ─► results, storage ─► broker
           lease     in flight  steps   tree    warm pool    session       result, outputs     ack last

* **broker**: a message is leased from its receipt until it is settled: acknowledged, returned to the queue
  or dead-lettered.
* **worker**: one object owns a delivery until it is settled. A request is claimed on Redis before it runs:
  one worker may answer it, and a fencing token keeps a late one from replacing anything.
* **jobs**: a job holds a part of the budget of memory and CPU only while it builds or runs.
* **container**: a container serves one function (its ID, code and memory size), and one run at a time. So its
  control group is that of the run. It is made ahead of time, and removed at the first doubt.
* **supervisor**: process 1 of the container (`src/nanosupervisor`) starts the program, enforces its limits,
  reports its end and removes its leftovers. The worker checks all that comes out of a container.
* **network**, **ai**: a run reaches the worker through sockets of its network: models through the gateway,
  and hosts of the internet through the egress filter.
* **results**, **storage**: output files are uploaded, then the result is stored and published, then the
  message is deleted. After a crash, the next worker goes on from the last finished step.

What the user's code did is a value (`model.result.Outcome`). What failed on the worker's side is an exception
(`model.errors.PlatformError`). `worker.settlement` turns both into what happens to the message.

Read in this order: `model.job`, `model.result`, `config`, `worker`, `jobs.executor`, `jobs.runner`,
`container.pool`, `supervisor.session`, `src/nanosupervisor/supervisor.c`, `network.listeners`, `ai.gateway`;
then `wiring`, which builds the parts, and `app`, the process.
"""

__version__ = "0.1.0"
