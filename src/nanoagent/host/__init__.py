"""The machine and the process that the worker runs in.

* `background`: starts background tasks, and restarts those that fail.
* `shielding`: runs work to its end even if the caller is cancelled.
* `threads`: blocking work in threads.
* `cached_check`: a readiness check that looks at the host at most once in an interval.
* `resources`: file descriptors of the worker; processes, open files and control groups of the machine.
* `disk`: free space and inodes of the disks that jobs need.
* `private_dirs`: folders that only this user can change.
* `untrusted_fds`: receives and closes file descriptors that came from containers.
"""
