"""The object store, for code and output files.

* `base`: the interface `ObjectStore`.
* `s3`: the object store on Amazon S3 and compatible services. `s3_uploads` stores large files in parts, and
  `s3_errors` classifies S3's error codes.
* `folder`: an object store in a local folder, for `nanoagent exec` and tests.
* `default_buckets`: checks that the buckets of the settings can be used.
* `resilient`: an object store that stops calls while the service is down. `health` decides whether the
  service is down.
"""
