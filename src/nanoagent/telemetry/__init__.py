"""What the worker tells about itself: metrics, logs, health, and the service manager's notifications.

Nothing here may fail or delay a job. Prometheus pulls (`metrics`, served by `status`), CloudWatch is
pushed to in the background (`cloudwatch`), logs go to standard error (`logs`), systemd is told over its
datagram socket (`systemd`). Label and dimension values that users make are bounded where they enter.
"""
