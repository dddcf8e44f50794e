"""The commands `nanoagent replay` and `retry`: run the job of a capsule again, here or on a worker.

* `source`: finds a capsule in a file or in S3, with its code and its recorded model calls.
* `bundle`: one zip with all three, for another machine.
* `preparation`: the settings and the message of the local run.
* `difference`: compares the recorded result with the new one. Pure functions.
* `report`: the comparison for a person, or as JSON.
* `command`, `retry`: one call of each command.
"""
