"""One job, from its code to its result.

* `executor`: the steps: fetch the code, build, run, upload, report.
* `runner`: builds code and runs it, in containers of the pool.
* `admission`: makes jobs wait for room in the budget of memory and CPU. `admission_rules`: its decisions.
* `outputs`: uploads the output files, and logs that are too large for the result.
* `failures`: answers from memory for code that has just failed.
* `tuner`: recommends a memoryMb.
"""
