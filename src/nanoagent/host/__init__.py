"""The machine and the process that the worker runs on.

* `background`: starts background tasks, and restarts those that fail.
* `shielding`, `threads`: work that a cancellation does not interrupt, and blocking work.
* `resources`: descriptors, processes, inodes and cgroups: limits and readiness.
* `disk`: free space of the disks that jobs need.
* `private_dirs`: folders that only this user can use.
* `untrusted_fds`: file descriptors received from containers.
"""
