"""The values and tables that all other packages use. This package imports only the package `common`.

* `job`: a job and its function version. `message`: parses a message into a job. `envelopes`: recognises
  messages in the format of another service, for the log.
* `result`: the outcome table and the result document.
* `returns`: the reasons for which a message is returned to the queue.
* `errors`: the exceptions that several packages share.
* `text`: a sentence for authors of functions, in every language of a result.
* `payload`, `object_names`: hints for authors. `expectations`: the valid values of a setting, as a text.
"""
