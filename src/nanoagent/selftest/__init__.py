"""The self-test: the worker attacks its own sandbox in every runtime.

A self-test runs small programs in the same way as jobs. Each program attempts forbidden operations and
reports the results. An isolation check passes if the sandbox refused all operations of the check.

* `checks`: the table of the operations and of the expected answers, for all languages.
* `programs/`: the programs that attempt the operations, one for each language.
* `suite`: runs all isolation checks on one runtime.
* `schedule`: repeats the self-test on an idle worker, and blocks a runtime that fails it.
* `report`: prints the results as a table, or as a document for JSON.
"""
