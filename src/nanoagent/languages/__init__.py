"""The four runtimes: Python, Node.js, C++ and Go.

* `recipes`: the entry file, the build command and the start command of each.
* `error_line`: finds the line of standard error that says what went wrong.
* `build_hint`: advice about a failed build.
* `hints`: the hint of a result, from the facts of the run. Pure functions.
"""
