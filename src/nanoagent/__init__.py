"""NanoAgent: a worker for functions as a service.

A worker is one process with one asyncio loop. The path of a job, and the package that owns each step::

    SQS ─► broker ─► worker ─► jobs ─► code ─► container ─► supervisor ─► results, storage ─► broker
           lease     in flight  steps   tree    warm pool    session       result, outputs     ack last

* **broker**: the worker has a lease on a message until the message is settled: acknowledged, returned to the
  queue, or dead-lettered.
* **worker**: one object owns a delivery until it is settled. A worker claims a request on Redis before it
  runs the job. Only the worker with the newest claim can answer: a fencing token makes Redis refuse the
  answers of older claims.
* **jobs**: a job holds a part of the budget of memory and CPU only while it builds or runs.
* **container**: a container serves one function (its ID, code and memory size), and one run at a time. So the
  control group of the container measures and limits that one run. Containers are created before jobs need
  them, and are removed when their state is in doubt.
* **supervisor**: the supervisor in the container (`src/nanosupervisor`) starts the program, enforces its
  limits, reports its end and removes its leftovers. The worker checks all data that comes out of a container.
* **network**, **ai**: a run reaches models through the gateway, and the internet through the egress filter.
  Both are in the worker, behind listening sockets in the network of the run.
* **secrets**: a job may refer to secrets. The worker reads them before the run, and hides their values in the
  output.
* **results**, **storage**: the worker uploads the output files, then stores and publishes the result, then
  deletes the message. If the worker crashes before the result is stored, the next worker runs the job again.
  If it crashes later, the next worker publishes the stored result again and deletes the message.

The other packages: `wiring` builds all parts, `config` has the settings, `model` the data types, `host`,
`aws` and `common` are libraries, `languages` has the rules of each language, `telemetry` reports on the
worker, `selftest` tests the isolation of runs, and `doctor` and `dev` have commands for operators and
developers.

How the user's program ended, also with an error, is a value (`model.result.Outcome`). Code that cannot be
started (`model.errors.Rejected`) is an exception, and so is a failure of the worker or its services
(`PlatformError`). In all cases, `worker.settlement` decides how the delivery ends.

Read in this order: `model.job`, `model.result`, `config`, `worker`, `jobs.executor`, `jobs.runner`,
`container.pool`, `supervisor.session`, `src/nanosupervisor/supervisor.c`, `network.listeners`, `ai.gateway`;
then `wiring.assembly`, which builds the parts, and `app`, the process.
"""

__version__ = "0.1.0"
