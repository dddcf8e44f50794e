"""Amazon Web Services.

* `clients`: opens the AWS clients. Only `clients` and `failures` import aiobotocore or botocore.
* `failures`: classifies the errors of AWS calls, and limits the time of calls.
* `interruption`: watches for EC2's notice that the instance will be stopped.
"""
