"""`nanoagent doctor` and `nanoagent check`: find faults of the host and of the services before jobs do.

`check` shows the settings and asks every part whether a worker could start:

* `check`: the probes of each part and the verdict.
* `variables`: finds misspelt names of settings; `doctor` uses it, too.

`doctor` examines the host and the services in detail. Each finding has a remedy:

* `facts`: plain values about the host, Docker and the services.
* `gather`: collects the facts. It reads files, asks services and makes containers.
* `judge`: makes findings from the facts. Pure functions, so that tests can use recorded facts of other hosts.
* `finding`: a finding: its area, severity, text and remedy.
* `configuration`: judges the settings, and replaces invalid ones.
* `examination`: gathers and judges everything, in parallel and with deadlines.
* `report`: prints the findings, without secrets and control characters.

The doctor changes nothing, except by harmless probes: a multipart upload that is aborted, keys on Redis that
expire after a second, and a container that is removed.
"""
