"""Other people's code: libraries and functions as authors ship them, each run by a real worker.

`make libraries` fetches each library from the package registries that pip, npm and apt are set to, packs it
with a small program as Info-ZIP does, runs it twice and prints a table: the first run and a hot run. A
library that does not work is a defect of the worker until the table's last column says otherwise.

Read in this order: `catalogue` (the libraries and their programs), `install` (fetching), `__main__`.
"""
