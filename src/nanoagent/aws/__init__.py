"""Amazon Web Services.

* `clients`: opens clients, and classifies their errors. Only this module uses aiobotocore.
* `interruption`: EC2's notice that the instance is about to end.
"""
