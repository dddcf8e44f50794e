"""Containers: made ahead of time, bound to one function, measured and thrown away.

* `pool`: the warm pool; its docstring lists the parts and says who owns what. `policy`: its decisions.
* `spec`: the settings of a container: the outer wall.
* `execution`: one run in a container, and how it ended.
* `slot`: the work directory that is mounted into a container.
* `cgroup`: limits and counters of the kernel.
* `base`: the port to a container engine. `docker`: Docker. `engine`: whether Docker fits the settings.
* `isolation`: the isolation level that this host allows. `capability`: the one capability of the worker.
"""
