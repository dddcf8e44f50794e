"""Judges facts: pure functions that return findings. Facts of other hosts are recorded in tests.

* `host`: the kernel, namespaces, security modules, limits and the clock.
* `cgroups`: control groups: limits and measurements of memory.
* `disks`: free space, and properties of file systems.
* `docker`: the engine, the images and the isolation.
* `aws`: failures that all AWS services share, CloudWatch, and the difference to the clock of AWS.
* `sqs`, `s3`: permissions and settings of the queue and of the buckets.
* `redis`: the server, the permissions, and whether results remain until they are read.
"""
