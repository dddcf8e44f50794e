"""How the worker reports on itself. Nothing in this package may fail or delay a job.

* `metrics`: the metrics of Prometheus, with bounded label values.
* `status`: the health of the worker, and the HTTP server of `/metrics`, `/healthz` and `/readyz`.
* `cloudwatch`: sends peak memory to CloudWatch, in the background.
* `logs`: writes logs to standard error, without secrets.
* `systemd`: notifies the service manager.
"""
