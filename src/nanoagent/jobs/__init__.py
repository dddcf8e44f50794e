"""One job, from its code to its result. The worker publishes the result.

The way of a job, in reading order:

* `executor`: the steps: fetch the code, build, run, upload, make the result. `attempt`: one attempt to run a
  job, which the steps share.
* `builder`: builds the programs of compiled languages. `runner`: runs a program once. `environment`: its
  environment variables. `source`: reads its code. `parts`: the collaborators of both.
* `acquisition`: how builds and runs get room and a container. `admission`: makes them wait for room in the
  budget of memory and CPU. `admission_rules`: its decisions.
* `outputs`: uploads output files and large logs. `output_names`: valid names and media types. `shortening`:
  cuts a result that is too large.
* `tuner`: recommends a memoryMb.
* `failure_cache`: answers jobs from memory whose code has just failed.
"""
