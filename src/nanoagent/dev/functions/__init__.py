"""The commands for deployed functions: `nanoagent deploy`, `invoke` and `functions`.

A deployed function has a record (`model.function_record`) in the code bucket. The modules:

* `records`: the interface of a store of records, and updates that lose no version.
* `s3_records`: that store on S3.
* `choices`: the settings that a command line names, and the differences between two versions.
* `zip_index`: the files of a zip in the bucket, compared with those of a folder.
* `deploy`, `invoke`, `listing`: one command each.
* `output`: the texts that they share.
"""
