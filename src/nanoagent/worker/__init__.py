"""The worker: takes messages from the queue and settles each of them.

One task belongs to each delivery. `InFlight` owns the delivery from its receipt until it is settled::

    RECEIVED → WAITING → RUNNING → FINISHING → SETTLED
                 ↕
              BEHIND

A delivery is `BEHIND` while it waits for another delivery: of the same request, or earlier in its message
group. It is `RUNNING` once its job is admitted to the budget of memory and CPU. In `FINISHING` the work on it
cannot be cancelled any more. `state` has the table of the transitions.

The end of the work on a delivery is a value (`endings`). One pure function decides, from that value and the
outcome table, what happens to the message: `settlement.decide`. `Settler` carries the decision out.

The modules in the order in which a delivery passes them:

* `worker`: the worker as a whole: start, stop, and one `InFlight` for each delivery. `parts`: its
  collaborators. `shared`: the objects that all deliveries share.
* `intake`: receives messages. `capacity`: decides how many. `fairness`: prevents a function that has reached
  its concurrency limit from filling the worker with waiting jobs.
* `inflight`: the life of one delivery. `state`: its phase.
* `answer`: claim, run, publish; cancellation by the sender. `duplicates`: other deliveries of the same
  request in this worker. `claiming`: takes the claim. `publishing`: stores and publishes the result.
* `conclusion`: the last step: settle the message. `endings`: the ways to end. `settlement`: the decision.
  `retry`: the delays of returned messages. `settler`: calls the queue, also for unreadable messages and after
  the last receipt. `accounting`: metrics and log.

Other modules:

* `drain`: how the worker stops. `lifecycle`: whether it is stopping. `durations`: how long jobs take, so
  that a drain waits only for jobs that will finish in time.
* `readiness`: runs the checks that must pass before the worker takes jobs. `worker` has its own checks;
  `wiring` adds those of other parts.
"""
