"""NanoAgent: a worker for functions as a service.

Theory of operation
-------------------
One process, one asyncio loop. A job's way through it, and the module that owns each step::

    SQS ─► broker ─► worker ─► executor ─► code ─► container ─► runtime ─► sink / storage ─► broker
           lease     intake    one job     zip→tree  warm pool   session    result, outputs   ack last

* A message is **leased**: from receipt until it is settled (acknowledged, given back or buried) the
  broker keeps its visibility timeout from running out.
* A request is **claimed** on Redis before it is run: one worker may answer it, and a fencing token keeps a
  late one from publishing or overwriting anything (`sink`).
* A job takes a **slot** (memory and CPU of the worker's budget, `slots`) only while it builds or runs;
  waiting for S3 costs none.
* A **container** serves one function (id, code digest, memory size) and one run at a time, so that its
  cgroup is the run's. It is made ahead of time by the pool and thrown away at the first doubt.
* Inside it, process 1 is the **supervisor** (`src/nanosupervisor`), which starts the program, keeps its
  limits, reports what happened and wipes what is left. The agent believes lengths and counts only after
  checking them: what comes out of a container is hostile.
* What a run may reach comes to the agent as connections on sockets of the run's own network: models by the
  **gateway** (`ai`), names and TCP of the internet by a filter (`network`).
* What the user's code did is a value (`result.Outcome`); what our side did wrong is an exception
  (`errors.PlatformError`). The table in `result` decides what each means for the message.

Order of effects: outputs uploaded → result stored and published → message deleted. A crash anywhere
repeats from the last finished step.

Read in this order: `job`, `result`, `config`, `worker`, `executor`, `runner`, `container.pool`,
`runtime.session`, `src/nanosupervisor/supervisor.c`, `network.listeners`, `ai.gateway`, then `agent`, which
puts the parts together.
"""

__version__ = "0.1.0"
