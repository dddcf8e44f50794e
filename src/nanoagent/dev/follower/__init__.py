"""Follows jobs: prints their output while they run.

* `events`: turns the records of a live log, and the result, into what a follower sees. Pure functions.
* `following`: reads a live log, renews the follower's lease, and ends with the result of the job.
* `printing`: prints events, for a person or as JSON.
* `command`: `nanoagent logs`.
* `live`: the output of a job that `send --follow` or `invoke --follow` sends.
"""
