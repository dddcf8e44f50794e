"""The commands for jobs that were sent before: `nanoagent jobs`, `result`, `cancel` and `outputs`.

They need Redis, and `outputs` also needs S3. docs/jobs.md describes them.

* `listing`: reads recent jobs from the index in Redis. `table`: prints them.
* `command`: the command `jobs`.
* `result`, `cancel`, `outputs`: the commands of these names.
* `download`: writes output files into a folder. Their names are untrusted.
"""
