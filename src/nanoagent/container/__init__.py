"""Containers: created in advance, bound to one function version, measured, and removed.

* Pool: `pool` lends containers to jobs; its docstring lists its parts. `policy` has its decisions.
* Run: `execution` runs a program in a container. `judgment` decides how the run ended.
* Container: `spec` has the settings that confine a container. `work_directory` is the folder that is mounted
  into a container. In that folder, `supervisor_socket` awaits the supervisor. `worker_home` is the folder of
  one worker, with the work directories of its containers.
* Engine: `base` is the interface to a container engine. `docker` implements it, with `docker_client`.
  `orphans` removes the containers of dead workers. `engine` compares Docker with the settings.
* Host: `cgroup` reads counters of the kernel and sets limits. `isolation` finds the isolation level that is
  possible on this host. `capability` limits the use of the worker's one capability.
"""
