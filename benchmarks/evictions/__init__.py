"""Simulates the eviction of idle containers under several policies: `python -m benchmarks.evictions`.

A trace is a list of jobs with their times, functions and durations, and a budget of memory. The simulation
follows the rules of the pool. A job runs in an idle container of its function (hot), in a generic container
(warm), or in a new one (cold). A busy container takes its memory limit from the budget, an idle one the
memory that it holds. If memory is missing, the policy chooses the victims. A job waits if the busy containers
leave no room.

Read in this order: `workload` (functions, jobs, traces), `traces` (the arrival patterns), `public` (traces
from files), `simulation`, `policies`, `optimum` (the offline policy and the lower bound), `findings` (figures
and goals), `report` (table and picture), `__main__` (the command).
"""
