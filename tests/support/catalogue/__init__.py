"""Small programs that fail as authors' programs do, each with the cause that its hint must name.

The programs of the modules `python`, `nodejs`, `cpp` and `go` were used to write the rules. Those of `check`
were not: they show how well the rules do with programs that they were not written for. Those of `noise` print
errors that they have handled.
"""
