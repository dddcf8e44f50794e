"""Runs libraries and programs of other projects on a real worker.

`make libraries` fetches each library from the package registries of pip, npm and apt, and packs it with a
small program with Info-ZIP. It prints a table with the times of the first run and of a hot run. A library
that does not work is a defect of the worker, unless the last column of the table names another cause.

Read in this order: `catalogue` (the libraries and their programs), `install` (fetching), `__main__`.
"""
