"""The four runtimes: Python, Node.js, C++ and Go.

* `recipes`: the entry file, the build command and the start command of each.
* `error_line`: finds the error's first line in a program's standard error, or in a build's messages.
* `build_hint`: the hint of a result for a failed build.
* `hints`: the hint of a result for a failed run.
* `compile_python`: compiles Python code; it runs in a container, and the worker does not import it.

All functions of the other modules are pure.
"""
