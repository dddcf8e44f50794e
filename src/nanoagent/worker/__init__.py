"""The worker: takes messages from the queue and settles each of them.

One task belongs to each delivery. `InFlight` owns the delivery from its receipt until it is settled::

    RECEIVED → WAITING → RUNNING → FINISHING → SETTLED
                 ↕
              BEHIND

A delivery is `BEHIND` while it waits for another delivery: of the same request, or earlier in its message
group. It is `RUNNING` when its job has room in the budget of memory and CPU. In `FINISHING` nothing
interrupts it any more. `state` has the table of the transitions.

The end of the work on a delivery is a value (`endings`). One pure function decides, from that value and the
outcome table, what happens to the message: `settlement.decide`. `Settler` carries the decision out.

Read in this order:

* `worker`: the worker as a whole: start, stop, readiness.
* `intake`: receives messages when there is room for more jobs.
* `inflight`: the life of one delivery. `state`: how far it has come.
* `answer`: claim, run, publish. `duplicates`, `publishing`: parts of it. `conclusion`: the end.
* `endings`, `settlement`, `retry`: the ways to end, the decision, and the delays.
* `fairness`: how a function over its concurrency limit is kept from filling the worker.
* `drain`, `lifecycle`, `durations`: how the worker stops.
* `readiness`: reasons not to take jobs.
"""
