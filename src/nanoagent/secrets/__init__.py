"""Resolves references to secrets in the field `env` of jobs (docs/adr/0038).

* `base`: the interface of a store of secrets. `aws` has Systems Manager and Secrets Manager, `memory` is for
  tests.
* `cache`: reads each secret once for all jobs that need it, and keeps it for SECRETS_CACHE_SECONDS.
* `resolver`: checks the rules of SECRETS_ALLOW, and returns the values for one job.
* `explanations`: the texts for the sender of a job whose secret cannot be used.
* `probe`: asks whether the worker may read secrets, for `nanoagent check`.
* `masking`: hides the values in the output of the program.

A value is only in the memory of the worker: in the cache, and in the attempt while the job runs. No
exception, no log and no metric has a value.
"""
