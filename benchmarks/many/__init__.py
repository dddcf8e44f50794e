"""Measures a worker that has many functions: `make bench-many`.

Read in this order: `arrivals` (the mixed load), `measure` (the measurements), `summary` (the figures and
goals), `__main__` (the command).
"""
