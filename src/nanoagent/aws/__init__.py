"""Amazon Web Services.

* `clients`: opens the AWS clients. Only this package imports aiobotocore or botocore.
* `failures`: classifies the errors of AWS calls, and limits the time of calls.
* `revalidation`: asks S3 whether objects have changed, without an SDK call. `sigv4` signs these requests.
* `interruption`: watches for EC2's notice that the instance will be stopped.
"""
