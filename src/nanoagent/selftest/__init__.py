"""The self-test: the worker attacks its own sandbox in every runtime, by the way that jobs take.

* `guards`: the attacks and the expected answers: one table for all languages. `programs/`: the attackers.
* `suite`: one self-test of one runtime.
* `keeper`: repeats the self-test on an idle worker, and stops jobs of a runtime that fails it.
* `report`: the result for people and for machines.
"""
