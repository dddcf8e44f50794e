"""One job, from its code to its result. The worker publishes the result.

The modules in the order in which a job passes them:

* `executor`: the steps: fetch the code, build, run, upload, make the result. `attempt`: one attempt to run a
  job, which the steps share.
* `builder`: builds the programs of compiled languages. `runner`: runs a program once. `environment`: its
  environment variables. `source`: reads its code. `parts`: the collaborators of builder and runner.
* `byte_code`: compiles Python code in the background, and finds the byte code for later runs.
* `acquisition`: gets room and a container for builds and runs. `admission`: makes them wait for room in the
  budget of memory and CPU. `admission_rules`: decides which of them get room.
* `outputs`: uploads output files, and the full stdout and stderr of a large result. `output_names`: valid
  names and media types. `shortening`: cuts a result that is too large.
* `tuner`: recommends a memoryMb.
* `failure_cache`: lets a job fail at once if its code has just failed.
"""
