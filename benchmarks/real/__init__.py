"""Compares real functions with the bare program and with `docker run`: `make bench-real`.

Each function is a folder beside this file:

* `function.toml`: its runtime, a sentence about it, its packages and its memory;
* `code`: its code, without the packages;
* `input.json`: its input;
* `expected.txt`: its standard output, the same in every run.

The kinds of functions are those of the public benchmark suites for serverless platforms. The code is our
own. Packages come from the registries of pip and npm, in fixed versions, once for each machine.

Read in this order: `catalogue` (the functions), `vendor` (their packages), `measure` (the arms and their
samples), `summary` (the figures and goals), `__main__` (the command).
"""
