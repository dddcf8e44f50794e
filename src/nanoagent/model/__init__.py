"""The words of the worker: values and tables that all other packages use. It imports none of them.

* `job`: one SQS message, checked field by field. `envelopes`: wrappers of other services, for the log.
* `result`: the outcome table and the result document.
* `returns`: the reasons for which a message goes back to the queue.
* `errors`: every exception that the worker raises on purpose.
* `text`: a sentence for authors of functions, in every language of a result.
* `payload`, `object_names`: advice for authors. `expectations`: what a setting may be, in words.
"""
