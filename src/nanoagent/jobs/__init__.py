"""One job, from its code to its result.

* `executor`: the steps: fetch the code, build, run, upload, report.
* `runner`: builds code and runs it, in containers of the pool.
* `admission`: which waiting job may run now, by memory and CPU.
* `outputs`: uploads the output files, and logs that are too large for the result.
* `failures`: answers from memory for code that has just failed.
* `tuner`: recommends a memoryMb.
"""
